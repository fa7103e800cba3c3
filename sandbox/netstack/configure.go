package netstack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nl6AddrGenNone keeps the kernel from making a link-local address.
// Source: IN6_ADDR_GEN_MODE_NONE, linux/if_link.h.
const nl6AddrGenNone = 1

// outerNames numbers the outer ends of this process's veth pairs.
var outerNames atomic.Uint32

func outerName() string { return "ms" + strconv.FormatUint(uint64(outerNames.Add(1)), 10) }

// configure sets up lo and eth0 of netns. On an error d is closed.
func (n *Network) configure(d *device, netns *os.File) error {
	d.ipv6 = !n.options.DisableIPv6 && hostHasIPv6()
	err := inNetns(netns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open routing socket: %w", err)
		}
		defer h.Close()
		return configureLinks(h, d)
	})
	if err != nil {
		return errors.Join(err, d.close())
	}
	return nil
}

func configureLinks(h *netlink.Handle, d *device) error {
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	link, err := h.LinkByName(interfaceName)
	if err != nil {
		return fmt.Errorf("find %s: %w", interfaceName, err)
	}
	if err := bringUp(h, link, d.link); err != nil {
		return fmt.Errorf("bring up %s: %w", interfaceName, err)
	}
	if err := addAddress(h, link, sandboxV4, gatewayV4); err != nil {
		return fmt.Errorf("configure %s: %w", interfaceName, err)
	}
	// A namespace may have IPv6 switched off by sysctl: then it goes without.
	d.ipv6 = d.ipv6 && addAddress(h, link, sandboxV6, gatewayV6) == nil
	return nil
}

func bringUp(h *netlink.Handle, link netlink.Link, kind Link) error {
	if kind == LinkVeth {
		if err := disableOffloads(interfaceName); err != nil {
			return err
		}
	} else {
		if err := h.LinkSetMTU(link, linkMTU); err != nil {
			return err
		}
		if err := h.LinkSetHardwareAddr(link, sandboxMAC); err != nil {
			return err
		}
	}
	// A kernel without IPv6 refuses, and makes no address either.
	_ = h.LinkSetIP6AddrGenMode(link, nl6AddrGenNone)
	return h.LinkSetUp(link)
}

// addAddress gives link an address, a default route through gateway, and
// gateway's link address. The prefix gets no route of its own.
func addAddress(h *netlink.Handle, link netlink.Link, address netip.Prefix, gateway netip.Addr) error {
	flags := unix.IFA_F_NOPREFIXROUTE
	if address.Addr().Is6() {
		flags |= unix.IFA_F_NODAD // the stack is the only neighbour
	}
	bits := address.Addr().BitLen()
	index := link.Attrs().Index
	err := h.AddrAdd(link, &netlink.Addr{
		IPNet: &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), bits)},
		Flags: flags,
	})
	if err != nil {
		return fmt.Errorf("add address %s: %w", address, err)
	}
	if address.Addr().Is6() {
		if err := addLocalRoute(h, index, address.Addr()); err != nil {
			return err
		}
	}
	err = h.NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gateway.AsSlice(), HardwareAddr: gatewayMAC,
	})
	if err != nil {
		return fmt.Errorf("add neighbour %s: %w", gateway, err)
	}
	onLink := &net.IPNet{IP: gateway.AsSlice(), Mask: net.CIDRMask(bits, bits)}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: onLink}); err != nil {
		return fmt.Errorf("add route to %s: %w", gateway, err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add default route through %s: %w", gateway, err)
	}
	return nil
}

// addLocalRoute makes the kernel accept packets for an IPv6 address now: its
// own entry comes from a work queue, up to a second after the address.
func addLocalRoute(h *netlink.Handle, index int, a netip.Addr) error {
	err := h.RouteAdd(&netlink.Route{
		LinkIndex: index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
	})
	if err != nil {
		return fmt.Errorf("add local route %s: %w", a, err)
	}
	return nil
}
