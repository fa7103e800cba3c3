package executor

import (
	"context"
	"errors"
	"io"

	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

// CommandOptions say how a Command meets the world.
type CommandOptions struct {
	Mounts   []sandbox.Mount
	Terminal *sandbox.Terminal
	// Stdin nil is /dev/null.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Command runs one command over layers; what it writes is thrown away. The
// error is as sandbox.Runner has it.
func Command(ctx context.Context, m *Machine, layers []storage.Layer, run *plan.Run, o CommandOptions) (err error) {
	w := newWalk(Options{Plan: &plan.Plan{}}, m)
	defer w.close()
	r := &runStep{walk: w, machine: m, task: &task{layers: layers}, run: run}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := w.hold(ctx, layers); err != nil {
		return err
	}
	if r.staged, err = m.Layers.Stage(ctx); err != nil {
		return err
	}
	r.undo = append(r.undo, r.staged.Discard)
	r.spec = sandbox.Spec{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Terminal: o.Terminal, Mounts: o.Mounts}
	if err := r.prepare(ctx); err != nil {
		return err
	}
	return r.execute(ctx)
}
