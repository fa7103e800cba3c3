package dockerfile

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// FuzzParse holds Parse to BuildKit's own verdict, but for the exceptions that
// Parse documents.
func FuzzParse(f *testing.F) {
	for _, text := range broken {
		f.Add([]byte(text))
	}
	f.Add([]byte("# escape=`\nARG a=b\nFROM x$a as y\nRUN --mount=from=$a,target=/x <<-E cat `\n\n# c\n && b\n\tq\n\tE\nCOPY --from=y <<'q' a /c\n$x\nq\n"))
	f.Add([]byte("FROM a\nHEALTHCHECK --interval=5s CMD [\"x\"]\nONBUILD RUN <<a <<b\na\nb\nENV a b c\nLABEL \"a b\"='c d'\nSTOPSIGNAL 9\nEXPOSE 80 90/udp\n"))
	f.Fuzz(func(t *testing.T, source []byte) {
		if len(source) > 30_000 || bytes.IndexByte(source, 0) >= 0 || !utf8.Valid(source) {
			return
		}
		parsed, err := Parse("Dockerfile", source)
		accepted, excepted := oracle(source)
		if !excepted && accepted != (err == nil) {
			t.Fatalf("got error %v, BuildKit accepts: %v\n%q", err, accepted, source)
		}
		var e *Error
		if err != nil {
			if !errors.As(err, &e) || e.Message == "" || e.Pos.File != "Dockerfile" {
				t.Fatalf("got %#v, want an *Error with a message and the file", err)
			}
			_ = e.Render()
			return
		}
		exercise(t, parsed)
	})
}

// oracle returns BuildKit's verdict, and whether Parse may differ.
func oracle(source []byte) (accepted, excepted bool) {
	if value, _, _, ok := parser.ParseDirective("check", bytes.TrimPrefix(source, []byte(byteOrderMark))); ok {
		config, err := linter.ParseLintOptions(value)
		excepted = err != nil || config.ReturnAsError
	}
	result, err := parser.Parse(bytes.NewReader(source))
	if err != nil {
		return false, excepted
	}
	for _, n := range result.AST.Children {
		value := strings.ToLower(n.Value)
		none := n.Next != nil && strings.EqualFold(n.Next.Value, "none")
		if len(n.Flags) > 0 && (value == "arg" || value == "stopsignal" || value == "healthcheck" && none) {
			excepted = true
		}
	}
	stages, _, err := instructions.Parse(result.AST, linter.New(&linter.Config{}))
	if err != nil {
		return false, excepted || strings.Contains(err.Error(), "doesn't support variable expansion")
	}
	return true, excepted || len(stages) == 0
}

// exercise runs everything that takes a part of a file, for panics, and checks
// that positions were found.
func exercise(t *testing.T, f *File) {
	t.Helper()
	vars := NewVars("a=1", "b=/x/y")
	expand := func(s string) (string, error) { return f.Expand(s, vars) }
	for _, st := range f.Stages {
		if st.Pos.Line < 1 || st.Pos.Column < 1 || st.Base.Pos.Column < 1 {
			t.Fatalf("got no position for FROM: %+v", st)
		}
		_, _ = f.ExpandWords(st.Base.Text, vars)
		for _, ins := range st.Instructions {
			h := ins.Head()
			if h.Pos.Line < 1 || h.Pos.Column < 1 || h.Pos.EndLine < h.Pos.Line || !strings.HasPrefix(h.Text, h.Keyword) {
				t.Fatalf("got no position or text for %+v", h)
			}
			_ = CreatedBy(ins)
			_ = f.ExpandTitle(h.Text, vars)
			switch i := ins.(type) {
			case *Run:
				for _, m := range i.Mounts {
					_, _ = ParseMount(m, expand)
					_, _, _ = MountFrom(m)
				}
				if i.Command.Shell {
					_, _ = i.Command.Script()
				}
			case *Onbuild:
				_, _ = f.Trigger(i)
				_, _ = ParseTrigger(i.Expression, "x")
			}
		}
	}
}

// FuzzJoin holds the joining of continued lines to BuildKit's.
func FuzzJoin(f *testing.F) {
	f.Add("FROM a \\\n # b\n\n  \\\n c\\\\\nRUN x\\ \t\ny <<E\n\\\nE\n \\\n\\\nRUN z\n")
	f.Add("# escape=`\nFROM a `\n b\n")
	f.Fuzz(func(t *testing.T, text string) {
		if badByte(text) >= 0 || len(text) > 30_000 {
			return
		}
		result, err := parser.Parse(strings.NewReader(text))
		if err != nil {
			return
		}
		lines := splitLines([]byte(strings.TrimPrefix(text, byteOrderMark)))
		for _, n := range result.AST.Children {
			if got := joinAt("f", lines, n.StartLine, result.EscapeToken); got.text != n.Original {
				t.Fatalf("line %d: got %q, want %q", n.StartLine, got.text, n.Original)
			}
		}
	})
}

// FuzzExpand looks for panics and for results that grow without bound.
func FuzzExpand(f *testing.F) {
	f.Add("a$b${c:-d}\"e\"'f'", "x")
	f.Add("${a//a/${a//a/${a//a/${a//a/$a}}}}", strings.Repeat("a", 1000))
	f.Add("${a/\"}\"${a//x/y}/${a}}", "xxxx")
	f.Fuzz(func(t *testing.T, text, value string) {
		vars := NewVars("a="+value, "b="+value)
		file := &File{}
		for _, expand := range []func(string, *Vars) (string, error){file.Expand, file.ExpandData} {
			got, err := expand(text, vars)
			if err == nil && len(got) > maxSubstitution {
				t.Fatalf("got %d bytes", len(got))
			}
		}
	})
}
