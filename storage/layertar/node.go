package layertar

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

const (
	// copyBufBytes is what is copied at once; a buffer of nothing but zeros
	// becomes a hole.
	copyBufBytes = 128 << 10
	// permBits are the permission bits with setuid, setgid and sticky.
	permBits = 0o7777
)

// zeros is compared with, never written to.
var zeros = make([]byte, copyBufBytes)

// node is one entry on its way to the disk.
type node struct {
	u    *unpacker
	h    *tar.Header
	name string // from the layer's root
	base string // in at
	at   int    // its directory
	// xattrs are the entry's content attributes.
	xattrs map[string][]byte
}

// make puts the entry in place, with its metadata.
func (n *node) make(content io.Reader) error {
	var others []string
	var err error
	if n.xattrs, others, err = tarXattrs(n.h.PAXRecords); err != nil {
		return err
	}
	for _, name := range others {
		n.u.res.skip(n.name, "extended attribute "+name)
	}
	switch n.h.Typeflag {
	case tar.TypeDir:
		return n.directory()
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return n.regular(content)
	case tar.TypeLink:
		return n.hardLink()
	case tar.TypeSymlink:
		return n.symlink()
	case tar.TypeChar, tar.TypeBlock:
		return n.device()
	case tar.TypeFifo:
		return n.special(unix.S_IFIFO, 0)
	}
	return fmt.Errorf("entry type %q is not supported", n.h.Typeflag)
}

// clear removes what an earlier entry put under the name; hid says that it was
// a whiteout.
func (n *node) clear() (hid bool, err error) {
	st, err := lstatAt(n.at, n.base)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := n.u.remove(n.at, n.base, st); err != nil {
		return false, fmt.Errorf("replace: %w", err)
	}
	// A handle on a directory that is gone must not be used again; the one in
	// n.at is the parent and stays.
	if isDir(st) || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		n.u.dirName = ""
	}
	return isWhiteout(st), nil
}

// directory makes the directory, or updates the one that is there.
func (n *node) directory() error {
	st, err := lstatAt(n.at, n.base)
	if err == nil && isDir(st) {
		return n.openDirMetadata(false)
	}
	hid, err := n.clear()
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(n.at, n.base, 0o700); err != nil {
		return err
	}
	// A whiteout and a directory of one name: the lower one is deleted first.
	return n.openDirMetadata(hid)
}

// openDirMetadata sets the metadata of a directory that exists.
func (n *node) openDirMetadata(opaque bool) error {
	fd, err := unix.Openat(n.at, n.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if n.xattrs == nil {
		if n.xattrs, _, err = tarXattrs(n.h.PAXRecords); err != nil {
			return err
		}
	}
	if err := n.ownAndMode(fd); err != nil {
		return err
	}
	if opaque {
		if err := setXattrs(fd, map[string][]byte{xattrOpaque: []byte("y")}); err != nil {
			return err
		}
	}
	n.u.dirTimes = append(n.u.dirTimes, dirTime{n.name, n.h.ModTime})
	return nil
}

// ownAndMode sets owner, mode and attributes of an open file, in the order that
// keeps them: chown clears setuid and capabilities.
func (n *node) ownAndMode(fd int) error {
	if err := unix.Fchown(fd, n.h.Uid, n.h.Gid); err != nil {
		return n.ownerError(err)
	}
	if err := unix.Fchmod(fd, uint32(n.h.Mode&permBits)); err != nil {
		return fmt.Errorf("set mode %#o: %w", n.h.Mode&permBits, err)
	}
	return setXattrs(fd, n.xattrs)
}

// ownerError returns err with the owner that was refused.
func (n *node) ownerError(err error) error {
	return &OwnerError{Path: n.name, UID: n.h.Uid, GID: n.h.Gid, Err: err}
}

// regular writes a regular file.
func (n *node) regular(content io.Reader) error {
	u := n.u
	if n.h.Size < 0 || n.h.Size > u.opts.MaxBytes-u.declaredBytes {
		return fmt.Errorf("files of more than %d bytes: %w", u.opts.MaxBytes, ErrLimit)
	}
	u.declaredBytes += n.h.Size
	f, err := n.create()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := u.copy(f, content, n.h.Size); err != nil {
		return err
	}
	u.res.SizeBytes += n.h.Size
	if err := n.ownAndMode(int(f.Fd())); err != nil {
		return err
	}
	if err := setTimes(n.at, n.base, n.h.ModTime); err != nil {
		return err
	}
	return f.Close()
}

// create makes a new empty regular file under the name.
func (n *node) create() (*os.File, error) {
	if _, err := n.clear(); err != nil {
		return nil, err
	}
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(n.at, n.base, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), n.name), nil
}

// copy writes size bytes of r to f; long runs of zeros become holes.
func (u *unpacker) copy(f *os.File, r io.Reader, size int64) error {
	r = ctxReader{u.ctx, r}
	hole := false
	for off := int64(0); off < size; {
		buf := u.buf[:min(int64(len(u.buf)), size-off)]
		if _, err := io.ReadFull(r, buf); err != nil {
			return err
		}
		hole = len(buf) == len(zeros) && bytes.Equal(buf, zeros)
		if !hole {
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
		}
		off += int64(len(buf))
	}
	if hole {
		return f.Truncate(size)
	}
	return nil
}

