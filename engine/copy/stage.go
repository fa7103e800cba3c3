package copy

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/tree"
)

// beneath opens below the staged layer and through no link of any kind.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// xattrOpaque hides the directories below. Source: overlayfs, userxattr.
const xattrOpaque = "user.overlay.opaque"

// stage is a layer in the making, seen together with the chain it will lie on.
type stage struct {
	chain *chainfs.View
	dir   string
	root  int // descriptor of dir

	mu   sync.Mutex
	dirs map[string]*stagedDir // by path; every directory of the layer is here
}

// stagedDir is a directory of the layer. It is made with mode 0700 and gets
// the metadata when everything is written.
type stagedDir struct {
	meta metadata
	// merges says that the chain shows a directory here too, and that it is
	// not hidden.
	merges bool
	opaque bool
}

// metadata is what an inode has besides its content.
type metadata struct {
	mode     uint32 // permission bits
	uid, gid uint32
	mtime    time.Time
	xattrs   map[string][]byte
}

func openStage(chain *chainfs.View, dir string) (*stage, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open staged layer %s: %w", dir, err)
	}
	s := &stage{chain: chain, dir: dir, root: root, dirs: map[string]*stagedDir{}}
	meta, err := s.chainMetadata(".")
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	if meta.mtime.IsZero() { // a chain without layers has no root
		meta.mtime = time.Now()
	}
	s.dirs["."] = &stagedDir{meta: meta, merges: true}
	return s, nil
}

func (s *stage) close() error { return unix.Close(s.root) }

// chainMetadata returns the metadata of a directory of the chain.
func (s *stage) chainMetadata(name string) (metadata, error) {
	e, err := s.chain.Lstat(name)
	if err != nil {
		return metadata{}, err
	}
	xattrs, err := s.chain.Xattrs(name)
	if err != nil {
		return metadata{}, err
	}
	return metadataOf(e, xattrs), nil
}

func metadataOf(e tree.Entry, xattrs map[string][]byte) metadata {
	return metadata{e.Mode & permMask, e.UID, e.GID, e.ModTime, xattrs}
}

// staged returns the layer's directory at name, nil when there is none.
func (s *stage) staged(name string) *stagedDir {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirs[name]
}

// put records a directory of the layer.
func (s *stage) put(name string, d *stagedDir) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[name] = d
}

// Lstat looks name up in the layer, then in the chain below.
func (s *stage) Lstat(name string) (tree.Entry, error) {
	if d := s.staged(name); d != nil {
		m := d.meta
		return tree.Entry{Path: name, Mode: tree.TypeDir | m.mode, UID: m.uid, GID: m.gid, ModTime: m.mtime}, nil
	}
	// The deepest directory of the layer on the way decides what is visible.
	below, parent := name, path.Dir(name)
	for s.staged(parent) == nil {
		below, parent = parent, path.Dir(parent)
	}
	e, err := s.lstatStaged(below)
	switch {
	case err == nil && below == name:
		return e, nil
	case err == nil: // a staged non-directory is in the way
		return tree.Entry{}, &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrNotExist}
	case !errors.Is(err, fs.ErrNotExist):
		return tree.Entry{}, err
	case !s.staged(parent).merges:
		return tree.Entry{}, err
	}
	return s.chain.Lstat(name)
}

