package buildcontext

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/tree"
)

const (
	// maxEntries bounds the memory of one context: about 300 bytes an entry.
	maxEntries = 8 << 20
	// maxDirEntries bounds one directory, for the same reason.
	maxDirEntries = 4 << 20
	// maxLinkBytes is PATH_MAX: no link's target is longer.
	maxLinkBytes = 4096
	// direntsBytes is the buffer of one getdents64: some 1,500 names.
	direntsBytes = 64 << 10
)

// errTooMany says that a context is over a limit.
var errTooMany = errors.New("too many files")

// dir is one directory, listed at most once.
type dir struct {
	path  string
	state verdict

	listOnce sync.Once
	nodes    []node // sorted by name; ignored files and pruned directories are not here
	listErr  error

	visibleOnce sync.Once
	anyVisible  bool
	visibleErr  error
}

// node is one name of a directory.
type node struct {
	entry tree.Entry
	ctime int64 // ns since 1970: part of the stat index's key
	sub   *dir  // nil unless it is a directory
}

func (n *node) name() string { return n.entry.Path[strings.LastIndexByte(n.entry.Path, '/')+1:] }

// visible reports whether the node is part of the context. An ignored directory
// is when something below it is.
func (n *node) visible(c *Context) (bool, error) {
	if n.sub == nil || !n.sub.state.ignored {
		return true, nil
	}
	return n.sub.holdsVisible(c)
}

// holdsVisible reports whether anything below an ignored directory is visible.
// One that can't be listed holds nothing: it is ignored, after all.
func (d *dir) holdsVisible(c *Context) (bool, error) {
	d.visibleOnce.Do(func() {
		nodes, err := d.list(c)
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			d.visibleErr = err
			return
		}
		for i := range nodes {
			ok, err := nodes[i].visible(c)
			if ok || err != nil {
				d.anyVisible, d.visibleErr = ok, err
				return
			}
		}
	})
	return d.anyVisible, d.visibleErr
}

// list returns the nodes, read at the first call.
func (d *dir) list(c *Context) ([]node, error) {
	d.listOnce.Do(func() {
		d.nodes, d.listErr = d.read(c)
	})
	return d.nodes, d.listErr
}

// read lists the directory, ignored names left out before they cost a stat.
func (d *dir) read(c *Context) ([]node, error) {
	fd, err := c.openat(d.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	names, err := readNames(fd)
	if err == nil && c.entries.Add(int64(len(names))) > maxEntries {
		err = fmt.Errorf("%w: the limit is %d", errTooMany, maxEntries)
	}
	nodes := make([]node, 0, len(names))
	for _, e := range names {
		if err != nil {
			break
		}
		var n node
		var ok bool
		if n, ok, err = d.child(c, fd, e); ok {
			nodes = append(nodes, n)
		}
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: d.path, Err: err}
	}
	slices.SortFunc(nodes, func(a, b node) int { return strings.Compare(a.name(), b.name()) })
	return nodes, nil
}

// child returns the node of one name; ok is false when it is ignored, gone
// again, or a socket, which no layer can hold.
func (d *dir) child(c *Context, fd int, e dirent) (n node, ok bool, err error) {
	name := path.Join(d.path, e.name)
	v := c.rules.judge(d.state, name, e.kind == unix.DT_DIR)
	if v.ignored && e.kind != unix.DT_UNKNOWN && (e.kind != unix.DT_DIR || v.settled) {
		return n, false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return n, false, nil
		}
		return n, false, fmt.Errorf("lstat %s: %w", e.name, err)
	}
	n = node{entry: entryOf(name, &st), ctime: st.Ctim.Nano()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return n, false, nil
	case unix.S_IFDIR:
		if e.kind != unix.DT_DIR {
			v = c.rules.judge(d.state, name, true)
		}
		n.sub = &dir{path: name, state: v}
		return n, !v.ignored || !v.settled, nil
	case unix.S_IFLNK:
		n.entry.Link, err = readLink(fd, e.name)
	}
	return n, !v.ignored && err == nil, err
}

// entryOf turns a stat result into an entry; Link is left out.
func entryOf(name string, st *unix.Stat_t) tree.Entry {
	return tree.Entry{
		Path: name, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size,
		ModTime: time.Unix(st.Mtim.Unix()), Rdev: uint64(st.Rdev), // 32 bits on other architectures
		Dev: uint64(st.Dev), Ino: st.Ino, Nlink: uint64(st.Nlink),
	}
}

// readLink returns a link's target.
func readLink(fd int, name string) (string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Readlinkat(fd, name, buf)
		if err != nil {
			return "", fmt.Errorf("readlink %s: %w", name, err)
		}
		if n < len(buf) || len(buf) > maxLinkBytes {
			return string(buf[:n]), nil
		}
		buf = make([]byte, 2*maxLinkBytes)
	}
}

// dirent is one name with its type (DT_UNKNOWN on some file systems).
type dirent struct {
	name string
	kind byte
}

var direntBuffers = sync.Pool{New: func() any { b := make([]byte, direntsBytes); return &b }}

// readNames reads all names of an open directory, in the kernel's order. os.File
// can't be used: it would lstat names of unknown type by path.
func readNames(fd int) ([]dirent, error) {
	bp, ok := direntBuffers.Get().(*[]byte)
	if !ok {
		panic("direntBuffers holds byte slices only")
	}
	defer direntBuffers.Put(bp)
	var names []dirent
	for {
		n, err := unix.Getdents(fd, *bp)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return names, err
		}
		names = appendDirents(names, (*bp)[:n])
		if len(names) > maxDirEntries {
			return nil, fmt.Errorf("%w: the limit of one directory is %d", errTooMany, maxDirEntries)
		}
	}
}

// appendDirents decodes struct linux_dirent64: ino 8, off 8, reclen 2, type 1,
// name with a NUL. Source: getdents(2).
func appendDirents(names []dirent, b []byte) []dirent {
	const nameOffset = 19
	for len(b) > nameOffset {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size <= nameOffset || size > len(b) {
			return names
		}
		name, _, _ := bytes.Cut(b[nameOffset:size], []byte{0})
		if s := string(name); s != "." && s != ".." {
			names = append(names, dirent{name: s, kind: b[18]})
		}
		b = b[size:]
	}
	return names
}
