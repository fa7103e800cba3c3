package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/executor"
	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/resolve"
	"github.com/mstage/mstage/engine/stage"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// DefaultRuns is how many RUNs go on at once unless the caller says otherwise.
const DefaultRuns = 16

// Request says what to build. The zero value of a field is the default that
// `mstage build` documents for its flag.
type Request struct {
	// Dockerfile is the text; Name is how it is called in messages.
	Dockerfile []byte
	Name       string
	// Context says where the files come from; Context.Dir "" is an empty context.
	Context Context
	Target  string
	// BuildArgs are the --build-arg values, and proxy variables.
	BuildArgs map[string]string
	Labels    map[string]string
	Secrets   map[string][]byte
	NoCache   bool
	// Network is the mode of RUNs that name none: "default", "none" or "host".
	Network string
	// AllowHostNetwork lets a RUN ask for the host's network by itself.
	AllowHostNetwork bool
	Hosts            []worker.Host
	ShmBytes         int64
	Ulimits          []plan.Ulimit
	Runs             int
	CABundle         string
	// Names are normalised image names to point at the result.
	Names []string
	// Outputs are -o values. Empty: the local store.
	Outputs []export.Output
	Sink    progress.Sink
}

// Context says where a build context is.
type Context struct {
	Dir string
	// Dockerfile is the Dockerfile's path when it is a file, for
	// <Dockerfile>.dockerignore.
	Dockerfile string
}

// BuildResult is what a build came to.
type BuildResult struct {
	Image   storage.Image
	Names   []string
	Exports []worker.Export
	// Cached says that every step came from the cache.
	Cached bool
}

// Plan parses, resolves and plans a request, without a network and without
// running anything. Unless strict, a source that no look-up knows is left open.
func (e *Engine) Plan(ctx context.Context, r Request, strict bool) (*plan.Plan, error) {
	f, err := dockerfile.Parse(r.Name, r.Dockerfile)
	if err != nil {
		return nil, err
	}
	_, p, err := e.plan(ctx, f, r, strict)
	return p, err
}

func (e *Engine) plan(ctx context.Context, f *dockerfile.File, r Request, strict bool) (*stage.Graph, *plan.Plan, error) {
	g, err := stage.Build(f, stage.Options{BuildArgs: r.BuildArgs, Target: r.Target, Platform: e.o.Platform})
	if err != nil {
		return nil, nil, err
	}
	bound, err := resolve.Bind(ctx, g, resolve.Options{
		Sources: e.o.Sources, Platform: e.o.Platform, ConfigOf: e.configOf, AllowUnknown: !strict,
	})
	if err != nil {
		return nil, nil, err
	}
	p, err := plan.Make(ctx, bound, plan.Options{
		Platform: e.o.Platform, Labels: r.Labels,
		Network: r.Network, AllowHostNetwork: r.AllowHostNetwork, ShmBytes: r.ShmBytes, Ulimits: r.Ulimits,
		ConfigOf: e.configOf, Images: e.o.Index,
	})
	return g, p, err
}

// Build builds a request and delivers its outputs. The error is a
// *dockerfile.Error for what is wrong with the Dockerfile, a *worker.Failure
// for what went wrong in the worker, and context.Cause(ctx) after a cancel.
func (e *Engine) Build(ctx context.Context, r Request) (*BuildResult, error) {
	if r.Sink == nil {
		r.Sink = discard
	}
	f, err := dockerfile.Parse(r.Name, r.Dockerfile)
	if err != nil {
		return nil, err
	}
	g, p, err := e.plan(ctx, f, r, true)
	if err != nil {
		return nil, err
	}
	warn(r.Sink, f)
	warnUnused(r.Sink, g)
	if err := e.warnForeign(ctx, r.Sink, f.Name, p); err != nil {
		return nil, err
	}
	res, err := e.fromCache(ctx, r, p)
	if res == nil && err == nil {
		res, err = e.inWorker(ctx, r, p)
	}
	return res, placed(f, err)
}

// warn tells what the parser found odd.
func warn(sink progress.Sink, f *dockerfile.File) {
	for _, w := range f.Warnings {
		sink.Send(progress.Event{
			Kind: progress.Warning, Time: time.Now(), Message: w.Message, File: w.Pos.File, Line: w.Pos.Line,
		})
	}
}

// warnUnused tells build arguments that no ARG takes.
func warnUnused(sink progress.Sink, g *stage.Graph) {
	if len(g.UnusedArgs) > 0 {
		sink.Send(progress.Event{
			Kind: progress.Warning, Time: time.Now(), File: g.File.Name,
			Message: "no ARG takes the build arguments " + strings.Join(g.UnusedArgs, ", "),
		})
	}
}

