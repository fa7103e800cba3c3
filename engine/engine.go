// Package engine builds images from Dockerfiles: it is the façade over the
// pipeline, for the command line and for programs that embed it.
//
// An Engine parses, resolves, plans and looks the cache up in the caller's
// process. Whatever touches file trees happens in a worker process that it
// starts through a worker.Launcher; Serve is that process's end.
package engine

import (
	"context"
	"fmt"

	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/storage"
)

// Index is the part of the store that the caller's process reads and writes by
// itself: names, configs, step results.
type Index interface {
	storage.Images
	storage.Steps
	// Touch marks step results as used, for the collector's choice.
	Touch(ctx context.Context, keys ...storage.Digest) error
	// Sync makes what was written survive a power failure.
	Sync(ctx context.Context) error
}

// Options are what an Engine is made of. All fields are required unless they
// say otherwise.
type Options struct {
	// Root is the store's directory.
	Root  string
	Index Index
	// Sources answer for FROM and --from words, in this order.
	Sources  []pluginapi.Source
	Launcher worker.Launcher
	// Blobs are the store's, for what is sent away.
	Blobs storage.Blobs
	// Remote sends images to registries.
	Remote Remote
	// Platform is what is built for: "linux/amd64".
	Platform string
	// Version stands in images and metadata.
	Version string
}

// Engine builds images in one store. Safe for concurrent use.
type Engine struct {
	o Options
}

// New returns an Engine.
func New(o Options) *Engine { return &Engine{o: o} }

// Sources are what words are looked up in, in order.
func (e *Engine) Sources() []pluginapi.Source { return e.o.Sources }

// Images are the store's images.
func (e *Engine) Images() storage.Images { return e.o.Index }

// discard drops events when the caller wants none.
var discard = progress.SinkFunc(func(progress.Event) {})

// call hands a job to a worker. A cancelled ctx lets the worker clean up first.
func (e *Engine) call(ctx context.Context, job worker.Job, sink progress.Sink, resize <-chan [2]uint16) (*worker.Result, error) {
	if sink == nil {
		sink = discard
	}
	job.Root = e.o.Root
	h := &helper{engine: e, sink: sink, job: job}
	res, err := worker.Call(ctx, e.o.Launcher, job, worker.Caller{Sink: sink, Resize: resize, Help: h.help})
	if ctx.Err() != nil && err != nil {
		return nil, context.Cause(ctx)
	}
	return res, err
}

// configOf returns the config of what a FROM resolved to.
func (e *Engine) configOf(ctx context.Context, r pluginapi.Resolved) (imageconfig.Config, error) {
	if r.Image == "" {
		if r.Content == nil || r.Content.Config == nil {
			return imageconfig.Config{}, nil
		}
		config, err := imageconfig.Parse(r.Content.Config)
		if err != nil {
			err = &fetch.ContentError{Err: fmt.Errorf("image config: %w", err)}
		}
		return config, err
	}
	img, err := e.o.Index.Image(ctx, storage.Digest(r.Image))
	if err != nil {
		return imageconfig.Config{}, err
	}
	return imageconfig.Parse(img.Config)
}
