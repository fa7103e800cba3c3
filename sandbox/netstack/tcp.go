package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxTCPConnections per sandbox: each costs a host socket, two goroutines
	// and at most two buffers in the stack. The next one is reset.
	maxTCPConnections = 1024
	// maxTCPPending are connections not yet open; the SYN of the next one is
	// dropped, and comes again.
	maxTCPPending = 512
	// connectTimeout ends a connect that nobody answers. Linux gives up after
	// 130 s, most clients of package archives after 10 to 60.
	connectTimeout = 60 * time.Second
	// keepalive times of both sides: a peer that vanished holds a connection
	// for about two minutes.
	keepaliveIdle     = 45 * time.Second
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 5
	// relayBufferBytes holds two packets of the link.
	relayBufferBytes = 128 << 10
)

var relayBuffers = sync.Pool{New: func() any { return new([relayBufferBytes]byte) }}

// tcpHandler returns what the stack asks about segments of no connection it
// knows. False makes the stack answer with RST.
func (a *attachment) tcpHandler() func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	forwarder := tcp.NewForwarder(a.stack, 0, maxTCPPending, func(r *tcp.ForwarderRequest) {
		if !a.enter() {
			r.Complete(true)
			return
		}
		defer a.running.Done()
		a.forwardTCP(r)
	})
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return !forbidden(addrOf(id.LocalAddress)) && forwarder.HandlePacket(id, pkt)
	}
}

// forwardTCP connects to the outside first and only then answers the sandbox,
// so that what can't be reached is refused as it would be without us.
func (a *attachment) forwardTCP(r *tcp.ForwarderRequest) {
	select {
	case a.tcpConnections <- struct{}{}:
		defer func() { <-a.tcpConnections }()
	default:
		r.Complete(true)
		return
	}
	id := r.ID()
	outer, err := a.dialTCP(netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort))
	if err != nil {
		r.Complete(true)
		return
	}
	defer outer.Close()
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	r.Complete(terr != nil)
	if terr != nil {
		_ = outer.SetLinger(0)
		return
	}
	keepAlive(ep)
	relay(a.ctx, gonet.NewTCPConn(&queue, ep), ep, outer)
}

func (a *attachment) dialTCP(to netip.AddrPort) (*net.TCPConn, error) {
	if !a.network.guard.permits(to.Addr()) {
		return nil, errors.New("connect " + to.String() + ": not permitted")
	}
	d := net.Dialer{
		Timeout: connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
		},
	}
	return d.DialTCP(a.ctx, "tcp", netip.AddrPort{}, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
}

// keepAlive is best effort: an endpoint that is gone already says so to relay.
func keepAlive(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
}

// relay copies both ways until both ended. The end of one direction is passed
// on as a half-close, an error as a reset of both connections.
func relay(ctx context.Context, inner *gonet.TCPConn, ep tcpip.Endpoint, outer *net.TCPConn) {
	reset := func() {
		ep.Abort()
		_ = outer.SetLinger(0)
		_ = outer.Close()
	}
	defer inner.Close()
	stop := context.AfterFunc(ctx, reset)
	defer stop()
	copyTo := func(dst interface {
		io.Writer
		CloseWrite() error
	}, src io.Reader,
	) {
		if copyStream(dst, src) != nil || dst.CloseWrite() != nil {
			reset()
		}
	}
	var outward sync.WaitGroup
	outward.Go(func() { copyTo(outer, inner) })
	copyTo(inner, outer)
	outward.Wait()
}

// copyStream copies until src ends. Unlike io.Copy it never takes a shortcut
// that allocates a smaller buffer per connection.
func copyStream(dst io.Writer, src io.Reader) error {
	buf := relayBuffers.Get().(*[relayBufferBytes]byte)
	defer relayBuffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
