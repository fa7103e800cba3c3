package netstack

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

// world is one sandbox namespace, attached.
type world struct {
	netns   *os.File
	network *Network
	att     sandbox.Attachment
}

// eachLink runs a test over every kind of link that this host can make.
func eachLink(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	for _, link := range []Link{LinkTAP, LinkVeth} {
		t.Run(string(link), func(t *testing.T) {
			if link == LinkTAP {
				needTAP(t)
			}
			test(t, newWorld(t, Options{Link: link}))
		})
	}
}

func needTAP(t testing.TB) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("this host offers no TAP to this user: /dev/net/tun: %v", err)
	}
	unix.Close(fd)
}

func newWorld(t testing.TB, o Options) *world {
	t.Helper()
	netns, err := newNetns()
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	att, err := n.Attach(t.Context(), netns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(att.Close(), n.Close(), netns.Close()); err != nil {
			t.Error(err)
		}
	})
	return &world{netns: netns, network: n, att: att}
}

// inside runs f where sockets belong to the sandbox. f must not start
// goroutines that open sockets.
func (w *world) inside(t testing.TB, f func() error) {
	t.Helper()
	if err := inNetns(w.netns, f); err != nil {
		t.Fatal(err)
	}
}

// dial opens a connection from the sandbox.
func (w *world) dial(network, address string) (conn net.Conn, err error) {
	err = inNetns(w.netns, func() (err error) {
		d := net.Dialer{Timeout: 20 * time.Second}
		conn, err = d.Dial(network, address)
		return err
	})
	return conn, err
}

func (w *world) mustDial(t testing.TB, network, address string) net.Conn {
	t.Helper()
	c, err := w.dial(network, address)
	if err != nil {
		t.Fatalf("dial %s %s: %v", network, address, err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// listen serves TCP connections of the host with handle until the test ends.
func listen(t testing.TB, host netip.Addr, handle func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

func echoTCP(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func TestTCPReachesTheHostsAddresses(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		for _, host := range []netip.Addr{hostV4, hostV6} {
			c := w.mustDial(t, "tcp", listen(t, host, echoTCP))
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Errorf("%s: got %q, %v, want the echo of %q", host, got, err, "hello")
			}
		}
	})
}

func TestAHundredConnectionsAtOnce(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		address := listen(t, hostV4, echoTCP)
		const size = 100_000
		var clients sync.WaitGroup
		for i := range 100 {
			clients.Go(func() {
				c, err := w.dial("tcp", address)
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				defer c.Close()
				want := strings.Repeat(fmt.Sprintf("%04d", i), size/4)
				go func() {
					_, _ = io.WriteString(c, want)
					_ = c.(*net.TCPConn).CloseWrite()
				}()
				got, err := io.ReadAll(c)
				if err != nil || string(got) != want {
					t.Errorf("connection %d: got %d bytes, %v, want its own %d", i, len(got), err, size)
				}
			})
		}
		clients.Wait()
	})
}

func TestHalfCloseKeepsTheOtherDirectionOpen(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		// The server answers only after it saw the end of the question.
		address := listen(t, hostV4, func(c *net.TCPConn) {
			b, _ := io.ReadAll(c)
			_, _ = fmt.Fprintf(c, "%d bytes", len(b))
		})
		c := w.mustDial(t, "tcp", address)
		if _, err := io.WriteString(c, "question"); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != "8 bytes" {
			t.Errorf("got %q, %v, want %q", got, err, "8 bytes")
		}
		// And the other way round: the server ends first.
		seen := make(chan string, 1)
		address = listen(t, hostV4, func(c *net.TCPConn) {
			_ = c.CloseWrite()
			b, _ := io.ReadAll(c)
			seen <- string(b)
		})
		c = w.mustDial(t, "tcp", address)
		if got, err := io.ReadAll(c); err != nil || len(got) != 0 {
			t.Fatalf("got %q, %v, want an end", got, err)
		}
		if _, err := io.WriteString(c, "late"); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if got := <-seen; got != "late" {
			t.Errorf("server got %q, want %q", got, "late")
		}
	})
}

