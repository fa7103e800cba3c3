package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

func TestEveryFailureHasItsExitCodeAndText(t *testing.T) {
	file := &dockerfile.File{Name: "Dockerfile", Source: []byte("FROM nowhere\n")}
	place := dockerfile.Position{File: "Dockerfile", Line: 1, Column: 6}
	unknown := file.Errorf(place, 7, "look closer", "no such stage: %w", pluginapi.ErrNotFound)
	cases := map[string]struct {
		err  error
		code int
		want string
	}{
		"nothing":                     {nil, 0, ""},
		"anything else":               {errors.New("on fire"), 1, "mstage: on fire\n"},
		"several":                     {errors.Join(errors.New("a"), errors.New("b")), 1, "mstage: a\nmstage: b\n"},
		"a wrong command line":        {&usageError{message: "no", hint: "yes", command: "mstage x"}, 2, "mstage: no\n  hint: yes\nSee 'mstage x --help'.\n"},
		"a wrong Dockerfile":          {file.Errorf(place, 7, "", "wrong"), 2, "Dockerfile:1:6: wrong\n  1 | FROM nowhere\n    |      ^^^^^^^\n"},
		"a source that is not there":  {unknown, 4, "  hint: look closer\n"},
		"an image that is not there":  {fmt.Errorf("image x: %w", storage.ErrNotFound), 4, "mstage: image x: not in the store\n"},
		"an ambiguous ID":             {&pluginapi.Error{Message: "which?", Hint: "more", Err: storage.ErrAmbiguous}, 2, "mstage: which?\n  hint: more\n"},
		"a RUN that failed":           {fmt.Errorf("RUN x: %w", &sandbox.ExitError{Code: 7}), 3, "mstage: RUN x: exit code: 7\n"},
		"a full disk":                 {fmt.Errorf("write: %w", syscall.ENOSPC), 8, "mstage: write: no space left on device\n"},
		"SIGINT":                      {&engine.Interrupted{Signal: syscall.SIGINT}, 130, "mstage: canceled: interrupt\n"},
		"SIGTERM in another error":    {fmt.Errorf("x: %w", &engine.Interrupted{Signal: syscall.SIGTERM}), 143, "mstage: "},
		"what the worker reports":     {&worker.Failure{Message: "m", Hint: "h", Code: 5}, 5, "mstage: m\n  hint: h\n"},
		"a command's own exit code":   {&codedError{code: 42}, 42, ""},
		"no control of the terminal":  {errors.New("a\x1b[31m"), 1, "mstage: a\\x1b[31m\n"},
		"a code for a known error":    {&codedError{code: 6, hint: "wire", err: errors.New("gone")}, 6, "mstage: gone\n  hint: wire\n"},
		"a cancel without a signal":   {context.Canceled, 130, "mstage: context canceled\n"},
		"a usage error among several": {errors.Join(errors.New("a"), &usageError{message: "b"}), 2, "mstage: a\nmstage: b\n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			if code := finish(&stderr, c.err); code != c.code {
				t.Errorf("got code %d, want %d", code, c.code)
			}
			if got := stderr.String(); !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
