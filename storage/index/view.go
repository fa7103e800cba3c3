package index

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// View answers look-ups from a database that it keeps open: 200 of them take
// about a millisecond, where opening for each would take ten.
//
// While the file is open no process can write. So a View closes it by itself
// viewHold after it opened it, and opens it again at the next look-up: a walk
// may take as long as it likes in between, and sees what was written
// meanwhile. Safe for concurrent use; look-ups of one View wait for each other.
type View struct {
	reads
	ix *Index

	mu    sync.Mutex
	s     *session // nil while closed
	timer *time.Timer
	err   error // of the last close by the timer
}

// viewHold is the longest that a View keeps writers waiting.
const viewHold = 50 * time.Millisecond

// View returns a view of the index. The caller closes it.
func (ix *Index) View(ctx context.Context) (*View, error) {
	v := &View{ix: ix}
	v.reads = reads{with: v.view}
	return v, v.view(ctx, func(*bbolt.Tx) error { return nil })
}

func (v *View) view(ctx context.Context, f func(*bbolt.Tx) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.s == nil {
		s, err := v.ix.openReader(ctx)
		if err != nil {
			return err
		}
		v.s = s
		v.timer = time.AfterFunc(viewHold, func() { v.release(s) })
	}
	return v.s.view(f)
}

// release closes the session unless another one has taken its place.
func (v *View) release(s *session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.s == s {
		v.err = v.s.close()
		v.s = nil
	}
}

// Close gives the file back. Look-ups after it open the file again.
func (v *View) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.s == nil {
		return v.err
	}
	v.timer.Stop()
	err := v.s.close()
	v.s = nil
	return err
}
