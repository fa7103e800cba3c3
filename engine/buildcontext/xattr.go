package buildcontext

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxXattrBytes is the kernel's limit for a list of names and for one value.
// Source: xattr(7), XATTR_LIST_MAX and XATTR_SIZE_MAX.
const maxXattrBytes = 64 << 10

// Xattrs returns the extended attributes of a regular file or directory that
// belong to its content. Other kinds of files can't carry user attributes, and
// have none here.
func (c *Context) Xattrs(path string) (attrs map[string][]byte, err error) {
	f, err := c.openForXattrs(path)
	if err != nil || f == nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	names, err := contentXattrs(f)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	attrs = make(map[string][]byte, len(names))
	buf := make([]byte, maxXattrBytes)
	for _, name := range names {
		n, err := unix.Fgetxattr(int(f.Fd()), name, buf)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		attrs[name] = append([]byte{}, buf[:n]...)
	}
	return attrs, nil
}

// openForXattrs returns nil when it is known without a look that there are none.
func (c *Context) openForXattrs(path string) (*os.File, error) {
	if path != "." {
		n, err := c.lookup("xattrs", path)
		if err != nil {
			return nil, err
		}
		if n.entry.IsRegular() {
			return c.openUnlessPlain(n)
		}
		if !n.entry.IsDir() {
			return nil, nil // nothing to read
		}
	}
	fd, err := c.openat(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openUnlessPlain asks the stat index first: setting an attribute changes ctime.
func (c *Context) openUnlessPlain(n *node) (*os.File, error) {
	if c.index != nil {
		if r, ok := c.index.find(n.key()); ok && r.flags&indexPlain != 0 {
			return nil, nil // nothing to read
		}
	}
	return c.openRegular(n.entry.Path)
}

// contentXattrs lists the attributes that belong to a file's content.
func contentXattrs(f *os.File) ([]string, error) {
	size, err := unix.Flistxattr(int(f.Fd()), nil)
	if errors.Is(err, unix.ENOTSUP) || (err == nil && size == 0) {
		return nil, nil
	}
	buf := make([]byte, maxXattrBytes)
	if err == nil {
		size, err = unix.Flistxattr(int(f.Fd()), buf)
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr %s: %w", f.Name(), err)
	}
	var names []string
	for name := range strings.SplitSeq(string(buf[:size]), "\x00") {
		if isContentXattr(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// isContentXattr reports whether an attribute goes into a layer: file
// capabilities and the user's own, without overlayfs' and this program's notes.
func isContentXattr(name string) bool {
	if name == "security.capability" {
		return true
	}
	return strings.HasPrefix(name, "user.") &&
		!strings.HasPrefix(name, "user.overlay.") && !strings.HasPrefix(name, "user.mstage.")
}
