package engine

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
)

// helper does for the worker what needs the caller's credentials, sources or
// network.
type helper struct {
	engine *Engine
	sink   progress.Sink
	job    worker.Job
}

// help implements worker.Helper.
func (h *helper) help(ctx context.Context, a worker.Ask, streams *worker.Streams) worker.Answer {
	var answer worker.Answer
	var err error
	switch {
	case a.Fetch != nil:
		err = h.fetch(ctx, a, streams)
	case a.Send != nil:
		answer, err = h.send(ctx, a.Send)
	default:
		err = errors.New("the worker asks for nothing")
	}
	if err != nil {
		answer.Failure, answer.Left = Describe(err), errors.Is(err, worker.ErrReaderLeft)
	}
	return answer
}

// fetch lets the source that answered deliver its content.
func (h *helper) fetch(ctx context.Context, a worker.Ask, streams *worker.Streams) error {
	for _, s := range h.engine.o.Sources {
		d, err := s.Describe(ctx)
		if err != nil {
			return err
		}
		if d.Name == a.Fetch.Resolved.Source {
			return s.Fetch(ctx, a.Fetch.Resolved, pluginapi.Selection{Layers: a.Fetch.Layers}, &receiver{ask: a.ID, streams: streams})
		}
	}
	return fmt.Errorf("there is no source %q", a.Fetch.Resolved.Source)
}

// receiver hands what a source delivers on to the worker.
type receiver struct {
	ask     int
	streams *worker.Streams
}

var _ pluginapi.Receiver = (*receiver)(nil)

// Layer implements pluginapi.Receiver.
func (r *receiver) Layer(ctx context.Context, l pluginapi.Layer, tar io.Reader) error {
	return r.copy(ctx, worker.StreamHeader{Ask: r.ask, Layer: l.Digest, MediaType: l.MediaType}, tar)
}

// RootFS implements pluginapi.Receiver.
func (r *receiver) RootFS(ctx context.Context, tar io.Reader) error {
	return r.copy(ctx, worker.StreamHeader{Ask: r.ask}, tar)
}

// copyBytes is what goes into the pipe at once.
const copyBytes = 256 << 10

func (r *receiver) copy(ctx context.Context, h worker.StreamHeader, from io.Reader) error {
	w, err := r.streams.Open(h)
	if err != nil {
		return err
	}
	// A worker that reads no more must not keep a cancelled build waiting.
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, from, make([]byte, copyBytes))
	if !stop() {
		return context.Cause(ctx)
	}
	return errors.Join(err, w.Close())
}