func TestALargeTransferArrivesWhole(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		const size = 100 << 20
		sums := make(chan [32]byte, 1)
		address := listen(t, hostV4, func(c *net.TCPConn) {
			h := sha256.New()
			_, _ = io.Copy(io.MultiWriter(h, c), c)
			_ = c.CloseWrite()
			sums <- [32]byte(h.Sum(nil))
		})
		c := w.mustDial(t, "tcp", address)
		sent := sha256.New()
		go func() {
			_, _ = io.CopyN(io.MultiWriter(c, sent), rand.Reader, size)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		back := sha256.New()
		n, err := io.Copy(back, c)
		if err != nil || n != size {
			t.Fatalf("got %d bytes back, %v, want %d", n, err, size)
		}
		want := [32]byte(sent.Sum(nil))
		if got := <-sums; got != want {
			t.Errorf("server saw %x, want %x", got, want)
		}
		if got := [32]byte(back.Sum(nil)); got != want {
			t.Errorf("client saw %x, want %x", got, want)
		}
	})
}

func TestAResetIsPassedOn(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		address := listen(t, hostV4, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		})
		c := w.mustDial(t, "tcp", address)
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want %v", err, syscall.ECONNRESET)
		}
	})
}

// refusedWithin is generous for a loaded machine and far below the second
// after which a SYN is sent again.
const refusedWithin = 800 * time.Millisecond

func TestWhatIsOutOfReachIsRefusedAtOnce(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		// Services that must stay out of reach.
		for _, host := range []string{"127.0.0.1:7777", "[::1]:7777", "203.0.113.7:7777"} {
			l, err := net.Listen("tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
		}
		cases := map[string]string{
			"nobody listens":                 netip.AddrPortFrom(hostV4, 9).String(),
			"nobody listens, IPv6":           netip.AddrPortFrom(hostV6, 9).String(),
			"no route":                       "192.0.2.55:80",
			"no route, IPv6":                 "[2001:db8:1::5]:80",
			"the gateway":                    "10.0.2.2:7777",
			"the gateway, IPv6":              "[fd00:6d73::2]:7777",
			"the name server, another port":  "10.0.2.3:7777",
			"link-local":                     "169.254.169.254:7777",
			"an address on the host's lo":    "203.0.113.7:7777",
			"NAT64 of loopback":              "[64:ff9b::7f00:1]:7777",
			"6to4 of loopback":               "[2002:7f00:1::1]:7777",
			"IPv4-compatible loopback":       "[::127.0.0.1]:7777",
			"the sandbox's loopback":         "127.0.0.1:7777",
			"the sandbox's loopback, IPv6":   "[::1]:7777",
			"the sandbox's loopback, mapped": "[::ffff:127.0.0.1]:7777",
			"the unspecified address":        "0.0.0.0:7777",
		}
		for name, address := range cases {
			start := time.Now()
			c, err := w.dial("tcp", address)
			if err == nil {
				c.Close()
				t.Errorf("%s (%s): got a connection, want it refused", name, address)
				continue
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s (%s): got %v, want %v", name, address, err, syscall.ECONNREFUSED)
			}
			if took := time.Since(start); took > refusedWithin {
				t.Errorf("%s (%s): got the refusal after %v, want at once", name, address, took)
			}
		}
	})
}

func TestHandMadePacketsDoNotReachTheHostsLoopback(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		// The connection to an allowed address shows that the packets arrive.
		allowed, err := net.Listen("tcp", netip.AddrPortFrom(hostV4, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer allowed.Close()
		l, err := net.Listen("tcp", "127.0.0.1:7777")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		w.inside(t, func() error { return injectSYN(netip.MustParseAddrPort("127.0.0.1:7777")) })
		w.inside(t, func() error { return injectSYN(netip.MustParseAddrPort(allowed.Addr().String())) })
		for _, listener := range []net.Listener{allowed, l} {
			if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(refusedWithin)); err != nil {
				t.Fatal(err)
			}
		}
		c, err := allowed.Accept()
		if err != nil {
			t.Fatalf("got %v at the allowed address, want a connection", err)
		}
		c.Close()
		if c, err := l.Accept(); err == nil {
			t.Errorf("got a connection from %s, want none", c.RemoteAddr())
		}
	})
}

