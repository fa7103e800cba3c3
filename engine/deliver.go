package engine

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// numberedSink counts the steps that were told about, so that outputs go on
// with the numbering.
type numberedSink struct {
	progress.Sink
	last atomic.Int64
}

// Send forwards an event.
func (n *numberedSink) Send(e progress.Event) {
	if e.Kind == progress.StepStarted {
		n.last.Add(1)
	}
	n.Sink.Send(e)
}

// teller tells about transfers of the step that was started last.
func (n *numberedSink) teller() *teller { return newTeller(n.Send, int(n.last.Load())) }

// step tells about do as a step of its own; the lines that it returns are the
// step's output.
func (n *numberedSink) step(ctx context.Context, name string, do func() ([]string, error)) error {
	start := time.Now()
	n.Send(progress.Event{Kind: progress.StepStarted, Time: start, Vertex: int(n.last.Load()) + 1, Name: name})
	vertex := int(n.last.Load())
	lines, err := do()
	end := time.Now()
	if len(lines) > 0 {
		data := []byte(strings.Join(lines, "\n") + "\n")
		n.Send(progress.Event{Kind: progress.StepOutput, Time: end, Vertex: vertex, Stream: 1, Data: data})
	}
	done := progress.Event{Kind: progress.StepDone, Time: end, Vertex: vertex, Duration: end.Sub(start)}
	if err != nil {
		done.Error, done.Canceled = err.Error(), ctx.Err() != nil
	}
	n.Send(done)
	return err
}

// exportTitles name the outputs as docker does.
var exportTitles = map[string]string{
	"oci":    "exporting to oci image format",
	"docker": "exporting to docker image format",
	"local":  "exporting to client directory",
	"tar":    "exporting to client tarball",

	"registry": "pushing to registry",
	"daemon":   "loading into daemon",
}

// imageTitle names the output to the store.
const imageTitle = "exporting to image"

// keptLines tell what the store has now.
func keptLines(img storage.Image, names []string) []string {
	lines := []string{"writing image " + string(img.ID)}
	for _, name := range names {
		lines = append(lines, "naming to "+name)
	}
	return lines
}

// deliver writes the outputs and keeps the image in the store, when asked to.
func (b *Backend) deliver(ctx context.Context, j *worker.Build, res *worker.Result, sink *numberedSink) error {
	for i, o := range j.Outputs {
		err := sink.step(ctx, exportTitles[o.Type], func() ([]string, error) {
			if o.Sent() {
				return b.send(ctx, res, i, sink.teller(), worker.Export{Type: o.Type, Dest: strings.Join(j.Names, ",")})
			}
			return nil, b.export(ctx, j, res, o, sink)
		})
		if err != nil {
			return err
		}
	}
	if !j.Store {
		return nil
	}
	return sink.step(ctx, imageTitle, func() ([]string, error) {
		if err := b.Images.PutImage(ctx, *res.Image, j.Names...); err != nil {
			return nil, err
		}
		return keptLines(*res.Image, j.Names), b.Sync(ctx)
	})
}

// export writes one output.
func (b *Backend) export(ctx context.Context, j *worker.Build, res *worker.Result, o export.Output, sink progress.Sink) error {
	o.Stdout = os.Stdout
	done, err := export.Export(ctx, b.stores(), *res.Image, j.Names, o, sink)
	if err != nil {
		return fmt.Errorf("output %s: %w", o.Dest, err)
	}
	*res.Image = done.Image
	res.Exports = append(res.Exports, worker.Export{Type: o.Type, Dest: o.Dest, Digest: done.Manifest})
	return nil
}
