package netstack

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// frameBytes holds the largest frame of the link.
	frameBytes = header.EthernetMinimumSize + linkMTU
	// smallFrameBytes is the size up to which a received frame is copied, so
	// that one which waits in a queue doesn't hold frameBytes.
	smallFrameBytes = 8 << 10
)

// frameLink is the stack's side of the sandbox's link: one Ethernet frame per
// read and write of a descriptor. gVisor's fdbased endpoint would do, if it
// ended all its goroutines; this one waits in Go's poller instead of a thread.
type frameLink struct {
	file *os.File
	conn syscall.RawConn
	// intercept takes a packet out of the stack's input by returning true.
	intercept func(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) bool
	reading   sync.WaitGroup

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

var _ stack.LinkEndpoint = (*frameLink)(nil)

func newFrameLink(f *os.File, intercept func(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) bool) (*frameLink, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &frameLink{file: f, conn: conn, intercept: intercept}, nil
}

// start begins to read, after the stack attached itself.
func (l *frameLink) start() { l.reading.Go(l.readFrames) }

// stop closes the descriptor and waits for the reader.
func (l *frameLink) stop() error {
	err := l.file.Close()
	l.reading.Wait()
	return err
}

func (l *frameLink) readFrames() {
	view := buffer.NewViewSize(frameBytes)
	defer func() { view.Release() }()
	for {
		n, err := l.file.Read(view.AsSlice())
		switch {
		case err != nil:
			return // closed, or the device is gone
		case n <= header.EthernetMinimumSize:
		case n <= smallFrameBytes:
			l.deliver(buffer.NewViewWithData(view.AsSlice()[:n]))
		default:
			view.CapLength(n)
			l.deliver(view)
			view = buffer.NewViewSize(frameBytes)
		}
	}
}

// deliver hands a frame to the stack, which owns it then.
func (l *frameLink) deliver(frame *buffer.View) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(frame)})
	defer pkt.DecRef()
	if !l.ParseHeader(pkt) {
		return
	}
	protocol := header.Ethernet(pkt.LinkHeader().Slice()).Type()
	l.mu.RLock()
	d := l.dispatcher
	l.mu.RUnlock()
	if d != nil && !l.intercept(protocol, pkt) {
		d.DeliverNetworkPacket(protocol, pkt)
	}
}

// WritePackets implements stack.LinkEndpoint. What the device has no room for
// is lost: the error makes TCP send it again later.
func (l *frameLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	written := 0
	var slices [][]byte
	for _, pkt := range pkts.AsSlice() {
		slices = slices[:0]
		views, offset := pkt.AsViewList()
		for v := views.Front(); v != nil; v = v.Next() {
			b := v.AsSlice()
			skip := min(offset, len(b))
			offset -= skip
			if len(b) > skip {
				slices = append(slices, b[skip:])
			}
		}
		var errno error
		err := l.conn.Control(func(fd uintptr) {
			_, errno = unix.Writev(int(fd), slices)
		})
		if err != nil {
			return written, &tcpip.ErrClosedForSend{}
		}
		if errno != nil {
			return written, &tcpip.ErrNoBufferSpace{}
		}
		written++
	}
	return written, nil
}

// AddHeader implements stack.LinkEndpoint.
func (l *frameLink) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(gatewayMAC),
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (l *frameLink) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// Attach implements stack.LinkEndpoint; nil detaches.
func (l *frameLink) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

// IsAttached implements stack.LinkEndpoint.
func (l *frameLink) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// Capabilities implements stack.LinkEndpoint. Received checksums aren't looked
// at: the kernel made these frames and they crossed no wire.
func (l *frameLink) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// The rest of stack.LinkEndpoint says what doesn't change.

func (l *frameLink) MTU() uint32                             { return linkMTU }
func (l *frameLink) SetMTU(uint32)                           {}
func (l *frameLink) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (l *frameLink) LinkAddress() tcpip.LinkAddress          { return tcpip.LinkAddress(gatewayMAC) }
func (l *frameLink) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *frameLink) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *frameLink) Wait()                                   {}
func (l *frameLink) Close()                                  {}
func (l *frameLink) SetOnCloseAction(func())                 {}
