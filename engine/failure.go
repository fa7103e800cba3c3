package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/mstage/mstage/engine/archive"
	"github.com/mstage/mstage/engine/buildcontext"
	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/executor"
	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

// The exit codes of mstage. They are part of its interface.
const (
	ExitOK          = 0
	ExitInternal    = 1
	ExitUsage       = 2 // the command line or the Dockerfile is wrong
	ExitRun         = 3 // a RUN failed
	ExitNotFound    = 4 // a source was not found
	ExitHost        = 5 // this host can't do it
	ExitNetwork     = 6
	ExitAuth        = 7
	ExitDiskFull    = 8
	ExitInterrupted = 130
	ExitPipe        = 141 // who read standard output has gone
	ExitTerminated  = 143
)

// Interrupted is the cause of a context that SIGINT or SIGTERM ended.
type Interrupted struct{ Signal syscall.Signal }

func (e *Interrupted) Error() string { return "canceled: " + e.Signal.String() }

// Describe turns an error into what the user gets to see and the exit code.
func Describe(err error) *worker.Failure {
	img, isImage := errors.AsType[*executor.ImageError](err)
	if failure, ok := errors.AsType[*worker.Failure](err); ok {
		if !isImage || failure.Pos != nil {
			return failure
		}
		f := *failure
		f.Message, f.Vertex, f.Pos = err.Error(), img.Vertex, &img.Pos
		return &f
	}
	f := &worker.Failure{Message: err.Error(), Code: exitCode(err), Hint: hint(err)}
	if isImage {
		f.Vertex, f.Pos = img.Vertex, &img.Pos
	}
	if step, ok := errors.AsType[*executor.StepError](err); ok {
		f.Vertex, f.Pos = step.Vertex, &step.Step.Pos
	}
	if text, ok := errors.AsType[*dockerfile.Error](err); ok {
		f.Message, f.Hint, f.Rendered = text.Message, text.Hint, text.Render()
	}
	return f
}

// exitCode says which exit code an error asks for.
func exitCode(err error) int {
	var (
		text        *dockerfile.Error
		interrupted *Interrupted
		fault       *executor.FaultError
		mismatch    *fetch.MismatchError
		content     *fetch.ContentError
		daemon      *export.DaemonError
		bad         *archive.Error
		ignore      *buildcontext.IgnoreError
	)
	switch {
	case errors.As(err, &interrupted):
		return 128 + int(interrupted.Signal)
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	case errors.Is(err, syscall.EPIPE):
		return ExitPipe
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ExitDiskFull
	case ranAndFailed(err):
		return ExitRun
	case errors.As(err, &fault), errors.As(err, &bad), errors.As(err, &ignore), errors.Is(err, storage.ErrInUse):
		return ExitUsage
	case errors.Is(err, pluginapi.ErrAuth):
		return ExitAuth
	case errors.As(err, &daemon):
		return daemonCode(daemon)
	case errors.Is(err, pluginapi.ErrNetwork), errors.As(err, &mismatch), errors.As(err, &content):
		return ExitNetwork
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, pluginapi.ErrNotFound):
		return ExitNotFound
	case errors.As(err, &text):
		return textCode(text)
	case hostCause(err):
		return ExitHost
	default:
		return ExitInternal
	}
}

// daemonCode tells a daemon that is not there from one that refuses.
func daemonCode(e *export.DaemonError) int {
	if e.Unreachable {
		return ExitHost
	}
	return ExitNetwork
}

// textCode tells a source that is not there from a Dockerfile that is wrong.
func textCode(e *dockerfile.Error) int {
	if errors.Is(e, pluginapi.ErrNotFound) || errors.Is(e.Err, storage.ErrNotFound) || errors.Is(e.Err, fs.ErrNotExist) {
		return ExitNotFound
	}
	return ExitUsage
}

// ranAndFailed reports whether a command in a sandbox failed or would not start.
func ranAndFailed(err error) bool {
	var (
		exit  *sandbox.ExitError
		start *sandbox.StartError
	)
	return errors.As(err, &exit) || errors.As(err, &start)
}

// hostCause reports whether the cause is something that this host can't do.
func hostCause(err error) bool {
	var owner *copy.OwnerError
	var hinted interface{ HostHint() string }
	return errors.As(err, &owner) || errors.As(err, &hinted)
}

// hint returns what the user can do about it, "" when nothing is known.
func hint(err error) string {
	var (
		owner    *copy.OwnerError
		hinted   interface{ HostHint() string }
		fault    *executor.FaultError
		refusal  *pluginapi.Error
		mismatch *fetch.MismatchError
		daemon   *export.DaemonError
		bad      *archive.Error
	)
	switch {
	case errors.As(err, &daemon):
		return daemon.Hint
	case errors.As(err, &refusal):
		return refusal.Hint
	case errors.As(err, &bad):
		return bad.Hint
	case errors.As(err, &mismatch):
		return "the registry's copy is damaged, or something between changed it"
	case errors.As(err, &fault):
		return fault.Hint
	case errors.As(err, &owner):
		return "the IDs mapped for this user do not reach it; `mstage doctor` says how to get a range"
	case errors.As(err, &hinted):
		return hinted.HostHint()
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "`mstage prune -a` frees what no image needs; --root chooses another disk"
	default:
		return ""
	}
}

// placed shows the source line of a failure that is the Dockerfile's.
func placed(f *dockerfile.File, err error) error {
	var own *dockerfile.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	d := Describe(err)
	if d.Pos == nil || d.Rendered != "" || !slices.Contains([]int{ExitUsage, ExitNetwork, ExitAuth}, d.Code) {
		return err
	}
	prefix := fmt.Sprintf("%s:%d: ", d.Pos.File, d.Pos.Line)
	e := f.Errorf(*d.Pos, 0, d.Hint, "%s", strings.TrimPrefix(d.Message, prefix))
	d.Message, d.Rendered = e.Error(), e.Render()
	return d
}
