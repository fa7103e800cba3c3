package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/mstage/mstage/engine/buildcontext"
	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/executor"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

// hostError is a failure of this host.
type hostError struct{}

func (hostError) Error() string    { return "no newuidmap" }
func (hostError) HostHint() string { return "install uidmap" }

// inStep wraps an error as a step's.
func inStep(err error) error {
	return &executor.StepError{Vertex: 3, Step: plan.Step{Title: "RUN x", Pos: dockerfile.Position{File: "Dockerfile", Line: 2, Column: 1}}, Err: err}
}

func TestEveryErrorHasItsExitCodeAndHint(t *testing.T) {
	file := &dockerfile.File{Name: "Dockerfile", Source: []byte("FROM a\nRUN x\n")}
	place := dockerfile.Position{File: "Dockerfile", Line: 1, Column: 6}
	cases := map[string]struct {
		err  error
		code int
		hint string
	}{
		"anything else":                     {errors.New("x"), ExitInternal, ""},
		"a wrong Dockerfile":                {file.Errorf(place, 1, "h", "wrong"), ExitUsage, "h"},
		"a source that nobody knows":        {file.Errorf(place, 1, "", "no: %w", pluginapi.ErrNotFound), ExitNotFound, ""},
		"an image that is gone":             {file.Errorf(place, 1, "", "no: %w", storage.ErrNotFound), ExitNotFound, ""},
		"a file that the line names":        {file.Errorf(place, 1, "", "no: %w", fs.ErrNotExist), ExitNotFound, ""},
		"a layer that is gone":              {inStep(fmt.Errorf("layer: %w", storage.ErrNotFound)), ExitNotFound, ""},
		"a RUN that failed":                 {inStep(&sandbox.ExitError{Code: 1}), ExitRun, ""},
		"a RUN that did not start":          {inStep(&sandbox.StartError{Code: 127, Err: errors.New("no sh")}), ExitRun, ""},
		"a RUN that failed and can't clean": {inStep(errors.Join(&sandbox.ExitError{Code: 1}, errors.New("unmount"))), ExitRun, ""},
		"a fault of the Dockerfile":         {inStep(&executor.FaultError{Err: &copy.NotFoundError{Source: "f"}, Hint: "h"}), ExitUsage, "h"},
		"a pattern that is none":            {inStep(&buildcontext.IgnoreError{File: ".dockerignore", Line: 1, Err: errors.New("bad")}), ExitUsage, ""},
		"an owner that can't be":            {inStep(&copy.OwnerError{Path: "f", UID: 1}), ExitHost, "the IDs mapped for this user do not reach it; `mstage doctor` says how to get a range"},
		"something of the host":             {fmt.Errorf("start: %w", hostError{}), ExitHost, "install uidmap"},
		"a full disk":                       {inStep(fmt.Errorf("write: %w", syscall.ENOSPC)), ExitDiskFull, "`mstage prune -a` frees what no image needs; --root chooses another disk"},
		"a quota":                           {syscall.EDQUOT, ExitDiskFull, "`mstage prune -a` frees what no image needs; --root chooses another disk"},
		"an image in use":                   {fmt.Errorf("image: %w", storage.ErrInUse), ExitUsage, ""},
		"SIGINT":                            {inStep(&Interrupted{syscall.SIGINT}), ExitInterrupted, ""},
		"SIGTERM":                           {&Interrupted{syscall.SIGTERM}, ExitTerminated, ""},
		"a cancel":                          {context.Canceled, ExitInterrupted, ""},
		"a signal while a RUN failed":       {errors.Join(&sandbox.ExitError{Code: 137}, &Interrupted{syscall.SIGINT}), ExitInterrupted, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := Describe(c.err)
			if got.Code != c.code || got.Hint != c.hint || got.Message == "" {
				t.Errorf("got %+v, want code %d and hint %q", got, c.code, c.hint)
			}
		})
	}
}

func TestDescribeKeepsWhereItHappened(t *testing.T) {
	f := Describe(fmt.Errorf("build: %w", inStep(&sandbox.ExitError{Code: 1})))
	if f.Vertex != 3 || f.Pos == nil || f.Pos.Line != 2 || f.Rendered != "" {
		t.Errorf("got %+v, want vertex 3 and line 2", f)
	}
	sent := &worker.Failure{Message: "m", Code: 6}
	if got := Describe(fmt.Errorf("x: %w", sent)); got != sent {
		t.Errorf("got %+v, want what the worker said", got)
	}
}

func TestAFailureOfTheDockerfileIsShownAtItsLine(t *testing.T) {
	file := &dockerfile.File{Name: "Dockerfile", Source: []byte("FROM a\nRUN x\n")}
	own := file.Errorf(dockerfile.Position{File: "Dockerfile", Line: 1, Column: 1}, 4, "", "wrong")
	exit := inStep(&sandbox.ExitError{Code: 1})
	if got := placed(file, nil); got != nil {
		t.Errorf("no error: got %v", got)
	}
	if got := placed(file, own); !errors.Is(got, own) {
		t.Errorf("an error with its place: got %v, want it as it is", got)
	}
	if got := placed(file, exit); !errors.Is(got, exit) {
		t.Errorf("a RUN that failed: got %v, want it as it is", got)
	}
	got := Describe(placed(file, inStep(&executor.FaultError{Err: errors.New("no user"), Hint: "a number"})))
	const want = "Dockerfile:2:1: RUN x: no user\n  2 | RUN x\n    | ^\n  hint: a number"
	if got.Rendered != want || got.Message != "Dockerfile:2:1: RUN x: no user" || got.Code != ExitUsage {
		t.Errorf("got code %d, %q and\n%s\nwant\n%s", got.Code, got.Message, got.Rendered, want)
	}
}

func TestAFailureInATriggerOfAnImageHasNoLineOfThisFile(t *testing.T) {
	file := &dockerfile.File{Name: "Dockerfile", Source: []byte("FROM a\n")}
	err := &executor.StepError{Step: plan.Step{Title: "RUN x", Pos: dockerfile.Position{File: "ONBUILD of a", Line: 1, Column: 1}}, Err: &executor.FaultError{Err: errors.New("no user")}}
	if got := Describe(placed(file, err)).Rendered; got != "ONBUILD of a:1:1: RUN x: no user" {
		t.Errorf("got %q", got)
	}
}
