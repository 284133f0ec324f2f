package agent

import (
	"net/netip"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

// TestLinkNotes: networks of links that overlap a service range are told, whoever says that it is one; addresses of single hosts,
// and everything else, are not.
func TestLinkNotes(t *testing.T) {
	pfx := netip.MustParsePrefix
	s := &cluster.Snapshot{ServiceCIDRs: []netip.Prefix{pfx("fd00:96::/112")}, Host: &cluster.Host{Links: []cluster.Link{
		{Name: "lo", Addrs: []netip.Prefix{pfx("127.0.0.1/8"), pfx("::1/128")}},
		{Name: "eth0", Addrs: []netip.Prefix{pfx("10.95.0.7/16"), pfx("fd00:95::7/64")}},
		{Name: "nodelocaldns", Addrs: []netip.Prefix{pfx("10.96.0.10/32")}},
		{Name: "tun0", Addrs: []netip.Prefix{pfx("10.96.7.1/24"), pfx("fd00:96::701/120")}},
		{Name: "vpn", Addrs: []netip.Prefix{pfx("10.0.0.1/8")}},
	}}}
	notes := linkNotes(s, Config{NodeName: "a", ServiceCIDRs: []netip.Prefix{pfx("10.96.0.0/16")}})
	var got string
	for _, n := range notes {
		got += n.Object.String() + ": " + n.Reason + ": " + n.Detail + "\n"
	}
	const want = `Node a: ServiceCIDROnLink: The link tun0 has the network 10.96.7.0/24, which overlaps the service range 10.96.0.0/16; right would be a network of its own.
Node a: ServiceCIDROnLink: The link tun0 has the network fd00:96::700/120, which overlaps the service range fd00:96::/112; right would be a network of its own.
Node a: ServiceCIDROnLink: The link vpn has the network 10.0.0.0/8, which overlaps the service range 10.96.0.0/16; right would be a network of its own.
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if notes := linkNotes(&cluster.Snapshot{}, Config{}); notes != nil {
		t.Errorf("without a Host: %v", notes)
	}
}
