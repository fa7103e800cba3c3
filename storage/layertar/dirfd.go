package layertar

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// openat2Tries is how often a look-up is repeated that the kernel answers
	// with EAGAIN because of a rename or mount elsewhere at the same time.
	// Source: openat2(2), RESOLVE_IN_ROOT.
	openat2Tries = 128
	// namesAtOnce is how many names a directory is read by while it is removed.
	namesAtOnce = 512
	// impliedDirMode is the mode of a directory that no entry describes.
	impliedDirMode = 0o755
)

// openIn opens dir below root without leaving it: a symbolic link is followed
// as if root were "/". dir is "." for root itself.
func openIn(root int, dir string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	var fd int
	var err error
	for range openat2Tries {
		fd, err = unix.Openat2(root, dir, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return fd, err
}

// lstatAt is fstatat(2) without following.
func lstatAt(dir int, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// isWhiteout reports whether st is overlay's mark of a deleted name.
func isWhiteout(st unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// isDir reports whether st is a directory.
func isDir(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// isRegular reports whether st is a regular file.
func isRegular(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }

// clean returns an entry's name relative to the layer's root, "." for the root.
func clean(name string) (string, error) {
	if len(name) > maxPathBytes {
		return "", fmt.Errorf("path of %d bytes: %w", len(name), ErrLimit)
	}
	p := path.Clean(strings.TrimLeft(name, "/"))
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", errors.New("path leads out of the layer")
	}
	return p, nil
}

// parent returns a handle on the directory dir, made with implied metadata
// where it is missing. The handle belongs to u and lives until the next call.
func (u *unpacker) parent(dir string, mtime time.Time) (int, error) {
	if u.dirFD >= 0 && u.dirName == dir {
		return u.dirFD, nil
	}
	u.forgetParent()
	fd, err := openIn(u.root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		fd, err = u.makeParents(dir, mtime)
	}
	if err != nil {
		return -1, fmt.Errorf("open directory %s: %w", dir, err)
	}
	u.dirName, u.dirFD = dir, fd
	return fd, nil
}

// forgetParent drops the handle that parent returned last: the name may lead
// elsewhere after a removal.
func (u *unpacker) forgetParent() {
	if u.dirFD >= 0 {
		unix.Close(u.dirFD)
	}
	u.dirFD, u.dirName = -1, ""
}

// makeParents makes the missing components of dir and returns a handle on it.
func (u *unpacker) makeParents(dir string, mtime time.Time) (int, error) {
	at, err := openIn(u.root, ".", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	done := "."
	for name := range strings.SplitSeq(dir, "/") {
		done = path.Join(done, name)
		next, err := openIn(u.root, done, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) {
			if err = u.makeImplied(at, name, done, mtime); err == nil {
				next, err = openIn(u.root, done, unix.O_PATH|unix.O_DIRECTORY)
			}
		}
		unix.Close(at)
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

// makeImplied makes one directory that no entry has described so far. Its time
// is that of the entry which needs it, so that the same tar gives the same tree.
func (u *unpacker) makeImplied(at int, name, full string, mtime time.Time) error {
	err := unix.Mkdirat(at, name, 0o700)
	if err == unix.EEXIST {
		return fmt.Errorf("%s is a symbolic link to nothing in this layer: %w", full, unix.ENOENT)
	}
	if err != nil {
		return err
	}
	u.dirTimes = append(u.dirTimes, dirTime{full, mtime})
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, 0, 0); err != nil {
		return &OwnerError{Path: full, Err: err}
	}
	return unix.Fchmod(fd, impliedDirMode)
}

// remove deletes name and all below it. st is what lstat said about it.
func (u *unpacker) remove(dir int, name string, st unix.Stat_t) error {
	if isDir(st) {
		if err := u.empty(dir, name); err != nil {
			return err
		}
		return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil {
		return err
	}
	if isRegular(st) && st.Nlink == 1 {
		u.res.SizeBytes -= st.Size
	}
	return nil
}

// empty deletes what is in the directory name.
func (u *unpacker) empty(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		// From the start each time: what a directory stream shows after
		// removals is not defined.
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := f.Readdirnames(namesAtOnce)
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		for _, child := range names {
			st, err := lstatAt(fd, child)
			if err != nil {
				return err
			}
			if err := u.remove(fd, child, st); err != nil {
				return err
			}
		}
	}
}

// sortedNames returns what is in the directory fd, in byte order.
func sortedNames(fd int, name string) ([]string, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}
