package copy

import (
	"context"
	"fmt"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/tree"
)

// treeCopy copies the content of one selected directory.
type treeCopy struct {
	apply *apply
	item  *item
	sum   *summary
	first firsts
}

// dirPair is one directory to copy and where to.
type dirPair struct{ src, dest string }

// visit copies one directory's own names and returns its subdirectories. The
// destination directory is in the layer already.
func (t *treeCopy) visit(ctx context.Context, p dirPair) (below []dirPair, err error) {
	src, err := openSource(t.apply.sel.src, p.src)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	entries, err := src.Entries()
	if err != nil {
		return nil, err
	}
	fd, err := t.apply.stage.openDir(p.dest)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	lower, err := t.lower(p.dest)
	if err != nil {
		return nil, err
	}
	w := writer{apply: t.apply, item: t.item, src: src, destDir: p.dest, fd: fd, first: &t.first}
	defer func() { t.apply.add(w.tally) }()
	var children []child
	for _, e := range entries {
		if e.Type() == typeSocket {
			continue // as in tar archives: it means nothing without its process
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		c, err := t.name(ctx, &w, lower, e)
		if err != nil {
			return nil, err
		}
		if c.isDir {
			below = append(below, dirPair{e.Path, path.Join(p.dest, c.name)})
		}
		if t.apply.digests {
			children = append(children, c)
			t.sum.name(e.Entry)
		}
	}
	t.sum.put(p.src, children)
	return below, nil
}

// lower returns the types of what the chain shows in a destination directory.
func (t *treeCopy) lower(dest string) (func(name string) (uint32, bool), error) {
	if !t.apply.stage.staged(dest).merges {
		return func(string) (uint32, bool) { return 0, false }, nil
	}
	d, err := t.apply.stage.chain.OpenDir(dest)
	if err != nil {
		return nil, err
	}
	return d.Type, d.Close()
}

// name copies one name of a directory.
func (t *treeCopy) name(ctx context.Context, w *writer, lower func(string) (uint32, bool), e chainfs.Entry) (child, error) {
	base := path.Base(e.Path)
	typ, exists := lower(base)
	dest := path.Join(w.destDir, base)
	if e.IsDir() {
		if exists && typ != tree.TypeDir {
			return child{}, &ConflictError{Path: dest}
		}
		return t.subdir(w, e, dest, exists)
	}
	if exists && typ == tree.TypeDir {
		return child{}, &ReplaceError{Path: dest}
	}
	sum, err := w.node(ctx, e, base)
	return child{name: base, sum: sum}, err
}

// subdir makes a directory, or takes the one that is there, and gives it the
// metadata of e.
func (t *treeCopy) subdir(w *writer, e chainfs.Entry, dest string, merges bool) (child, error) {
	xattrs, err := w.src.Xattrs(e)
	if err != nil {
		return child{}, err
	}
	stage := t.apply.stage
	d := stage.staged(dest)
	if d == nil {
		d = &stagedDir{merges: merges}
		if merges {
			if d.meta, err = stage.chainMetadata(dest); err != nil {
				return child{}, err
			}
		}
		switch err := unix.Mkdirat(w.fd, path.Base(dest), 0o700); err {
		case nil:
		case unix.EEXIST:
			return child{}, &ConflictError{Path: dest}
		default:
			return child{}, fmt.Errorf("mkdir /%s: %w", dest, err)
		}
		stage.put(dest, d)
	}
	d.cover(t.apply.metadata(e.Entry, xattrs))
	return child{path.Base(dest), true, nodeSum(t.apply.sel.owned(e.Entry), xattrs, "")}, nil
}

// firsts remembers where the first name of a hard-linked inode went.
type firsts struct {
	mu sync.Mutex
	by map[inode]*firstName
}

// firstName is a copy that further names link to. The rest is set before done
// is closed.
type firstName struct {
	done chan struct{}
	dest string
	err  error
	copied
}

// claim returns the inode's first name; mine says that the caller makes it.
func (f *firsts) claim(id inode) (first *firstName, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if first := f.by[id]; first != nil {
		return first, false
	}
	first = &firstName{done: make(chan struct{})}
	f.by[id] = first
	return first, true
}
