package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
)

// maxLowers is the kernel's limit of layers in one mount. Source: OVL_MAX_STACK
// in fs/overlayfs.
const maxLowers = 500

// maxFsconfigString is the longest value that fsconfig(2) takes, with its
// terminating zero. Source: fs/fsopen.c.
const maxFsconfigString = 256

// overlayMount is one mount to make. Lowers come highest first, as the kernel
// has them; all paths are absolute.
type overlayMount struct {
	lowers      []string
	upper, work string // "" for a read-only mount
	target      string
}

// mounts makes overlay mounts.
type mounts struct {
	empty string // a directory with two empty ones, "0" and "1"
	links string // a directory for short names
	api   MountAPI
	// classic is set when the kernel turned out not to know "lowerdir+".
	classic atomic.Bool
}

// Mount implements storage.Mounter. The mount is in the caller's mount
// namespace and uses user.overlay.* attributes, as root too: a layer is the
// same for both. A writable mount ignores fsync(2), since the store syncs whole
// layers; its upper directory must be new. Device nodes can't be opened: where
// root unpacked it, an image may have a node of the host's disk. Stub, Upper and
// Work belong on the store's file system, or file numbers change at a copy-up.
// The error wraps storage.ErrNotFound for a layer that is gone.
func (s *Store) Mount(ctx context.Context, o storage.MountOptions) (unmount func() error, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	m := overlayMount{upper: o.Upper, work: o.Work, target: o.Target}
	for _, id := range o.Layers {
		dir, err := s.Dir(id)
		if err != nil {
			return nil, fmt.Errorf("mount: %w", err)
		}
		m.lowers = append(m.lowers, dir)
	}
	slices.Reverse(m.lowers)
	m.lowers = firstOfEach(m.lowers)
	if o.Stub != "" {
		m.lowers = append(m.lowers, o.Stub)
	}
	if err := s.mounts.mount(m); err != nil {
		return nil, fmt.Errorf("mount %d layers on %s: %w", len(o.Layers), o.Target, err)
	}
	return func() error { return unmountDir(o.Target) }, nil
}

// firstOfEach leaves out what stands further up already. The kernel refuses the
// same directory twice, and images have the same layer twice, often an empty one:
// all that the lower one adds and hides, the upper one adds and hides again.
func firstOfEach(dirs []string) []string {
	seen := make(map[string]bool, len(dirs))
	return slices.DeleteFunc(dirs, func(dir string) bool {
		again := seen[dir]
		seen[dir] = true
		return again
	})
}

// mount makes m with the API that the kernel has.
func (ms *mounts) mount(m overlayMount) error {
	// The kernel wants one lower layer at least, and two without an upper one.
	for want := 2 - min(len(m.upper), 1); len(m.lowers) < want; {
		// Not the same one twice: the kernel refuses that.
		m.lowers = append(m.lowers, filepath.Join(ms.empty, strconv.Itoa(len(m.lowers))))
	}
	if err := m.check(); err != nil {
		return err
	}
	if ms.api == MountClassic || ms.classic.Load() || !m.fitsFsconfig() {
		return ms.mountClassic(m)
	}
	err := mountFsconfig(m)
	if ms.api == MountAuto && errors.Is(err, errNoLowerAppend) {
		ms.classic.Store(true)
		return ms.mountClassic(m)
	}
	return err
}

func (m overlayMount) check() error {
	switch {
	case len(m.lowers) > maxLowers:
		return fmt.Errorf("%d lower layers are over the kernel's limit of %d", len(m.lowers), maxLowers)
	case (m.upper == "") != (m.work == ""):
		return errors.New("an upper directory needs a work directory, and the other way round")
	case !filepath.IsAbs(m.target):
		return fmt.Errorf("target %q is not an absolute path", m.target)
	}
	return nil
}

func (m overlayMount) fitsFsconfig() bool {
	for _, p := range append([]string{m.upper, m.work}, m.lowers...) {
		if len(p) >= maxFsconfigString {
			return false
		}
	}
	return true
}

// errNoLowerAppend says that the kernel has no "lowerdir+", or no fsopen(2).
var errNoLowerAppend = errors.New("kernel without lowerdir+")

