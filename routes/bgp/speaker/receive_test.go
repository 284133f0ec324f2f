package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/fairway-net/fairway/routes/bgp"
)

// announce has a router announce paths. MED and AS_PATH, beyond its own AS, are the attributes'.
func (r *router) announce(asn uint32, paths ...bgp.Path) {
	r.Helper()
	for _, p := range paths {
		if _, err := r.AddPath(context.Background(), &api.AddPathRequest{Path: apiPath(asn, p)}); err != nil {
			r.Fatal(err)
		}
	}
}

// TestReceived: what peers announce inside ranges can be read, in both families, with what the decision needs; there is word of
// every change; and none of it is in the table of routes or sent to the other peer.
func TestReceived(t *testing.T) {
	r1, r2 := newRouter(t, "127.0.0.17", 64506, "100.64.1.0/24"), newRouter(t, "127.0.0.18", 64512, "100.64.2.0/24")
	var told atomic.Int64
	s := New(func(netip.Addr, bool) {}, func() { told.Add(1) })
	ranges := []bgp.ImportRange{{Prefix: netip.MustParsePrefix("172.16.0.0/12"), Least: 12, Most: 24}, {Prefix: netip.MustParsePrefix("2001:db8::/32"), Least: 32, Most: 64}}
	table := &bgp.Table{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11"), Peers: []bgp.Peer{r1.peer(64506), r2.peer(64512)}, Import: ranges,
		Paths: []bgp.Path{path("10.244.1.0/24", nil)}}
	sync := func() {
		t.Helper()
		if _, err := s.Sync(table); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Received(ranges); got != nil || err != nil {
		t.Errorf("before there is a server: %v, %v", got, err)
	}
	far := netip.MustParseAddr("198.51.100.9")
	r1.announce(64506, path("172.16.0.0/16", func(p *bgp.Path) { p.Attributes = &bgp.Attributes{MED: 7, Prepend: 2} }), path("172.32.0.0/16", nil), path("0.0.0.0/0", nil),
		path("2001:db8:1::/48", func(p *bgp.Path) { p.NextHop = netip.MustParseAddr("2001:db8::9") }))
	r2.announce(64512, path("172.16.0.0/16", func(p *bgp.Path) { p.NextHop = far; p.Attributes = &bgp.Attributes{LocalPref: 250} }), path("172.17.128.0/17", nil))
	received := func(want ...string) {
		t.Helper()
		var got []string
		eventually(t, strings.Join(want, "\n"), func() bool {
			paths, err := s.Received(ranges)
			if err != nil {
				t.Fatal(err)
			}
			got = nil
			for _, p := range paths {
				got = append(got, fmt.Sprintf("%s %s via %s internal %v local-pref %d path %v %d med %d", p.Peer, p.Prefix, p.NextHop, p.Internal, p.LocalPref, p.ASPath, p.PathLength, p.MED))
			}
			slices.Sort(got)
			return slices.Equal(got, want)
		})
	}
	sync()
	const first = "127.0.0.17 172.16.0.0/16 via 127.0.0.17 internal false local-pref 100 path [64506 64506 64506] 3 med 7"
	const other = "127.0.0.17 2001:db8:1::/48 via 2001:db8::9 internal false local-pref 100 path [64506] 1 med 0"
	const inner = "127.0.0.18 172.16.0.0/16 via 198.51.100.9 internal true local-pref 250 path [] 0 med 0"
	const inner17 = "127.0.0.18 172.17.128.0/17 via 127.0.0.18 internal true local-pref 100 path [] 0 med 0"
	received(first, other, inner, inner17)
	r1.eventually("0.0.0.0/0 via 0.0.0.0", "10.244.1.0/24 path [64512] via 127.0.0.1", "100.64.1.0/24 via 0.0.0.0",
		"172.16.0.0/16 path [64506 64506] med 7 via 0.0.0.0", "172.32.0.0/16 via 0.0.0.0", "2001:db8:1::/48 via 2001:db8::9")
	if err := s.server.ListPath(context.Background(), &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: apiFamilies[0]}, func(d *api.Destination) {
		if d.Prefix != "10.244.1.0/24" {
			t.Errorf("the table of routes has %s", d.Prefix)
		}
	}); err != nil {
		t.Fatal(err)
	}

	before := told.Load()
	r1.announce(64506, path("172.18.0.0/16", nil))
	eventually(t, "there is word of a new path", func() bool { return told.Load() > before })
	received(first, "127.0.0.17 172.18.0.0/16 via 127.0.0.17 internal false local-pref 100 path [64506] 1 med 0", other, inner, inner17)
	before = told.Load()
	if err := r1.DeletePath(context.Background(), &api.DeletePathRequest{Path: apiPath(64506, path("172.18.0.0/16", nil))}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is word of one that is withdrawn", func() bool { return told.Load() > before })
	received(first, other, inner, inner17)

	all, err := s.Received([]bgp.ImportRange{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Most: 32}, ranges[0]})
	if err != nil || len(all) != 7 || !slices.ContainsFunc(all, func(p bgp.Received) bool { return p.Prefix.Bits() == 0 }) {
		t.Errorf("of all addresses: %+v, %v; expected 4 paths of one peer and 3 of the other", all, err)
	}

	before = told.Load()
	table.Peers = table.Peers[1:]
	sync()
	received(inner, inner17)
	eventually(t, "there is word of a session that ended", func() bool { return told.Load() > before })
	table.Peers = nil
	sync()
	received()
}
