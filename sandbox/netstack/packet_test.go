package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// synPacket returns an IPv4 packet that asks for a connection.
func synPacket(from netip.Addr, to netip.AddrPort) []byte {
	segment := make(header.TCP, header.TCPMinimumSize)
	segment.Encode(&header.TCPFields{
		SrcPort: 40000, DstPort: to.Port(), SeqNum: 1,
		DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1000,
	})
	partial := header.PseudoHeaderChecksum(header.TCPProtocolNumber,
		tcpip.AddrFromSlice(from.AsSlice()), tcpip.AddrFromSlice(to.Addr().AsSlice()), header.TCPMinimumSize)
	segment.SetChecksum(^segment.CalculateChecksum(partial))
	return withIPHeader(from, to.Addr(), header.TCPProtocolNumber, segment)
}
