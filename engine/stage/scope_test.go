package stage

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/dockerfile"
)

// walk takes the first stage of a file into a scope.
func walk(t *testing.T, s *Scope, st *dockerfile.Stage) {
	t.Helper()
	for _, ins := range st.Instructions {
		var err error
		switch i := ins.(type) {
		case *dockerfile.Arg:
			_, err = s.Arg(i)
		case *dockerfile.Env:
			_, err = s.Env(i)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestScope(t *testing.T) {
	cases := map[string]struct {
		text      string
		buildArgs map[string]string
		env       string // env, args and the config's environment
	}{
		"a bare ARG takes the global value": {
			text: "ARG g=1\nFROM a\nARG g", env: "[B=base g=1] [g=1] [B=base]",
		},
		"a default wins over the global value": {
			text: "ARG g=1\nFROM a\nARG g=2", env: "[B=base g=2] [g=2] [B=base]",
		},
		"a build argument wins over a default": {
			text: "FROM a\nARG g=2", buildArgs: map[string]string{"g": "3"}, env: "[B=base g=3] [g=3] [B=base]",
		},
		"a build argument is not expanded": {
			text: "FROM a\nARG g=2", buildArgs: map[string]string{"g": "$B"}, env: "[B=base g=$B] [g=$B] [B=base]",
		},
		"an ARG without a value sets nothing": {
			text: "FROM a\nARG g", env: "[B=base] [g=] [B=base]",
		},
		"an ENV wins over the ARG above it": {
			text: "FROM a\nARG g=1\nENV g=2", env: "[B=base g=2] [g=2] [B=base g=2]",
		},
		"an ARG covers the ENV above it, not in the config": {
			text: "FROM a\nENV g=1\nARG g=2\nARG B=mine", env: "[B=mine g=2] [g=2 B=mine] [B=base g=1]",
		},
		"a bare ARG leaves an ENV alone": {
			text: "FROM a\nENV g=1\nARG g", env: "[B=base g=1] [g=1] [B=base g=1]",
		},
		"one ENV is expanded as a whole": {
			text: "FROM a\nENV x=1\nENV x=2 y=$x", env: "[B=base x=2 y=1] [] [B=base x=2 y=1]",
		},
		"one ARG is expanded name by name": {
			text: "FROM a\nARG x=1 y=$x$B", env: "[B=base x=1 y=1base] [x=1 y=1base] [B=base]",
		},
		"names of ENV are expanded": {
			text: "FROM a\nENV $B=1", env: "[B=base base=1] [] [B=base base=1]",
		},
		"an ARG declared twice stands once": {
			text: "FROM a\nARG x=1\nARG y=1\nARG x=2", env: "[B=base x=2 y=1] [x=2 y=1] [B=base]",
		},
		"a predefined ARG has to be declared": {
			text: "FROM a\nARG TARGETOS", env: "[B=base TARGETOS=linux] [TARGETOS=linux] [B=base]",
		},
		"quotes go, as in ENV": {
			text: "FROM a\nENV x=\"a b\" y='$B'", env: "[B=base x=a b y=$B] [] [B=base x=a b y=$B]",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			g := build(t, c.text, Options{BuildArgs: c.buildArgs, Platform: "linux/amd64"})
			s := g.Scope([]string{"B=base"})
			walk(t, s, g.File.Stages[0])
			env, args := s.Environ()
			if got := fmt.Sprint(env, args, s.ConfigEnv()); got != c.env {
				t.Errorf("got  %s\nwant %s", got, c.env)
			}
		})
	}
}

func TestArgAndEnvReturnWhatHistoryShows(t *testing.T) {
	g := build(t, "ARG g=1\nFROM a\nARG g h i=$B\nENV x=$B y=\"$i 2\"\n", Options{})
	s := g.Scope([]string{"B=base"})
	ins := g.File.Stages[0].Instructions
	arg, err := s.Arg(ins[0].(*dockerfile.Arg))
	if err != nil {
		t.Fatal(err)
	}
	env, err := s.Env(ins[1].(*dockerfile.Env))
	if err != nil {
		t.Fatal(err)
	}
	if got := dockerfile.CreatedBy(arg) + "; " + dockerfile.CreatedBy(env); got != "ARG g=1 h i=base; ENV x=base y=base 2" {
		t.Errorf("got %s", got)
	}
	if raw := ins[1].(*dockerfile.Env).Pairs[0].Value; raw != "$B" {
		t.Errorf("got %q in the file's own instruction, want it unchanged", raw)
	}
}

func TestAForkIsIndependent(t *testing.T) {
	g := build(t, "FROM a\nARG x=1\nENV y=2\n", Options{})
	s := g.Scope(nil)
	walk(t, s, g.File.Stages[0])
	fork := s.Fork()
	if _, err := fork.Env(&dockerfile.Env{Pairs: []dockerfile.KeyValue{{Key: "y", Value: "3"}}}); err != nil {
		t.Fatal(err)
	}
	mine, args := s.Environ()
	theirs, _ := fork.Environ()
	if got := fmt.Sprint(mine, args, theirs); got != "[x=1 y=2] [x=1] [x=1 y=3]" {
		t.Errorf("got %s", got)
	}
}

func TestProxiesNeedNoArg(t *testing.T) {
	g := build(t, "FROM a\nARG HTTPS_PROXY\n", Options{BuildArgs: map[string]string{
		"HTTP_PROXY": "upper", "http_proxy": "lower", "HTTPS_PROXY": "s", "No_Proxy": "n", "other": "o",
	}})
	s := g.Scope(nil)
	walk(t, s, g.File.Stages[0])
	env, args := s.Environ()
	got := fmt.Sprint(s.Proxies(), env, args)
	want := "[HTTP_PROXY=lower http_proxy=lower https_proxy=s NO_PROXY=n no_proxy=n] [HTTPS_PROXY=s] [HTTPS_PROXY=s]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAnEnvironmentThatDoublesIsStopped(t *testing.T) {
	text := "FROM a\nENV a=" + strings.Repeat("x", 1000) + "\n" + strings.Repeat("ENV a=$a$a\n", 10_000)
	_, err := Build(parse(t, text), Options{})
	var e *dockerfile.Error
	if !errors.As(err, &e) || !errors.Is(err, errTooLarge) || e.Pos.Line != 10 {
		t.Errorf("got %v, want the environment refused in line 10", err)
	}
}

func TestManyVariablesAreStopped(t *testing.T) {
	s := NewScope(nil, nil, nil, &dockerfile.File{})
	env := &dockerfile.Env{}
	for i := range maxVars + 1 {
		env.Pairs = append(env.Pairs, dockerfile.KeyValue{Key: fmt.Sprint("v", i)})
	}
	if _, err := s.Env(env); err == nil {
		t.Errorf("got no error for %d variables", len(env.Pairs))
	}
}

func TestErrorsOfAScopePointAtTheInstruction(t *testing.T) {
	g := build(t, "FROM a\n  ENV x=\"${y:?is needed}\"\nARG z=${y:?too}\n", Options{})
	s := g.Scope(nil)
	_, err := s.Env(g.File.Stages[0].Instructions[0].(*dockerfile.Env))
	if got, want := fmt.Sprint(err), `Dockerfile:2:3: ENV "${y:?is needed}": y: is needed`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	_, err = s.Arg(g.File.Stages[0].Instructions[1].(*dockerfile.Arg))
	if got, want := fmt.Sprint(err), "Dockerfile:3:1: ARG z: y: too"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzBuild(f *testing.F) {
	f.Add("ARG a=b\nFROM $a AS x\nONBUILD COPY --from=$a q r\nENV a=$a$a\nFROM x\nRUN --mount=from=$a,target=/x y\nFROM 0\n", "x")
	f.Add("FROM a AS x\nFROM x AS x\nCOPY --from=${x:-$y} a b\n", "1")
	f.Fuzz(func(t *testing.T, text, target string) {
		file, err := dockerfile.Parse("Dockerfile", []byte(text))
		if err != nil {
			return
		}
		g, err := Build(file, Options{Target: target, BuildArgs: map[string]string{"a": target}})
		var e *dockerfile.Error
		if err != nil {
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want a *dockerfile.Error", err)
			}
			_ = e.Render()
			return
		}
		for i, n := range g.Nodes {
			if n.Base.Word.Text == "" || n.BaseStage >= i {
				t.Fatalf("stage %d: got base %q, stage %d", i, n.Base.Word.Text, n.BaseStage)
			}
		}
	})
}
