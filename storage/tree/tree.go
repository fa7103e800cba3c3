// Package tree describes a read-only file tree: what COPY and ADD read from and
// look into, be it a build context or the merged view of a chain of layers.
//
// engine/buildcontext and storage/chainfs implement Tree.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
)

// Entry is what lstat(2) tells about one name.
type Entry struct {
	// Path is slash separated from the tree's root, cleaned, without a leading
	// slash; the root is ".".
	Path string
	// Mode is st_mode: the type bits (unix.S_IFMT) and the permission bits with
	// setuid, setgid and sticky.
	Mode     uint32
	UID, GID uint32
	Size     int64
	ModTime  time.Time
	// Link is a symbolic link's target.
	Link string
	// Rdev is a device's number.
	Rdev uint64
	// Dev and Ino identify the inode; Nlink counts its names.
	Dev, Ino, Nlink uint64
}

// The type bits of Entry.Mode. Source: inode(7).
const (
	TypeMask    = 0o170000
	TypeRegular = 0o100000
	TypeDir     = 0o040000
	TypeSymlink = 0o120000
)

// Type returns the type bits of Mode.
func (e Entry) Type() uint32 { return e.Mode & TypeMask }

// IsDir reports whether the entry is a directory.
func (e Entry) IsDir() bool { return e.Type() == TypeDir }

// IsRegular reports whether the entry is a regular file.
func (e Entry) IsRegular() bool { return e.Type() == TypeRegular }

// IsSymlink reports whether the entry is a symbolic link.
func (e Entry) IsSymlink() bool { return e.Type() == TypeSymlink }

// Tree is a read-only file tree. Paths are as in Entry.Path; every component
// but the last is a real directory, so a path through a symbolic link does not
// exist (use Resolve). Errors wrap fs.ErrNotExist where a name is missing. Safe
// for concurrent use.
type Tree interface {
	Lstat(path string) (Entry, error)
	// ReadDir lists a directory, sorted by name in byte order.
	ReadDir(path string) ([]Entry, error)
	// Open opens a regular file for reading, never through a link.
	Open(path string) (*os.File, error)
	// Xattrs returns the extended attributes that belong to the content
	// (security.capability, user.*), without overlayfs' own.
	Xattrs(path string) (map[string][]byte, error)
}

// Lstater is the part of Tree that Resolve needs.
type Lstater interface {
	Lstat(path string) (Entry, error)
}

// maxLinks is the kernel's limit of links in one look-up (MAXSYMLINKS).
const maxLinks = 40

// errTooManyLinks is what the kernel says of more.
var errTooManyLinks error = syscall.ELOOP

// Resolve returns the path that name leads to inside t, symbolic links
// followed and confined to the root ("/x" and "../.." start at or stop at the
// root). A last component that is a link is followed only with followLast. The
// parts that don't exist are kept as they are, so that the result can be
// created: exists says whether the whole path is there.
func Resolve(t Lstater, name string, followLast bool) (resolved string, exists bool, err error) {
	todo := split(name)
	cur := "."
	exists = true
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		if part == ".." {
			cur = path.Dir(cur)
			continue
		}
		next := path.Join(cur, part)
		e, err := t.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			exists = false
			cur = next
			continue
		case err != nil:
			return "", false, err
		}
		if !e.IsSymlink() || (len(todo) == 0 && !followLast) {
			cur = next
			continue
		}
		if links++; links > maxLinks {
			return "", false, fmt.Errorf("resolve %s: %w", name, errTooManyLinks)
		}
		if strings.HasPrefix(e.Link, "/") {
			cur = "."
		}
		todo = append(split(e.Link), todo...)
	}
	return cur, exists, nil
}

// split returns the components of a path without empty ones and ".".
func split(p string) []string {
	parts := strings.Split(p, "/")
	kept := parts[:0]
	for _, s := range parts {
		if s != "" && s != "." {
			kept = append(kept, s)
		}
	}
	return kept
}
