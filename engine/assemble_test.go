package engine

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/executor"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/storage"
)

// at is a time, day days after the base image.
func at(day int) time.Time { return time.Date(2020, 1, 1+day, 0, 0, 0, 0, time.UTC) }

// layerAt is a layer of that day.
func layerAt(day int) storage.Layer {
	name := fmt.Sprint("layer", day)
	return storage.Layer{ID: storage.LayerID(name), Identity: storage.DigestBytes([]byte(name)), Created: at(day)}
}

func entry(createdBy string, step int) plan.HistoryEntry {
	return plan.HistoryEntry{CreatedBy: createdBy, Comment: "c", Step: step}
}

func TestHistoryHasTheTimesOfTheLayers(t *testing.T) {
	created, zero := at(0), 0
	platform := imageconfig.Config{OS: "linux", Architecture: "amd64"}
	based := platform
	based.Created, based.History = &created, []imageconfig.History{{Created: &created, CreatedBy: "base"}, {Created: &created, CreatedBy: "label", EmptyLayer: true}}
	image := plan.Source{Image: &zero}
	cases := map[string]struct {
		stages []plan.Stage
		layers []storage.Layer
		want   []string // "day text", "-" for an entry without a time
		last   string
	}{
		"an empty entry has the time before it": {
			[]plan.Stage{{Base: image, Config: based, Steps: make([]plan.Step, 2), History: []plan.HistoryEntry{entry("env", -1), entry("run", 0), entry("cmd", -1), entry("copy", 1)}}},
			[]storage.Layer{layerAt(0), layerAt(1), layerAt(2)},
			[]string{"1 base", "1 label", "1 env", "2 run", "2 cmd", "3 copy"},
			"3",
		},
		"scratch has no time before its first layer": {
			[]plan.Stage{{Base: plan.Source{Scratch: true}, Config: platform, Steps: make([]plan.Step, 1), History: []plan.HistoryEntry{entry("env", -1), entry("run", 0)}}},
			[]storage.Layer{layerAt(4)},
			[]string{"- env", "5 run"},
			"5",
		},
		"nothing but a config has no time": {
			[]plan.Stage{{Base: plan.Source{Scratch: true}, Config: platform, History: []plan.HistoryEntry{entry("env", -1)}}}, nil, []string{"- env"}, "-",
		},
		"a stage on a stage has the history of both": {
			[]plan.Stage{
				{Base: image, Config: based, Steps: make([]plan.Step, 1), History: []plan.HistoryEntry{entry("run", 0)}},
				{Base: plan.Source{Stage: &zero}, Config: platform, Steps: make([]plan.Step, 1), History: []plan.HistoryEntry{entry("env", -1), entry("copy", 0)}},
			},
			[]storage.Layer{layerAt(0), layerAt(2), layerAt(1)},
			[]string{"1 base", "1 label", "3 run", "3 env", "2 copy"},
			"2",
		},
		"a base with less history than layers gets lines": {
			[]plan.Stage{{Base: image, Config: platform, Steps: make([]plan.Step, 1), History: []plan.HistoryEntry{entry("run", 0)}}},
			[]storage.Layer{layerAt(0), layerAt(1), layerAt(2)},
			[]string{"1 ", "2 ", "3 run"},
			"3",
		},
	}
	day := func(t *time.Time) string {
		if t == nil {
			return "-"
		}
		return fmt.Sprint(t.Day())
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := &plan.Plan{Stages: c.stages, Target: len(c.stages) - 1}
			results := make([]executor.Result, len(c.stages))
			results[p.Target].Layers = c.layers
			for range 2 { // the plan is not used up
				img, err := assemble(p, results)
				must(t, err)
				cfg, err := imageconfig.Parse(img.Config)
				must(t, err)
				var got []string
				for _, h := range cfg.History {
					got = append(got, day(h.Created)+" "+h.CreatedBy)
				}
				if !slices.Equal(got, c.want) || day(cfg.Created) != c.last {
					t.Errorf("got %q, made %s, want %q, %s", got, day(cfg.Created), c.want, c.last)
				}
			}
		})
	}
}

func TestTheCommandOfARunIsMergedAsDockerDoes(t *testing.T) {
	image := imageconfig.Container{Entrypoint: []string{"/e"}, Cmd: []string{"c"}, Env: []string{"A=1", "AB=2"}, WorkingDir: "/w", User: "u"}
	cases := map[string]struct {
		image imageconfig.Container
		r     RunRequest
		want  string
	}{
		"the image's own":                       {image, RunRequest{}, "/e c|A=1 AB=2|/w|u"},
		"another command":                       {image, RunRequest{Args: []string{"x", "y"}}, "/e x y|A=1 AB=2|/w|u"},
		"another entry point drops the command": {image, RunRequest{Entrypoint: []string{"/f"}}, "/f|A=1 AB=2|/w|u"},
		"both":                                  {image, RunRequest{Entrypoint: []string{"/f"}, Args: []string{"x"}}, "/f x|A=1 AB=2|/w|u"},
		"no entry point":                        {image, RunRequest{Entrypoint: []string{}, Args: []string{"x"}}, "x|A=1 AB=2|/w|u"},
		"variables, a directory and a user":     {image, RunRequest{Env: []string{"A=9", "N=3", "N=4"}, Dir: "/d", User: "v"}, "/e c|A=9 AB=2 N=4|/d|v"},
		"an image with nothing":                 {imageconfig.Container{}, RunRequest{Args: []string{"x"}}, "x||/|"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before := slices.Clone(c.image.Env)
			r := command(c.image, c.r)
			got := strings.Join([]string{strings.Join(r.Args, " "), strings.Join(r.Env, " "), r.Dir, r.User}, "|")
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if !reflect.DeepEqual(c.image.Env, before) {
				t.Error("the image's environment was changed")
			}
		})
	}
}
