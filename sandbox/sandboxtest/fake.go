// Package sandboxtest holds a Runner for the tests of other packages, and the
// contract that every sandbox.Runner has to keep.
package sandboxtest

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/mstage/mstage/sandbox"
)

// Fake is a sandbox.Runner whose commands are a Go function. Its zero value
// succeeds at everything. It is safe for concurrent use.
type Fake struct {
	// Command is the command: its error is Run's, as the contract of
	// sandbox.Runner has it. The Spec's streams are never nil. A Command that
	// waits must end when ctx does. Nil succeeds at once.
	Command func(ctx context.Context, s sandbox.Spec) error

	mu    sync.Mutex
	specs []sandbox.Spec
}

var _ sandbox.Runner = (*Fake)(nil)

// Run records s and calls Command.
func (f *Fake) Run(ctx context.Context, s sandbox.Spec) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	f.specs = append(f.specs, s)
	f.mu.Unlock()
	if f.Command == nil {
		return nil
	}
	if s.Stdin == nil {
		s.Stdin = strings.NewReader("")
	}
	if s.Stdout == nil {
		s.Stdout = io.Discard
	}
	if s.Stderr == nil {
		s.Stderr = io.Discard
	}
	err := f.Command(ctx, s)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Specs returns what was run so far, in the order of the starts.
func (f *Fake) Specs() []sandbox.Spec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.specs)
}
