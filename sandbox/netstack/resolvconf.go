package netstack

import (
	"bufio"
	"bytes"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync"
)

const (
	// maxResolvConfBytes is far above any real file.
	maxResolvConfBytes = 64 << 10
	// maxNameservers of the file are used; glibc uses three.
	maxNameservers = 8
)

// nameservers are the host's, as its resolv.conf lists them now.
type nameservers struct {
	path string

	mu      sync.Mutex
	read    fs.FileInfo // of the file when it was read; nil for never
	servers []netip.AddrPort
}

// list returns the servers in the file's order, none when it can't be read.
// The file is looked at for each question, and read when it changed: laptops
// and VPN clients rewrite it while a build runs.
func (n *nameservers) list() []netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, err := os.Stat(n.path)
	if err != nil {
		n.read, n.servers = nil, nil
		return nil
	}
	if n.read != nil && os.SameFile(n.read, now) && n.read.ModTime().Equal(now.ModTime()) && n.read.Size() == now.Size() {
		return n.servers
	}
	n.read, n.servers = now, readNameservers(n.path)
	return n.servers
}

func readNameservers(path string) []netip.AddrPort {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConfBytes))
	if err != nil {
		return nil
	}
	return parseNameservers(text)
}

// parseNameservers returns the addresses of the nameserver lines; others and
// malformed ones are skipped, as the resolver does. Source: resolv.conf(5).
func parseNameservers(text []byte) []netip.AddrPort {
	var servers []netip.AddrPort
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() && len(servers) < maxNameservers {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, dnsPort))
		}
	}
	return servers
}
