package chainfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/tree"
)

// overlayfs' own attributes under the mount option userxattr.
const (
	xattrOpaque   = "user.overlay.opaque"
	xattrWhiteout = "user.overlay.whiteout"
)

// hiddenXattrs are prefixes of what overlayfs and mstage keep for themselves.
var hiddenXattrs = []string{"user.overlay.", "user.mstage."}

const (
	// maxXattrList is the kernel's XATTR_LIST_MAX, in bytes.
	maxXattrList = 64 << 10
	// maxXattrValue is the kernel's XATTR_SIZE_MAX, in bytes.
	maxXattrValue = 64 << 10
	// direntBuffer holds about 1000 names; a larger one was not faster.
	direntBuffer = 32 << 10
)

// beneath opens below a directory and through no link of any kind.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openDirAt opens a directory of one layer. The caller closes.
func (v *View) openDirAt(layer int, name string, flags uint64) (int, error) {
	root, err := retry(func() (int, error) {
		return unix.Open(v.dirs[layer], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	return openBeneath(root, name, flags|unix.O_DIRECTORY)
}

func openBeneath(dirfd int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: beneath}
	return retry(func() (int, error) { return unix.Openat2(dirfd, name, &how) })
}

// retry repeats a system call that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

type opaqueMarkValue int

const (
	opaqueNo opaqueMarkValue = iota
	opaqueYes
	// opaqueXattrWhiteouts says that the directory is not opaque, but may hold
	// whiteouts that are empty files with an attribute (kernel 6.7).
	opaqueXattrWhiteouts
)

// opaqueMark reads a directory's mark. Any failure means none, as in the kernel.
func opaqueMark(fd int) opaqueMarkValue {
	var value [2]byte
	n, err := unix.Fgetxattr(fd, xattrOpaque, value[:])
	switch {
	case err != nil || n != 1:
		return opaqueNo
	case value[0] == 'y':
		return opaqueYes
	case value[0] == 'x':
		return opaqueXattrWhiteouts
	}
	return opaqueNo
}

func hasXattrAt(dirfd int, name, attr string) bool {
	fd, err := openBeneath(dirfd, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, err = unix.Fgetxattr(fd, attr, nil)
	return err == nil
}

// dirent is one name of a directory. typ holds unix.S_IFMT bits, 0 when the
// file system doesn't tell.
type dirent struct {
	name string
	typ  uint32
}

// readNames lists an open directory with getdents64(2), without "." and "..".
func readNames(fd int) ([]dirent, error) {
	var names []dirent
	buf := make([]byte, direntBuffer)
	for {
		n, err := retry(func() (int, error) { return unix.Getdents(fd, buf) })
		if err != nil || n <= 0 {
			return names, err
		}
		names = appendDirents(names, buf[:n])
	}
}

// appendDirents decodes struct linux_dirent64: d_ino 8, d_off 8, d_reclen 2,
// d_type 1, d_name.
func appendDirents(names []dirent, buf []byte) []dirent {
	const header = 19
	for len(buf) > header {
		size := int(binary.NativeEndian.Uint16(buf[16:]))
		if size <= header || size > len(buf) {
			return names
		}
		raw := buf[header:size]
		if end := bytes.IndexByte(raw, 0); end >= 0 {
			raw = raw[:end]
		}
		if name := string(raw); name != "." && name != ".." {
			// DT_xxx is S_IFxxx >> 12; DT_UNKNOWN is 0.
			names = append(names, dirent{name, uint32(buf[18]) << 12})
		}
		buf = buf[size:]
	}
	return names
}

// statAt returns the entry of a name in an open directory of a layer.
func statAt(dirfd int, name, treePath string) (tree.Entry, error) {
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "." {
		flags = unix.AT_EMPTY_PATH
		name = ""
	}
	if err := unix.Fstatat(dirfd, name, &st, flags); err != nil {
		return tree.Entry{}, err
	}
	e := entryOf(&st, treePath)
	asDevice(dirfd, name, &e)
	if !e.IsSymlink() {
		return e, nil
	}
	link, err := readlinkAt(dirfd, name)
	e.Link = link
	return e, err
}

func entryOf(st *unix.Stat_t, treePath string) tree.Entry {
	return tree.Entry{
		Path: treePath, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size,
		ModTime: time.Unix(st.Mtim.Unix()),
		Rdev:    st.Rdev, Dev: st.Dev, Ino: st.Ino, Nlink: uint64(st.Nlink),
	}
}

func readlinkAt(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := retry(func() (int, error) { return unix.Readlinkat(dirfd, name, buf) })
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// ContentXattrs returns the attributes of an open file or directory that belong
// to its content: security.capability and user.*, without what overlayfs and
// mstage keep for themselves. It is nil when there are none, or when the file
// system knows no attributes.
func ContentXattrs(f *os.File) (map[string][]byte, error) {
	return contentXattrs(int(f.Fd()))
}

func contentXattrs(fd int) (map[string][]byte, error) {
	size, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || (err == nil && size == 0) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := make([]byte, maxXattrList)
	if size, err = unix.Flistxattr(fd, list); err != nil {
		return nil, err
	}
	var found map[string][]byte
	for name := range strings.SplitSeq(string(list[:size]), "\x00") {
		if !IsContentXattr(name) {
			continue
		}
		value := make([]byte, maxXattrValue)
		n, err := unix.Fgetxattr(fd, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if found == nil {
			found = map[string][]byte{}
		}
		found[name] = bytes.Clone(value[:n])
	}
	return found, nil
}

// IsContentXattr reports whether an attribute of that name belongs to a file's
// content and may stand in a layer.
func IsContentXattr(name string) bool {
	for _, prefix := range hiddenXattrs {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return name == "security.capability" || strings.HasPrefix(name, "user.")
}
