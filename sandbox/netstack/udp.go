package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxUDPFlows per sandbox, a host socket each. A datagram of the next flow
	// is dropped.
	maxUDPFlows = 1024
	// udpIdleTimeout forgets a flow without datagrams either way.
	// Source: RFC 4787, REQ-5 asks for two minutes at least.
	udpIdleTimeout = 2 * time.Minute
	// dnsIdleTimeout is for flows to port 53: one question, one answer.
	dnsIdleTimeout = 15 * time.Second
	// maxDatagramBytes is the largest payload of a UDP datagram.
	maxDatagramBytes = 65535
)

var datagramBuffers = sync.Pool{New: func() any { return new([maxDatagramBytes]byte) }}

// udpHandler returns what the stack asks about datagrams of no flow it knows.
// False makes the stack answer with ICMP port unreachable.
func (a *attachment) udpHandler() func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	forwarder := udp.NewForwarder(a.stack, a.forwardUDP)
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return a.network.guard.permits(addrOf(id.LocalAddress)) && forwarder.HandlePacket(id, pkt)
	}
}

// forwardUDP starts a flow. It runs where packets are received, so it must not
// wait for anything.
func (a *attachment) forwardUDP(r *udp.ForwarderRequest) {
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	if terr != nil {
		return // the port is being taken by another packet of the same flow
	}
	inner := gonet.NewUDPConn(&queue, ep)
	id := r.ID()
	ok := a.goWith(a.udpFlows, func() {
		defer inner.Close()
		a.relayUDP(inner, id)
	})
	if !ok {
		inner.Close()
	}
}

func (a *attachment) relayUDP(inner *gonet.UDPConn, id stack.TransportEndpointID) {
	to := netip.AddrPortFrom(addrOf(id.LocalAddress).Unmap(), id.LocalPort)
	outer, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return
	}
	defer outer.Close()
	closeBoth := func() {
		inner.Close()
		outer.Close()
	}
	stop := context.AfterFunc(a.ctx, closeBoth)
	defer stop()
	timeout := udpIdleTimeout
	if to.Port() == dnsPort {
		timeout = dnsIdleTimeout
	}
	idle := time.AfterFunc(timeout, closeBoth)
	defer idle.Stop()
	pump := func(dst, src net.Conn) {
		defer closeBoth()
		err := copyDatagrams(dst, src, func() { idle.Reset(timeout) })
		if errors.Is(err, syscall.ECONNREFUSED) {
			a.sendPortUnreachable(id)
		}
	}
	var outward sync.WaitGroup
	outward.Go(func() { pump(outer, inner) })
	pump(inner, outer)
	outward.Wait()
}

// copyDatagrams copies until an error. A datagram that is too large for the
// other side is lost, as on any path.
func copyDatagrams(dst, src net.Conn, active func()) error {
	buf := datagramBuffers.Get().(*[maxDatagramBytes]byte)
	defer datagramBuffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if err != nil {
			return err
		}
		active()
		if _, err := dst.Write(buf[:n]); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
			return err
		}
	}
}
