package netstack

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxEchoes are pings under way per sandbox; further ones are dropped.
	maxEchoes = 64
	// echoTimeout is how long an answer is waited for.
	echoTimeout = 10 * time.Second
	// icmpTTL of the packets that we make for the outside.
	icmpTTL = 64
	// echoHeaderBytes: type, code, checksum, identifier, sequence number.
	echoHeaderBytes = 8
)

// interceptEcho takes pings to the outside out of the stack's input: the stack
// answers a ping to any address that it accepts, and it accepts all.
func (a *attachment) interceptEcho(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) bool {
	e, ok := parseEcho(protocol, pkt)
	if !ok || isOwn(e.to) {
		return false
	}
	a.goWith(a.echoes, func() { a.forwardEcho(e) })
	return true
}

// echo is one ping of the sandbox.
type echo struct {
	from, to netip.Addr
	message  []byte // ICMP message, from the type on
}

// parseEcho returns the echo request in pkt, if it is one in one piece.
func parseEcho(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) (echo, bool) {
	switch protocol {
	case header.IPv4ProtocolNumber:
		return parseEcho4(pkt)
	case header.IPv6ProtocolNumber:
		return parseEcho6(pkt)
	}
	return echo{}, false
}

func parseEcho4(pkt *stack.PacketBuffer) (echo, bool) {
	b, ok := pkt.Data().PullUp(header.IPv4MinimumSize)
	if !ok || header.IPv4(b).Protocol() != uint8(header.ICMPv4ProtocolNumber) {
		return echo{}, false
	}
	ip := header.IPv4(pkt.Data().AsRange().ToSlice())
	if !ip.IsValid(len(ip)) || ip.More() || ip.FragmentOffset() != 0 {
		return echo{}, false
	}
	message := ip.Payload()
	if len(message) < echoHeaderBytes || header.ICMPv4(message).Type() != header.ICMPv4Echo {
		return echo{}, false
	}
	return echo{addrOf(ip.SourceAddress()), addrOf(ip.DestinationAddress()), message}, true
}

func parseEcho6(pkt *stack.PacketBuffer) (echo, bool) {
	b, ok := pkt.Data().PullUp(header.IPv6MinimumSize)
	if !ok || header.IPv6(b).TransportProtocol() != header.ICMPv6ProtocolNumber {
		return echo{}, false
	}
	ip := header.IPv6(pkt.Data().AsRange().ToSlice())
	if !ip.IsValid(len(ip)) {
		return echo{}, false
	}
	message := ip.Payload()
	if len(message) < echoHeaderBytes || header.ICMPv6(message).Type() != header.ICMPv6EchoRequest {
		return echo{}, false
	}
	return echo{addrOf(ip.SourceAddress()), addrOf(ip.DestinationAddress()), message}, true
}

// forwardEcho asks through an unprivileged ping socket. Where the host allows
// none (net.ipv4.ping_group_range) pings are lost.
func (a *attachment) forwardEcho(e echo) {
	if !a.network.guard.permits(e.to) {
		return
	}
	conn, err := dialPing(e.to.Unmap())
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(a.ctx, func() { conn.Close() })
	defer stop()
	if conn.SetDeadline(time.Now().Add(echoTimeout)) != nil {
		return
	}
	if _, err := conn.Write(e.message); err != nil {
		return
	}
	buf := datagramBuffers.Get().(*[maxDatagramBytes]byte)
	defer datagramBuffers.Put(buf)
	n, err := conn.Read(buf[:])
	if err != nil || n < echoHeaderBytes {
		return
	}
	reply := buf[:n]
	copy(reply[4:6], e.message[4:6]) // the kernel put its own identifier
	a.sendICMP(e.to, e.from, reply)
}

// dialPing returns a connected ping socket: ICMP messages without IP headers,
// replies to its own requests only.
func dialPing(to netip.Addr) (net.Conn, error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(to.AsSlice()[:4])}
	if to.Is6() {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		sa = &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	if err := unix.Connect(fd, sa); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// sendPortUnreachable tells the sandbox that nobody listens at the far end of
// a UDP flow. The quoted datagram is just its headers, which is what the
// sender's kernel looks at.
// Source: RFC 792 and RFC 4443, 3.1.
func (a *attachment) sendPortUnreachable(id stack.TransportEndpointID) {
	quoted := make([]byte, header.UDPMinimumSize)
	header.UDP(quoted).Encode(&header.UDPFields{
		SrcPort: id.RemotePort, DstPort: id.LocalPort, Length: header.UDPMinimumSize,
	})
	sandboxSide, far := addrOf(id.RemoteAddress), addrOf(id.LocalAddress)
	quoted = withIPHeader(sandboxSide, far, header.UDPProtocolNumber, quoted)
	message := make([]byte, echoHeaderBytes, echoHeaderBytes+len(quoted))
	if far.Is4() {
		header.ICMPv4(message).SetType(header.ICMPv4DstUnreachable)
		header.ICMPv4(message).SetCode(header.ICMPv4PortUnreachable)
	} else {
		header.ICMPv6(message).SetType(header.ICMPv6DstUnreachable)
		header.ICMPv6(message).SetCode(header.ICMPv6PortUnreachable)
	}
	a.sendICMP(far, sandboxSide, append(message, quoted...))
}

// sendICMP gives the sandbox an ICMP message as if it came from from. It
// overwrites the checksum. A full link loses it, as links do.
func (a *attachment) sendICMP(from, to netip.Addr, message []byte) {
	protocol := header.ICMPv4ProtocolNumber
	if from.Is4() {
		m := header.ICMPv4(message)
		m.SetChecksum(0)
		m.SetChecksum(^checksum.Checksum(m, 0))
	} else {
		protocol = header.ICMPv6ProtocolNumber
		m := header.ICMPv6(message)
		m.SetChecksum(0)
		m.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
			Header: m, Src: tcpip.AddrFromSlice(from.AsSlice()), Dst: tcpip.AddrFromSlice(to.AsSlice()),
		}))
	}
	packet := buffer.MakeWithData(withIPHeader(from, to, protocol, message))
	_ = a.stack.WritePacketToRemote(nicID, tcpip.LinkAddress(sandboxMAC), protocolOf(from), packet)
}

// withIPHeader returns a packet of from's family around payload.
func withIPHeader(from, to netip.Addr, protocol tcpip.TransportProtocolNumber, payload []byte) []byte {
	src, dst := tcpip.AddrFromSlice(from.AsSlice()), tcpip.AddrFromSlice(to.AsSlice())
	if from.Is4() {
		ip := make(header.IPv4, header.IPv4MinimumSize, header.IPv4MinimumSize+len(payload))
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(header.IPv4MinimumSize + len(payload)),
			TTL:         icmpTTL, Protocol: uint8(protocol), SrcAddr: src, DstAddr: dst,
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		return append(ip, payload...)
	}
	ip := make(header.IPv6, header.IPv6MinimumSize, header.IPv6MinimumSize+len(payload))
	ip.Encode(&header.IPv6Fields{
		PayloadLength:     uint16(len(payload)),
		TransportProtocol: protocol, HopLimit: icmpTTL, SrcAddr: src, DstAddr: dst,
	})
	return append(ip, payload...)
}
