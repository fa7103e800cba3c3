package netstack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// ping sends one echo request from the sandbox and waits for its reply.
func (w *world) ping(t *testing.T, to netip.Addr, payload string, wait time.Duration) error {
	t.Helper()
	var conn net.Conn
	w.inside(t, func() (err error) {
		conn, err = dialRawEcho(to)
		return err
	})
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	request := append(make([]byte, echoHeaderBytes), payload...)
	request[0], request[5], request[7] = byte(header.ICMPv4Echo), 42, 7
	want := byte(header.ICMPv4EchoReply)
	if to.Is6() {
		request[0], want = byte(header.ICMPv6EchoRequest), byte(header.ICMPv6EchoReply)
	} else {
		header.ICMPv4(request).SetChecksum(header.ICMPv4Checksum(request, 0))
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	buf := make([]byte, maxDatagramBytes)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		message := buf[:n]
		if to.Is4() {
			message = header.IPv4(message).Payload()
		}
		if message[0] == want && message[5] == 42 && message[7] == 7 && strings.HasSuffix(string(message), payload) {
			return nil
		}
	}
}

// dialRawEcho opens a raw ICMP socket in the thread's namespace: it shows
// identifiers and bad checksums as they are.
func dialRawEcho(to netip.Addr) (net.Conn, error) {
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	return net.Dial(network, to.String())
}

func TestPingsReachTheOutside(t *testing.T) {
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err != nil {
		t.Skipf("this host has no ping sockets: %v", err)
	} else {
		unix.Close(fd)
	}
	eachLink(t, func(t *testing.T, w *world) {
		for _, to := range []netip.Addr{hostV4, hostV6, gatewayV4, dnsV4, gatewayV6} {
			for _, size := range []int{0, 56, 20000} {
				if err := w.ping(t, to, strings.Repeat("p", size), 5*time.Second); err != nil {
					t.Errorf("%s, %d bytes: got %v, want an answer", to, size, err)
				}
			}
		}
	})
}

func TestPingsNobodyAnswersAreNotAnswered(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		for _, to := range []string{"192.0.2.55", "169.254.169.254", loAddr.String()} {
			err := w.ping(t, netip.MustParseAddr(to), "x", 200*time.Millisecond)
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: got %v, want no answer", to, err)
			}
		}
	})
}
