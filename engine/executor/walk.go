package executor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/storage"
)

// walk is one pass over a plan. machine is nil for a Probe.
type walk struct {
	o        Options
	machine  *Machine
	vertices *vertices
	futures  []*future
	context  func(ctx context.Context) (Files, error)
	mounts   *chainMounts
	fetches  []*fetching // by index in Plan.Images

	mu      sync.Mutex
	flights map[storage.Digest]*flight // guarded by mu
}

// future is a stage's result in the making.
type future struct {
	done   chan struct{}
	result Result
}

// flight is a step under way: identical steps of two stages run once.
type flight struct {
	task *task
	done chan struct{}
	rec  storage.StepRecord
	err  error
}

// task is one step with what stands below it.
type task struct {
	stage  *plan.Stage
	step   *plan.Step
	vertex int
	layers []storage.Layer
	chain  storage.Digest
	inputs cache.Inputs
	// keys collects the keys to record the result under.
	keys []storage.Digest
}

func newWalk(o Options, m *Machine) *walk {
	w := &walk{
		o:        o,
		machine:  m,
		vertices: newVertices(o.Sink),
		flights:  map[storage.Digest]*flight{},
		context:  onceContext(o.Context),
	}
	for range o.Plan.Stages {
		w.futures = append(w.futures, &future{done: make(chan struct{})})
	}
	for range o.Plan.Images {
		w.fetches = append(w.fetches, &fetching{done: make(chan struct{})})
	}
	if m != nil {
		w.mounts = newChainMounts(m)
	}
	return w
}

// close undoes what steps left mounted for the others.
func (w *walk) close() {
	w.mounts.close()
}

// onceContext opens the build context at the first call; later ones wait for it.
func onceContext(open func(ctx context.Context) (Files, error)) func(ctx context.Context) (Files, error) {
	var (
		once  sync.Once
		files Files
		err   error
	)
	return func(ctx context.Context) (Files, error) {
		once.Do(func() { files, err = open(ctx) })
		return files, err
	}
}

