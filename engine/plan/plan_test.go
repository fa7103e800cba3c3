package plan_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/resolve"
	"github.com/mstage/mstage/engine/stage"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/plugins"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/storagetest"
)

var update = flag.Bool("update", false, "rewrite testdata/*.json")

// configs are the store's images by name.
var configs = map[string]imageconfig.Container{
	"docker.io/library/busybox:latest": {
		Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}, Cmd: []string{"sh"}, Entrypoint: []string{"/old"}, WorkingDir: "/home",
		Labels: map[string]string{"image": "busybox"}, ExposedPorts: map[string]struct{}{"1/tcp": {}},
	},
	"docker.io/library/alpine:3":        {Env: []string{"PATH=/bin"}, User: "nobody", Shell: []string{"/bin/ash", "-c"}},
	"docker.io/library/bare:latest":     {},
	"docker.io/library/triggers:latest": {Env: []string{"PATH=/bin"}, OnBuild: []string{"ENV TRIGGERED=1", "RUN trigger $TRIGGERED", "COPY . /src"}},
}

// images is a store with one image of one layer for each config.
func images(t *testing.T) storage.Images {
	t.Helper()
	ix := storagetest.NewIndex()
	created := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range configs {
		b, err := json.Marshal(imageconfig.Config{
			Created: &created, OS: "linux", Architecture: "amd64", Config: c,
			History: []imageconfig.History{{Created: &created, CreatedBy: "import"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		layer := storage.Layer{ID: storage.LayerID("layer of " + name), Identity: storage.DigestBytes([]byte(name)), Created: created}
		img := storage.Image{ID: storage.DigestBytes(b), Config: b, Layers: []storage.Layer{layer}}
		if err := ix.PutImage(t.Context(), img, name); err != nil {
			t.Fatal(err)
		}
	}
	return ix
}

// options is what a test varies.
type options struct {
	plan      plan.Options
	buildArgs map[string]string
	target    string
	open      bool // leaves unknown words open, as `mstage plan` does
}

// makePlan takes a text the whole way to a plan, for linux/amd64.
func makePlan(t *testing.T, name, text string, o options) (*plan.Plan, error) {
	t.Helper()
	f, err := dockerfile.Parse(name, []byte(text))
	if err != nil {
		return nil, err
	}
	g, err := stage.Build(f, stage.Options{BuildArgs: o.buildArgs, Target: o.target, Platform: "linux/amd64"})
	if err != nil {
		return nil, err
	}
	store := images(t)
	configOf := func(ctx context.Context, r pluginapi.Resolved) (imageconfig.Config, error) {
		img, err := store.Image(ctx, storage.Digest(r.Image))
		if err != nil {
			return imageconfig.Config{}, nil //nolint:nilerr // a word that was left open has no config
		}
		return imageconfig.Parse(img.Config)
	}
	bound, err := resolve.Bind(t.Context(), g, resolve.Options{
		Sources: plugins.Order(store, plugins.Others{}), Platform: "linux/amd64", ConfigOf: configOf, AllowUnknown: o.open,
	})
	if err != nil {
		return nil, err
	}
	o.plan.Platform, o.plan.ConfigOf, o.plan.Images = "linux/amd64", configOf, store
	return plan.Make(t.Context(), bound, o.plan)
}

// mustPlan is makePlan of a Dockerfile that has to be accepted.
func mustPlan(t *testing.T, text string, o options) *plan.Plan {
	t.Helper()
	p, err := makePlan(t, "Dockerfile", text, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlansAreAsTheGoldenFilesHaveThem(t *testing.T) {
	files, err := filepath.Glob("testdata/*.dockerfile")
	if err != nil || len(files) < 12 {
		t.Fatalf("got %d Dockerfiles, %v, want 12 or more", len(files), err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			p, err := makePlan(t, filepath.Base(name), string(text), options{
				buildArgs: map[string]string{"GIVEN": "by the caller", "HTTPS_PROXY": "http://proxy"},
				plan:      plan.Options{Labels: map[string]string{"flag": "1"}, ShmBytes: 1 << 20, Ulimits: []plan.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, strings.TrimSuffix(name, ".dockerfile")+".json", p)
		})
	}
}

// compare holds a plan against a golden file.
func compare(t *testing.T, golden string, p *plan.Plan) {
	t.Helper()
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(p); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got.Bytes(), want) {
		return
	}
	gotLines, wantLines := strings.Split(got.String(), "\n"), strings.Split(string(want), "\n")
	for i, line := range gotLines {
		if i >= len(wantLines) || line != wantLines[i] {
			t.Fatalf("%s differs from line %d on:\n got %s\nwant %s", golden, i+1, line, strings.Join(wantLines[min(i, len(wantLines)):min(i+1, len(wantLines))], ""))
		}
	}
	t.Fatalf("%s: got %d lines, want %d", golden, len(gotLines), len(wantLines))
}

// last is the stage that is exported.
func last(p *plan.Plan) *plan.Stage { return &p.Stages[p.Target] }

func TestHistoryIsWhatBuildKitWrites(t *testing.T) {
	cases := map[string]struct {
		text string
		want []string // an entry with a layer begins with "+"
	}{
		"RUN shows the shell and the declared ARGs": {
			"FROM scratch\nARG a=1\nARG b\nRUN x", []string{"ARG a=1", "ARG b", "+RUN |2 a=1 b= /bin/sh -c x # buildkit"},
		},
		"RUN in the exec form shows its words alone": {"FROM scratch\nRUN [\"x\", \"y z\"]", []string{"+RUN x y z # buildkit"}},
		"an ENV hides the ARG of its name in RUN": {
			"FROM scratch\nARG a=1\nENV a=2\nRUN x", []string{"ARG a=1", "ENV a=2", "+RUN |1 a=2 /bin/sh -c x # buildkit"},
		},
		"a global ARG shows its value": {"ARG g=7\nFROM scratch\nARG g", []string{"ARG g=7"}},
		"COPY hides --from":            {"FROM scratch AS a\nFROM scratch\nCOPY --from=a /x /y /z/", []string{"+COPY /x /y /z/ # buildkit"}},
		"COPY shows owner and mode, expanded": {
			"FROM scratch\nENV u=5\nCOPY --chown=$u --chmod=644 $u.txt d", []string{"ENV u=5", "+COPY --chown=5 --chmod=644 5.txt d # buildkit"},
		},
		"ADD is called ADD":                 {"FROM scratch\nADD a b", []string{"+ADD a b # buildkit"}},
		"WORKDIR shows where it leads":      {"FROM scratch\nWORKDIR /a\nWORKDIR b", []string{"+WORKDIR /a", "+WORKDIR /a/b"}},
		"WORKDIR of the root is empty":      {"FROM scratch\nWORKDIR /", []string{"WORKDIR /"}},
		"EXPOSE shows protocols":            {"FROM scratch\nEXPOSE 80 81-82/UDP", []string{"EXPOSE [80/tcp 81/udp 82/udp]"}},
		"CMD shows quoted words":            {"FROM scratch\nCMD a \"b\"", []string{`CMD ["/bin/sh" "-c" "a \"b\""]`}},
		"ENTRYPOINT in the exec form":       {"FROM scratch\nENTRYPOINT [\"a\"]", []string{`ENTRYPOINT ["a"]`}},
		"LABEL and VOLUME are expanded":     {"FROM scratch\nENV a=1\nLABEL x=$a\nVOLUME /$a", []string{"ENV a=1", "LABEL x=1", "VOLUME [/1]"}},
		"USER, SHELL and STOPSIGNAL":        {"FROM scratch\nUSER u\nSHELL [\"s\"]\nSTOPSIGNAL 9", []string{"USER u", "SHELL [s]", "STOPSIGNAL 9"}},
		"MAINTAINER":                        {"FROM scratch\nMAINTAINER me", []string{"MAINTAINER me"}},
		"ONBUILD leaves no entry":           {"FROM scratch\nONBUILD RUN x", nil},
		"a trigger's entry is in the child": {"FROM scratch AS a\nONBUILD RUN x\nFROM a", []string{"+RUN /bin/sh -c x # buildkit"}},
		"a here-document is its text":       {"FROM scratch\nRUN <<E\na\nb\nE", []string{"+RUN /bin/sh -c a\nb\n # buildkit"}},
		"a program is where it is run":      {"FROM scratch\nRUN <<E\n#!/x\nE", []string{"+RUN /bin/sh -c /dev/pipes/E # buildkit"}},
		"a COPY of a here-document":         {"FROM scratch\nCOPY <<E /x\na\nE", []string{"+COPY <<E /x # buildkit"}},
		"the shell in use":                  {"FROM alpine:3\nRUN x", []string{"+RUN /bin/ash -c x # buildkit"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			st := last(mustPlan(t, c.text, options{}))
			var got []string
			step := 0
			for _, h := range st.History {
				if h.Comment != "buildkit.dockerfile.v0" {
					t.Errorf("%s: got comment %q, want BuildKit's", h.CreatedBy, h.Comment)
				}
				if h.Step < 0 {
					got = append(got, h.CreatedBy)
					continue
				}
				if h.Step != step {
					t.Errorf("%s: got step %d, want %d", h.CreatedBy, h.Step, step)
				}
				step++
				got = append(got, "+"+h.CreatedBy)
			}
			if strings.Join(got, "|") != strings.Join(c.want, "|") {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if step != len(st.Steps) {
				t.Errorf("got %d entries with a layer for %d steps", step, len(st.Steps))
			}
		})
	}
}

func TestWhatCantBeHonouredIsRefusedWithItsPlace(t *testing.T) {
	cases := map[string]struct{ text, place, message, hint string }{
		"--security":                {"FROM scratch\nRUN --security=insecure x", "2:1", "--security=insecure is not supported yet", "leave the flag out"},
		"--device":                  {"FROM scratch\nRUN --device=x y", "2:1", "--device is not supported yet", "leave the flag out"},
		"the host's network":        {"FROM scratch\nRUN a\nRUN --network=host x", "3:1", "was not allowed", "--allow network.host"},
		"--mount=type=ssh":          {"FROM scratch\nRUN --mount=type=ssh x", "2:1", "type=ssh is not supported yet", ""},
		"a mount over the root":     {"FROM scratch\nRUN --mount=target=.. x", "2:1", "root directory", "below the root"},
		"a mount of unknown type":   {"FROM scratch\nRUN --mount=type=bnid,target=/x y", "2:18", "bnid", "bind"},
		"COPY --link":               {"FROM scratch\nCOPY --link a b", "2:1", "COPY --link is not supported yet", "leave the flag out"},
		"COPY --parents":            {"FROM scratch\nCOPY --parents a b", "2:1", "COPY --parents is not supported yet", ""},
		"COPY --exclude":            {"FROM scratch\nCOPY --exclude=x a b", "2:1", "COPY --exclude is not supported yet", ""},
		"ADD --checksum":            {"FROM scratch\nADD --checksum=sha256:" + strings.Repeat("0", 64) + " https://x/y b", "2:1", "ADD --checksum is not supported yet", ""},
		"ADD of a URL":              {"FROM scratch\nADD https://example.org/x /x", "2:1", "https://example.org/x", "RUN with curl"},
		"ADD of a URL in an ARG":    {"FROM scratch\nARG u=https://example.org\nADD $u/x /x", "3:1", "https://example.org/x", ""},
		"ADD of a git repository":   {"FROM scratch\nADD git@example.org:x.git /x", "2:1", "git@example.org:x.git", ""},
		"another platform":          {"FROM --platform=linux/s390x busybox", "1:17", "another platform than linux/amd64", ""},
		"a user that is empty":      {"FROM scratch\nUSER $nobody", "2:1", "needs a user", "a number"},
		"a volume that is empty":    {"FROM scratch\nVOLUME $x", "2:1", "needs a path", ""},
		"a directory that is empty": {"FROM scratch\nWORKDIR $x", "2:1", "needs a path", ""},
		"no signal":                 {"FROM scratch\nSTOPSIGNAL SIGFOO", "2:1", `"SIGFOO" is not a signal`, "SIGTERM"},
		"no port":                   {"FROM scratch\nEXPOSE 80 http", "2:1", `http: "http" is not a port`, "8000-8010/tcp"},
		"a variable that fails":     {"FROM scratch\nUSER ${x:?say who}", "2:1", "say who", ""},
		"in a trigger":              {"FROM scratch AS a\nONBUILD COPY --link a b\nFROM a", "2:9", "COPY --link", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := makePlan(t, "Dockerfile", c.text, options{})
			e, ok := errors.AsType[*dockerfile.Error](err)
			if !ok {
				t.Fatalf("got %v, want a *dockerfile.Error", err)
			}
			if !strings.HasPrefix(e.Error(), "Dockerfile:"+c.place+": ") || !strings.Contains(e.Message, c.message) {
				t.Errorf("got %q, want %s and %q", e.Error(), c.place, c.message)
			}
			if !strings.Contains(e.Hint, c.hint) {
				t.Errorf("got hint %q, want %q", e.Hint, c.hint)
			}
			if e.Line == "" {
				t.Error("got no source line, want it quoted")
			}
		})
	}
}

func TestNetworkModes(t *testing.T) {
	const text = "FROM scratch\nRUN a\nRUN --network=none b\nRUN --network=default c\n"
	modes := func(o options, text string) string {
		var got []string
		for _, s := range last(mustPlan(t, text, o)).Steps {
			got = append(got, s.Run.Network)
		}
		return strings.Join(got, " ")
	}
	for name, c := range map[string]struct {
		o          plan.Options
		text, want string
	}{
		"the default is the default":                {plan.Options{}, text, "default none default"},
		"--network is for RUNs that name none":      {plan.Options{Network: "none"}, text, "none none default"},
		"--network host allows a RUN to ask for it": {plan.Options{Network: "host"}, text + "RUN --network=host d", "host none default host"},
		"--allow allows a RUN to ask for it":        {plan.Options{AllowHostNetwork: true}, text + "RUN --network=host d", "default none default host"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := modes(options{plan: c.o}, c.text); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestPortsAreReadAsDockerDoes(t *testing.T) {
	cases := map[string]string{
		"80": "80/tcp", "80/": "80/tcp", "80/UDP": "80/udp", "1-3/sctp": "1/sctp 2/sctp 3/sctp", "7-7": "7/tcp",
		"8080:80": "80/tcp", ":80": "80/tcp", "127.0.0.1:8080:80": "80/tcp", "127.0.0.1::80": "80/tcp", "[::1]:1:80/udp": "80/udp", "::1:1:80": "80/tcp",
		"8000-8001:80-81": "80/tcp 81/tcp", "0": "0/tcp", "65535": "65535/tcp",
		"": "", "/tcp": "error", "65536": "error", "-1": "error", "3-1": "error", "80/quic": "error", "a:80": "error", "host:1:80": "error", "1-": "error", "80:": "error",
	}
	for word, want := range cases {
		if word == "" {
			continue
		}
		p, err := makePlan(t, "Dockerfile", "FROM scratch\nEXPOSE "+word, options{})
		got := "error"
		if err == nil {
			got = strings.Trim(strings.TrimPrefix(last(p).History[0].CreatedBy, "EXPOSE "), "[]")
		}
		if got != want {
			t.Errorf("EXPOSE %s: got %s (%v), want %s", word, got, err, want)
		}
	}
}

func TestSignalsAreNamesOrNumbers(t *testing.T) {
	for word, want := range map[string]bool{
		"SIGTERM": true, "term": true, "9": true, "64": true, "SIGRTMIN": true, "RTMIN+3": true, "sigrtmax-14": true, "RTMIN+30": true,
		"0": false, "65": false, "-9": false, "SIG": false, "FOO": false, "RTMIN-1": false, "RTMAX+1": false, "RTMIN+": false, "RTMIN+31": false, "RTMIN++3": false,
	} {
		_, err := makePlan(t, "Dockerfile", "FROM scratch\nSTOPSIGNAL "+word, options{})
		if (err == nil) != want {
			t.Errorf("STOPSIGNAL %s: got %v, want accepted %t", word, err, want)
		}
	}
}

func TestLabelsOfTheFlagAreOnTheTargetOnly(t *testing.T) {
	p := mustPlan(t, "FROM busybox AS a\nLABEL x=file\nFROM a\nLABEL y=file", options{plan: plan.Options{Labels: map[string]string{"x": "flag", "z": "flag"}}})
	if got := p.Stages[0].Config.Config.Labels; len(got) != 2 || got["x"] != "file" {
		t.Errorf("base: got %v, want the file's", got)
	}
	got := last(p).Config.Config.Labels
	want := map[string]string{"image": "busybox", "x": "flag", "y": "file", "z": "flag"}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("target: label %s is %q, want %q", k, got[k], v)
		}
	}
}

func TestOnlyTheStagesThatTheTargetNeedsAreInThePlan(t *testing.T) {
	const text = "FROM busybox AS a\nFROM scratch AS b\nCOPY --from=a / /\nFROM scratch AS c\nRUN --mount=from=b,target=/b x\nFROM alpine:3 AS d\n"
	for target, want := range map[string]string{"": "d", "a": "a", "b": "a b", "2": "a b c"} {
		p := mustPlan(t, text, options{target: target})
		var got []string
		for _, s := range p.Stages {
			got = append(got, s.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("target %q: got %q, want %q", target, got, want)
		}
		if wanted := strings.Fields(want); last(p).Name != wanted[len(wanted)-1] {
			t.Errorf("target %q: got %q as the target", target, last(p).Name)
		}
	}
}

func TestAWordThatIsLeftOpenStandsAsAnImageWithoutAnID(t *testing.T) {
	p := mustPlan(t, "FROM registry.example/nowhere:1\nCOPY --from=other.example/x /a /b", options{open: true})
	if len(p.Images) != 2 || p.Images[0].ID != "" || p.Images[0].Reference == "" {
		t.Errorf("got %+v, want two images without an ID", p.Images)
	}
	if base := last(p).Base; base.Image == nil || *base.Image != 0 {
		t.Errorf("got base %+v, want image 0", base)
	}
}

func TestAnImageThatIsUsedTwiceIsInThePlanOnce(t *testing.T) {
	p := mustPlan(t, "FROM busybox AS a\nFROM busybox\nCOPY --from=busybox /a /b\nCOPY --from=a /c /d", options{})
	if len(p.Images) != 1 {
		t.Errorf("got %d images, want 1", len(p.Images))
	}
}

func TestThePlatformOfTheHostIsAccepted(t *testing.T) {
	for _, platform := range []string{"linux/amd64", "amd64", "linux/x86_64", "$TARGETPLATFORM", "$BUILDPLATFORM"} {
		if platform == "$BUILDPLATFORM" && stage.HostPlatform().Arch != "amd64" {
			continue
		}
		if _, err := makePlan(t, "Dockerfile", "FROM --platform="+platform+" busybox", options{}); err != nil {
			t.Errorf("%s: got %v, want it accepted", platform, err)
		}
	}
}

func TestAPlanSurvivesItsEncoding(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var p plan.Plan
		dec := json.NewDecoder(bytes.NewReader(want))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&p); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		compare(t, name, &p)
	}
}
