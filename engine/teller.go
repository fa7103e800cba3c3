package engine

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/storage"
)

// tellEvery is how often the bytes of one transfer are told.
const tellEvery = 200 * time.Millisecond

// teller turns bytes that move into events of one step, not too many of them.
// Safe for concurrent use.
type teller struct {
	send   func(progress.Event)
	vertex int

	mu   sync.Mutex
	last map[string]progress.Event // guarded by mu: by item
}

func newTeller(send func(progress.Event), vertex int) *teller {
	return &teller{send: send, vertex: vertex, last: map[string]progress.Event{}}
}

// tell sends an event when the status is a new one, or the last is old enough.
func (t *teller) tell(item, status string, current, total int64) {
	e := progress.Event{
		Kind: progress.StepProgress, Time: time.Now(), Vertex: t.vertex,
		Item: item, Status: status, Current: current, Total: total,
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, known := t.last[item]; known && last.Status == status && e.Time.Sub(last.Time) < tellEvery {
		return
	}
	t.last[item] = e
	t.send(e)
}

// moved tells bytes of many, and the end when they are all.
func (t *teller) moved(item, status string, current, total int64) {
	if current >= total {
		status = progress.TransferDone
	}
	t.tell(item, status, current, total)
}

// blob tells how far a layer's blob is.
func (t *teller) blob(b storage.Blob, status string, current int64) {
	t.tell(string(b.Digest), status, current, b.SizeBytes)
}

// sealing implements image.SealOptions.Tell.
func (t *teller) sealing(layer string, read, total int64, done bool) {
	status := progress.TransferCompress
	if done {
		status = progress.TransferDone
	}
	t.tell(layer, status, read, total)
}

// countedReader tells how much was read, and the end. end may be nil.
type countedReader struct {
	r    io.Reader
	n    int64
	tell func(n int64)
	end  func()
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if errors.Is(err, io.EOF) && c.end != nil {
		c.end()
	} else {
		c.tell(c.n)
	}
	return n, err
}