// injectSYN sends a hand-made SYN to an address that the kernel would not
// route out of the sandbox.
func injectSYN(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	link, err := net.InterfaceByName(interfaceName)
	if err != nil {
		return err
	}
	frame := append(append(append([]byte{}, gatewayMAC...), sandboxMAC...), 0x08, 0x00)
	frame = append(frame, synPacket(sandboxV4.Addr(), to)...)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: networkOrder(unix.ETH_P_IP)})
}

func TestUDPEchoes(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		for _, host := range []netip.Addr{hostV4, hostV6} {
			c := w.mustDial(t, "udp", listenUDP(t, netip.AddrPortFrom(host, 0)))
			// The largest is fragmented on the link: it doesn't fit with its headers.
			for _, size := range []int{0, 1, 1400, 9000, 60000, 65507} {
				want := strings.Repeat("u", size)
				if _, err := io.WriteString(c, want); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, maxDatagramBytes)
				n, err := c.Read(got)
				if err != nil || string(got[:n]) != want {
					t.Errorf("%s, %d bytes: got %d, %v, want the same back", host, size, n, err)
				}
			}
		}
	})
}

func TestTheFirstPacketAfterAttachArrives(t *testing.T) {
	for _, host := range []netip.Addr{hostV4, hostV6} {
		address := listenUDP(t, netip.AddrPortFrom(host, 0))
		eachLink(t, func(t *testing.T, w *world) {
			for i := range 20 {
				c := w.mustDial(t, "udp", address)
				if err := c.SetDeadline(time.Now().Add(refusedWithin)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(c, "first"); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 10)); err != nil {
					t.Errorf("%s, attachment %d: got %v, want an answer", host, i, err)
				}
				if err := w.att.Close(); err != nil {
					t.Fatal(err)
				}
				att, err := w.network.Attach(t.Context(), w.netns)
				if err != nil {
					t.Fatal(err)
				}
				w.att = att
			}
			if err := w.att.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func listenUDP(t testing.TB, address netip.AddrPort) string {
	t.Helper()
	c, err := net.ListenPacket("udp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, maxDatagramBytes)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() {
		c.Close()
		serving.Wait()
	})
	return c.LocalAddr().String()
}

func TestUDPToWhereNobodyListensIsUnreachable(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		listenUDP(t, netip.MustParseAddrPort("127.0.0.1:7777"))
		cases := map[string]string{
			"nobody listens":       netip.AddrPortFrom(hostV4, 9).String(),
			"nobody listens, IPv6": netip.AddrPortFrom(hostV6, 9).String(),
			"the gateway":          "10.0.2.2:7777",
			"link-local":           "169.254.169.254:7777",
			"host's lo address":    "203.0.113.7:7777",
			"no route":             "192.0.2.55:7777",
		}
		for name, address := range cases {
			c := w.mustDial(t, "udp", address)
			if _, err := io.WriteString(c, "anybody?"); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s (%s): got %v, want %v", name, address, err, syscall.ECONNREFUSED)
			}
		}
	})
}

func TestTheSandboxSeesItsInterfacesOnly(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		w.inside(t, func() error {
			interfaces, err := net.Interfaces()
			if err != nil {
				return err
			}
			if len(interfaces) != 2 || interfaces[0].Name != "lo" || interfaces[1].Name != interfaceName {
				t.Errorf("got interfaces %v, want lo and %s", interfaces, interfaceName)
				return nil
			}
			if got := interfaces[1].MTU; got != linkMTU {
				t.Errorf("got MTU %d, want %d", got, linkMTU)
			}
			addrs, err := interfaces[1].Addrs()
			if got, want := fmt.Sprint(addrs), fmt.Sprint([]any{sandboxV4, sandboxV6}); got != want {
				t.Errorf("got addresses %v, want %v", got, want)
			}
			return err
		})
		if got := w.att.Nameservers(); len(got) != 1 || got[0] != dnsV4 {
			t.Errorf("got name servers %v, want %v", got, dnsV4)
		}
	})
}

func TestIPv6StaysOffWhenNotWanted(t *testing.T) {
	w := newWorld(t, Options{DisableIPv6: true})
	if _, err := w.dial("tcp", netip.AddrPortFrom(hostV6, 80).String()); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("got %v, want %v", err, syscall.ENETUNREACH)
	}
}

