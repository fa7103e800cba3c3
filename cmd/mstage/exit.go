package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
	"github.com/mstage/mstage/storage/layout"
)

// usageError says that the command line is wrong.
type usageError struct {
	message string
	hint    string
	// command is shown in the advice to ask for help: "mstage images".
	command string
}

func (e *usageError) Error() string { return e.message }

// codedError carries an exit code that the error's type doesn't say. With an
// err of nil nothing is printed.
type codedError struct {
	code int
	hint string
	err  error
}

func (e *codedError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codedError) Unwrap() error { return e.err }

// withSignals returns a context that the first SIGINT or SIGTERM cancels; the
// second one kills the process as if nobody listened.
func withSignals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			if number, ok := s.(syscall.Signal); ok {
				cancel(&engine.Interrupted{Signal: number})
			}
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// finish prints an error for people and returns the exit code of the process.
func finish(w io.Writer, err error) int {
	if err == nil {
		return engine.ExitOK
	}
	f := describe(err)
	var silent *codedError
	if errors.As(err, &silent) && silent.err == nil || f.Code == engine.ExitPipe {
		return f.Code
	}
	printFailure(w, f)
	var usage *usageError
	if errors.As(err, &usage) && usage.command != "" {
		fmt.Fprintf(w, "See '%s --help'.\n", usage.command)
	}
	return f.Code
}

// describe says what the user gets to see of an error, and the exit code.
func describe(err error) *worker.Failure {
	f := engine.Describe(err)
	var (
		usage       *usageError
		coded       *codedError
		refusal     *pluginapi.Error
		text        *dockerfile.Error
		store       *layout.Error
		damaged     *index.DamagedError
		interrupted *engine.Interrupted
	)
	switch {
	case errors.As(err, &interrupted):
	case errors.As(err, &coded):
		f.Code, f.Hint = coded.code, coded.hint
	case errors.As(err, &usage):
		f.Code, f.Hint = engine.ExitUsage, usage.hint
	case errors.As(err, &store):
		f.Code, f.Hint = engine.ExitHost, store.Hint
	case errors.As(err, &damaged):
		f.Hint = damaged.Hint
	case errors.Is(err, pluginapi.ErrNotFound):
		f.Code = engine.ExitNotFound
	case errors.As(err, &text):
	case errors.As(err, &refusal):
		f.Hint = refusal.Hint
		if f.Code == engine.ExitInternal {
			f.Code = engine.ExitUsage
		}
	case errors.Is(err, storage.ErrAmbiguous):
		f.Code = engine.ExitUsage
	}
	return f
}

// printFailure writes the message and the hint.
func printFailure(w io.Writer, f *worker.Failure) {
	if f.Rendered != "" {
		fmt.Fprintln(w, f.Rendered)
		return
	}
	for line := range strings.Lines(f.Message) {
		fmt.Fprintf(w, "mstage: %s\n", printable(strings.TrimSuffix(line, "\n")))
	}
	if f.Hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", printable(f.Hint))
	}
}
