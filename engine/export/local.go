package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/storage/layertar"
)

const (
	// permBits are the permission bits with setuid, setgid and sticky.
	permBits = 0o7777
	// openDir opens a directory and never a link to one.
	openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	// sliceBytes is copied between two looks at the context.
	sliceBytes = 64 << 20
)

// exportLocal copies the tree at root to the directory dest, owned by whoever
// runs this, with modes, times and hard links, without extended attributes. A
// new directory appears whole. An existing one is merged into: a file takes the
// place of an older one at once, a directory that of a file and a file that of
// a directory, and links in dest are replaced, never followed.
func exportLocal(ctx context.Context, root, dest string, sink progress.Sink) error {
	t := &localTree{ctx: ctx, links: map[inode]string{}}
	copyTo := func(dir string) error { return t.tree(root, dir) }
	st, err := os.Stat(dest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = newDir(dest, copyTo)
	case err == nil && !st.IsDir():
		err = fmt.Errorf("%s is not a directory", dest)
	case err == nil:
		err = copyTo(dest)
	}
	if err == nil {
		t.left.warn(sink)
	}
	return err
}

// inode identifies an inode.
type inode struct{ dev, ino uint64 }

// localTree is one run of exportLocal.
type localTree struct {
	ctx  context.Context
	dest int // the destination's root
	// links holds the first name of each inode with several.
	links map[inode]string
	left  leftOut
}

// tree copies everything in src to dest.
func (t *localTree) tree(src, dest string) error {
	from, err := unix.Open(src, openDir, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: src, Err: err}
	}
	defer unix.Close(from)
	// dest itself may be a link: the caller named it.
	to, err := unix.Open(dest, openDir&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dest, Err: err}
	}
	defer unix.Close(to)
	t.dest = to
	return t.children(from, to, "")
}

// children copies what is in from to the directory to.
func (t *localTree) children(from, to int, prefix string) error {
	names, err := listDir(from)
	if err != nil {
		return fmt.Errorf("read directory /%s: %w", prefix, err)
	}
	for _, base := range names {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		var st unix.Stat_t
		err := unix.Fstatat(from, base, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil {
			err = t.entry(pair{from: from, to: to, base: base, name: path.Join(prefix, base), st: st})
		}
		if err != nil {
			return named(path.Join(prefix, base), err)
		}
	}
	return nil
}

// nameError is an error with the name in the tree that it is about.
type nameError struct {
	name string
	err  error
}

func (e *nameError) Error() string { return fmt.Sprintf("/%s: %v", e.name, e.err) }
func (e *nameError) Unwrap() error { return e.err }

// named adds the name to an error from deeper in the tree, unless it has one.
func named(name string, err error) error {
	if errors.As(err, new(*nameError)) {
		return err
	}
	return &nameError{name, err}
}

// listDir returns the names in a directory, sorted.
func listDir(fd int) ([]string, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// pair is one name on both sides.
type pair struct {
	from, to int
	base     string
	name     string // from the root
	st       unix.Stat_t
}

// entry copies one name and what is below it.
func (t *localTree) entry(p pair) error {
	if p.st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return t.directory(p)
	}
	if id := (inode{uint64(p.st.Dev), p.st.Ino}); p.st.Nlink > 1 {
		if first, ok := t.links[id]; ok {
			return t.place(p, func(temp string) error { return unix.Linkat(t.dest, first, p.to, temp, 0) })
		}
		t.links[id] = p.name
	}
	switch p.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return t.regular(p)
	case unix.S_IFLNK:
		return t.symlink(p)
	case unix.S_IFIFO:
		return t.place(p, func(temp string) error {
			if err := unix.Mknodat(p.to, temp, unix.S_IFIFO|0o600, 0); err != nil {
				return err
			}
			if err := unix.Fchmodat(p.to, temp, p.st.Mode&permBits, 0); err != nil {
				return err
			}
			return p.setTimes(temp)
		})
	}
	t.skip(p, "device or socket")
	return nil
}

