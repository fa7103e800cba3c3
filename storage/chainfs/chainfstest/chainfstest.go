// Package chainfstest makes random stacks of layer directories and mounts them
// with overlayfs, the oracle for everything that reads or writes such
// directories in user space. Its users' TestMain is that of storage/nstest.
package chainfstest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/tree"
)

// names are few, so that layers collide.
var names = []string{"a", "b", "c", "d", "e"}

// RandomLayers makes count layer directories of random content, lowest first.
func RandomLayers(t testing.TB, r *rand.Rand, count int) []string {
	t.Helper()
	base := t.TempDir()
	dirs := make([]string, count)
	for i := range dirs {
		dirs[i] = filepath.Join(base, fmt.Sprint(i))
		Must(t, os.Mkdir(dirs[i], 0o755))
		for range 3 + r.IntN(12) {
			randomNode(t, r, dirs[i])
		}
	}
	return dirs
}

// randomNode makes one node of a layer, or nothing where another is in the way.
func randomNode(t testing.TB, r *rand.Rand, layer string) {
	dir := layer
	for range r.IntN(4) {
		dir = filepath.Join(dir, names[r.IntN(len(names))])
		if os.Mkdir(dir, 0o755) == nil {
			describe(t, r, dir)
		}
		if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
			return
		}
	}
	name := filepath.Join(dir, names[r.IntN(len(names))])
	if _, err := os.Lstat(name); err == nil {
		return
	}
	switch r.IntN(9) {
	case 0, 1, 2:
		Must(t, os.WriteFile(name, []byte(strings.Repeat("x", r.IntN(50))), 0o644))
	case 3:
		Must(t, unix.Mknod(name, unix.S_IFCHR, 0)) // a whiteout
		return
	case 4:
		targets := []string{"a", "/b", "../c", "a/b", "/", "nowhere"}
		Must(t, os.Symlink(targets[r.IntN(len(targets))], name))
	case 5:
		Must(t, os.Mkdir(name, 0o755))
		Must(t, unix.Setxattr(name, "user.overlay.opaque", []byte("y"), 0))
	case 6:
		Must(t, unix.Mkfifo(name, 0o600))
	default:
		Must(t, os.Mkdir(name, 0o755))
	}
	describe(t, r, name)
}

