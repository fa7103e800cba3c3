package netstack

import (
	"net/netip"
	"testing"
)

func TestForbiddenDestinations(t *testing.T) {
	cases := map[string]bool{
		"127.0.0.1": true, "127.255.0.1": true, "::1": true, "::": true, "0.0.0.0": true, "0.1.2.3": true,
		"::ffff:127.0.0.1": true, "::ffff:0.0.0.0": true, "::127.0.0.1": true, "::ffff:0:127.0.0.1": true,
		"64:ff9b::127.0.0.1": true, "64:ff9b:1::127.0.0.1": true, "2002:7f00:1::": true, "2002:a9fe:a9fe::1": true,
		"169.254.169.254": true, "::ffff:169.254.169.254": true, "fe80::1": true, "fe80::1%eth0": true,
		"224.0.0.1": true, "239.1.2.3": true, "ff02::1": true, "255.255.255.255": true,
		"10.0.2.2": true, "10.0.2.3": true, "::ffff:10.0.2.2": true, "fd00:6d73::2": true, "fd00:6d73::3": true,
		"10.0.2.15": false, "192.168.1.1": false, "8.8.8.8": false, "::ffff:8.8.8.8": false, "64:ff9b::808:808": false,
		"2002:808:808::1": false, "2001:db8::1": false, "fd00::2": false, "128.0.0.1": false, "126.255.255.255": false,
	}
	for address, want := range cases {
		if got := forbidden(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: got %v, want %v", address, got, want)
		}
	}
	if !forbidden(netip.Addr{}) {
		t.Error("no address: got false, want true")
	}
}

func TestPermittedDestinationsFollowTheRoutingTable(t *testing.T) {
	g, err := newGuard()
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	cases := map[string]struct {
		address string
		want    bool
	}{
		"the host's own address":         {hostV4.String(), true},
		"the host's own address, mapped": {"::ffff:" + hostV4.String(), true},
		"the host's own address, IPv6":   {hostV6.String(), true},
		"a neighbour":                    {"198.51.100.77", true},
		"a neighbour, IPv6":              {"2001:db8::77", true},
		"an address on lo":               {loAddr.String(), false},
		"a prefix routed to the host":    {"203.0.113.99", false},
		"the network's broadcast":        {"198.51.100.255", false},
		"no route":                       {"192.0.2.1", false},
		"loopback":                       {"127.0.0.1", false},
	}
	for name, c := range cases {
		if got := g.permits(netip.MustParseAddr(c.address)); got != c.want {
			t.Errorf("%s (%s): got %v, want %v", name, c.address, got, c.want)
		}
	}
}
