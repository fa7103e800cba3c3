package stage

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/dockerfile"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

func parse(t *testing.T, text string) *dockerfile.File {
	t.Helper()
	f, err := dockerfile.Parse("Dockerfile", []byte(text))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return f
}

func build(t *testing.T, text string, o Options) *Graph {
	t.Helper()
	g, err := Build(parse(t, text), o)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	return g
}

// summary shows a graph in one line per stage: base, its platform and stage, and refs.
func summary(g *Graph) string {
	var b strings.Builder
	for i, n := range g.Nodes {
		fmt.Fprintf(&b, "%d %s", i, n.Base.Word.Text)
		if n.Base.Platform != "" {
			fmt.Fprintf(&b, " on %s", n.Base.Platform)
		}
		if n.BaseStage >= 0 {
			fmt.Fprintf(&b, " =%d", n.BaseStage)
		}
		for _, r := range n.Refs {
			fmt.Fprintf(&b, ", %s@%d:%d", r.Word.Text, r.Word.Pos.Line, r.Word.Pos.Column)
		}
		b.WriteString("\n")
	}
	return strings.TrimSpace(b.String())
}

func TestBuild(t *testing.T) {
	cases := map[string]struct {
		text string
		o    Options
		want string
	}{
		"FROM sees global ARGs": {text: "ARG v=12\nARG image=debian:$v\nFROM $image", want: "0 debian:12"},
		"a build argument replaces a default": {
			text: "ARG v=12\nFROM debian:$v",
			o:    Options{BuildArgs: map[string]string{"v": "13"}}, want: "0 debian:13",
		},
		"a build argument needs its ARG": {
			text: "FROM debian:${v:-12}",
			o:    Options{BuildArgs: map[string]string{"v": "13"}}, want: "0 debian:12",
		},
		"FROM sees the platform": {
			text: "FROM --platform=$BUILDPLATFORM x-$TARGETOS-$TARGETARCH$TARGETVARIANT-$TARGETSTAGE AS B",
			o:    Options{Platform: "linux/arm/v6", BuildPlatform: "linux/x86_64"}, want: "0 x-linux-armv6-b on linux/amd64",
		},
		"a build argument replaces the platform": {
			text: "FROM $TARGETARCH",
			o:    Options{Platform: "linux/amd64", BuildArgs: map[string]string{"TARGETARCH": "mine"}}, want: "0 mine",
		},
		"FROM names an earlier stage in any case": {text: "FROM a AS Build\nFROM BUILD", want: "0 a\n1 BUILD =0"},
		"the last stage of a name counts":         {text: "FROM a AS x\nFROM b AS x\nFROM x AS x\nFROM x", want: "0 a\n1 b\n2 x =1\n3 x =2"},
		"FROM names a stage by index":             {text: "FROM a\nFROM 0\nFROM 2", want: "0 a\n1 0 =0\n2 2"},
		"scratch is nothing":                      {text: "FROM a AS scratch\nFROM scratch", want: "0 a\n1 scratch"},
		"COPY and mounts refer to stages": {
			text: "FROM a AS b\nFROM c\nCOPY --from=b x y\nRUN --mount=from=0,target=/m --mount=type=cache,target=/c --mount=\"type=bind,from=d:1\" true",
			want: "0 a\n1 c, b@3:13, 0@4:18, d:1@4:83",
		},
		"--from sees ARGs and ENVs above it": {
			text: "ARG g=global\nFROM a\nARG g\nARG x=1\nENV x=2 y=$x\nCOPY --from=$g-$x-$y a b\nENV y=3",
			want: "0 a, global-2-1@6:13",
		},
		"a global ARG is not in scope undeclared": {text: "ARG g=global\nFROM a\nCOPY --from=x$g a b", want: "0 a, x@3:13"},
		"--from sees those of the base stage": {
			text: "FROM a AS b\nARG v=1\nENV w=2\nFROM b\nCOPY --from=$v$w x y",
			want: "0 a\n1 b =0, 12@5:13",
		},
		"triggers of a stage come first, once": {
			text: "FROM a AS b\nONBUILD ARG v=1\nONBUILD COPY --from=x$v y z\nFROM b AS c\nCOPY --from=$v q r\nFROM c",
			want: "0 a\n1 b =0, x1@3:21, 1@5:13\n2 c =1",
		},
		"what only the base image knows is not set": {text: "FROM a\nENV v=${HOME:?}\nCOPY --from=x$v a b", want: "0 a, x@3:13"},
		"an ARG of the mount's stage is expanded":   {text: "FROM a\nARG s=b\nRUN --mount=uid=$u,from=$s,target=/x true", want: "0 a, b@3:25"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := summary(build(t, c.text, c.o)); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestRefsKnowTheirInstruction(t *testing.T) {
	g := build(t, "FROM a\nRUN --mount=type=tmpfs,target=/t --mount=from=x,target=/m true\nCOPY --from=$y${z:-w} a b\n", Options{})
	n := g.Nodes[0]
	mount, copied := n.Refs[0], n.Refs[1]
	if mount.Use != UseMount || mount.Mount != 1 || mount.Instruction != n.Stage.Instructions[0] {
		t.Errorf("got %+v, want the second mount of the RUN", mount)
	}
	if copied.Use != UseCopy || copied.Mount != -1 || copied.Raw != "$y${z:-w}" || copied.Word.Text != "w" || copied.Instruction != n.Stage.Instructions[1] {
		t.Errorf("got %+v, want the COPY", copied)
	}
	if n.Base.Use != UseFrom || n.Base.Instruction != nil || n.Base.Mount != -1 {
		t.Errorf("got %+v, want FROM", n.Base)
	}
}

func TestTarget(t *testing.T) {
	const text = "FROM a AS one\nFROM b\nFROM c AS Two\nFROM d AS one\n"
	for target, want := range map[string]int{"": 3, "one": 3, "TWO": 2, "1": 1, "0": 0} {
		if got := build(t, text, Options{Target: target}).Target; got != want {
			t.Errorf("target %q: got %d, want %d", target, got, want)
		}
	}
}

func TestUnusedArgsAreNamed(t *testing.T) {
	g := build(t, "ARG a\nFROM x AS y\nARG b\nONBUILD ARG c\nFROM y\n", Options{BuildArgs: map[string]string{
		"a": "", "b": "", "c": "", "z": "", "HTTP_PROXY": "", "no_proxy": "", "TARGETARCH": "", "BUILDKIT_INLINE_CACHE": "", "B": "",
	}})
	if want := []string{"B", "z"}; !slices.Equal(g.UnusedArgs, want) {
		t.Errorf("got %q, want %q", g.UnusedArgs, want)
	}
}

func TestStagesAroundOne(t *testing.T) {
	g := build(t, "FROM a AS A\nFROM b\nFROM c AS C\n", Options{})
	if got := fmt.Sprint(g.StagesBefore(2), g.Later(0), g.StagesBefore(0), g.Later(2)); got !=
		"[{0 A Dockerfile:1:1} {1  Dockerfile:2:1}] [{1  Dockerfile:2:1} {2 C Dockerfile:3:1}] [] []" {
		t.Errorf("got %s", got)
	}
}

func TestAFaultInAStageThatNothingNeedsIsNone(t *testing.T) {
	const text = "FROM a AS bad\nCOPY --from=$none x y\nFROM b AS good\nFROM bad AS child\n"
	build(t, text, Options{Target: "good"})
	for _, target := range []string{"bad", "child"} {
		if _, err := Build(parse(t, text), Options{Target: target}); err == nil {
			t.Errorf("target %s: got no error, want one for --from", target)
		}
	}
}

func TestErrorsAreRenderedWithPlaceAndHint(t *testing.T) {
	cases := map[string]struct {
		text string
		o    Options
	}{
		"from-empty-arg":        {text: "ARG base\nFROM $base"},
		"from-arg-without-this": {text: "FROM ${base}"},
		"from-arg-misspelt":     {text: "ARG version=1\nFROM $vresion"},
		"from-arg-is-empty":     {text: "ARG base=\nFROM $base"},
		"from-arg-in-stage":     {text: "FROM scratch AS a\nARG base=x\nFROM $base"},
		"from-syntax":           {text: "FROM debian:${v"},
		"from-required":         {text: "ARG v\nFROM debian:${v:?version}"},
		"platform-empty":        {text: "FROM --platform=$P a"},
		"platform-strange":      {text: "FROM --platform=linux/a/b/c a"},
		"arg-syntax":            {text: "ARG a=${b\nFROM a"},
		"copy-from-empty":       {text: "FROM a\nARG stage\nCOPY --from=$stage a b"},
		"copy-from-misspelt":    {text: "FROM a\nARG stage=x\nCOPY --from=$stgae a b"},
		"mount-from-empty":      {text: "FROM a\nRUN --mount=type=bind,from=$x,target=/y true"},
		"trigger":               {text: "FROM a AS b\nONBUILD COPY --form=x a b\nFROM b"},
		"target-misspelt":       {text: "FROM a AS build\nFROM b", o: Options{Target: "biuld"}},
		"target-of-names":       {text: "FROM a AS x\nFROM b AS y", o: Options{Target: "release"}},
		"target-without-names":  {text: "FROM a\nFROM b", o: Options{Target: "2"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Build(parse(t, c.text), c.o)
			var e *dockerfile.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want a *dockerfile.Error", err)
			}
			golden(t, name, e.Render()+"\n")
		})
	}
}

// golden compares with testdata/NAME.golden, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s\ngot:\n%swant:\n%s", file, got, want)
	}
}

func TestParsePlatform(t *testing.T) {
	host := HostPlatform()
	for text, want := range map[string]string{
		"linux/amd64": "linux/amd64", "Linux/x86_64": "linux/amd64", "linux/arm64/v8": "linux/arm64", "linux/aarch64": "linux/arm64",
		"linux/arm": "linux/arm/v7", "linux/arm/6": "linux/arm/v6", "armhf": host.OS + "/arm/v7", "linux": "linux/" + host.Arch,
		"windows/amd64": "windows/amd64", "i386": host.OS + "/386", "linux/riscv64": "linux/riscv64",
	} {
		if got, err := ParsePlatform(text); err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "a/b/c/d", "linux/", "/amd64", "linux /amd64", "linux/\x1b"} {
		if got, err := ParsePlatform(text); err == nil {
			t.Errorf("%q: got %s, want an error", text, got)
		}
	}
	if _, err := Build(parse(t, "FROM a"), Options{Platform: "!"}); err == nil {
		t.Error("got no error for an invalid platform in the options")
	}
}