// mountFsconfig makes m with fsopen(2) and its kin. With userxattr the kernel
// turns redirect_dir and metacopy off by itself.
func mountFsconfig(m overlayMount) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return errNoLowerAppend
	}
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fsfd)
	if err := configure(fsfd, m); err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return withKernelLog(fsfd, fmt.Errorf("overlay: %w", err))
	}
	attr := unix.MOUNT_ATTR_NODEV
	if m.upper == "" {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return withKernelLog(fsfd, fmt.Errorf("fsmount: %w", err))
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, m.target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// configure sets the options, the lower layers first: an unknown "lowerdir+"
// is noticed before anything else can be wrong.
func configure(fsfd int, m overlayMount) error {
	for i, dir := range m.lowers {
		err := unix.FsconfigSetString(fsfd, "lowerdir+", dir)
		if i == 0 && errors.Is(err, unix.EINVAL) && isDir(dir) {
			return errNoLowerAppend
		}
		if err != nil {
			return withKernelLog(fsfd, fmt.Errorf("lower layer %s: %w", dir, err))
		}
	}
	options := [][2]string{{"index", "off"}}
	if m.upper != "" {
		options = append(options, [2]string{"upperdir", m.upper}, [2]string{"workdir", m.work})
	}
	for _, o := range options {
		if err := unix.FsconfigSetString(fsfd, o[0], o[1]); err != nil {
			return withKernelLog(fsfd, fmt.Errorf("%s=%s: %w", o[0], o[1], err))
		}
	}
	flags := []string{"userxattr"}
	if m.upper != "" {
		flags = append(flags, "volatile")
	}
	for _, flag := range flags {
		if err := unix.FsconfigSetFlag(fsfd, flag); err != nil {
			return withKernelLog(fsfd, fmt.Errorf("%s: %w", flag, err))
		}
	}
	return nil
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// maxKernelLog bounds the message that is read from a file system context. The
// kernel's are one line.
const maxKernelLog = 1024

// withKernelLog adds what the kernel says about the error, if anything.
func withKernelLog(fsfd int, err error) error {
	buf := make([]byte, maxKernelLog)
	n, readErr := unix.Read(fsfd, buf)
	if readErr != nil || n <= 0 {
		return err
	}
	text := strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e "))
	return fmt.Errorf("%w (kernel: %s)", err, text)
}

// mountClassic makes m with mount(2), whose options must fit one page. So a
// directory of links gives each layer a name of one or two letters, and a
// thread that does not come back makes that its working directory.
func (ms *mounts) mountClassic(m overlayMount) (err error) {
	dir, err := os.MkdirTemp(ms.links, "mount-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	names := make([]string, len(m.lowers))
	for i, lower := range m.lowers {
		names[i] = strconv.FormatInt(int64(i), 36)
		if err := os.Symlink(lower, filepath.Join(dir, names[i])); err != nil {
			return err
		}
	}
	data := "userxattr,index=off,lowerdir=" + strings.Join(names, ":")
	flags := uintptr(unix.MS_NODEV | unix.MS_RDONLY)
	if m.upper != "" {
		err := errors.Join(os.Symlink(m.upper, filepath.Join(dir, "upper")), os.Symlink(m.work, filepath.Join(dir, "work")))
		if err != nil {
			return err
		}
		data += ",upperdir=upper,workdir=work,volatile"
		flags = unix.MS_NODEV
	}
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("mount options of %d bytes are over the page of %d", len(data), os.Getpagesize())
	}
	return inDirectory(dir, func() error {
		if err := unix.Mount("overlay", m.target, "overlay", flags, data); err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
		return nil
	})
}

// inDirectory runs f on a thread whose working directory is dir, and ends the
// thread: unsharing CLONE_FS can't be undone, and other goroutines must not
// run there.
func inDirectory(dir string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			// The thread may outlive this function a little, and would keep dir busy.
			err = errors.Join(f(), unix.Chdir("/"))
		}
		done <- err
	}()
	return <-done
}

// unmountDir unmounts target. When something still uses the mount it is
// detached all the same, and the error wraps storage.ErrInUse: then the upper
// directory may still change.
func unmountDir(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EBUSY) {
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
		return nil
	}
	err = unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	return errors.Join(fmt.Errorf("unmount %s: %w", target, storage.ErrInUse), err)
}
