package resolve_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/resolve"
	"github.com/mstage/mstage/engine/stage"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/plugins"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
)

// localImages are the names of the store's images. The ID of each is the digest
// of its name.
var localImages = []string{"docker.io/library/busybox:latest", "docker.io/library/7:latest", "docker.io/library/1:latest", "localhost/x:1"}

func idOf(name string) storage.Digest { return storage.DigestBytes([]byte(name)) }

func openImages(t *testing.T) storage.Images {
	t.Helper()
	ix, err := index.Open(filepath.Join(t.TempDir(), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range localImages {
		if err := ix.PutImage(t.Context(), storage.Image{ID: idOf(name), Config: []byte("{}")}, name); err != nil {
			t.Fatal(err)
		}
	}
	return ix
}

// graphOf parses a Dockerfile.
func graphOf(t *testing.T, text string) *stage.Graph {
	t.Helper()
	f, err := dockerfile.Parse("Dockerfile", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	g, err := stage.Build(f, stage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func bind(t *testing.T, text string, o resolve.Options) (*resolve.Bindings, error) {
	t.Helper()
	if o.Sources == nil {
		o.Sources = plugins.Order(openImages(t), plugins.Others{})
	}
	return resolve.Bind(t.Context(), graphOf(t, text), o)
}

// answers lists what each word of each stage is bound to, short.
func answers(b *resolve.Bindings) []string {
	var out []string
	for _, s := range b.Stages {
		bindings := slices.Clone(s.Refs)
		if s.Base != nil {
			bindings = slices.Insert(bindings, 0, *s.Base)
		}
		for i := range bindings {
			out = append(out, fmt.Sprintf("%d %s=%s", s.Node.Stage.Index, bindings[i].Ref.Word.Text, target(&bindings[i])))
		}
	}
	return out
}

func target(b *resolve.Binding) string {
	switch {
	case b.Unknown:
		return "unknown"
	case b.Scratch():
		return "scratch"
	case b.Resolved.Stage != nil:
		return fmt.Sprintf("stage %d", *b.Resolved.Stage)
	}
	for _, name := range localImages {
		if b.Resolved.Image == string(idOf(name)) {
			return name
		}
	}
	return b.Resolved.Content.Digest
}

func TestWordsAreBoundInTheDocumentedOrder(t *testing.T) {
	busybox := idOf("docker.io/library/busybox:latest")
	cases := map[string]struct {
		text string
		want []string
	}{
		"a name means the last stage so named, in any case": {
			"FROM busybox AS a\nFROM busybox AS A\nFROM busybox\nCOPY --from=a /x /x",
			[]string{"1 busybox=docker.io/library/busybox:latest", "2 busybox=docker.io/library/busybox:latest", "2 a=stage 1"},
		},
		"a stage name goes before an image of that name": {
			"FROM scratch AS busybox\nFROM busybox",
			[]string{"1 busybox=stage 0"},
		},
		"a number after COPY --from is a stage before it is an image": {
			"FROM scratch\nFROM scratch\nFROM scratch\nCOPY --from=1 / /\nRUN --mount=from=0,target=/m x",
			[]string{"2 1=stage 1", "2 0=stage 0"},
		},
		"a number after FROM is an image before it is a stage": {
			"FROM scratch\nFROM scratch\nFROM 1\nCOPY --from=0 / /",
			[]string{"2 1=docker.io/library/1:latest", "2 0=stage 0"},
		},
		"a number after FROM is a stage when no image has the name": {
			"FROM scratch\nFROM 0",
			[]string{"1 0=stage 0"},
		},
		"a number beyond the stages is an image": {
			"FROM scratch\nFROM scratch\nCOPY --from=7 / /",
			[]string{"1 7=docker.io/library/7:latest"},
		},
		"an image may be named by tag, by ID and by the start of its ID": {
			"FROM localhost/x:1\nCOPY --from=" + string(busybox) + " / /\nCOPY --from=" + busybox.Hex() + " / /\nCOPY --from=" + busybox.Short() + " / /",
			[]string{
				"0 localhost/x:1=localhost/x:1",
				"0 " + string(busybox) + "=docker.io/library/busybox:latest",
				"0 " + busybox.Hex() + "=docker.io/library/busybox:latest",
				"0 " + busybox.Short() + "=docker.io/library/busybox:latest",
			},
		},
		"a stage that has the name of its base is based on the image": {
			"FROM busybox AS busybox\nFROM busybox",
			[]string{"0 busybox=docker.io/library/busybox:latest", "1 busybox=stage 0"},
		},
		"stages that the target doesn't need are not asked about": {
			"FROM nowhere AS a\nFROM a AS b\nFROM scratch AS c\nFROM scratch\nCOPY --from=c / /",
			[]string{"3 c=stage 2"},
		},
		"scratch is empty wherever it stands": {
			"FROM scratch\nRUN --mount=from=scratch,target=/m x",
			[]string{"0 scratch=scratch"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, err := bind(t, c.text, resolve.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := answers(b); !slices.Equal(got, c.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
			}
		})
	}
}

func TestMistakesArePointedAtWithAHint(t *testing.T) {
	cases := map[string]struct {
		text, want string
	}{
		"a misspelt stage name": {
			"FROM scratch AS build\nFROM scratch\nCOPY --from=biuld /a /b",
			"Dockerfile:3:13: COPY --from=biuld: no such stage or image\n" +
				"  3 | COPY --from=biuld /a /b\n" +
				"    |             ^^^^^\n" +
				`  hint: did you mean "build" (stage 0, Dockerfile:1)?`,
		},
		"a misspelt stage name in upper case": {
			"FROM scratch AS build\nFROM BIULD", `hint: did you mean "build" (stage 0, Dockerfile:1)?`,
		},
		"a stage that comes later": {
			"FROM scratch\nCOPY --from=later / /\nFROM scratch AS later\nFROM scratch\nCOPY --from=0 / /",
			`Dockerfile:2:13: COPY --from=later: stage "later" (Dockerfile:3) comes later`,
		},
		"the number of a stage that comes later": {
			"FROM scratch\nCOPY --from=2 / /\nFROM scratch AS b\nFROM scratch\nCOPY --from=0 / /",
			"COPY --from=2: stage 2 (Dockerfile:4) comes later",
		},
		"the stage itself": {
			"FROM scratch AS me\nCOPY --from=me / /", "COPY --from=me: that is this stage itself",
		},
		"nothing of that name": {
			"FROM debian:12",
			"Dockerfile:1:6: FROM debian:12: no such stage or image\n" +
				"  1 | FROM debian:12\n" +
				"    |      ^^^^^^^^^\n" +
				"  hint: looked among names of the stages above, numbers of the stages above, IDs of local images, names of local images, " +
				"shortened IDs of local images; import it first",
		},
		"a variable is underlined as written": {
			"ARG base=nowhere\nFROM ${base}",
			"Dockerfile:2:6: FROM nowhere: no such stage or image\n  2 | FROM ${base}\n    |      ^^^^^^^\n",
		},
		"a word with a slash is no misspelt stage": {
			"FROM scratch AS build\nFROM ./biuld", "FROM ./biuld: invalid reference",
		},
		"a word in a mount": {
			"FROM scratch\nRUN --mount=type=bind,from=nowhere,target=/m x",
			"Dockerfile:2:28: RUN --mount from=nowhere: no such stage or image",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := bind(t, c.text, resolve.Options{Hint: "import it first"})
			var e *dockerfile.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want a *dockerfile.Error", err)
			}
			if got := e.Render(); !strings.Contains(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestWhatNobodyKnowsWrapsErrNotFound(t *testing.T) {
	for _, text := range []string{"FROM nowhere", "FROM scratch AS build\nFROM biuld"} {
		if _, err := bind(t, text, resolve.Options{}); !errors.Is(err, pluginapi.ErrNotFound) {
			t.Errorf("%q: got %v, want ErrNotFound", text, err)
		}
	}
}

// One look-up is taken away at a time: only its own words are not found then.
func TestRemovingASourceDisablesItsLookUpAndNothingElse(t *testing.T) {
	busybox := idOf("docker.io/library/busybox:latest")
	lines := map[string]string{
		"stagename":       "COPY --from=named / /",
		"stageindex":      "COPY --from=0 / /",
		"imageid":         "COPY --from=" + string(busybox) + " / /",
		"localtag":        "COPY --from=busybox / /",
		"imageid-prefix":  "COPY --from=" + busybox.Short() + " / /",
		"stageindex-from": "", // the target's FROM
	}
	all := plugins.Order(openImages(t), plugins.Others{})
	if len(all) != len(lines) {
		t.Fatalf("got %d sources, want %d", len(all), len(lines))
	}
	for i := range all {
		d, err := all[i].Describe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Run(d.Name, func(t *testing.T) {
			rest := slices.Delete(slices.Clone(all), i, i+1)
			for name, line := range lines {
				text := "FROM scratch AS named\nFROM scratch AS other\nFROM scratch\n" + line
				if name == "stageindex-from" {
					text = "FROM scratch\nFROM 0"
				}
				_, err := bind(t, text, resolve.Options{Sources: rest})
				if removed := name == d.Name; removed != errors.Is(err, pluginapi.ErrNotFound) || !removed && err != nil {
					t.Errorf("without %s, a word for %s: got %v", d.Name, name, err)
				}
			}
		})
	}
}

// counted is a source that counts how often it is asked.
type counted struct {
	pluginapi.NoContent
	description pluginapi.Description
	answer      pluginapi.Resolved
	err         error
	asked       atomic.Int32
}

func (c *counted) Describe(context.Context) (pluginapi.Description, error) { return c.description, nil }

func (c *counted) Resolve(context.Context, pluginapi.Request) (pluginapi.Resolved, error) {
	c.asked.Add(1)
	return c.answer, c.err
}

// remote is a source that reaches a network and knows everything.
func remote() *counted {
	return &counted{
		description: pluginapi.Description{Name: "remote", Summary: "everything", Capabilities: []string{pluginapi.CapabilityNetwork}},
		answer:      pluginapi.Resolved{Reference: "x", Content: &pluginapi.Content{Digest: string(idOf("content"))}},
	}
}

func TestTheSameWordIsAskedOnce(t *testing.T) {
	r := remote()
	sources := plugins.Order(openImages(t), plugins.Others{Remote: []pluginapi.Source{r}})
	text := "FROM debian:12 AS a\nFROM debian:12\nCOPY --from=debian:12 / /\nRUN --mount=from=debian:12,target=/m x\nCOPY --from=a / /"
	if _, err := bind(t, text, resolve.Options{Sources: sources}); err != nil {
		t.Fatal(err)
	}
	if got := r.asked.Load(); got != 1 {
		t.Errorf("got %d questions, want 1", got)
	}
}

func TestANetworkIsNotAskedWhereItMustNot(t *testing.T) {
	cases := map[string]struct {
		text    string
		options resolve.Options
		want    string
	}{
		"for a misspelt stage name":    {"FROM scratch AS build\nFROM scratch\nCOPY --from=biuld / /", resolve.Options{}, "no such stage"},
		"for a stage that comes later": {"FROM scratch\nCOPY --from=b / /\nFROM scratch AS b\nFROM scratch\nCOPY --from=0 / /", resolve.Options{}, "comes later"},
		"while offline":                {"FROM debian:12", resolve.Options{Offline: true}, "no such stage"},
		"for a plan":                   {"FROM debian:12", resolve.Options{AllowUnknown: true}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := remote()
			c.options.Sources = plugins.Order(openImages(t), plugins.Others{Remote: []pluginapi.Source{r}})
			_, err := bind(t, c.text, c.options)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if got := r.asked.Load(); got != 0 {
				t.Errorf("got %d questions, want none", got)
			}
		})
	}
}

func TestAPlanLeavesUnknownWordsOpenButNotMistakes(t *testing.T) {
	b, err := bind(t, "FROM golang AS golang\nFROM busybox\nCOPY --from=golang / /\nCOPY --from=nginx:1 / /", resolve.Options{AllowUnknown: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0 golang=unknown", "1 busybox=docker.io/library/busybox:latest", "1 golang=stage 0", "1 nginx:1=unknown"}
	if got := answers(b); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := bind(t, "FROM scratch AS build\nFROM biuld", resolve.Options{AllowUnknown: true}); err == nil {
		t.Error("a misspelt stage name: got no error")
	}
}

func TestASchemeIsItsSourcesAlone(t *testing.T) {
	deb := &counted{
		description: pluginapi.Description{Name: "deb", Summary: "packages", Schemes: []string{"deb"}},
		err:         pluginapi.ErrNotFound,
	}
	r := remote()
	sources := plugins.Order(openImages(t), plugins.Others{Declared: []pluginapi.Source{deb}, Remote: []pluginapi.Source{r}})
	if _, err := bind(t, "FROM deb:curl", resolve.Options{Sources: sources}); !errors.Is(err, pluginapi.ErrNotFound) {
		t.Errorf("deb:curl: got %v, want ErrNotFound", err)
	}
	if deb.asked.Load() != 1 || r.asked.Load() != 0 {
		t.Errorf("got %d and %d questions, want 1 to the scheme's source and none to the next", deb.asked.Load(), r.asked.Load())
	}
	if _, err := bind(t, "FROM other:curl", resolve.Options{Sources: sources}); err != nil {
		t.Errorf("other:curl: %v", err)
	}
	if deb.asked.Load() != 1 {
		t.Errorf("got %d questions to the scheme's source, want 1", deb.asked.Load())
	}
}

func TestWhatASourceAnswersIsChecked(t *testing.T) {
	ten := 10
	cases := map[string]struct {
		answer pluginapi.Resolved
		err    error
		want   string
	}{
		"nothing":                 {pluginapi.Resolved{Reference: "x"}, nil, "ask odd: answer"},
		"a stage out of reach":    {pluginapi.Resolved{Reference: "x", Stage: &ten}, nil, "can't be named here"},
		"an error":                {pluginapi.Resolved{}, errors.New("on fire"), "FROM x: ask odd: on fire"},
		"a refusal with its hint": {pluginapi.Resolved{}, &pluginapi.Error{Message: "closed", Hint: "come back"}, "FROM x: closed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			odd := &counted{description: pluginapi.Description{Name: "odd"}, answer: c.answer, err: c.err}
			_, err := bind(t, "FROM x", resolve.Options{Sources: []pluginapi.Source{odd}})
			var e *dockerfile.Error
			if !errors.As(err, &e) || !strings.Contains(e.Error(), c.want) {
				t.Errorf("got %v, want a *dockerfile.Error with %q", err, c.want)
			}
			var refusal *pluginapi.Error
			if errors.As(err, &refusal) && e.Hint != refusal.Hint {
				t.Errorf("got hint %q, want %q", e.Hint, refusal.Hint)
			}
		})
	}
}

func TestACancelEndsTheLookUp(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the user said so")
	cancel(cause)
	g := graphOf(t, "FROM busybox")
	_, err := resolve.Bind(ctx, g, resolve.Options{Sources: plugins.Order(openImages(t), plugins.Others{})})
	if !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}

// withTriggers gives every image these triggers.
func withTriggers(triggers ...string) func(context.Context, pluginapi.Resolved) (imageconfig.Config, error) {
	return func(context.Context, pluginapi.Resolved) (imageconfig.Config, error) {
		return imageconfig.Config{Config: imageconfig.Container{OnBuild: triggers}}, nil
	}
}

func instructions(s *resolve.BoundStage) []string {
	var texts []string
	for _, in := range s.Node.All() {
		texts = append(texts, in.Head().Text)
	}
	return texts
}

func TestTriggersOfTheBaseImageComeFirstAndTheirWordsAreBound(t *testing.T) {
	b, err := bind(t, "FROM scratch AS tools\nFROM scratch AS unused\nFROM busybox\nARG x=tools\nRUN b\nCOPY --from=$x / /",
		resolve.Options{ConfigOf: withTriggers("RUN a", "COPY --from=tools /t /t")})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"2 busybox=docker.io/library/busybox:latest", "2 tools=stage 0", "2 tools=stage 0"}
	if got := answers(b); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	last := b.Stages[len(b.Stages)-1]
	got := instructions(last)
	if len(got) != 5 || got[0] != "RUN a" || got[1] != "COPY --from=tools /t /t" || got[3] != "RUN b" {
		t.Errorf("got instructions %q, want the triggers first", got)
	}
	if last.Node == b.Graph.Nodes[2] || len(b.Graph.Nodes[2].Triggers) != 0 {
		t.Error("got triggers in the graph's own node, want a copy")
	}
}

func TestTriggersOfAStageRunInItsChildrenOnly(t *testing.T) {
	b, err := bind(t, "FROM scratch AS tools\nFROM scratch AS base\nONBUILD COPY --from=tools /t /t\nFROM base AS child\nFROM child", resolve.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"2 base=stage 1", "2 tools=stage 0", "3 child=stage 2"}
	if got := answers(b); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAnImageThatIsNamedLikeAStagesNumberHasItsOwnTriggers(t *testing.T) {
	b, err := bind(t, "FROM scratch\nFROM scratch\nONBUILD RUN stage\nFROM 1", resolve.Options{ConfigOf: withTriggers("RUN image")})
	if err != nil {
		t.Fatal(err)
	}
	if got := instructions(b.Stages[len(b.Stages)-1]); !slices.Equal(got, []string{"RUN image"}) {
		t.Errorf("got %q, want the image's trigger", got)
	}
}

func TestBadTriggersAreErrorsWithTheImage(t *testing.T) {
	for name, c := range map[string]struct {
		triggers []string
		want     string
	}{
		"one that is not allowed": {[]string{"FROM scratch"}, "FROM is not allowed"},
		"one that names nothing":  {[]string{"COPY --from=nowhere / /"}, "ONBUILD of busybox:1:13: COPY --from=nowhere: no such stage"},
		"too many":                {slices.Repeat([]string{"RUN x"}, 1001), "1001 ONBUILD triggers"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bind(t, "FROM busybox", resolve.Options{ConfigOf: withTriggers(c.triggers...)})
			var e *dockerfile.Error
			if !errors.As(err, &e) || !strings.Contains(e.Error(), c.want) {
				t.Errorf("got %v, want a *dockerfile.Error with %q", err, c.want)
			}
		})
	}
}
