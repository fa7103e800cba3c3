package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	// dnsPort is where name servers listen, ours and the host's.
	dnsPort = 53
	// maxDNSQueries are questions under way per sandbox, and clients connected
	// over TCP; a further one is dropped, and asked again by its resolver.
	maxDNSQueries = 256
	// dnsServerTimeout is for one server; glibc's resolver waits 5 s for us.
	dnsServerTimeout = 2 * time.Second
	// dnsAttempts are rounds over all servers.
	dnsAttempts = 2
	// dnsClientIdle closes a TCP client that asks nothing.
	dnsClientIdle = 10 * time.Second
	// dnsHeaderBytes is the fixed part of every message. Source: RFC 1035, 4.1.1.
	dnsHeaderBytes = 12
)

// The response codes that matter here. Source: RFC 1035, 4.1.1.
const (
	rcodeServerFailure  = 2
	rcodeNotImplemented = 4
	rcodeRefused        = 5
)

// startDNS listens at the name server's addresses.
func (a *attachment) startDNS() error {
	addrs := []netip.Addr{dnsV4}
	if a.dev.ipv6 {
		addrs = append(addrs, dnsV6)
	}
	for _, addr := range addrs {
		full := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(addr.AsSlice()), Port: dnsPort}
		packets, err := gonet.DialUDP(a.stack, &full, nil, protocolOf(addr))
		if err != nil {
			return err
		}
		listener, err := gonet.ListenTCP(a.stack, full, protocolOf(addr))
		if err != nil {
			packets.Close()
			return err
		}
		context.AfterFunc(a.ctx, func() {
			packets.Close()
			listener.Shutdown()
			listener.Close()
		})
		a.running.Go(func() { a.serveDNSPackets(packets) })
		a.running.Go(func() { a.serveDNSStreams(listener) })
	}
	return nil
}

func (a *attachment) serveDNSPackets(conn *gonet.UDPConn) {
	buf := make([]byte, maxDatagramBytes)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		query := bytes.Clone(buf[:n])
		a.goWith(a.dnsQueries, func() {
			if answer := a.answer(query, exchangeUDP); answer != nil {
				_, _ = conn.WriteTo(answer, from) // lost: the resolver asks again
			}
		})
	}
}

func (a *attachment) serveDNSStreams(l *gonet.TCPListener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		ok := a.goWith(a.dnsQueries, func() {
			defer conn.Close()
			stop := context.AfterFunc(a.ctx, func() { conn.Close() })
			defer stop()
			a.serveDNSStream(conn)
		})
		if !ok {
			conn.Close()
		}
	}
}

// serveDNSStream answers one question after the other.
// Source: RFC 7766; answers out of order are allowed, not required.
func (a *attachment) serveDNSStream(conn net.Conn) {
	for {
		if conn.SetDeadline(time.Now().Add(dnsClientIdle)) != nil {
			return
		}
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		answer := a.answer(query, exchangeTCP)
		if answer == nil || conn.SetDeadline(time.Now().Add(dnsClientIdle)) != nil {
			return
		}
		if writeMessage(conn, answer) != nil {
			return
		}
	}
}

// exchange asks one server. The answer belongs to query.
type exchange func(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error)

// answer asks the host's name servers in their order. A server that fails or
// won't answer is passed over; when none is left the answer is SERVFAIL, at
// once when the host has no server. nil: query is no question.
func (a *attachment) answer(query []byte, ask exchange) []byte {
	if len(query) < dnsHeaderBytes || isResponse(query) {
		return nil
	}
	var unwilling []byte
	servers := a.network.servers.list()
	for range dnsAttempts {
		for _, server := range servers {
			if a.ctx.Err() != nil {
				return nil
			}
			answer, err := ask(a.ctx, server, query)
			if err != nil {
				continue
			}
			switch rcode(answer) {
			case rcodeServerFailure, rcodeNotImplemented, rcodeRefused:
				unwilling = answer
			default:
				return answer
			}
		}
		if unwilling != nil {
			return unwilling // asking again would not change it
		}
	}
	return serverFailure(query)
}

func exchangeUDP(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	conn, done, err := dialServer(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := datagramBuffers.Get().(*[maxDatagramBytes]byte)
	defer datagramBuffers.Put(buf)
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return nil, err
		}
		if answers(query, buf[:n]) {
			return bytes.Clone(buf[:n]), nil
		}
	}
}

func exchangeTCP(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	conn, done, err := dialServer(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := writeMessage(conn, query); err != nil {
		return nil, err
	}
	answer, err := readMessage(conn)
	if err != nil {
		return nil, err
	}
	if !answers(query, answer) {
		return nil, errors.New("name server " + server.String() + ": answer to another question")
	}
	return answer, nil
}

// dialServer connects for dnsServerTimeout at most; done ends the connection.
func dialServer(ctx context.Context, network string, server netip.AddrPort) (conn net.Conn, done func(), err error) {
	deadline := time.Now().Add(dnsServerTimeout)
	d := net.Dialer{Deadline: deadline}
	conn, err = d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	done = func() {
		stop()
		conn.Close()
	}
	if err := conn.SetDeadline(deadline); err != nil {
		done()
		return nil, nil, err
	}
	return conn, done, nil
}

// readMessage reads a message with its two bytes of length.
// Source: RFC 1035, 4.2.2.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}

func writeMessage(w io.Writer, message []byte) error {
	if len(message) > maxDatagramBytes {
		return io.ErrShortWrite
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}

func isResponse(message []byte) bool { return message[2]&0x80 != 0 }

func rcode(message []byte) byte { return message[3] & 0x0f }

// answers reports whether answer is a response with query's identifier and, if
// it repeats a question, query's.
func answers(query, answer []byte) bool {
	if len(answer) < dnsHeaderBytes || !isResponse(answer) || !bytes.Equal(answer[:2], query[:2]) {
		return false
	}
	q := question(query)
	if q == nil || binary.BigEndian.Uint16(answer[4:6]) == 0 {
		return true
	}
	return bytes.EqualFold(q, question(answer))
}

// question returns the first question of a message: name, type and class.
// nil when there is none, or it isn't written plainly.
// Source: RFC 1035, 4.1.2.
func question(message []byte) []byte {
	if binary.BigEndian.Uint16(message[4:6]) == 0 {
		return nil
	}
	rest := message[dnsHeaderBytes:]
	end := 0
	for {
		if end >= len(rest) || rest[end] > 63 {
			return nil
		}
		label := int(rest[end])
		end += 1 + label
		if label == 0 {
			break
		}
	}
	if end+4 > len(rest) {
		return nil
	}
	return rest[:end+4]
}

// serverFailure returns a SERVFAIL response to query.
func serverFailure(query []byte) []byte {
	q := question(query)
	r := make([]byte, dnsHeaderBytes, dnsHeaderBytes+len(q))
	copy(r, query[:2])
	r[2] = 0x80 | query[2]&0x79 // response; opcode and RD as asked
	r[3] = 0x80 | rcodeServerFailure
	if q != nil {
		r[5] = 1
	}
	return append(r, q...)
}
