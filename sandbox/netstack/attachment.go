package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/mstage/mstage/sandbox"
)

// nicID is the stack's only interface.
const nicID tcpip.NICID = 1

// Buffers of one TCP connection in the stack, in bytes. The maximum, times two
// directions and maxTCPConnections, bounds what a sandbox can make this
// process hold; 1 MiB is ample for a path that is a memory copy long.
const (
	tcpBufferMin     = 4 << 10
	tcpBufferDefault = 1 << 20
	tcpBufferMax     = 1 << 20
)

// attachment serves one namespace.
type attachment struct {
	network *Network
	dev     *device
	stack   *stack.Stack
	link    *frameLink // nil until start

	ctx    context.Context // ends with Close; the attachment is its own call tree
	cancel context.CancelCauseFunc

	tcpConnections chan struct{} // a slot per relayed connection
	udpFlows       chan struct{} // a slot per UDP flow
	dnsQueries     chan struct{} // a slot per question at an upstream server
	echoes         chan struct{} // a slot per outstanding ping

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // goroutines of relays and servers; grows under mu

	closeOnce sync.Once
	closeErr  error
}

var _ sandbox.Attachment = (*attachment)(nil)

var errClosed = errors.New("network attachment closed")

// serve builds the stack behind dev. On an error dev stays open.
func (n *Network) serve(dev *device) (*attachment, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	a := &attachment{
		network:        n,
		dev:            dev,
		ctx:            ctx,
		cancel:         cancel,
		stack:          newStack(),
		tcpConnections: make(chan struct{}, maxTCPConnections),
		udpFlows:       make(chan struct{}, maxUDPFlows),
		dnsQueries:     make(chan struct{}, maxDNSQueries),
		echoes:         make(chan struct{}, maxEchoes),
	}
	if err := a.start(); err != nil {
		return nil, errors.Join(err, a.shutDown())
	}
	return a, nil
}

func newStack() *stack.Stack {
	return stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			// Without duplicate address detection the addresses serve at once.
			ipv6.NewProtocolWithOptions(ipv6.Options{}),
			arp.NewProtocol,
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
}

func (a *attachment) start() error {
	if err := a.tuneTCP(); err != nil {
		return err
	}
	link, err := newFrameLink(a.dev.frames, a.interceptEcho)
	if err != nil {
		return fmt.Errorf("serve link: %w", err)
	}
	a.link = link
	a.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, a.tcpHandler())
	a.stack.SetTransportProtocolHandler(udp.ProtocolNumber, a.udpHandler())
	if err := tcpipError("create interface", a.stack.CreateNIC(nicID, link)); err != nil {
		return err
	}
	if err := a.addAddresses(); err != nil {
		return err
	}
	if err := a.startDNS(); err != nil {
		return err
	}
	link.start()
	return nil
}

// tuneTCP sizes the buffers and leaves out what a lossless link doesn't need.
func (a *attachment) tuneTCP() error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	recovery := tcpip.TCPRecovery(0)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax}
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &recovery, &receive, &send} {
		if err := tcpipError("tune TCP", a.stack.SetTransportProtocolOption(tcp.ProtocolNumber, option)); err != nil {
			return err
		}
	}
	return nil
}

// addAddresses makes the stack accept packets for any address (it stands for
// the whole outside) and answer for the gateway and the name server itself.
func (a *attachment) addAddresses() error {
	if err := tcpipError("accept all addresses", a.stack.SetPromiscuousMode(nicID, true)); err != nil {
		return err
	}
	if err := tcpipError("answer from all addresses", a.stack.SetSpoofing(nicID, true)); err != nil {
		return err
	}
	routes := []tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}}
	own := []netip.Addr{gatewayV4, dnsV4}
	neighbours := []netip.Addr{sandboxV4.Addr()}
	if a.dev.ipv6 {
		routes = append(routes, tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nicID})
		own = append(own, gatewayV6, dnsV6)
		neighbours = append(neighbours, sandboxV6.Addr())
	}
	a.stack.SetRouteTable(routes)
	for _, addr := range own {
		p := tcpip.ProtocolAddress{
			Protocol:          protocolOf(addr),
			AddressWithPrefix: tcpip.AddrFromSlice(addr.AsSlice()).WithPrefix(),
		}
		err := a.stack.AddProtocolAddress(nicID, p, stack.AddressProperties{})
		if err := tcpipError("add address "+addr.String(), err); err != nil {
			return err
		}
	}
	for _, addr := range neighbours {
		err := a.stack.AddStaticNeighbor(nicID, protocolOf(addr), tcpip.AddrFromSlice(addr.AsSlice()), tcpip.LinkAddress(sandboxMAC))
		if err := tcpipError("add neighbour "+addr.String(), err); err != nil {
			return err
		}
	}
	return nil
}

func (a *attachment) Nameservers() []netip.Addr { return []netip.Addr{dnsV4} }

// Close cuts every connection, waits for all goroutines and removes the
// device. A second call returns what the first did.
func (a *attachment) Close() error {
	a.closeOnce.Do(func() {
		a.closeErr = errors.Join(a.shutDown(), a.dev.close())
	})
	return a.closeErr
}

// shutDown ends all goroutines. The link stops before the stack is waited for:
// Stack.Wait holds a lock that the delivery of a packet may be waiting for.
func (a *attachment) shutDown() (err error) {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.cancel(errClosed)
	a.stack.Close()
	a.running.Wait()
	if a.link != nil {
		err = a.link.stop()
	}
	a.stack.Wait()
	return err
}

// enter counts the caller's goroutine among those that Close waits for, until
// it calls a.running.Done. It reports false when the attachment is closed.
func (a *attachment) enter() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.running.Add(1)
	return true
}

// goWith runs f in a goroutine that holds one of slots; it reports false, and
// runs nothing, when all are taken or the attachment is closed.
func (a *attachment) goWith(slots chan struct{}, f func()) bool {
	select {
	case slots <- struct{}{}:
	default:
		return false
	}
	if !a.enter() {
		<-slots
		return false
	}
	go func() {
		defer a.running.Done()
		defer func() { <-slots }()
		f()
	}()
	return true
}

// protocolOf returns the network protocol of an address.
func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// addrOf returns a stack's address as it is written, without unmapping.
func addrOf(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}

// tcpipError turns the stack's error into one of Go's, nil for nil.
func tcpipError(activity string, err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %s", activity, err)
}
