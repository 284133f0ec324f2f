package rtnl

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/routes"
)

// learnedTable makes a Table of learned routes over eth0, of lines "destination gateway...".
func learnedTable(t testing.TB, c *Conn, lines ...string) *routes.Table {
	t.Helper()
	link := linkIndex(t, c, "eth0")
	var tab routes.Table
	for _, line := range lines {
		words := strings.Fields(line)
		r := routes.Route{Dst: netip.MustParsePrefix(words[0]), Metric: routes.MetricLearned, Learned: true, Node: "own"}
		for _, w := range words[1:] {
			r.Hops = append(r.Hops, routes.Hop{Gateway: netip.MustParseAddr(w), Link: "eth0", LinkIndex: link})
		}
		if len(r.Hops) == 1 {
			r.Gateway, r.Link, r.LinkIndex, r.Hops = r.Hops[0].Gateway, "eth0", link, nil
		}
		tab.Routes = append(tab.Routes, r)
	}
	return &tab
}

// openLearned is namespace.open for learned routes.
func (ns *namespace) openLearned() (*Conn, *counter) {
	ns.t.Helper()
	c, count := ns.open()
	c.protocol = routes.ProtocolLearned
	return c, count
}

// inOneLine puts the next hops that ip shows on lines of their own behind their route, as routes.Route.String has them.
func inOneLine(shown string) string { return strings.ReplaceAll(shown, "\nnexthop", " nexthop") }

// TestNextHops: routes with one next hop and several become each other, in both families, with one write each, and the kernel
// has what is wanted.
func TestNextHops(t *testing.T) {
	ns := newNamespace(t).network()
	c, count := ns.openLearned()
	for _, lines := range [][]string{
		{"172.16.0.0/12 10.240.0.1", "2001:db8:5::/48 fd00:240::1"},
		{"172.16.0.0/12 10.240.0.1 10.240.0.2", "2001:db8:5::/48 fd00:240::1 fd00:240::2"},
		{"172.16.0.0/12 10.240.0.2 10.240.0.3 10.240.0.4", "2001:db8:5::/48 fd00:240::2 fd00:240::3 fd00:240::4"},
		{"172.16.0.0/12 10.240.0.1 10.240.0.4", "2001:db8:5::/48 fd00:240::1 fd00:240::4"},
		{"172.16.0.0/12 10.240.0.4", "2001:db8:5::/48 fd00:240::4"},
		{"172.16.0.0/12 10.240.0.1 10.240.0.4", "2001:db8:5::/48 fd00:240::1 fd00:240::4"},
		nil,
	} {
		want := learnedTable(t, c, lines...)
		count.writes = 0
		synced(t, c, want)
		if count.writes != 2 {
			t.Errorf("%v: %d writes, expected one for each family", lines, count.writes)
		}
		if got := inOneLine(ns.shown("main", "")); !hasExactly(got, want) {
			t.Errorf("%v: the kernel has\n%s", lines, got)
		}
		count.writes = 0
		if synced(t, c, want); count.writes != 0 {
			t.Errorf("%v: %d writes the second time", lines, count.writes)
		}
	}
}

// TestNextHopsRepaired: what others do to a route with several next hops is undone; their order is no matter.
func TestNextHopsRepaired(t *testing.T) {
	ns := newNamespace(t).network()
	c, count := ns.openLearned()
	want := learnedTable(t, c, "172.16.0.0/12 10.240.0.1 10.240.0.2", "2001:db8:5::/48 fd00:240::1 fd00:240::2")
	synced(t, c, want)
	for _, s := range []struct {
		do     string
		writes int
	}{
		{"route replace 172.16.0.0/12 proto 103 metric 2048 nexthop via 10.240.0.2 dev eth0 nexthop via 10.240.0.1 dev eth0", 0},
		{"route replace 172.16.0.0/12 proto 103 metric 2048 nexthop via 10.240.0.1 dev eth0 weight 3 nexthop via 10.240.0.2 dev eth0", 1},
		{"route replace 172.16.0.0/12 proto 103 metric 2048 via 10.240.0.1", 1},
		{"route del 172.16.0.0/12 metric 2048", 1},
		{"-6 route del 2001:db8:5::/48 via fd00:240::1 dev eth0 metric 2048", 1},
		{"-6 route del 2001:db8:5::/48 metric 2048", 1},
		{"route add 172.20.0.0/16 proto 103 metric 7 nexthop via 10.240.0.1 nexthop via 10.240.0.2", 1},
	} {
		ns.ip(s.do)
		count.writes = 0
		synced(t, c, want)
		if count.writes != s.writes {
			t.Errorf("%s: %d writes, expected %d", s.do, count.writes, s.writes)
		}
		if got := inOneLine(ns.shown("main", "")); s.writes > 0 && !hasExactly(got, want) {
			t.Errorf("%s: the kernel has\n%s", s.do, got)
		}
	}
}

// hasExactly tells whether what ip shows has all routes of a table of learned routes, and no other one of that protocol.
func hasExactly(shown string, want *routes.Table) bool {
	for line := range strings.Lines(want.Lines()) {
		if !strings.Contains(shown, line) {
			return false
		}
	}
	return strings.Count(shown, "proto 103") == len(want.Routes)
}

// TestTwoProtocols: the Conns of routes to pods and of learned routes leave each other's alone, and a route to pods wins.
func TestTwoProtocols(t *testing.T) {
	ns := newNamespace(t).network()
	pods, _ := ns.open()
	learned, _ := ns.openLearned()
	direct := table(t, pods, "10.200.2.0/24 10.240.0.12")
	wanted := learnedTable(t, learned, "10.200.2.0/24 10.240.0.1 10.240.0.2", "172.16.0.0/12 10.240.0.1")
	synced(t, learned, wanted)
	synced(t, pods, direct)
	synced(t, learned, wanted)
	if got := inOneLine(ns.shown("main", "")); strings.Count(got, "proto 103") != 2 || strings.Count(got, "proto 102") != 1 {
		t.Errorf("the kernel has\n%s", got)
	}
	if got := ns.ip("route get 10.200.2.1"); !strings.Contains(got, "via 10.240.0.12") {
		t.Errorf("the kernel goes %s", got)
	}
	if n, err := learned.Cleanup(context.Background()); n != 2 || err != nil {
		t.Errorf("removed %d routes, %v", n, err)
	}
	ns.expect("proto 10", direct.Lines())
}
