package faults

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// Fault 24: a node is deleted and made again under its name, with another UID and other pod ranges: seen by the agent as one
// change, and as two in a row.
func TestFault24NodeMadeAgain(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	r.setNode(nodeSpec("again", 100))
	r.write()
	r.eventually(startBound, func() error { return r.exact(r.n1) })
	m, flows := r.monitor(r.n1), r.traffic()
	for i, c := range []struct {
		what  string
		apart bool
	}{{"in one write", false}, {"in two writes", true}} {
		old := r.nodes["again"]
		began := time.Now()
		r.removeNode("again")
		if c.apart {
			r.write()
		}
		next := nodeSpec("again", 101+i)
		next.Addrs = old.Addrs
		r.setNode(next)
		r.write()
		r.measured("deleted and made again "+c.what, m.repair(began), 2*time.Second)
		if table := r.table(r.n1); strings.Contains(table, old.PodCIDRs[0].String()) || strings.Contains(table, old.PodCIDRs[1].String()) {
			t.Errorf("%s: the old range is still routed:\n%s", c.what, table)
		}
	}
	flows.stop()
}

// Fault 25: a new node has the pod range of an old one. The old one keeps its route and its traffic, and both nodes are told;
// when the old one leaves, the range is the newcomer's.
func TestFault25SameRangeTwice(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	r.setNode(nodeSpec("old", 100))
	r.write()
	r.eventually(startBound, func() error { return r.exact(r.n1) })
	m, flows := r.monitor(r.n1), r.traffic()
	routes := r.table(r.n1)
	usurper, newcomer := nodeSpec("usurper", 101), nodeSpec("newcomer", 102)
	usurper.PodCIDRs, newcomer.PodCIDRs = r.n2.PodCIDRs, r.nodes["old"].PodCIDRs
	r.setNode(usurper)
	r.setNode(newcomer)
	r.refused["usurper"], r.refused["newcomer"] = true, true
	r.write()
	for _, name := range []string{"n2", "usurper", "old", "newcomer"} {
		r.eventually(eventBound, func() error { return r.said(r.n1, 0, note{"Node " + name, cluster.ReasonPodCIDRConflict, ""}) })
	}
	r.ready(r.n1)
	r.same("routes", routes, r.table(r.n1))
	m.unchanged()
	began := time.Now()
	r.removeNode("old")
	r.removeNode("usurper")
	delete(r.refused, "newcomer")
	r.write()
	r.measured("the old node left, the newcomer has its route", m.repair(began), 2*time.Second)
	r.eventually(eventBound, func() error { return r.quiet(r.n1, cluster.ReasonPodCIDRConflict) })
	flows.stop()
}

// Fault 26: the address of a node changes. When it has the new one before it loses the old one, nothing is lost; when it changes
// at once, what goes to other nodes is not touched.
func TestFault26NodeMoves(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	r.ok(r.n2.Sysctl("net.ipv4.conf.all.promote_secondaries", "1")) // as systemd sets it
	m := r.monitor(r.n1)

	flows := r.traffic()
	r.ip(r.n2, "addr add 10.240.0.22/16 dev eth0", "addr add fd00:240::22/64 dev eth0 nodad")
	moved := r.nodes["n2"]
	moved.Addrs = []netip.Addr{netip.MustParseAddr("10.240.0.22"), netip.MustParseAddr("fd00:240::22")}
	r.setNode(moved)
	began := time.Now()
	r.write()
	r.measured("new address beside the old one, since the Node changed", m.repair(began), 2*time.Second)
	r.eventually(eventBound, func() error { return r.exact(r.n3) })
	r.ip(r.n2, "addr del 10.240.0.12/16 dev eth0", "addr del fd00:240::12/64 dev eth0")
	flows.works(podTCP, podTCP6, podUDP, serviceTCP)
	flows.stop()

	flows = r.traffic()
	r.ip(r.n2, "addr del 10.240.0.22/16 dev eth0", "addr del fd00:240::22/64 dev eth0",
		"addr add 10.240.0.32/16 dev eth0", "addr add fd00:240::32/64 dev eth0 nodad",
		"route replace default via 10.240.0.1", "-6 route replace default via fd00:240::1")
	moved.Addrs = []netip.Addr{netip.MustParseAddr("10.240.0.32"), netip.MustParseAddr("fd00:240::32")}
	r.setNode(moved)
	began = time.Now()
	r.write()
	r.measured("another address at once, since the Node changed", m.repair(began), 2*time.Second)
	for _, n := range []*lab.Node{r.n2, r.n3} {
		r.eventually(eventBound, func() error { return r.exact(n) })
	}
	flows.works(podTCP, podTCP6, podUDP, serviceTCP)
	flows.stop(otherTCP)
}

// Fault 27: pod ranges that must not be routed to anybody. The table stays as it was, byte for byte, with the cluster's pod
// ranges known and without.
func TestFault27RangesRefused(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	r.ip(r.n1, "link add local0 type bridge", "addr add 10.207.7.1/24 dev local0", "addr add fd00:200:7::1/64 dev local0 nodad",
		"link set local0 up")
	r.setNode(lab.NodeSpec{Name: "api", Addrs: []netip.Addr{netip.MustParseAddr("10.240.0.5"), netip.MustParseAddr("fd00:240::5")}})
	r.write()
	m, flows := r.monitor(r.n1), r.traffic()
	everywhere := []string{
		"0.0.0.0/0", "::/0", // everything
		"10.240.0.0/16", "10.240.0.0/24", "10.192.0.0/10", "fd00:240::/64", // the nodes' network, a part of it, one around it
		"10.96.0.0/16", "10.96.0.10/32", "10.0.0.0/8", "fd00:96::/112", // the services' network, a service, one around it
		"10.240.0.5/32", "fd00:240::5/128", // the API server
		"10.207.7.0/24", "10.207.7.128/25", "10.207.0.0/16", "fd00:200:7::/64", // the network of a link of this node
		"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "fe80::/64", "ff00::/8",
	}
	outside := []string{"10.250.1.0/24", "192.0.2.0/24", "fd00:250::/64"} // the cluster's pod ranges
	for _, c := range []struct {
		what    string
		without []string
		ranges  []string
	}{
		{"pod ranges known", nil, slices.Concat(everywhere, outside)},
		{"pod ranges unknown", []string{"--cluster-cidrs"}, everywhere},
	} {
		o := r.agents["n1"].Options
		if c.without != nil {
			r.removeNode("bad")
			r.write()
			r.eventually(eventBound, func() error { return r.quiet(r.n1, cluster.ReasonPodCIDRRefused) })
			r.ok(r.agents["n1"].Stop(startBound))
			o.Without = c.without
			o.Flags = []string{"--detect-local-mode=NodeCIDR"}
			r.start(r.n1, o)
		}
		r.ready(r.n1)
		routes := r.table(r.n1)
		for _, p := range c.ranges {
			bad := nodeSpec("bad", 100)
			bad.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(p)}
			before := r.logged(r.n1)
			r.setNode(bad)
			r.refused["bad"] = true
			r.write()
			r.eventually(eventBound, func() error {
				return r.said(r.n1, before, note{"Node bad", cluster.ReasonPodCIDRRefused, "podCIDR " + p + " "})
			})
			r.ready(r.n1)
			r.same(fmt.Sprintf("%s, %s: routes", c.what, p), routes, r.table(r.n1))
		}
	}
	m.unchanged()
	flows.stop()
}
