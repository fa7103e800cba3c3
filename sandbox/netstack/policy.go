package netstack

import (
	"fmt"
	"iter"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// thisNetwork is 0.0.0.0/8: Linux connects 0.0.0.0 to loopback.
// Source: RFC 1122, 3.2.1.3.
var thisNetwork = netip.MustParsePrefix("0.0.0.0/8")

// embeddings are IPv6 prefixes whose addresses carry an IPv4 address, with the
// byte where it starts: a translator on the way may unwrap it.
var embeddings = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("::/96"), 12},           // IPv4-compatible, RFC 4291 2.5.5.1
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // IPv4-translated, RFC 2765 2.1
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64, RFC 6052 2.1
	{netip.MustParsePrefix("64:ff9b:1::/96"), 12},  // local NAT64, RFC 8215
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4, RFC 3056
}

// loopbackIndex is that of lo in every network namespace.
// Source: LOOPBACK_IFINDEX, linux/include/net/net_namespace.h.
const loopbackIndex = 1

// forbidden reports whether no packet of a sandbox may go to a, judged by the
// address alone: loopback, unspecified, link-local (cloud metadata services
// live there), multicast, broadcast, the stack's own addresses, and every IPv6
// spelling of these.
func forbidden(a netip.Addr) bool {
	a = a.Unmap()
	switch {
	case !a.IsGlobalUnicast(), thisNetwork.Contains(a):
		return true
	case isOwn(a):
		return true
	case a.Is4():
		return false
	}
	b := a.As16()
	for _, e := range embeddings {
		if e.prefix.Contains(a) && forbidden(netip.AddrFrom4([4]byte(b[e.at:e.at+4]))) {
			return true
		}
	}
	return false
}

// isOwn reports whether the stack itself answers for a.
func isOwn(a netip.Addr) bool {
	return a == gatewayV4 || a == dnsV4 || a == gatewayV6 || a == dnsV6
}

// guard asks the host's routing table where an address leads.
type guard struct {
	routes *netlink.Handle
}

func newGuard() (*guard, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open routing socket: %w", err)
	}
	return &guard{routes: h}, nil
}

func (g *guard) close() { g.routes.Close() }

// permits reports whether a sandbox may talk to a now. Beyond forbidden it
// refuses what the host routes to itself without having the address on a real
// interface: addresses of lo, and prefixes with a local route. It fails closed:
// an address without a route is refused too, as the connection would be.
func (g *guard) permits(a netip.Addr) bool {
	a = a.Unmap()
	if forbidden(a) {
		return false
	}
	routes, err := g.routes.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return false
	}
	switch routes[0].Type {
	case unix.RTN_UNICAST:
		return routes[0].LinkIndex != loopbackIndex
	case unix.RTN_LOCAL:
		return onRealInterface(a)
	default: // broadcast, multicast, blackhole, …
		return false
	}
}

// onRealInterface reports whether an interface other than a loopback has a.
func onRealInterface(a netip.Addr) bool {
	interfaces, err := net.Interfaces()
	if err != nil {
		return false
	}
	found := false
	for _, i := range interfaces {
		for have := range interfaceAddrs(i) {
			if have != a {
				continue
			}
			if i.Flags&net.FlagLoopback != 0 {
				return false
			}
			found = true
		}
	}
	return found
}

// interfaceAddrs yields the addresses of an interface; none when it is gone.
func interfaceAddrs(i net.Interface) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		addrs, err := i.Addrs()
		if err != nil {
			return
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			if ip, ok := netip.AddrFromSlice(n.IP); ok && !yield(ip.Unmap()) {
				return
			}
		}
	}
}