// run starts every stage at once; each waits for the ones that it needs.
func (w *walk) run(ctx context.Context) ([]Result, error) {
	g, ctx := errgroup.WithContext(ctx)
	for i := range w.o.Plan.Stages {
		g.Go(func() error { return w.stage(ctx, i) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	results := make([]Result, len(w.futures))
	for i, f := range w.futures {
		results[i] = f.result
	}
	return results, nil
}

// await returns the layers of another stage when it is done.
func (w *walk) await(ctx context.Context, index int) ([]storage.Layer, error) {
	f := w.futures[index]
	select {
	case <-f.done:
		return f.result.Layers, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// stage walks one stage's steps in order.
func (w *walk) stage(ctx context.Context, i int) error {
	st := &w.o.Plan.Stages[i]
	layers, err := w.base(ctx, st)
	if err != nil {
		return err
	}
	for j := range st.Steps {
		rec, err := w.step(ctx, st, &st.Steps[j], layers)
		if err != nil {
			return err
		}
		layers = append(slices.Clip(layers), rec.Layer)
	}
	w.futures[i].result = Result{Layers: layers}
	close(w.futures[i].done)
	return nil
}

// base returns what the stage starts from.
func (w *walk) base(ctx context.Context, st *plan.Stage) ([]storage.Layer, error) {
	switch {
	case st.Base.Stage != nil:
		return w.await(ctx, *st.Base.Stage)
	case st.Base.Image != nil:
		img := w.o.Plan.Images[*st.Base.Image]
		title := fmt.Sprintf("[%s1/%d] FROM %s", labelPrefix(st), len(st.Steps)+1, img.Reference)
		return w.image(ctx, *st.Base.Image, title, st.Pos)
	default:
		return nil, nil
	}
}

// sourceIdentity stands for what a Source holds. An image that has to be fetched
// is not, for that.
func (w *walk) sourceIdentity(ctx context.Context, s plan.Source) (storage.Digest, error) {
	if s.Image != nil && w.o.Plan.Images[*s.Image].Content != nil {
		return cache.ChainIdentity(w.o.Plan.Images[*s.Image].Layers), nil
	}
	layers, err := w.sourceLayers(ctx, s)
	return cache.ChainIdentity(layers), err
}

// image returns the layers of an image of the plan, as a step with that title.
func (w *walk) image(ctx context.Context, index int, title string, pos dockerfile.Position) ([]storage.Layer, error) {
	img := &w.o.Plan.Images[index]
	if img.Content != nil && w.machine == nil {
		return nil, errMiss
	}
	v := w.vertices.start(title, pos)
	if img.Content == nil {
		err := w.hold(ctx, img.Layers)
		w.vertices.done(ctx, v, true, err)
		return img.Layers, err
	}
	layers, cached, err := w.fetches[index].get(ctx, func() ([]storage.Layer, bool, error) {
		return w.fetch(ctx, img, v)
	})
	w.vertices.done(ctx, v, cached, err)
	return layers, err
}

// fetch brings an image into the store.
func (w *walk) fetch(ctx context.Context, img *plan.Image, vertex int) ([]storage.Layer, bool, error) {
	layers, cached, err := w.machine.Fetch(ctx, *img, vertex, w.o.Sink.Send)
	if err != nil && ctx.Err() == nil {
		err = &ImageError{Pos: img.Pos, Vertex: vertex, Reference: img.Reference, Err: err}
	}
	return layers, cached, err
}

// fetching is an image on its way into the store; all who need it wait for the
// one fetch.
type fetching struct {
	once   sync.Once
	done   chan struct{}
	layers []storage.Layer
	cached bool
	err    error
}

// get fetches, or waits for who does. Those who waited count it as cached.
func (f *fetching) get(ctx context.Context, fetch func() ([]storage.Layer, bool, error)) ([]storage.Layer, bool, error) {
	first := false
	f.once.Do(func() { first = true })
	if first {
		f.layers, f.cached, f.err = fetch()
		close(f.done)
		return f.layers, f.cached, f.err
	}
	select {
	case <-f.done:
		return f.layers, true, f.err
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
}

// hold keeps the collector away from layers. A Probe doesn't need to: naming the
// image and looking the layers up are one transaction.
func (w *walk) hold(ctx context.Context, layers []storage.Layer) error {
	if w.machine == nil {
		return nil
	}
	ids := make([]storage.LayerID, len(layers))
	for i, l := range layers {
		ids[i] = l.ID
	}
	return w.machine.Lease.Hold(ctx, ids...)
}

// sourceLayers returns the layers that a Source stands for.
func (w *walk) sourceLayers(ctx context.Context, s plan.Source) ([]storage.Layer, error) {
	switch {
	case s.Stage != nil:
		return w.await(ctx, *s.Stage)
	case s.Image != nil:
		img := &w.o.Plan.Images[*s.Image]
		if img.Content == nil {
			return img.Layers, w.hold(ctx, img.Layers)
		}
		if w.machine == nil {
			return nil, errMiss
		}
		layers, _, err := w.fetches[*s.Image].get(ctx, func() ([]storage.Layer, bool, error) {
			v := w.vertices.start("FROM "+img.Reference, img.Pos)
			layers, cached, err := w.fetch(ctx, img, v)
			w.vertices.done(ctx, v, cached, err)
			return layers, cached, err
		})
		return layers, err
	default:
		return nil, nil
	}
}

// step returns the result of one step: from the cache, from the same step of
// another stage, or by doing it.
func (w *walk) step(ctx context.Context, st *plan.Stage, s *plan.Step, layers []storage.Layer) (storage.StepRecord, error) {
	t := &task{stage: st, step: s, layers: layers, chain: cache.ChainIdentity(layers)}
	t.inputs.Chain = t.chain
	if err := w.inputs(ctx, t); err != nil {
		return storage.StepRecord{}, stepError(ctx, t, err)
	}
	t.vertex = w.vertices.start(title(st, s), s.Pos)
	key := cache.StepKey(s, w.o.Plan.Platform, t.inputs)
	rec, cached, err := w.single(ctx, t, key)
	w.vertices.done(ctx, t.vertex, cached, err)
	if err != nil {
		return rec, stepError(ctx, t, err)
	}
	return rec, nil
}

// stepError adds the step to its failure. What is another step's failure, or the
// end of ctx, stays as it is.
func stepError(ctx context.Context, t *task, err error) error {
	if errors.Is(err, errMiss) || (ctx.Err() != nil && errors.Is(err, context.Cause(ctx))) {
		return err
	}
	if _, placed := errors.AsType[*StepError](err); placed {
		return err
	}
	return &StepError{Stage: *t.stage, Step: *t.step, Vertex: t.vertex, Err: err}
}

// single finds or does t once for all steps with the same key. Those that only
// waited count as cached; they fail with the error of the one that ran, because
// that one has the output.
func (w *walk) single(ctx context.Context, t *task, key storage.Digest) (storage.StepRecord, bool, error) {
	w.mu.Lock()
	f, running := w.flights[key]
	if !running {
		f = &flight{task: t, done: make(chan struct{})}
		w.flights[key] = f
	}
	w.mu.Unlock()
	if !running {
		var cached bool
		f.rec, cached, f.err = w.findOrDo(ctx, t, key)
		close(f.done)
		return f.rec, cached, f.err
	}
	select {
	case <-f.done:
		if f.err != nil {
			return f.rec, false, stepError(ctx, f.task, f.err)
		}
		return f.rec, true, nil
	case <-ctx.Done():
		return storage.StepRecord{}, false, context.Cause(ctx)
	}
}

// findOrDo returns the recorded result, or does the step and records it.
func (w *walk) findOrDo(ctx context.Context, t *task, key storage.Digest) (storage.StepRecord, bool, error) {
	t.keys = append(t.keys, key)
	rec, ok, err := w.find(ctx, t, key)
	if err != nil || ok {
		return rec, ok, err
	}
	if w.machine == nil {
		return storage.StepRecord{}, false, errMiss
	}
	rec, err = w.do(ctx, t)
	if err != nil {
		return storage.StepRecord{}, false, err
	}
	return rec, false, w.o.Cache.Record(ctx, rec, t.keys...)
}

// find looks the step up. A record whose layer is gone meanwhile is a miss.
func (w *walk) find(ctx context.Context, t *task, key storage.Digest) (storage.StepRecord, bool, error) {
	rec, ok, err := w.o.Cache.Find(ctx, key)
	if err == nil && !ok && w.machine != nil && fromChain(t.step) {
		rec, ok, err = w.findByContent(ctx, t, key)
	}
	if err != nil || !ok {
		return rec, false, err
	}
	err = w.hold(ctx, []storage.Layer{rec.Layer})
	if errors.Is(err, storage.ErrNotFound) {
		return rec, false, nil
	}
	return rec, err == nil, err
}

// fromChain reports whether the step is a COPY --from of layers.
func fromChain(s *plan.Step) bool {
	return s.Copy != nil && !s.Copy.Context && !s.Copy.From.Scratch
}

// do executes a step.
func (w *walk) do(ctx context.Context, t *task) (storage.StepRecord, error) {
	switch {
	case t.step.Run != nil:
		return w.doRun(ctx, t)
	case t.step.Copy != nil:
		return w.doCopy(ctx, t)
	default:
		return w.doWorkdir(ctx, t)
	}
}
