package copy

import (
	"context"
	"os"
	"path"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/tree"
)

// The type bits that tree has no names for. Source: inode(7).
const (
	typeSocket = unix.S_IFSOCK
	typeFIFO   = unix.S_IFIFO
	typeChar   = unix.S_IFCHR
	typeBlock  = unix.S_IFBLK
)

// workers is how many directories are under way at once. Copying small files
// waits for the file system's locks: beyond 4 it gets no faster.
const workers = 4

// noLayer is the layer of an entry that comes from no chain of layers.
const noLayer = -1

// sourceDir is one directory to copy from. Not for concurrent use.
type sourceDir interface {
	Entries() ([]chainfs.Entry, error)
	Lstat(name string) (chainfs.Entry, error)
	Open(e chainfs.Entry) (*os.File, error)
	Xattrs(e chainfs.Entry) (map[string][]byte, error)
	// FileXattrs is Xattrs for a file that is open already.
	FileXattrs(e chainfs.Entry, f *os.File) (map[string][]byte, error)
	Close() error
}

func openSource(t tree.Tree, name string) (sourceDir, error) {
	if view, ok := t.(*chainfs.View); ok {
		d, err := view.OpenDir(name)
		return chainDir{d}, err
	}
	return treeDir{t, name}, nil
}

// chainDir serves names by descriptor, so that no path is walked per file.
type chainDir struct{ *chainfs.Dir }

func (chainDir) FileXattrs(_ chainfs.Entry, f *os.File) (map[string][]byte, error) {
	return chainfs.ContentXattrs(f)
}

// treeDir serves names of any tree by their paths.
type treeDir struct {
	tree tree.Tree
	path string
}

func (d treeDir) Entries() ([]chainfs.Entry, error) {
	listed, err := d.tree.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	entries := make([]chainfs.Entry, len(listed))
	for i, e := range listed {
		entries[i] = chainfs.Entry{Entry: e, Layer: noLayer}
	}
	return entries, nil
}

func (d treeDir) Lstat(name string) (chainfs.Entry, error) {
	e, err := d.tree.Lstat(path.Join(d.path, name))
	return chainfs.Entry{Entry: e, Layer: noLayer}, err
}

func (d treeDir) Open(e chainfs.Entry) (*os.File, error) { return d.tree.Open(e.Path) }

func (d treeDir) Xattrs(e chainfs.Entry) (map[string][]byte, error) {
	if !e.IsRegular() && !e.IsDir() {
		return nil, nil
	}
	return d.tree.Xattrs(e.Path)
}

func (d treeDir) FileXattrs(e chainfs.Entry, _ *os.File) (map[string][]byte, error) {
	return d.tree.Xattrs(e.Path)
}

func (d treeDir) Close() error { return nil }

// walk calls visit for first and for everything that visit returns, several at
// a time, until nothing is left. The first error ends it.
func walk[T any](ctx context.Context, first T, visit func(context.Context, T) ([]T, error)) error {
	group, ctx := errgroup.WithContext(ctx)
	q := &queue[T]{todo: []T{first}}
	q.changed.L = &q.mu
	stop := context.AfterFunc(ctx, q.stop)
	defer stop()
	for range workers {
		group.Go(func() error {
			for {
				next, ok := q.take()
				if !ok {
					return context.Cause(ctx)
				}
				more, err := visit(ctx, next)
				q.finish(more)
				if err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// queue hands out the most recent entry first, which keeps it short.
type queue[T any] struct {
	mu      sync.Mutex
	changed sync.Cond
	todo    []T
	active  int
	stopped bool
}

// take waits for an entry; ok is false when there will be none any more.
func (q *queue[T]) take() (next T, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.todo) == 0 && q.active > 0 && !q.stopped {
		q.changed.Wait()
	}
	if len(q.todo) == 0 || q.stopped {
		return next, false
	}
	last := len(q.todo) - 1
	next, q.todo = q.todo[last], q.todo[:last]
	q.active++
	return next, true
}

// finish ends what take began and adds what came of it.
func (q *queue[T]) finish(more []T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.active--
	q.todo = append(q.todo, more...)
	q.changed.Broadcast()
}

func (q *queue[T]) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	q.changed.Broadcast()
}