// symlink makes a symbolic link. Its target is not looked at: it is followed
// inside the root of whoever follows it.
func (n *node) symlink() error {
	if _, err := n.clear(); err != nil {
		return err
	}
	n.skipXattrs()
	if err := unix.Symlinkat(n.h.Linkname, n.at, n.base); err != nil {
		return err
	}
	if err := unix.Fchownat(n.at, n.base, n.h.Uid, n.h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return n.ownerError(err)
	}
	return setTimes(n.at, n.base, n.h.ModTime)
}

// hardLink gives an inode of this layer one more name. The metadata stay those
// of the inode.
func (n *node) hardLink() error {
	target, err := clean(n.h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", n.h.Linkname, err)
	}
	at, err := openIn(n.u.root, path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", target, err)
	}
	defer unix.Close(at)
	st, err := lstatAt(at, path.Base(target))
	switch {
	case err != nil:
		return fmt.Errorf("hard link to %s, which this layer does not have: %w", target, err)
	case isDir(st) || isWhiteout(st):
		return fmt.Errorf("hard link to %s, which is not a file", target)
	}
	if old, err := lstatAt(n.at, n.base); err == nil && old.Dev == st.Dev && old.Ino == st.Ino {
		return nil // a link to itself
	}
	if _, err := n.clear(); err != nil {
		return err
	}
	// Without AT_SYMLINK_FOLLOW a link to a symbolic link stays one.
	return unix.Linkat(at, path.Base(target), n.at, n.base, 0)
}

// device makes a device node, or a placeholder where the kernel refuses one.
func (n *node) device() error {
	kind := uint32(unix.S_IFBLK)
	if n.h.Typeflag == tar.TypeChar {
		kind = unix.S_IFCHR
	}
	major, minor, err := deviceNumbers(n.h)
	if err != nil {
		return err
	}
	// A character device 0:0 is a whiteout on disk, which the entry is not.
	if n.u.noDevices || (kind == unix.S_IFCHR && major == 0 && minor == 0) {
		return n.placeholder(major, minor)
	}
	err = n.special(kind, unix.Mkdev(major, minor))
	if errors.Is(err, unix.EPERM) && !errors.As(err, new(*OwnerError)) {
		n.u.noDevices = true
		return n.placeholder(major, minor)
	}
	return err
}

// The largest numbers that the kernel's dev_t holds. Source: linux/kdev_t.h.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// deviceNumbers returns the entry's numbers.
func deviceNumbers(h *tar.Header) (major, minor uint32, err error) {
	if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
		return 0, 0, fmt.Errorf("device %d:%d: no such number", h.Devmajor, h.Devminor)
	}
	return uint32(h.Devmajor), uint32(h.Devminor), nil
}

// special makes a FIFO or a device node.
func (n *node) special(kind uint32, dev uint64) error {
	if _, err := n.clear(); err != nil {
		return err
	}
	if err := unix.Mknodat(n.at, n.base, kind|0o600, int(dev)); err != nil {
		return err
	}
	n.skipXattrs()
	if err := unix.Fchownat(n.at, n.base, n.h.Uid, n.h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return n.ownerError(err)
	}
	// fchmodat(2) follows links, but what was just made is none and nobody
	// else writes here.
	if err := unix.Fchmodat(n.at, n.base, uint32(n.h.Mode&permBits), 0); err != nil {
		return err
	}
	return setTimes(n.at, n.base, n.h.ModTime)
}

// skipXattrs reports attributes that only files and directories can have.
func (n *node) skipXattrs() {
	for name := range n.xattrs {
		n.u.res.skip(n.name, "extended attribute "+name)
	}
}

// placeholder stands for a device that can't be made here.
func (n *node) placeholder(major, minor uint32) error {
	f, err := n.create()
	if err != nil {
		return err
	}
	defer f.Close()
	d := Device{Path: n.name, Char: n.h.Typeflag == tar.TypeChar, Major: major, Minor: minor}
	n.xattrs = map[string][]byte{xattrDevice: []byte(d.encode())}
	if err := n.ownAndMode(int(f.Fd())); err != nil {
		return err
	}
	n.u.res.addDevice(d)
	return setTimes(n.at, n.base, n.h.ModTime)
}

// encode returns the value of a placeholder's attribute: "c 1 3".
func (d Device) encode() string {
	kind := "b"
	if d.Char {
		kind = "c"
	}
	return fmt.Sprintf("%s %d %d", kind, d.Major, d.Minor)
}

// decodeDevice reads what encode wrote.
func decodeDevice(s string) (d Device, ok bool) {
	var kind string
	if n, err := fmt.Sscanf(s, "%s %d %d", &kind, &d.Major, &d.Minor); n != 3 || err != nil {
		return d, false
	}
	d.Char = kind == "c"
	return d, (d.Char || kind == "b") && d.encode() == s && d.Major <= maxMajor && d.Minor <= maxMinor
}

// PlaceholderOf returns the device that an open file of a diff directory or a
// merged view stands for, and false when it is a file of its own.
func PlaceholderOf(f *os.File) (Device, bool, error) {
	value, err := getXattr(int(f.Fd()), xattrDevice)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return Device{}, false, nil
	}
	if err != nil {
		return Device{}, false, &os.PathError{Op: "getxattr", Path: f.Name(), Err: err}
	}
	st, err := f.Stat()
	if err != nil {
		return Device{}, false, err
	}
	d, ok := decodeDevice(string(value))
	return d, ok && st.Size() == 0, nil
}
