package executor

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/progress"
)

// vertices numbers what happens and tells the sink about it.
type vertices struct {
	sink progress.Sink

	mu      sync.Mutex
	started []time.Time // guarded by mu; index is the number less one
}

func newVertices(sink progress.Sink) *vertices { return &vertices{sink: sink} }

// start tells that something begins and returns its number.
func (v *vertices) start(name string, pos dockerfile.Position) int {
	now := time.Now()
	v.mu.Lock()
	v.started = append(v.started, now)
	n := len(v.started)
	v.mu.Unlock()
	v.sink.Send(progress.Event{Kind: progress.StepStarted, Time: now, Vertex: n, Name: name, File: pos.File, Line: pos.Line})
	return n
}

// done tells that vertex n ended. A failure after the end of ctx is not its own.
func (v *vertices) done(ctx context.Context, n int, cached bool, err error) {
	now := time.Now()
	v.mu.Lock()
	took := now.Sub(v.started[n-1])
	v.mu.Unlock()
	e := progress.Event{Kind: progress.StepDone, Time: now, Vertex: n, Cached: cached, Duration: took}
	if err != nil {
		e.Error, e.Canceled = err.Error(), ctx.Err() != nil
	}
	v.sink.Send(e)
}

// output returns a writer for one stream of vertex n.
func (v *vertices) output(n, stream int) io.Writer {
	return &outputWriter{sink: v.sink, vertex: n, stream: stream}
}

type outputWriter struct {
	sink           progress.Sink
	vertex, stream int
}

// Write copies b: the writer's caller uses its buffer again.
func (o *outputWriter) Write(b []byte) (int, error) {
	data := append([]byte(nil), b...)
	o.sink.Send(progress.Event{Kind: progress.StepOutput, Time: time.Now(), Vertex: o.vertex, Stream: o.stream, Data: data})
	return len(b), nil
}

// newBuffer returns a sink that keeps events for later.
func newBuffer(into *[]progress.Event) progress.Sink {
	var mu sync.Mutex
	return progress.SinkFunc(func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		*into = append(*into, e)
	})
}
