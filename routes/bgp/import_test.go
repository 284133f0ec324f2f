package bgp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// received is a path to 172.16.0.0/12 from a peer, which is its next hop.
func received(peer string, vary func(*Received)) Received {
	r := Received{Peer: ip(peer), Prefix: pfx("172.16.0.0/12"), NextHop: ip(peer), LocalPref: DefaultLocalPref, ASPath: []uint32{64500, 65000}, PathLength: 2}
	if vary != nil {
		vary(&r)
	}
	return r
}

func TestSelect(t *testing.T) {
	table := &Table{ASN: 64512, RouterID: ip("192.0.2.11"), Import: []ImportRange{{pfx("172.16.0.0/12"), 12, 16}, {pfx("2001:db8::/32"), 48, 48}},
		ImportReject: []netip.Prefix{pfx("172.24.0.0/14"), pfx("2001:db8:9::/48")}}
	other := func(vary func(*Received)) []Received {
		return []Received{received("192.0.2.1", nil), received("192.0.2.2", vary)}
	}
	for _, c := range []struct {
		name     string
		received []Received
		want     string
	}{
		{"nothing", nil, ""},
		{"two that are equal", other(nil), "172.16.0.0/12 192.0.2.1 192.0.2.2"},
		{"by another AS of the same distance", other(func(r *Received) { r.ASPath = []uint32{64501, 65000} }), "172.16.0.0/12 192.0.2.1 192.0.2.2"},
		{"local preference goes first", other(func(r *Received) { r.LocalPref, r.PathLength = 200, 9 }), "172.16.0.0/12 192.0.2.2"},
		{"then the distance", other(func(r *Received) { r.PathLength = 3 }), "172.16.0.0/12 192.0.2.1"},
		{"then the origin", other(func(r *Received) { r.Origin = 2 }), "172.16.0.0/12 192.0.2.1"},
		{"then the MED, of one AS", other(func(r *Received) { r.MED = 7 }), "172.16.0.0/12 192.0.2.1"},
		{"but not of two", other(func(r *Received) { r.MED, r.ASPath = 7, []uint32{64501, 65000} }), "172.16.0.0/12 192.0.2.1 192.0.2.2"},
		{"then eBGP", other(func(r *Received) { r.Internal = true }), "172.16.0.0/12 192.0.2.1"},
		{"a MED that is worse leaves the others of its AS", []Received{received("192.0.2.1", func(r *Received) { r.MED = 5 }), received("192.0.2.2", func(r *Received) { r.MED = 5 }),
			received("192.0.2.3", func(r *Received) { r.MED = 9 }), received("192.0.2.4", func(r *Received) { r.MED, r.ASPath = 99, []uint32{64501, 65000} })}, "172.16.0.0/12 192.0.2.1 192.0.2.2 192.0.2.4"},
		{"a path that has been here", other(func(r *Received) { r.ASPath = []uint32{64500, 64512}; r.LocalPref = 999 }), "172.16.0.0/12 192.0.2.1"},
		{"a path that began here", other(func(r *Received) { r.Originator, r.Internal, r.LocalPref = ip("192.0.2.11"), true, 999 }), "172.16.0.0/12 192.0.2.1"},
		{"that of another, by a reflector", other(func(r *Received) { r.Originator, r.Internal, r.LocalPref = ip("192.0.2.12"), true, 999 }), "172.16.0.0/12 192.0.2.2"},
		{"one prefix from each", other(func(r *Received) { r.Prefix = pfx("172.20.0.0/16") }), "172.16.0.0/12 192.0.2.1\n172.20.0.0/16 192.0.2.2"},
		{"out of the ranges", other(func(r *Received) { r.Prefix = pfx("172.0.0.0/8") }), "172.16.0.0/12 192.0.2.1"},
		{"too long", other(func(r *Received) { r.Prefix = pfx("172.16.0.0/17") }), "172.16.0.0/12 192.0.2.1"},
		{"rejected", other(func(r *Received) { r.Prefix = pfx("172.24.0.0/14") }), "172.16.0.0/12 192.0.2.1"},
		{"a part of what is rejected", other(func(r *Received) { r.Prefix = pfx("172.25.0.0/16") }), "172.16.0.0/12 192.0.2.1"},
		{"what is around the rejected", other(func(r *Received) { r.Prefix = pfx("172.24.0.0/13") }), "172.16.0.0/12 192.0.2.1\n172.24.0.0/13 192.0.2.2"},
		{"rejected, IPv6", other(func(r *Received) { r.Prefix, r.NextHop = pfx("2001:db8:9::/48"), ip("2001:db8::2") }), "172.16.0.0/12 192.0.2.1"},
		{"IPv6", other(func(r *Received) { r.Prefix, r.NextHop = pfx("2001:db8:5::/48"), ip("2001:db8::2") }), "172.16.0.0/12 192.0.2.1\n2001:db8:5::/48 2001:db8::2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 5 {
				before := fmt.Sprint(c.received)
				var lines []string
				for _, l := range Select(table, c.received) {
					line := l.Prefix.String()
					for _, w := range l.Ways {
						line += " " + w.NextHop.String()
					}
					lines = append(lines, line)
				}
				if got := strings.Join(lines, "\n"); got != c.want {
					t.Fatalf("got\n%s\nexpected\n%s", got, c.want)
				}
				if fmt.Sprint(c.received) != before {
					t.Fatal("it changed what it was given")
				}
				rand.Shuffle(len(c.received), func(i, j int) { c.received[i], c.received[j] = c.received[j], c.received[i] })
			}
		})
	}
}
