// Package executor runs a plan: independent stages in parallel, each step from
// the cache when its key is known, else in a sandbox or by copying.
//
// Probe does the cache's part alone, for a process that may not touch layers;
// Run does the whole.
package executor

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/tree"
)

// Files is a build context: a tree that knows the digests of its files.
type Files interface {
	tree.Tree
	// FileDigest returns the digest of a regular file's bytes.
	FileDigest(ctx context.Context, e tree.Entry) (storage.Digest, error)
}

// Options are what a walk over the plan needs.
type Options struct {
	Plan  *plan.Plan
	Cache *cache.Cache
	// Context opens the build context; it is called once, when the first step
	// asks for it.
	Context func(ctx context.Context) (Files, error)
	Sink    progress.Sink
}

// Result is what one stage came to.
type Result struct {
	// Layers, lowest first, the base's included.
	Layers []storage.Layer
}

// StepError says which step failed, and where it stands in the Dockerfile.
type StepError struct {
	Stage plan.Stage
	Step  plan.Step
	// Vertex is the step's number in the progress.
	Vertex int
	Err    error
}

func (e *StepError) Error() string {
	return fmt.Sprintf("%s:%d: %s: %v", e.Step.Pos.File, e.Step.Pos.Line, e.Step.Title, e.Err)
}

// Unwrap returns the cause.
func (e *StepError) Unwrap() error { return e.Err }

// ImageError says which image could not be fetched, and where it is asked for.
type ImageError struct {
	Pos       dockerfile.Position
	Vertex    int
	Reference string
	Err       error
}

func (e *ImageError) Error() string {
	return fmt.Sprintf("%s:%d: %v", e.Pos.File, e.Pos.Line, e.Err)
}

// Unwrap returns the cause.
func (e *ImageError) Unwrap() error { return e.Err }

// FaultError says that a step failed because of what the Dockerfile asks for,
// not because of this host. Hint is shown apart from the message.
type FaultError struct {
	Err  error
	Hint string
}

func (e *FaultError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *FaultError) Unwrap() error { return e.Err }

// errMiss ends a Probe.
var errMiss = errors.New("step is not in the cache")

// Probe walks the plan without running anything. It returns the result of every
// stage (in the order of Plan.Stages) and true when all steps are in the cache.
// Events are sent only then: what missed is told again by Run.
func Probe(ctx context.Context, o Options) ([]Result, bool, error) {
	var told []progress.Event
	sink := o.Sink
	buffer := newBuffer(&told)
	o.Sink = buffer
	w := newWalk(o, nil)
	results, err := w.run(ctx)
	switch {
	case errors.Is(err, errMiss):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	for _, e := range told {
		sink.Send(e)
	}
	return results, true, nil
}

// Run walks the plan and executes what is not in the cache on m. The error is a
// *StepError when a step failed.
func Run(ctx context.Context, o Options, m *Machine) ([]Result, error) {
	w := newWalk(o, m)
	defer w.close()
	return w.run(ctx)
}

// title is what progress shows for a step: "[build 2/4] RUN make".
func title(st *plan.Stage, s *plan.Step) string {
	width := len(strconv.Itoa(s.Total))
	return fmt.Sprintf("[%s%*d/%d] %s", labelPrefix(st), width, s.Number, s.Total, s.Title)
}

// labelPrefix is empty for a Dockerfile's only stage without a name, as docker
// has it.
func labelPrefix(st *plan.Stage) string {
	if st.Label == "" {
		return ""
	}
	return st.Label + " "
}