// describe gives a node random metadata.
func describe(t testing.TB, r *rand.Rand, name string) {
	t.Helper()
	st, err := os.Lstat(name)
	Must(t, err)
	Must(t, os.Lchown(name, r.IntN(1000), r.IntN(1000)))
	when := unix.NsecToTimespec(int64(1_000_000_000+r.IntN(500_000_000))*int64(time.Second) + r.Int64N(1e9))
	if st.Mode().Type() == 0 || st.IsDir() {
		Must(t, unix.Chmod(name, []uint32{0o755, 0o1777, 0o600, 0o2750, 0o4711}[r.IntN(5)]))
		if r.IntN(3) == 0 {
			Must(t, unix.Setxattr(name, "user.test", []byte{byte(r.IntN(256))}, 0))
		}
	}
	if st.Mode().IsRegular() && r.IntN(5) == 0 {
		Must(t, unix.Setxattr(name, "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	}
	Must(t, unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW))
}

// Mount shows layers, lowest first, read-only at a new directory until the test
// ends.
func Mount(t testing.TB, dirs []string) string {
	t.Helper()
	// overlayfs without an upper directory wants two lower ones.
	lowers := append([]string{t.TempDir(), t.TempDir()}, dirs...)
	if len(dirs) > 0 {
		Must(t, os.Chmod(lowers[0], 0o755))
	}
	slices.Reverse(lowers)
	target := t.TempDir()
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	Must(t, err)
	defer unix.Close(fd)
	for _, dir := range lowers {
		Must(t, unix.FsconfigSetString(fd, "lowerdir+", dir))
	}
	Must(t, unix.FsconfigSetFlag(fd, "userxattr"))
	Must(t, unix.FsconfigCreate(fd))
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	Must(t, err)
	defer unix.Close(mnt)
	Must(t, unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { Must(t, unix.Unmount(target, unix.MNT_DETACH)) })
	return target
}

// Listing describes a tree: path to everything that a copy must keep.
type Listing map[string]string

// List lists any tree by its methods.
func List(t testing.TB, src tree.Tree) Listing {
	t.Helper()
	l := Listing{}
	root, err := src.Lstat(".")
	Must(t, err)
	l.add(t, src, root)
	return l
}

func (l Listing) add(t testing.TB, src tree.Tree, e tree.Entry) {
	t.Helper()
	content := ""
	if e.IsRegular() {
		f, err := src.Open(e.Path)
		Must(t, err)
		b := make([]byte, e.Size+1)
		n, _ := f.Read(b)
		content = hex.EncodeToString(b[:n])
		Must(t, f.Close())
	}
	xattrs, err := src.Xattrs(e.Path)
	Must(t, err)
	size := e.Size
	if e.IsDir() {
		size = 0
	}
	l[e.Path] = fmt.Sprintf("%o %d:%d size=%d mtime=%d link=%q xattrs=%x content=%s",
		e.Mode, e.UID, e.GID, size, e.ModTime.UnixNano(), e.Link, xattrs, content)
	if !e.IsDir() {
		return
	}
	entries, err := src.ReadDir(e.Path)
	Must(t, err)
	for _, e := range entries {
		l.add(t, src, e)
	}
}

// ListDir lists a directory of the host by its paths.
func ListDir(t testing.TB, dir string) Listing {
	t.Helper()
	return List(t, host(dir))
}

// Diff returns the paths in which two listings differ, with got and want.
func Diff(got, want Listing) string {
	var b strings.Builder
	for _, p := range slices.Sorted(keys(got, want)) {
		if got[p] != want[p] {
			fmt.Fprintf(&b, "%s\n   got %s\n  want %s\n", p, got[p], want[p])
		}
	}
	return b.String()
}

func keys(listings ...Listing) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		seen := map[string]bool{}
		for _, l := range listings {
			for p := range l {
				if seen[p] {
					continue
				}
				seen[p] = true
				if !yield(p) {
					return
				}
			}
		}
	}
}

// host is a host directory as a tree, read with the plainest calls.
type host string

func (h host) at(name string) string { return filepath.Join(string(h), name) }

func (h host) Lstat(name string) (tree.Entry, error) {
	var st unix.Stat_t
	err := unix.Lstat(h.at(name), &st)
	if err == unix.ENOTDIR {
		err = unix.ENOENT
	}
	if err != nil {
		return tree.Entry{}, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	e := tree.Entry{
		Path: name, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, ModTime: time.Unix(st.Mtim.Unix()),
		Rdev: st.Rdev, Dev: st.Dev, Ino: st.Ino, Nlink: uint64(st.Nlink),
	}
	if e.IsSymlink() {
		e.Link, _ = os.Readlink(h.at(name))
	}
	return e, nil
}

func (h host) ReadDir(name string) ([]tree.Entry, error) {
	listed, err := os.ReadDir(h.at(name))
	if err != nil {
		return nil, err
	}
	var entries []tree.Entry
	for _, d := range listed {
		e, err := h.Lstat(path.Join(name, d.Name()))
		// overlayfs lists whiteouts of a directory that only one layer has, and
		// then has no such file.
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func (h host) Open(name string) (*os.File, error) { return os.Open(h.at(name)) }

func (h host) Xattrs(name string) (map[string][]byte, error) {
	e, err := h.Lstat(name)
	if err != nil || (!e.IsDir() && !e.IsRegular()) {
		return nil, err
	}
	f, err := os.Open(h.at(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return chainfs.ContentXattrs(f)
}

// Host returns a host directory as a tree.
func Host(dir string) tree.Tree { return host(dir) }

// Must ends the test when err isn't nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