func TestWithoutATAPAVethPairServes(t *testing.T) {
	cases := map[string]struct {
		err  error
		want bool
	}{
		"no device node":   {unix.ENOENT, true},
		"root's only":      {fmt.Errorf("open: %w", unix.EACCES), true},
		"no driver":        {unix.ENODEV, true},
		"interface exists": {unix.EBUSY, false},
	}
	for name, c := range cases {
		if got := tapUnavailable(c.err); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	w := newWorld(t, Options{})
	c := w.mustDial(t, "tcp", listen(t, hostV4, echoTCP))
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Error(err)
	}
}

func TestAnUnknownLinkIsRefused(t *testing.T) {
	if _, err := New(Options{Link: "pigeon"}); err == nil {
		t.Error("got no error, want one")
	}
}

func TestANamespaceIsAttachedAgainAfterClose(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world) {
		address := listen(t, hostV4, echoTCP)
		if _, err := w.network.Attach(t.Context(), w.netns); err == nil {
			t.Error("a second Attach: got no error, want one")
		}
		for range 3 {
			if err := w.att.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := w.dial("tcp", address); !errors.Is(err, syscall.ENETUNREACH) {
				t.Errorf("after Close: got %v, want %v", err, syscall.ENETUNREACH)
			}
			att, err := w.network.Attach(t.Context(), w.netns)
			if err != nil {
				t.Fatal(err)
			}
			w.att = att
			w.mustDial(t, "tcp", address).Close()
		}
		if err := w.att.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCloseWhileBusyEndsEverything(t *testing.T) {
	for _, link := range []Link{LinkTAP, LinkVeth} {
		t.Run(string(link), func(t *testing.T) {
			if link == LinkTAP {
				needTAP(t)
			}
			address := listen(t, hostV4, echoTCP)
			udpAddress := listenUDP(t, netip.AddrPortFrom(hostV4, 0))
			netns, err := newNetns()
			if err != nil {
				t.Fatal(err)
			}
			defer netns.Close()
			n, err := New(Options{Link: link})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			before := runtime.NumGoroutine()
			att, err := n.Attach(t.Context(), netns)
			if err != nil {
				t.Fatal(err)
			}
			w := &world{netns: netns, network: n, att: att}
			var clients sync.WaitGroup
			moving := make(chan struct{}, 10)
			for range 10 {
				tcpConn, udpConn := w.mustDial(t, "tcp", address), w.mustDial(t, "udp", udpAddress)
				_, _ = io.WriteString(udpConn, "u")
				clients.Go(func() { _, _ = io.Copy(tcpConn, neverEnding{}) })
				clients.Go(func() {
					_, _ = io.ReadFull(tcpConn, make([]byte, 1<<20))
					moving <- struct{}{}
					_, _ = io.Copy(io.Discard, tcpConn)
				})
				defer tcpConn.Close()
				defer udpConn.Close()
				t.Cleanup(func() { tcpConn.Close() })
				stopOnClose(att, tcpConn)
			}
			for range 10 {
				<-moving
			}
			start := time.Now()
			if err := att.Close(); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("got Close after %v, want it at once", took)
			}
			clients.Wait()
			waitForGoroutines(t, before)
		})
	}
}

// stopOnClose ends a client whose network went away: its kernel would go on
// trying for minutes.
func stopOnClose(att sandbox.Attachment, c net.Conn) {
	context.AfterFunc(att.(*attachment).ctx, func() { c.Close() })
}

type neverEnding struct{}

func (neverEnding) Read(b []byte) (int, error) { return len(b), nil }

// waitForGoroutines fails unless the number of goroutines comes down to want:
// those of the test's servers end a moment after their connections.
func waitForGoroutines(t *testing.T, want int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > want {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("got %d goroutines, want %d:\n%s", runtime.NumGoroutine(), want, stacks[:runtime.Stack(stacks, true)])
		}
		runtime.Gosched()
	}
}

func TestACancelledAttachDoesNothing(t *testing.T) {
	n, err := New(Options{ResolvConf: filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Attach(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}
