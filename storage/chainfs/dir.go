package chainfs

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/tree"
)

// maxDirFDs is how many layers' directories one Dir keeps open. Names of one
// directory come from few layers, and a 500-layer chain must not need 500
// descriptors for each directory being copied.
const maxDirFDs = 8

// Entry is a tree entry with the layer whose inode it is.
type Entry struct {
	tree.Entry
	// Layer is an index in New's directories.
	Layer int
}

// Dir is an open directory of a View: it serves its names without walking
// their paths again. Not for concurrent use.
type Dir struct {
	view *View
	path string
	list *listing
	open []layerFD // most recently opened last
}

type layerFD struct{ layer, fd int }

// OpenDir opens a merged directory. The caller closes. The error wraps
// fs.ErrNotExist when name is missing or no directory.
func (v *View) OpenDir(name string) (*Dir, error) {
	if !valid(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	l, err := v.list(name)
	if err != nil {
		return nil, err
	}
	return &Dir{view: v, path: name, list: l}, nil
}

// Close closes what Dir opened. It never fails.
func (d *Dir) Close() error {
	for _, o := range d.open {
		unix.Close(o.fd)
	}
	d.open = nil
	return nil
}

// FD returns the descriptor of this directory in one of its layers, good as the
// first argument of the …at system calls until the next call of any method.
func (d *Dir) FD(layer int) (int, error) {
	for _, o := range d.open {
		if o.layer == layer {
			return o.fd, nil
		}
	}
	fd, err := d.view.openDirAt(layer, d.path, unix.O_RDONLY)
	if err != nil {
		return -1, d.view.layerError(layer, d.path, err)
	}
	if len(d.open) == maxDirFDs {
		unix.Close(d.open[0].fd)
		d.open = slices.Delete(d.open, 0, 1)
	}
	d.open = append(d.open, layerFD{layer, fd})
	return fd, nil
}

// Type returns the type bits of a name, and whether the directory has it. It
// makes no system call.
func (d *Dir) Type(name string) (typ uint32, ok bool) {
	p, ok := d.list.names[name]
	return p.typ, ok
}

// Len returns the number of names.
func (d *Dir) Len() int { return len(d.list.names) }

// Lstat returns the entry of a name in this directory, or of "." itself.
func (d *Dir) Lstat(name string) (Entry, error) {
	if name == "." {
		return d.self()
	}
	p, ok := d.list.names[name]
	if !ok {
		return Entry{}, notExist("lstat", path.Join(d.path, name))
	}
	return d.stat(p.layer, name)
}

// self is the directory's own entry.
func (d *Dir) self() (Entry, error) {
	if len(d.list.layers) == 0 {
		return Entry{Entry: tree.Entry{Path: ".", Mode: tree.TypeDir | 0o755, Nlink: 2}}, nil
	}
	return d.stat(d.list.layers[0], ".")
}

func (d *Dir) stat(layer int, name string) (Entry, error) {
	fd, err := d.FD(layer)
	if err != nil {
		return Entry{}, err
	}
	e, err := statAt(fd, name, path.Join(d.path, name))
	if err != nil {
		return Entry{}, d.view.layerError(layer, path.Join(d.path, name), err)
	}
	return Entry{e, layer}, nil
}

// Entries lists the directory, sorted by name in byte order.
func (d *Dir) Entries() ([]Entry, error) {
	byLayer := map[int][]string{}
	for name, p := range d.list.names {
		byLayer[p.layer] = append(byLayer[p.layer], name)
	}
	entries := make([]Entry, 0, len(d.list.names))
	for layer, names := range byLayer {
		for _, name := range names {
			e, err := d.stat(layer, name)
			if err != nil {
				return nil, err
			}
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	return entries, nil
}

// Open opens a regular file of this directory for reading. The caller closes.
func (d *Dir) Open(e Entry) (*os.File, error) {
	if !e.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: e.Path, Err: errNotRegular}
	}
	fd, err := d.openEntry(e)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.Path), nil
}

var errNotRegular = errors.New("not a regular file")

// Xattrs returns the content attributes of an entry of this directory, or of
// the root itself. Links and devices have none.
func (d *Dir) Xattrs(e Entry) (map[string][]byte, error) {
	if (!e.IsRegular() && !e.IsDir()) || len(d.view.dirs) == 0 {
		return nil, nil
	}
	fd, err := d.openEntry(e)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	found, err := contentXattrs(fd)
	if err != nil {
		return nil, d.view.layerError(e.Layer, e.Path, err)
	}
	return found, nil
}

func (d *Dir) openEntry(e Entry) (int, error) {
	dirfd, err := d.FD(e.Layer)
	if err != nil {
		return -1, err
	}
	fd, err := openBeneath(dirfd, path.Base(e.Path), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return -1, d.view.layerError(e.Layer, e.Path, err)
	}
	return fd, nil
}
