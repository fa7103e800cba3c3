package runc

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/mstage/mstage/sandbox"
)

// maxResolvConf bounds the host's resolv.conf, in bytes: glibc reads three
// name servers and some search domains of it.
const maxResolvConf = 64 << 10

// hosts is docker's /etc/hosts, with the own name on the loopback address.
func hosts(s sandbox.Spec) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost " + s.Hostname + "\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\n" +
		"ff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\n" +
		"ff02::2\tip6-allrouters\n")
	for _, h := range s.Hosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.Addr, h.Name)
	}
	return b.String()
}

// resolvConf has the network's name servers, or the host's without those that
// only the host's own loopback reaches.
func resolvConf(mode sandbox.NetworkMode, slot *slot) (string, error) {
	host, err := hostResolvConf("/etc/resolv.conf")
	if err != nil {
		return "", err
	}
	if mode == sandbox.NetworkHost {
		return host, nil
	}
	if mode == sandbox.NetworkNone {
		return filterResolvConf(host, loopbackServer), nil
	}
	var b strings.Builder
	for _, a := range slot.nameservers() {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	everyServer := func(netip.Addr) bool { return true }
	return b.String() + filterResolvConf(host, everyServer), nil
}

func hostResolvConf(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	return string(b), err
}

func loopbackServer(a netip.Addr) bool { return a.IsLoopback() }

// filterResolvConf drops the name servers that drop reports, comments and
// lines without an address.
func filterResolvConf(text string, drop func(netip.Addr) bool) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		field := strings.Fields(line)
		if len(field) == 0 || strings.HasPrefix(field[0], "#") || strings.HasPrefix(field[0], ";") {
			continue
		}
		if field[0] == "nameserver" {
			if len(field) < 2 {
				continue
			}
			if a, err := netip.ParseAddr(field[1]); err != nil || drop(a) {
				continue
			}
		}
		b.WriteString(strings.Join(field, " ") + "\n")
	}
	return b.String()
}
