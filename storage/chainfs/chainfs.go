// Package chainfs turns a chain of overlay-format layer directories into the
// file tree that overlayfs would show, without mounting anything.
//
// It follows the kernel's rules: the uppermost layer that has a name decides
// its type, directories merge downwards until an opaque one or a
// non-directory, and a merged directory's metadata is that of its uppermost
// layer. Source: Documentation/filesystems/overlayfs.rst, "Upper and Lower",
// "whiteouts and opaque directories", "User xattr". Unlike a mount, the view
// shows storage/layertar's placeholders as the device nodes they stand for.
package chainfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/mstage/mstage/storage/tree"
)

// maxMemoNames bounds the names that a View remembers: about 100 bytes each.
// Beyond it the memo starts afresh, which costs time and never correctness.
const maxMemoNames = 1 << 20

// View is the merged view of a chain of layers. It remembers which layers
// contribute to a directory, so the layers must not change while it is in use.
// It holds no file descriptor between calls. Safe for concurrent use.
type View struct {
	dirs []string // lowest first

	mu    sync.Mutex
	memo  map[string]*listing // by path
	names int                 // in all of memo
}

var _ tree.Tree = (*View)(nil)

// New returns the merged view of diff directories, lowest first. Without any,
// the view is an empty directory of mode 0755 owned by 0:0.
func New(dirs []string) *View {
	return &View{dirs: slices.Clone(dirs), memo: map[string]*listing{}}
}

// Close forgets what the view remembers; it stays usable. It never fails.
func (v *View) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.memo, v.names = map[string]*listing{}, 0
	return nil
}

// Layers returns how many layers the view has.
func (v *View) Layers() int { return len(v.dirs) }

// Lstat returns the entry of the uppermost layer that has path.
func (v *View) Lstat(name string) (tree.Entry, error) {
	e, _, err := v.lookup("lstat", name)
	return e.Entry, err
}

// ReadDir lists a merged directory, sorted by name in byte order.
func (v *View) ReadDir(name string) ([]tree.Entry, error) {
	d, err := v.OpenDir(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	placed, err := d.Entries()
	if err != nil {
		return nil, err
	}
	entries := make([]tree.Entry, len(placed))
	for i, e := range placed {
		entries[i] = e.Entry
	}
	return entries, nil
}

// Open opens a regular file for reading. The caller closes.
func (v *View) Open(name string) (*os.File, error) {
	e, d, err := v.lookup("open", name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Open(e)
}

// Xattrs returns the attributes that belong to the content: security.capability
// and user.*, without what overlayfs and mstage keep for themselves.
func (v *View) Xattrs(name string) (map[string][]byte, error) {
	e, d, err := v.lookup("xattrs", name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Xattrs(e)
}

// Locate returns the layer (an index in New's directories) whose inode the view
// shows at name, and that inode's path on the host.
func (v *View) Locate(name string) (layer int, hostPath string, err error) {
	e, d, err := v.lookup("locate", name)
	if err != nil {
		return 0, "", err
	}
	defer d.Close()
	if len(v.dirs) == 0 {
		return 0, "", notExist("locate", name)
	}
	return e.Layer, filepath.Join(v.dirs[e.Layer], filepath.FromSlash(name)), nil
}

// lookup returns the entry at name and its open parent (the root is its own).
func (v *View) lookup(op, name string) (Entry, *Dir, error) {
	if !valid(name) {
		return Entry{}, nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	d, err := v.OpenDir(path.Dir(name))
	if err != nil {
		return Entry{}, nil, asOp(err, op, name)
	}
	e, err := d.Lstat(path.Base(name))
	if err != nil {
		d.Close()
		return Entry{}, nil, asOp(err, op, name)
	}
	return e, d, nil
}

// valid reports whether name is a cleaned relative path that stays inside. It
// differs from fs.ValidPath in that names need not be UTF-8.
func valid(name string) bool {
	return name != "" && path.Clean(name) == name && name[0] != '/' &&
		name != ".." && !strings.HasPrefix(name, "../") && !strings.Contains(name, "\x00")
}

func notExist(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

// asOp makes a missing parent read like a missing name.
func asOp(err error, op, name string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return notExist(op, name)
	}
	return err
}

// layerError keeps the cause's text only: a layer that is gone from the host
// must not look like a name that is missing in the tree.
func (v *View) layerError(layer int, name string, err error) error {
	return fmt.Errorf("layer directory %s: %s: %s", v.dirs[layer], name, err.Error())
}
