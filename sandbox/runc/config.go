package runc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/sandbox/rootless"
)

// maxHostname is HOST_NAME_MAX, in bytes. Source: linux/utsname.h.
const maxHostname = 64

// dockerCaps are what docker gives a container: CapBnd 00000000a80425fb.
// Source: moby, daemon/pkg/oci/caps/defaults.go.
var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD",
	"CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// maskedProc and readonlyProc are docker's. Source: moby,
// daemon/pkg/oci/defaults.go. The paths in /sys are masked once, in the slot.
var (
	maskedProc = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
		"/proc/timer_stats",
	}
	readonlyProc = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// check refuses a Spec that can't be honoured.
func (r *Runner) check(s sandbox.Spec) error {
	switch {
	case len(s.Args) == 0 || s.Args[0] == "":
		return startError(codeNotFound, "no command specified")
	case !filepath.IsAbs(s.Rootfs):
		return fmt.Errorf("root file system %q is not an absolute path", s.Rootfs)
	case !path.IsAbs(s.Dir):
		return startError(codeNotFound, "working directory %q is not absolute", s.Dir)
	case len(s.Hostname) > maxHostname || strings.ContainsAny(s.Hostname, " \t\r\n\x00"):
		return startError(codeNotExecutable, "hostname %q is not valid (up to %d bytes, no spaces)", s.Hostname, maxHostname)
	}
	if err := noNUL(s.Args, s.Env, []string{s.Dir}); err != nil {
		return err
	}
	for _, h := range s.Hosts {
		if h.Name == "" || strings.ContainsAny(h.Name, " \t\r\n\x00#") || !h.Addr.IsValid() {
			return startError(codeNotExecutable, "host entry %q with address %s is not valid", h.Name, h.Addr)
		}
	}
	return r.checkUser(s.User)
}

func (r *Runner) checkUser(u sandbox.User) error {
	if !contains(r.ids.uids, u.UID) {
		return rootless.Unmapped(fmt.Sprintf("uid %d", u.UID))
	}
	for _, g := range append([]uint32{u.GID}, u.Groups...) {
		if !contains(r.ids.gids, g) {
			return rootless.Unmapped(fmt.Sprintf("gid %d", g))
		}
	}
	if len(u.Groups) > 0 && !r.ids.setGroups && !slices.Equal(u.Groups, []uint32{u.GID}) {
		return rootless.Unmapped(fmt.Sprintf("group list %v", u.Groups))
	}
	return nil
}

func (r *Runner) config(id string, s sandbox.Spec, slot *slot, room *room) (*configs.Config, error) {
	mounts := []*configs.Mount{
		{Source: "proc", Device: "proc", Destination: "/proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		bind(room.dev(), "/dev"),
		{Source: "mqueue", Device: "mqueue", Destination: "/dev/mqueue", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		bind(slot.sys, "/sys"),
	}
	for _, name := range room.etc {
		target, err := throughLinks(s.Rootfs, "/etc/"+name)
		if err != nil {
			return nil, err
		}
		if err := makeMountPoint(s.Rootfs, target); err != nil {
			return nil, err
		}
		mounts = append(mounts, bind(filepath.Join(room.dir, name), target))
	}
	for _, m := range s.Mounts {
		c, err := mount(m)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, c)
	}
	caps := append(slices.Clone(dockerCaps), "CAP_SYS_ADMIN") // the shim drops it
	return &configs.Config{
		Rootfs:          s.Rootfs,
		Hostname:        s.Hostname,
		Mounts:          mounts,
		Namespaces:      namespaces(slot),
		UIDMappings:     r.ids.uids,
		GIDMappings:     r.ids.gids,
		Capabilities:    &configs.Capabilities{Bounding: caps, Effective: caps, Permitted: caps},
		MaskPaths:       maskedProc,
		ReadonlyPaths:   readonlyProc,
		NoNewKeyring:    false,
		RootlessCgroups: true,
		Cgroups:         &cgroups.Cgroup{Name: id, Rootless: true, Resources: &cgroups.Resources{}},
	}, nil
}

func namespaces(slot *slot) configs.Namespaces {
	ns := configs.Namespaces{
		{Type: configs.NEWNS},
		{Type: configs.NEWPID},
		{Type: configs.NEWUTS},
		{Type: configs.NEWIPC},
		{Type: configs.NEWUSER},
	}
	if slot.netns != nil {
		ns = append(ns, configs.Namespace{Type: configs.NEWNET, Path: slot.netnsPath()})
	}
	return ns
}

func bind(source, target string) *configs.Mount {
	return &configs.Mount{Source: source, Device: "bind", Destination: target, Flags: unix.MS_BIND | unix.MS_REC}
}

func mount(m sandbox.Mount) (*configs.Mount, error) {
	if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
		return nil, startError(codeNotExecutable, "mount target %q is not an absolute path below /", m.Target)
	}
	switch m.Type {
	case sandbox.MountBind:
		st, err := os.Stat(m.Source)
		if err != nil {
			return nil, startError(codeNotExecutable, "mount %s: %w", m.Target, err)
		}
		c := bind(m.Source, m.Target)
		if m.ReadOnly {
			if c, err = bindReadOnly(m.Source, m.Target); err != nil {
				return nil, err
			}
		}
		if st.IsDir() {
			c.Flags |= unix.MS_NODEV // nodes that root copied out of an image are dead
		}
		return c, nil
	case sandbox.MountTmpfs:
		return tmpfs(m), nil
	}
	return nil, startError(codeNotExecutable, "mount %s: type %q is not supported", m.Target, m.Type)
}

func tmpfs(m sandbox.Mount) *configs.Mount {
	mode := m.Mode
	if mode == 0 {
		mode = 0o1777
	}
	data := fmt.Sprintf("mode=%o", mode)
	if m.SizeBytes > 0 {
		data += fmt.Sprintf(",size=%d", m.SizeBytes)
	}
	c := &configs.Mount{
		Source: "tmpfs", Device: "tmpfs", Destination: m.Target, Data: data,
		Flags: unix.MS_NOSUID | unix.MS_NODEV,
	}
	if m.ReadOnly {
		c.Flags |= unix.MS_RDONLY
	}
	return c
}

// maxLinks is how many symbolic links are followed, as the kernel has it.
const maxLinks = 40

// throughLinks follows the last element of name below root while it is a
// symbolic link: an image may have /etc/resolv.conf as a link to a file that is
// there on a running system only, and libcontainer makes no file through it.
// It looks only; libcontainer resolves what it returns again, confined.
func throughLinks(root, name string) (string, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	for range maxLinks {
		link, err := dir.Readlink(strings.TrimPrefix(name, "/"))
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist):
			return name, nil
		case err != nil:
			return name, nil // a parent is a link that leaves root: libcontainer confines it
		case path.IsAbs(link):
			name = path.Clean(link)
		default:
			name = path.Join(path.Dir(name), link)
		}
	}
	return "", startError(codeNotExecutable, "%s: %w", name, unix.ELOOP)
}

// makeMountPoint makes the file that a bind mount covers. libcontainer would
// too, but fails when another sandbox on the same root makes it first.
func makeMountPoint(root, name string) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	name = strings.TrimPrefix(name, "/")
	if _, err := dir.Lstat(name); err == nil {
		return nil
	}
	if err := dir.MkdirAll(path.Dir(name), 0o755); err != nil {
		return nil // a parent is a link that leaves root: libcontainer confines it
	}
	f, err := dir.OpenFile(name, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make mount point /%s: %w", name, err)
	}
	return f.Close()
}
