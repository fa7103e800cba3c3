package netstack

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// dnsQuery returns a question for the address of name.
func dnsQuery(id uint16, name string) []byte {
	m := binary.BigEndian.AppendUint16(nil, id)
	m = append(m, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0)
	for label := range strings.SplitSeq(name, ".") {
		m = append(append(m, byte(len(label))), label...)
	}
	return append(m, 0, 0, 1, 0, 1)
}

// fakeServer answers on port 53 over UDP and TCP: the question, with a
// response code and a mark that says who answered.
func fakeServer(t *testing.T, addr string, rcode byte, mark string) {
	t.Helper()
	at := netip.AddrPortFrom(netip.MustParseAddr(addr), dnsPort).String()
	reply := func(query []byte) []byte {
		r := append(bytes.Clone(query), mark...)
		r[2] |= 0x80
		r[3] = rcode
		return r
	}
	packets, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, maxDatagramBytes)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			// A forged answer to another question comes first.
			forged := reply(buf[:n])
			forged[0] ^= 0xff
			_, _ = packets.WriteTo(forged, from)
			_, _ = packets.WriteTo(reply(buf[:n]), from)
		}
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if query, err := readMessage(c); err == nil {
				_ = writeMessage(c, reply(query))
			}
			c.Close()
		}
	})
	t.Cleanup(func() {
		packets.Close()
		l.Close()
		serving.Wait()
	})
}

func resolvConf(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ask sends query from the sandbox to its name server and returns the answer.
func (w *world) ask(t *testing.T, network string, query []byte) []byte {
	t.Helper()
	server := netip.AddrPortFrom(w.att.Nameservers()[0], dnsPort)
	c := w.mustDial(t, network, server.String())
	defer c.Close()
	if network == "tcp" {
		if err := writeMessage(c, query); err != nil {
			t.Fatal(err)
		}
		answer, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if _, err := c.Write(query); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxDatagramBytes)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestNamesAreAskedAtTheHostsServers(t *testing.T) {
	fakeServer(t, "127.0.0.53", 0, "stub")
	fakeServer(t, "::1", 0, "six")
	fakeServer(t, "127.0.0.2", rcodeServerFailure, "broken")
	fakeServer(t, "127.0.0.4", rcodeRefused, "unwilling")
	fakeServer(t, "127.0.0.5", 3, "no such name")
	cases := map[string]struct {
		conf, want string
		rcode      byte
	}{
		"a stub resolver on loopback":           {"nameserver 127.0.0.53\n", "stub", 0},
		"a server with an IPv6 address":         {"nameserver ::1\n", "six", 0},
		"the first server is down":              {"nameserver 127.0.0.9\nnameserver 127.0.0.53\n", "stub", 0},
		"the first server fails":                {"nameserver 127.0.0.2\nnameserver 127.0.0.53\n", "stub", 0},
		"all servers fail":                      {"nameserver 127.0.0.2\nnameserver 127.0.0.4\n", "unwilling", rcodeRefused},
		"an answer that the name doesn't exist": {"nameserver 127.0.0.5\nnameserver 127.0.0.53\n", "no such name", 3},
		"no server at all":                      {"search example.org\n", "", rcodeServerFailure},
		"only servers that are down":            {"nameserver 127.0.0.9\n", "", rcodeServerFailure},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Options{ResolvConf: resolvConf(t, c.conf)})
			for _, network := range []string{"udp", "tcp"} {
				query := dnsQuery(0x1234, "www.example.org")
				start := time.Now()
				got := w.ask(t, network, query)
				if took := time.Since(start); took > refusedWithin {
					t.Errorf("%s: got the answer after %v, want it at once", network, took)
				}
				if !answers(query, got) || rcode(got) != c.rcode || !strings.HasSuffix(string(got), c.want) {
					t.Errorf("%s: got %q, want code %d and mark %q", network, got, c.rcode, c.want)
				}
			}
		})
	}
}

func TestAChangedResolvConfIsReadAgain(t *testing.T) {
	fakeServer(t, "127.0.0.53", 0, "one")
	fakeServer(t, "127.0.0.54", 0, "two")
	path := resolvConf(t, "nameserver 127.0.0.53\n")
	w := newWorld(t, Options{ResolvConf: path})
	if got := w.ask(t, "udp", dnsQuery(1, "a.test")); !strings.HasSuffix(string(got), "one") {
		t.Errorf("got %q, want the first server's", got)
	}
	// As most programs rewrite it: a new file takes the name.
	if err := os.Rename(resolvConf(t, "nameserver 127.0.0.54\n"), path); err != nil {
		t.Fatal(err)
	}
	if got := w.ask(t, "udp", dnsQuery(2, "a.test")); !strings.HasSuffix(string(got), "two") {
		t.Errorf("got %q, want the second server's", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := w.ask(t, "udp", dnsQuery(3, "a.test")); rcode(got) != rcodeServerFailure {
		t.Errorf("got %q, want SERVFAIL", got)
	}
}

func TestNameserverLines(t *testing.T) {
	cases := map[string]struct {
		text string
		want []string
	}{
		"comments and options":    {"# x\nsearch a b\nnameserver 1.2.3.4 # y\noptions ndots:1\n", []string{"1.2.3.4:53"}},
		"order and zones":         {"nameserver fe80::1%eth0\n nameserver\t::1\n", []string{"[fe80::1%eth0]:53", "[::1]:53"}},
		"malformed lines":         {"nameserver\nnameserver example.org\nnameserverx 1.1.1.1\n", nil},
		"more than are useful":    {strings.Repeat("nameserver 1.1.1.1\n", 50), slices.Repeat([]string{"1.1.1.1:53"}, maxNameservers)},
		"a line without an end":   {"nameserver 9.9.9.9", []string{"9.9.9.9:53"}},
		"a line longer than sane": {strings.Repeat("x", maxResolvConfBytes), nil},
	}
	for name, c := range cases {
		var got []string
		for _, s := range parseNameservers([]byte(c.text)) {
			got = append(got, s.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func FuzzDNSMessages(f *testing.F) {
	f.Add(dnsQuery(1, "www.example.org"), dnsQuery(1, "www.example.org"))
	f.Add(make([]byte, dnsHeaderBytes), []byte{})
	f.Fuzz(func(t *testing.T, query, answer []byte) {
		if len(query) < dnsHeaderBytes {
			return
		}
		answers(query, answer)
		if r := serverFailure(query); !answers(query, r) {
			t.Errorf("got %x for %x, want an answer to it", r, query)
		}
	})
}