// lstatStaged looks up a non-directory in the layer alone.
func (s *stage) lstatStaged(name string) (tree.Entry, error) {
	fd, err := s.openDir(path.Dir(name))
	if err != nil {
		return tree.Entry{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	base := path.Base(name)
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return tree.Entry{}, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	e := tree.Entry{
		Path: name, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size,
		ModTime: time.Unix(st.Mtim.Unix()), Dev: st.Dev, Ino: st.Ino, Nlink: uint64(st.Nlink),
	}
	if e.IsSymlink() {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, base, buf)
		if err != nil {
			return tree.Entry{}, &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		e.Link = string(buf[:n])
	}
	return e, nil
}

// openDir opens a directory of the layer. The caller closes.
func (s *stage) openDir(name string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: beneath}
	for {
		fd, err := unix.Openat2(s.root, name, &how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open staged directory", Path: name, Err: err}
		}
		return fd, nil
	}
}

// within turns a path of an image or an archive into that of an entry.
func within(name string) string {
	return path.Join(".", path.Clean("/"+name))
}

const (
	// dirMode is what a directory gets that nothing says more about.
	dirMode = 0o755
	setgid  = 0o2000
)

// newDirs is what directories get that are missing on the way to a destination.
type newDirs struct {
	mode uint32 // permission bits
	// owner nil is 0:0, and below a directory with the setgid bit its group.
	owner *Owner
}

// below returns the metadata of a new directory in parent, which passes its
// setgid bit on, as mkdir(2) has it.
func (n newDirs) below(parent metadata) metadata {
	m := metadata{mode: n.mode | parent.mode&setgid, mtime: time.Now()}
	switch {
	case n.owner != nil:
		m.uid, m.gid = n.owner.UID, n.owner.GID
	case parent.mode&setgid != 0:
		m.gid = parent.gid
	}
	return m
}

// mkdirs makes the directory that name leads to and what is missing on the way
// there, and repeats what the chain has. It returns the path with links
// followed.
func (s *stage) mkdirs(name string, missing newDirs) (string, error) {
	resolved, _, err := tree.Resolve(s, within(name), true)
	if err != nil {
		return "", err
	}
	for i, c := range resolved + "/" {
		if c != '/' {
			continue
		}
		if err := s.mkdir(resolved[:i], missing); err != nil {
			return "", err
		}
	}
	return resolved, nil
}

// mkdir makes or repeats one directory whose parent is in the layer already.
func (s *stage) mkdir(name string, missing newDirs) error {
	if s.staged(name) != nil {
		return nil
	}
	e, err := s.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.create(name, &stagedDir{meta: missing.below(s.staged(path.Dir(name)).meta)})
	case err != nil:
		return err
	case !e.IsDir():
		return &fs.PathError{Op: "mkdir", Path: "/" + name, Err: unix.ENOTDIR}
	}
	meta, err := s.chainMetadata(name)
	if err != nil {
		return err
	}
	return s.create(name, &stagedDir{meta: meta, merges: true})
}

// create makes a directory in the layer.
func (s *stage) create(name string, d *stagedDir) error {
	fd, err := s.openDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mkdirat(fd, path.Base(name), 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: "/" + name, Err: err}
	}
	s.put(name, d)
	return nil
}

// cover gives a directory the metadata of a source directory that is merged
// into it. Attributes add up.
func (d *stagedDir) cover(m metadata) {
	xattrs := maps.Clone(d.meta.xattrs)
	if xattrs == nil {
		xattrs = m.xattrs
	} else {
		maps.Copy(xattrs, m.xattrs)
	}
	d.meta = m
	d.meta.xattrs = xattrs
}

// finish gives all directories their metadata.
func (s *stage) finish() error {
	for name, d := range s.dirs {
		if err := s.finishDir(name, d); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) finishDir(name string, d *stagedDir) error {
	fd, err := s.openDir(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if d.opaque {
		if err := unix.Fsetxattr(fd, xattrOpaque, []byte("y"), 0); err != nil {
			return &fs.PathError{Op: "set opaque", Path: "/" + name, Err: err}
		}
	}
	return d.meta.set(fd, name)
}

// set gives an open file or directory its metadata. Changing the owner clears
// setuid bits and capabilities, so it comes first; the time comes last.
func (m metadata) set(fd int, name string) error {
	if err := unix.Fchown(fd, int(m.uid), int(m.gid)); err != nil {
		return ownerError(name, m, err)
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return &fs.PathError{Op: "chmod", Path: "/" + name, Err: err}
	}
	for attr, value := range m.xattrs {
		if !chainfs.IsContentXattr(attr) {
			continue
		}
		if err := unix.Fsetxattr(fd, attr, value, 0); err != nil {
			return fmt.Errorf("set attribute %s of /%s: %w", attr, name, err)
		}
	}
	times, err := m.times()
	if err != nil {
		return &fs.PathError{Op: "utimes", Path: "/" + name, Err: err}
	}
	if err := unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "utimes", Path: "/" + name, Err: err}
	}
	return nil
}

// setAt is set for links and special files, which have no attributes.
func (m metadata) setAt(dirfd int, base, name string, isLink bool) error {
	if err := unix.Fchownat(dirfd, base, int(m.uid), int(m.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ownerError(name, m, err)
	}
	if !isLink {
		// fchmodat(2) would follow a link, but this name was just made as none.
		if err := unix.Fchmodat(dirfd, base, m.mode, 0); err != nil {
			return &fs.PathError{Op: "chmod", Path: "/" + name, Err: err}
		}
	}
	times, err := m.times()
	if err == nil {
		err = unix.UtimesNanoAt(dirfd, base, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &fs.PathError{Op: "utimes", Path: "/" + name, Err: err}
	}
	return nil
}

// times returns access and modification time, both the latter.
func (m metadata) times() ([]unix.Timespec, error) {
	t, err := unix.TimeToTimespec(m.mtime)
	return []unix.Timespec{t, t}, err
}

func ownerError(name string, m metadata, err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return &OwnerError{Path: strings.TrimPrefix(name, "/"), UID: m.uid, GID: m.gid, Err: err}
	}
	return &fs.PathError{Op: "chown", Path: "/" + name, Err: err}
}