// skip leaves the name out.
func (t *localTree) skip(p pair, what string) {
	delete(t.links, inode{uint64(p.st.Dev), p.st.Ino})
	t.left.add(p.name, what)
}

// place makes the name with what create puts under a temporary one.
func (t *localTree) place(p pair, create func(temp string) error) (err error) {
	temp := tempBase()
	defer func() {
		if err != nil {
			if uerr := unix.Unlinkat(p.to, temp, 0); uerr != nil && uerr != unix.ENOENT {
				err = errors.Join(err, uerr)
			}
		}
	}()
	if err := create(temp); err != nil {
		return err
	}
	err = unix.Renameat(p.to, temp, p.to, p.base)
	if errors.Is(err, unix.EISDIR) {
		if err := removeAll(p.to, p.base); err != nil {
			return err
		}
		err = unix.Renameat(p.to, temp, p.to, p.base)
	}
	return err
}

// regular copies a regular file. What stands for a device is left out.
func (t *localTree) regular(p pair) error {
	fd, err := unix.Openat(p.from, p.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(fd), p.name)
	defer src.Close()
	if _, ok, err := layertar.PlaceholderOf(src); err != nil || ok {
		t.skip(p, "device")
		return err
	}
	return t.place(p, func(temp string) error {
		fd, err := unix.Openat(p.to, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		dst := os.NewFile(uintptr(fd), p.name)
		defer dst.Close()
		if err := t.copy(dst, src); err != nil {
			return err
		}
		if err := unix.Fchmod(fd, p.st.Mode&permBits); err != nil {
			return err
		}
		if err := p.setTimes(temp); err != nil {
			return err
		}
		return dst.Close()
	})
}

// copy copies the content; the kernel does it without passing the bytes through
// the process where it can.
func (t *localTree) copy(dst, src *os.File) error {
	for {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		n, err := copyN(dst, src, sliceBytes)
		if n < sliceBytes || err != nil {
			return err
		}
	}
}

// symlink copies a symbolic link.
func (t *localTree) symlink(p pair) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(p.from, p.base, buf)
	if err != nil {
		return err
	}
	return t.place(p, func(temp string) error {
		if err := unix.Symlinkat(string(buf[:n]), p.to, temp); err != nil {
			return err
		}
		return p.setTimes(temp)
	})
}

// setTimes gives temp in the destination the source's modification time.
func (p pair) setTimes(temp string) error {
	ts := []unix.Timespec{p.st.Mtim, p.st.Mtim}
	return unix.UtimesNanoAt(p.to, temp, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// directory makes or updates a directory and copies what is in it. Mode and time
// come last: a directory may be closed to its owner.
func (t *localTree) directory(p pair) error {
	err := unix.Mkdirat(p.to, p.base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		err = t.makeRoom(p)
	}
	if err != nil {
		return err
	}
	from, err := unix.Openat(p.from, p.base, openDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := unix.Openat(p.to, p.base, openDir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := t.children(from, to, p.name); err != nil {
		return err
	}
	if err := unix.Fchmod(to, p.st.Mode&permBits); err != nil {
		return err
	}
	return p.setTimes(p.base)
}

// makeRoom makes sure that the name in the destination is a directory.
func (t *localTree) makeRoom(p pair) error {
	var st unix.Stat_t
	if err := unix.Fstatat(p.to, p.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := unix.Unlinkat(p.to, p.base, 0); err != nil {
		return err
	}
	return unix.Mkdirat(p.to, p.base, 0o700)
}

// copyN copies up to n bytes from where both files stand.
func copyN(dst, src *os.File, n int64) (int64, error) {
	return dst.ReadFrom(io.LimitReader(src, n))
}

// removeAll removes name in the directory and all below it.
func removeAll(dir int, name string) error {
	dup, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// A root opened through the handle stays in this directory.
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dup))
	unix.Close(dup)
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(name), root.Close())
}
