package overlay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layout"
)

// lease is a locked file in the layout's Leases and a directory of the same
// name in Tmp. The file's first line is when it began, in nanoseconds since
// 1970; each of the others is a layer ID.
type lease struct {
	store *Store
	name  string
	tmp   string

	mu   sync.Mutex
	file *os.File // nil after Release
	held map[storage.LayerID]bool
}

var _ storage.Lease = (*lease)(nil)

// leasePrefix begins the names of lease files.
const leasePrefix = "lease-"

// errReleased is returned by the use of a lease after its end.
var errReleased = errors.New("lease is released")

// Lease begins a lease that holds nothing yet.
func (s *Store) Lease(context.Context) (storage.Lease, error) { return s.newLease() }

func (s *Store) newLease() (*lease, error) {
	began := time.Now()
	f, err := layout.CreateLocked(s.layout.Leases(), leasePrefix)
	if err != nil {
		return nil, fmt.Errorf("new lease: %w", err)
	}
	name := filepath.Base(f.Name())
	l := &lease{store: s, name: name, tmp: filepath.Join(s.layout.Tmp(), name), file: f, held: map[storage.LayerID]bool{}}
	_, err = fmt.Fprintln(f, began.UnixNano())
	if err = errors.Join(err, os.Mkdir(l.tmp, 0o700)); err != nil {
		return nil, errors.Join(fmt.Errorf("new lease: %w", err), os.Remove(f.Name()), f.Close())
	}
	return l, nil
}

// Hold implements storage.Lease.
func (l *lease) Hold(ctx context.Context, ids ...storage.LayerID) error {
	lock, err := l.store.lock(ctx, lockCollect, layout.Shared)
	if err != nil {
		return err
	}
	return errors.Join(l.hold(ctx, ids), lock.Unlock())
}

// hold writes the IDs before it looks whether the layers are there: a
// collection is either over, then the index knows what it condemned, or has
// not begun, then it reads this file. The caller has the lock.
func (l *lease) hold(ctx context.Context, ids []storage.LayerID) error {
	if err := l.write(ids); err != nil {
		return err
	}
	gone, err := l.store.index.Dropped(ctx, ids...)
	if err != nil {
		return err
	}
	for _, id := range gone {
		return fmt.Errorf("hold layer %s: %w", id, storage.ErrNotFound)
	}
	for _, id := range ids {
		if _, err := l.store.Dir(id); err != nil {
			return fmt.Errorf("hold: %w", err)
		}
	}
	return nil
}

// write appends IDs that are not in the file yet.
func (l *lease) write(ids []storage.LayerID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return errReleased
	}
	var lines strings.Builder
	for _, id := range ids {
		if !l.held[id] {
			lines.WriteString(string(id) + "\n")
		}
	}
	if _, err := l.file.WriteString(lines.String()); err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	for _, id := range ids {
		l.held[id] = true
	}
	return nil
}

// Release implements storage.Lease.
func (l *lease) Release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return errors.Join(removeAll(l.tmp), os.Remove(f.Name()), f.Close())
}

// leases is what the live leases of all processes say.
type leases struct {
	// held are the layers that one of them holds.
	held map[storage.LayerID]bool
	// live are the names of the lease files.
	live map[string]bool
	// oldest is when the oldest was made; now when there is none.
	oldest time.Time
}

// readLeases reads the leases, and removes those of dead processes.
func (s *Store) readLeases() (leases, error) {
	all := leases{held: map[storage.LayerID]bool{}, live: map[string]bool{}, oldest: time.Now()}
	if _, err := layout.RemoveAbandoned(s.layout.Leases(), leasePrefix); err != nil {
		return all, fmt.Errorf("leases: %w", err)
	}
	entries, err := os.ReadDir(s.layout.Leases())
	if err != nil {
		return all, fmt.Errorf("leases: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), leasePrefix) {
			continue
		}
		if err := all.read(s.layout, e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return all, fmt.Errorf("leases: %w", err)
		}
	}
	return all, nil
}

// clockGrain is how far a file's times may lag behind the clock: a tick of the
// slowest kernel (100 Hz), twice.
const clockGrain = 20 * time.Millisecond

// read adds one lease.
func (ls *leases) read(l layout.Layout, name string) error {
	f, err := os.Open(filepath.Join(l.Leases(), name))
	if err != nil {
		return err
	}
	defer f.Close()
	ls.live[name] = true
	lines := bufio.NewScanner(f)
	if lines.Scan() {
		ns, err := strconv.ParseInt(lines.Text(), 10, 64)
		if began := time.Unix(0, ns).Add(-clockGrain); err == nil && began.Before(ls.oldest) {
			ls.oldest = began
		}
	}
	for lines.Scan() {
		ls.held[storage.LayerID(lines.Text())] = true
	}
	return lines.Err()
}
