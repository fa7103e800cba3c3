// Package buildcontext turns a build context (a directory, or a tar stream from
// standard input) into a read-only file tree without its ignored files, and
// into content digests that a persistent stat index keeps.
//
// The tree is read on demand and remembered, so that a COPY of one file does
// not pay for the rest. It is a snapshot of names and metadata: what is created
// after a directory was listed is not seen.
package buildcontext

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/tree"
)

// Options says what to open. Only Root is required.
type Options struct {
	// Root is the context directory; it may itself be a symbolic link.
	Root string
	// DockerfilePath is the Dockerfile's path on this host. When
	// DockerfilePath + ".dockerignore" exists, it is used instead of
	// Root/.dockerignore. "" when the Dockerfile is not a file.
	DockerfilePath string
	// StatIndex is a directory for stat indexes, one file per context root. It
	// is made when it is missing. "" for none.
	StatIndex string
}

// Context is an open build context. Safe for concurrent use until Close.
type Context struct {
	path  string // absolute
	root  *os.File
	rules *rules
	top   *dir
	index *statIndex // nil for none
	// entries counts what was listed, against maxEntries.
	entries atomic.Int64
}

var _ tree.Tree = (*Context)(nil)

// Open opens a context directory and reads its ignore file. The caller closes
// the Context. An invalid pattern is an *IgnoreError.
func Open(ctx context.Context, o Options) (*Context, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	abs, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, fmt.Errorf("build context %s: %w", o.Root, err)
	}
	rs, err := readRules(abs, o.DockerfilePath)
	if err != nil {
		return nil, err
	}
	root, err := openRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("build context %s: %w", o.Root, err)
	}
	c := &Context{path: abs, root: root, rules: rs}
	c.top = &dir{path: ".", state: rs.start()}
	if o.StatIndex != "" {
		c.index = loadStatIndex(o.StatIndex, abs)
	}
	return c, nil
}

// openRoot opens the context directory, links followed: its name is the user's.
func openRoot(abs string) (*os.File, error) {
	fd, err := unix.Open(abs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), abs), nil
}

// Root returns the absolute path of the context directory.
func (c *Context) Root() string { return c.path }

// IgnoreFile returns the path of the ignore file in use, "" without one.
func (c *Context) IgnoreFile() string { return c.rules.file }

// Close saves the stat index when it has something new, and closes the
// directory. An error about the index need not fail a build: the next one reads
// the files again.
func (c *Context) Close() error {
	var saveErr error
	if c.index != nil {
		saveErr = c.index.save()
	}
	return errors.Join(saveErr, c.root.Close())
}

// Lstat returns the entry of a path. Ignored files don't exist.
func (c *Context) Lstat(path string) (tree.Entry, error) {
	if path == "." {
		return c.statRoot()
	}
	n, err := c.lookup("lstat", path)
	if err != nil {
		return tree.Entry{}, err
	}
	return n.entry, nil
}

// statRoot returns the entry of the context directory itself.
func (c *Context) statRoot() (tree.Entry, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(c.root.Fd()), &st); err != nil {
		return tree.Entry{}, &fs.PathError{Op: "lstat", Path: ".", Err: err}
	}
	return entryOf(".", &st), nil
}

// ReadDir lists a directory, sorted by name in byte order.
func (c *Context) ReadDir(path string) ([]tree.Entry, error) {
	d, err := c.directory(path)
	if err != nil {
		return nil, err
	}
	nodes, err := d.list(c)
	if err != nil {
		return nil, err
	}
	entries := make([]tree.Entry, 0, len(nodes))
	for i := range nodes {
		ok, err := nodes[i].visible(c)
		if err != nil {
			return nil, err
		}
		if ok {
			entries = append(entries, nodes[i].entry)
		}
	}
	return entries, nil
}

// Open opens a regular file for reading. A file that was listed and is gone
// since gives an error that says so and wraps fs.ErrNotExist.
func (c *Context) Open(path string) (*os.File, error) {
	n, err := c.lookup("open", path)
	if err != nil {
		return nil, err
	}
	if !n.entry.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errNotRegular}
	}
	return c.openRegular(path)
}

var (
	errNotRegular = errors.New("not a regular file")
	errVanished   = errors.New("vanished from the build context while it was read")
	errNotDir     = fmt.Errorf("not a directory: %w", fs.ErrNotExist)
)

// openRegular opens path below the root and makes sure that it is a regular
// file still. O_NONBLOCK keeps a FIFO that took its place from blocking.
func (c *Context) openRegular(path string) (*os.File, error) {
	fd, err := c.openat(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errNotRegular
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return nil, errors.Join(&fs.PathError{Op: "open", Path: path, Err: err}, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openat opens a path below the root without following any link: a link that
// was put in place of a listed directory leads nowhere.
func (c *Context) openat(path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(int(c.root.Fd()), path, &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // EAGAIN: raced with a rename
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			return -1, &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("%w: %w", errVanished, fs.ErrNotExist)}
		}
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
}

// directory returns the memo of a directory.
func (c *Context) directory(path string) (*dir, error) {
	if path == "." {
		return c.top, nil
	}
	n, err := c.lookup("readdir", path)
	if err != nil {
		return nil, err
	}
	if n.sub == nil {
		return nil, &fs.PathError{Op: "readdir", Path: path, Err: errNotDir}
	}
	return n.sub, nil
}

// lookup returns the visible node of a path other than ".".
func (c *Context) lookup(op, path string) (*node, error) {
	if !validPath(path) {
		return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrInvalid}
	}
	d := c.top
	rest := path
	for {
		name, tail, more := strings.Cut(rest, "/")
		nodes, err := d.list(c)
		if err != nil {
			return nil, err
		}
		i, ok := slices.BinarySearchFunc(nodes, name, func(n node, name string) int { return strings.Compare(n.name(), name) })
		if !ok {
			return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
		}
		n := &nodes[i]
		if !more {
			return c.onlyVisible(op, n)
		}
		if n.sub == nil {
			return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
		}
		d, rest = n.sub, tail
	}
}

// onlyVisible returns n, or fs.ErrNotExist when it is ignored.
func (c *Context) onlyVisible(op string, n *node) (*node, error) {
	ok, err := n.visible(c)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, &fs.PathError{Op: op, Path: n.entry.Path, Err: fs.ErrNotExist}
	}
	return n, nil
}

// validPath reports whether path is as tree.Entry.Path has it, "." apart. Unlike
// fs.ValidPath it takes names that are not UTF-8.
func validPath(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}
