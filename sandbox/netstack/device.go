package netstack

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The two ends of the link have fixed, locally administered addresses ("ms"):
// with permanent neighbour entries on both sides nothing needs resolving.
var (
	sandboxMAC = net.HardwareAddr{0x02, 0x6d, 0x73, 0, 0, 2}
	gatewayMAC = net.HardwareAddr{0x02, 0x6d, 0x73, 0, 0, 1}
)

// packetBufferBytes is the queue of the packet socket: 64 packets of the
// largest size. Without privilege the kernel caps it at net.core.rmem_max.
const packetBufferBytes = 64 << 16

// device is this process's end of a sandbox's link.
type device struct {
	frames *os.File // Ethernet frames, in Go's poller
	link   Link
	ipv6   bool
	// remove deletes what outlives frames; nil for nothing.
	remove func() error
}

// close may follow a Close of frames.
func (d *device) close() error {
	err := d.frames.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if d.remove != nil {
		err = errors.Join(err, d.remove())
	}
	return err
}

// openDevice makes the link of netns and configures the sandbox's side.
func (n *Network) openDevice(netns *os.File) (*device, error) {
	kind := n.options.Link
	if kind != LinkVeth {
		d, err := openTAP(netns)
		if err == nil {
			return d, n.configure(d, netns)
		}
		if kind == LinkTAP || !tapUnavailable(err) {
			return nil, err
		}
	}
	d, err := n.openVeth(netns)
	if err != nil {
		return nil, err
	}
	return d, n.configure(d, netns)
}

// tapUnavailable reports whether the host just has no TAP for this user, so
// that a veth pair is worth trying.
func tapUnavailable(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ENODEV, unix.ENXIO, unix.EACCES, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// openTAP makes a TAP in netns: the kernel puts it in the namespace of the
// thread that opens /dev/net/tun. It disappears with its descriptor.
func openTAP(netns *os.File) (*device, error) {
	d := &device{link: LinkTAP}
	err := inNetns(netns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(interfaceName)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("make TAP %s: %w", interfaceName, err), unix.Close(fd))
		}
		d.frames = os.NewFile(uintptr(fd), "tap")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openVeth makes a veth pair with one end in netns and the other in a
// namespace that only holds such ends, and a packet socket on the outer one.
func (n *Network) openVeth(netns *os.File) (*device, error) {
	helper, err := n.helperNetns()
	if err != nil {
		return nil, err
	}
	d := &device{link: LinkVeth}
	err = inNetns(helper, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open routing socket: %w", err)
		}
		outer, err := addVeth(h, netns)
		if err != nil {
			h.Close()
			return err
		}
		d.remove = func() error {
			defer h.Close()
			return removeLink(h, outer)
		}
		fd, err := openPacketSocket(outer.Attrs().Index)
		if err != nil {
			return errors.Join(err, d.remove())
		}
		d.frames = os.NewFile(uintptr(fd), "veth")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// helperNetns returns the namespace of the outer ends, made when first needed.
func (n *Network) helperNetns() (*os.File, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.helper != nil {
		return n.helper, nil
	}
	f, err := newNetns()
	if err != nil {
		return nil, err
	}
	n.helper = f
	return f, nil
}

// newNetns makes a network namespace that lives as long as the file.
func newNetns() (*os.File, error) {
	var f *os.File
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return f, err
}

// addVeth makes the pair and brings the outer end up, without addresses.
// The kernel names the outer end, so attachments don't have to agree on names.
func addVeth(h *netlink.Handle, netns *os.File) (netlink.Link, error) {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: outerName(), MTU: linkMTU, TxQLen: -1})
	veth.PeerName = interfaceName
	veth.PeerHardwareAddr = sandboxMAC
	veth.PeerMTU = linkMTU
	veth.PeerNamespace = netlink.NsFd(netns.Fd())
	if err := h.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make veth pair: %w", err)
	}
	outer, err := h.LinkByName(veth.Name)
	if err != nil {
		return nil, fmt.Errorf("find veth %s: %w", veth.Name, err)
	}
	// No IPv6 address: the helper namespace must not speak on the link. A
	// kernel without IPv6 refuses, which serves as well.
	_ = h.LinkSetIP6AddrGenMode(outer, nl6AddrGenNone)
	if err := h.LinkSetUp(outer); err != nil {
		return nil, errors.Join(fmt.Errorf("bring up veth %s: %w", veth.Name, err), h.LinkDel(outer))
	}
	return outer, nil
}

// removeLink deletes a veth end and with it the other; gone already is fine,
// since the pair goes with the sandbox's namespace.
func removeLink(h *netlink.Handle, l netlink.Link) error {
	err := h.LinkDel(l)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// openPacketSocket returns a socket for whole frames of one interface.
func openPacketSocket(index int) (int, error) {
	// Protocol 0: nothing is queued before the socket is bound to its interface.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	// Without the bypass, frames are dropped for up to a second: this end was
	// up before its peer, and gets its queue from the kernel's delayed link watch.
	for _, option := range []int{unix.PACKET_IGNORE_OUTGOING, unix.PACKET_QDISC_BYPASS} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, option, 1); err != nil {
			return -1, errors.Join(fmt.Errorf("set packet socket option %d: %w", option, err), unix.Close(fd))
		}
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBufferBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, packetBufferBytes)
	}
	addr := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index}
	if err := unix.Bind(fd, addr); err != nil {
		return -1, errors.Join(fmt.Errorf("bind packet socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// disableOffloads makes the kernel finish checksums and segments of what the
// sandbox sends: the packet socket gets frames as they are queued.
// Source: ethtool(2) ioctl, linux/ethtool.h.
func disableOffloads(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, command := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGRO, unix.ETHTOOL_STXCSUM} {
		value := struct{ command, data uint32 }{command, 0}
		req := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte // the rest of struct ifreq's union
		}{data: unsafe.Pointer(&value)}
		copy(req.name[:unix.IFNAMSIZ-1], name)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			return fmt.Errorf("switch off offload %#x of %s: %w", command, name, errno)
		}
	}
	return nil
}

// inNetns runs f on a thread that entered ns. Descriptors that f opens stay in
// ns whoever uses them.
func inNetns(ns *os.File, f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onOwnThread runs f on an OS thread that ends with f, so that no other
// goroutine ever runs in a namespace that f entered.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the runtime ends the thread
		if unix.Gettid() == unix.Getpid() {
			// The main thread can't end, and /proc/self shows its namespaces.
			// While it is held here, the next try gets another one.
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}
