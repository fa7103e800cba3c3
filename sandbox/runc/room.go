package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

// defaultShmBytes is docker's size of /dev/shm, in bytes.
const defaultShmBytes = 64 << 20

// maxDevBytes bounds what a command may write into /dev itself, in bytes:
// docker's value.
const maxDevBytes = 64 << 20

// ttyGroup owns terminals where it is mapped. Source: docker's mount options
// for /dev/pts, gid=5 (tty in every distribution).
const ttyGroup = 5

// deviceNodes are docker's.
var deviceNodes = []string{"null", "zero", "full", "random", "urandom", "tty"}

var deviceLinks = [][2]string{
	{"/proc/self/fd", "fd"},
	{"/proc/self/fd/0", "stdin"},
	{"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"},
	{"/proc/kcore", "core"},
	{"pts/ptmx", "ptmx"},
}

// room is the directory of one run: its /dev, made here with plain system calls
// (0.2 ms; device by device in libcontainer it takes 5), and its files of /etc.
type room struct {
	dir     string
	etc     []string // names below dir that are mounted in /etc
	mounted bool
}

func (r *room) dev() string { return filepath.Join(r.dir, "dev") }

func newRoom(dir string, s sandbox.Spec, slot *slot, ids idMappings) (*room, error) {
	r := &room{dir: dir, etc: []string{"hosts", "hostname", "resolv.conf"}}
	if err := os.MkdirAll(r.dev(), 0o755); err != nil {
		return nil, err
	}
	err := r.makeDev(s, ids)
	if err == nil {
		err = r.writeEtc(s, slot)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare sandbox: %w", err), r.close())
	}
	return r, nil
}

// close removes the room. Sandboxes that start meanwhile may hold copies of its
// mounts for a moment; the kernel frees them with the last.
func (r *room) close() error {
	var err error
	if r.mounted {
		if err = unix.Unmount(r.dev(), unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", r.dev(), err)
		}
	}
	return os.RemoveAll(r.dir)
}

func (r *room) makeDev(s sandbox.Spec, ids idMappings) error {
	dev := r.dev()
	if err := unix.Mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_STRICTATIME,
		fmt.Sprintf("mode=755,size=%d", maxDevBytes)); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	r.mounted = true
	for _, name := range deviceNodes {
		if err := addDevice(filepath.Join(dev, name), "/dev/"+name); err != nil {
			return err
		}
	}
	for _, l := range deviceLinks {
		if _, err := os.Stat("/proc/kcore"); err != nil && l[1] == "core" {
			continue // this kernel has none
		}
		if err := os.Symlink(l[0], filepath.Join(dev, l[1])); err != nil {
			return err
		}
	}
	return mountDevDirs(dev, s.ShmBytes, ids)
}

// addDevice makes a node like source, or binds it where that is not allowed: in
// a user namespace.
func addDevice(target, source string) error {
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return &os.PathError{Op: "stat", Path: source, Err: err}
	}
	err := unix.Mknod(target, unix.S_IFCHR|0o666, int(st.Rdev))
	if errors.Is(err, unix.EPERM) {
		return bindDevice(target, source, st.Uid == 0)
	}
	if err != nil {
		return &os.PathError{Op: "mknod", Path: target, Err: err}
	}
	return os.Chmod(target, 0o666) // whatever our umask is
}

// bindDevice shows the host's node. Where a command may be its owner, it is
// mounted read-only: the device can be read and written, but a chmod of
// /dev/null that would reach the host's fails.
func bindDevice(target, source string, owned bool) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	f.Close() // nothing was written
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	if !owned {
		return nil
	}
	return makeReadOnly(target)
}

// makeReadOnly makes a mount read-only and keeps its other flags, which a user
// namespace may not clear.
func makeReadOnly(target string) error {
	if err := readOnlyTree(target, unix.MOUNT_ATTR_RDONLY, 0); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// remountReadOnly makes one mount read-only and adds flags to those it has.
func remountReadOnly(target string, added uintptr) error {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return err
	}
	// ST_xxx and MS_xxx are the same numbers for these.
	const kept = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME
	flags := uintptr(st.Flags)&kept | unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | added
	if st.Flags&unix.ST_RELATIME != 0 {
		flags |= unix.MS_RELATIME
	}
	return unix.Mount("", target, "", flags, "")
}

func mountDevDirs(dev string, shmBytes int64, ids idMappings) error {
	pts := "newinstance,ptmxmode=0666,mode=0620"
	if contains(ids.gids, ttyGroup) {
		pts += fmt.Sprintf(",gid=%d", ttyGroup)
	}
	const safe = unix.MS_NOSUID | unix.MS_NOEXEC
	for _, m := range []struct {
		name, fstype, data string
		flags              uintptr
	}{
		{"pts", "devpts", pts, safe},
		{"shm", "tmpfs", fmt.Sprintf("mode=1777,size=%d", shmBytes), safe | unix.MS_NODEV},
	} {
		dir := filepath.Join(dev, m.name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, dir, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount /dev/%s: %w", m.name, err)
		}
	}
	return os.Mkdir(filepath.Join(dev, "mqueue"), 0o755)
}

func (r *room) writeEtc(s sandbox.Spec, slot *slot) error {
	resolv, err := resolvConf(s.Network, slot)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"hosts":       hosts(s),
		"hostname":    s.Hostname + "\n",
		"resolv.conf": resolv,
	} {
		path := filepath.Join(r.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o644); err != nil { // whatever our umask is
			return err
		}
	}
	return nil
}
