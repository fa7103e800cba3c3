package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests run in a network namespace of their own that plays the host: lo,
// and one interface with these addresses. So they need neither a network nor
// ports of this machine, and no root: without it, in a user namespace.
const insideEnv = "MSTAGE_NETSTACK_TEST_HOST"

var (
	hostV4 = netip.MustParseAddr("198.51.100.1")
	hostV6 = netip.MustParseAddr("2001:db8::1")
	// loAddr is a public address on lo: a loopback service in disguise.
	loAddr = netip.MustParseAddr("203.0.113.7")
)

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) == "" {
		os.Exit(runInside())
	}
	if err := playHost(); err != nil {
		fmt.Fprintln(os.Stderr, "set up the test host:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func runInside() int {
	runtime.LockOSThread() // the death signal is sent when the thread ends
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), insideEnv+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		c.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func playHost() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if err := addTestAddr(lo, netip.PrefixFrom(loAddr, 32)); err != nil {
		return err
	}
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: "lan", MTU: linkMTU})
	pair.PeerName = "cable"
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	for _, name := range []string{"lan", "cable"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if name == "cable" {
			continue
		}
		for _, p := range []netip.Prefix{netip.PrefixFrom(hostV4, 24), netip.PrefixFrom(hostV6, 64)} {
			if err := addTestAddr(l, p); err != nil {
				return err
			}
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0)
}

func addTestAddr(l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(l, a)
}