// warnForeign tells of images of the store that are for another platform: who
// pulled one on purpose knows, everybody else wonders about "exec format error".
func (e *Engine) warnForeign(ctx context.Context, sink progress.Sink, file string, p *plan.Plan) error {
	for _, img := range p.Images {
		if img.Content != nil || img.ID == "" {
			continue // a source has chosen it for the platform
		}
		rec, err := e.o.Index.Image(ctx, img.ID)
		if err != nil {
			return err
		}
		config, err := imageconfig.Parse(rec.Config)
		if err != nil {
			return err
		}
		is := config.OS + "/" + config.Architecture
		if config.Architecture == "" || is == e.o.Platform || strings.HasPrefix(e.o.Platform, is+"/") {
			continue
		}
		sink.Send(progress.Event{
			Kind: progress.Warning, Time: time.Now(), File: file,
			Message: fmt.Sprintf("%s in the store is for %s, not for %s", img.Reference, is, e.o.Platform),
		})
	}
	return nil
}

// storeOnly reports whether the local store is the only output.
func (r *Request) storeOnly() bool {
	return !slices.ContainsFunc(r.Outputs, func(o export.Output) bool { return o.Type != "image" })
}

// toStore reports whether the image goes to the local store.
func (r *Request) toStore() bool {
	return len(r.Outputs) == 0 || slices.ContainsFunc(r.Outputs, func(o export.Output) bool { return o.Type == "image" })
}

// fromCache finishes a build whose steps are all in the cache, in this process:
// no layer is looked at and containers/storage stays closed. It returns nil
// when something has to be done.
func (e *Engine) fromCache(ctx context.Context, r Request, p *plan.Plan) (*BuildResult, error) {
	if r.NoCache || !r.storeOnly() || !e.storeExists() {
		return nil, nil
	}
	files := &contextFiles{context: e.context(r)}
	steps := &cache.Cache{Steps: e.o.Index}
	var told []progress.Event // when it has to be done after all, this never was
	sink := &numberedSink{Sink: progress.SinkFunc(func(e progress.Event) { told = append(told, e) })}
	results, hit, err := executor.Probe(ctx, executor.Options{
		Plan: p, Cache: steps, Context: files.open, Sink: sink,
	})
	if err := errors.Join(err, files.close()); err != nil || !hit {
		return nil, err
	}
	img, err := assemble(p, results)
	if err != nil {
		return nil, err
	}
	var kept storage.Image
	err = sink.step(ctx, imageTitle, func() ([]string, error) {
		var err error
		kept, err = e.keep(ctx, img, r.Names)
		return keptLines(img, r.Names), err
	})
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil // a layer was collected meanwhile: build it again
	}
	for _, e := range told {
		r.Sink.Send(e)
	}
	if err != nil {
		return nil, err
	}
	if err := e.o.Index.Touch(ctx, steps.Hits()...); err != nil {
		return nil, err
	}
	return &BuildResult{Image: kept, Names: r.Names, Cached: true}, nil
}

// storeExists reports whether there is a store already. The worker makes one.
func (e *Engine) storeExists() bool {
	entries, err := os.ReadDir(e.o.Root)
	return err == nil && len(entries) > 0
}

// keep puts the image into the store under its names, unless it is there with
// them already: then nothing is written. It returns the image as the store has
// it, seals included.
func (e *Engine) keep(ctx context.Context, img storage.Image, names []string) (storage.Image, error) {
	known, err := e.o.Index.Image(ctx, img.ID)
	found := err == nil
	for _, name := range names {
		named, err := e.o.Index.ByName(ctx, name)
		found = found && err == nil && named.ID == img.ID
	}
	if found {
		return known, nil
	}
	if err := e.o.Index.PutImage(ctx, img, names...); err != nil {
		return img, err
	}
	return img, e.o.Index.Sync(ctx)
}

// context is the build context as the worker is told.
func (e *Engine) context(r Request) worker.Context {
	c := worker.Context{Dir: r.Context.Dir, Dockerfile: r.Context.Dockerfile}
	if c.Dir != "" {
		c.StatIndex = filepath.Join(e.o.Root, "stat-index")
	}
	return c
}

// inWorker hands the plan to a worker.
func (e *Engine) inWorker(ctx context.Context, r Request, p *plan.Plan) (*BuildResult, error) {
	job := &worker.Build{
		Plan: *p, Context: e.context(r), NoCache: r.NoCache, Runs: r.Runs,
		Secrets: r.Secrets, Hosts: r.Hosts, CABundle: r.CABundle,
		Names: r.Names, Store: r.toStore(),
	}
	if job.Runs == 0 {
		job.Runs = DefaultRuns
	}
	for _, o := range r.Outputs {
		if o.Type != "image" {
			job.Outputs = append(job.Outputs, o)
		}
	}
	res, err := e.call(ctx, worker.Job{Build: job}, r.Sink, nil)
	if err != nil {
		return nil, err
	}
	return &BuildResult{Image: *res.Image, Names: r.Names, Exports: res.Exports}, nil
}
