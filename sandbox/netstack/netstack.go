// Package netstack connects network namespaces to the outside with gVisor's
// user-mode TCP/IP stack.
//
// A sandbox's frames arrive at a stack in this process. Every connection that
// the sandbox opens ends there and is continued by an ordinary socket of this
// process, so the outside sees the host and needs no root, no bridge and no
// packet filter. Nothing can be opened towards the sandbox.
//
// The host's loopback stays out of reach, whatever the spelling of the address
// (see the policy in policy.go); only the DNS forwarder talks to name servers
// there. Addresses of the host's other interfaces are reachable, as from any
// machine beside it.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/mstage/mstage/sandbox"
)

// The network as a sandbox sees it, laid out as in slirp4netns. The prefixes
// only name the link: just the gateway is routed on it, so a host network that
// uses the same numbers is shadowed in these addresses and no others.
// The IPv6 prefix is not plain fd00::/64, which is in use on many hosts.
var (
	sandboxV4 = netip.MustParsePrefix("10.0.2.100/24")
	gatewayV4 = netip.MustParseAddr("10.0.2.2")
	dnsV4     = netip.MustParseAddr("10.0.2.3")
	sandboxV6 = netip.MustParsePrefix("fd00:6d73::100/64")
	gatewayV6 = netip.MustParseAddr("fd00:6d73::2")
	dnsV6     = netip.MustParseAddr("fd00:6d73::3")
)

const (
	// interfaceName is the sandbox's interface besides lo.
	interfaceName = "eth0"
	// linkMTU in bytes is the most that both a TAP and a veth take in whole
	// 16-byte steps: few large packets cost a fifth of many of 1500 bytes.
	linkMTU = 65520
	// defaultResolvConf is where the host's name servers are read from.
	defaultResolvConf = "/etc/resolv.conf"
)

// Link says which kind of device connects a namespace.
type Link string

// The kinds of device. The zero value takes a TAP where one can be made and a
// veth pair where not.
const (
	LinkAuto Link = ""
	LinkTAP  Link = "tap"  // needs a usable /dev/net/tun
	LinkVeth Link = "veth" // needs nothing but the namespaces
)

// Options are the settings of a Network; the zero value is ready.
type Options struct {
	// ResolvConf is the file with the host's name servers, read again when it
	// changes. Zero: /etc/resolv.conf.
	ResolvConf string
	// Link is the kind of device. Zero: LinkAuto.
	Link Link
	// DisableIPv6 leaves IPv6 off on hosts that have it too.
	DisableIPv6 bool
}

// Network implements sandbox.Network. It may be used by several goroutines.
type Network struct {
	options Options
	guard   *guard
	servers *nameservers

	mu     sync.Mutex
	helper *os.File // namespace of the outer ends of veth pairs; nil until needed
}

var _ sandbox.Network = (*Network)(nil)

// New returns a Network whose connections leave through the network namespace
// that the process is in now. Close it after its attachments.
func New(o Options) (*Network, error) {
	switch o.Link {
	case LinkAuto, LinkTAP, LinkVeth:
	default:
		return nil, fmt.Errorf("network link %q: unknown kind", o.Link)
	}
	if o.ResolvConf == "" {
		o.ResolvConf = defaultResolvConf
	}
	g, err := newGuard()
	if err != nil {
		return nil, err
	}
	return &Network{options: o, guard: g, servers: &nameservers{path: o.ResolvConf}}, nil
}

// Close releases what attachments shared. Attachments must be closed before.
func (n *Network) Close() error {
	n.guard.close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.helper == nil {
		return nil
	}
	err := n.helper.Close()
	n.helper = nil
	return err
}

// Attach implements sandbox.Network. The caller needs CAP_SYS_ADMIN and
// CAP_NET_ADMIN in the user namespace that owns netns. It fails when the
// namespace has an interface eth0 already. After Close of the attachment, netns
// has its lo only (still up) and can be attached again.
func (n *Network) Attach(ctx context.Context, netns *os.File) (sandbox.Attachment, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	dev, err := n.openDevice(netns)
	if err != nil {
		return nil, fmt.Errorf("attach network: %w", err)
	}
	a, err := n.serve(dev)
	if err != nil {
		return nil, fmt.Errorf("attach network: %w", errors.Join(err, dev.close()))
	}
	return a, nil
}

// hostHasIPv6 reports whether an interface other than loopback has an IPv6
// address that reaches further than its link. Without one every IPv6
// connection would fail, and clients would try these first.
func hostHasIPv6() bool {
	interfaces, err := net.Interfaces()
	if err != nil {
		return false
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		for a := range interfaceAddrs(i) {
			if a.Is6() && a.IsGlobalUnicast() {
				return true
			}
		}
	}
	return false
}
