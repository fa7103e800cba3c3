package runc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

// slot is a network namespace with its view of /sys. One command uses it at a
// time, later ones use it again: making one takes 3 ms, taking one down and
// making the next 20 to 80. It belongs to this user namespace, not to the
// sandbox's, so a command can't change it.
type slot struct {
	mode       sandbox.NetworkMode
	netns      *os.File // nil: the host's
	sys        string   // read-only directory for the sandbox's /sys
	attachment sandbox.Attachment
}

func (s *slot) netnsPath() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.netns.Fd())
}

func (s *slot) nameservers() []netip.Addr {
	if s.attachment == nil {
		return nil
	}
	return s.attachment.Nameservers()
}

func (s *slot) close() error {
	var errs []error
	if s.attachment != nil {
		errs = append(errs, s.attachment.Close())
	}
	if s.sys != "" {
		if err := unix.Unmount(s.sys, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", s.sys, err))
		}
	}
	if s.netns != nil {
		errs = append(errs, s.netns.Close())
	}
	return errors.Join(errs...)
}

// slotPool hands slots out.
type slotPool struct {
	dir     string
	network sandbox.Network
	ids     idMappings

	mu   sync.Mutex
	free map[sandbox.NetworkMode][]*slot
	made int
}

// take returns a free slot or makes one.
func (p *slotPool) take(ctx context.Context, mode sandbox.NetworkMode) (*slot, error) {
	switch mode {
	case sandbox.NetworkNone, sandbox.NetworkHost:
	case sandbox.NetworkDefault:
		if p.network == nil {
			return nil, errors.New("network default: this runner was made without a network")
		}
	default:
		return nil, startError(codeNotExecutable, "network %q is not supported", mode)
	}
	s, number := p.reuse(mode)
	if s != nil {
		return s, nil
	}
	s, err := p.open(ctx, mode, filepath.Join(p.dir, strconv.Itoa(number)))
	if err != nil {
		return nil, fmt.Errorf("make network %s: %w", mode, err)
	}
	return s, nil
}

// reuse returns a free slot, or the number of a new one.
func (p *slotPool) reuse(mode sandbox.NetworkMode) (*slot, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if list := p.free[mode]; len(list) > 0 {
		p.free[mode] = list[:len(list)-1]
		return list[len(list)-1], 0
	}
	p.made++
	return nil, p.made
}

func (p *slotPool) put(s *slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == nil {
		p.free = map[sandbox.NetworkMode][]*slot{}
	}
	p.free[s.mode] = append(p.free[s.mode], s)
}

func (p *slotPool) close() error {
	p.mu.Lock()
	free := p.free
	p.free = nil
	p.mu.Unlock()
	var errs []error
	for _, list := range free {
		for _, s := range list {
			errs = append(errs, s.close())
		}
	}
	return errors.Join(errs...)
}

func (p *slotPool) open(ctx context.Context, mode sandbox.NetworkMode, dir string) (*slot, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	s := &slot{mode: mode}
	var err error
	if mode == sandbox.NetworkHost {
		err = s.useHost(dir)
	} else {
		err = s.makeNetns(dir, p.ids)
	}
	if err == nil && mode == sandbox.NetworkDefault {
		// The attachment outlives this command.
		s.attachment, err = p.network.Attach(context.WithoutCancel(ctx), s.netns)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// makeNetns makes the namespace on a thread of its own, which ends with it.
func (s *slot) makeNetns(dir string, ids idMappings) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: this thread is in the wrong place
		done <- s.enterNetns(dir, ids)
	}()
	return <-done
}

func (s *slot) enterNetns(dir string, ids idMappings) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare network namespace: %w", err)
	}
	var err error
	if s.netns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := openPorts(ids); err != nil {
		return err
	}
	return s.mountSys(dir)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// openPorts stands in for CAP_NET_BIND_SERVICE and CAP_NET_RAW: the sandbox's
// do not count in this namespace. Docker sets the same.
func openPorts(ids idMappings) error {
	for name, value := range map[string]string{
		"ip_unprivileged_port_start": "0",
		"ping_group_range":           fmt.Sprintf("0 %d", min(lastFromZero(ids.gids), 1<<31-1)),
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

const lockedDown = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountSys mounts a sysfs that shows the interfaces of this thread's network
// namespace. The sandbox can't: the namespace is not its own.
func (s *slot) mountSys(dir string) error {
	if err := unix.Mount("sysfs", dir, "sysfs", lockedDown, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	s.sys = dir
	return maskSys(dir)
}

// useHost shows the host's /sys, read-only with everything below.
func (s *slot) useHost(dir string) error {
	if err := unix.Mount("/sys", dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind /sys: %w", err)
	}
	s.sys = dir
	const attributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	if err := readOnlyTree(dir, attributes, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
		return fmt.Errorf("make /sys read-only: %w", err)
	}
	return maskSys(dir)
}

// maskSys hides docker's masked paths of /sys, and the host's cgroups.
func maskSys(dir string) error {
	for _, name := range []string{"firmware", "devices/virtual/powercap", "fs/cgroup"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			continue // this kernel has none
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", lockedDown, "mode=755,nr_blocks=1"); err != nil {
			return fmt.Errorf("mask /sys/%s: %w", name, err)
		}
	}
	return nil
}
