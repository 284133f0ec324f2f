package routes

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// learned reads lines of a prefix and next hops, each said by the peer of the same address.
func learned(lines ...string) (list []Learned) {
	for _, line := range lines {
		words := strings.Fields(line)
		l := Learned{Prefix: netip.MustParsePrefix(words[0])}
		for _, w := range words[1:] {
			l.Ways = append(l.Ways, Way{NextHop: netip.MustParseAddr(w), Peer: netip.MustParseAddr(w)})
		}
		list = append(list, l)
	}
	return list
}

func TestPlanLearned(t *testing.T) {
	wide := Config{NodeName: "own", ClusterCIDRs: prefixes("10.200.0.0/16", "fd00:200::/32"), ServiceCIDRs: prefixes("10.96.0.0/16")}
	const from = "Node own: ImportRefused: Of what the BGP peer 10.240.0.1 announces, "
	for _, c := range []struct {
		name     string
		services []*cluster.Service
		offline  bool
		config   Config
		learned  []Learned
		want     string
	}{{
		name:    "one next hop, and several",
		learned: learned("172.16.0.0/12 10.240.0.1", "172.20.0.0/16 10.240.0.2 10.240.0.1", "2001:db8:5::/48 fd00:240::2 fd00:240::1 fd00:240::1"),
		want: `
172.16.0.0/12 via 10.240.0.1 dev eth0 proto 103 metric 2048
172.20.0.0/16 proto 103 metric 2048 nexthop via 10.240.0.1 dev eth0 weight 1 nexthop via 10.240.0.2 dev eth0 weight 1
2001:db8:5::/48 proto 103 metric 2048 pref medium nexthop via fd00:240::1 dev eth0 weight 1 nexthop via fd00:240::2 dev eth0 weight 1
`,
	}, {
		name:    "without a host",
		offline: true,
		learned: learned("172.20.0.0/16 10.240.0.2 192.0.2.1"),
		want:    "172.20.0.0/16 proto 103 metric 2048 nexthop via 10.240.0.2 weight 1 nexthop via 192.0.2.1 weight 1",
	}, {
		name:    "default routes, and what comes to the same",
		learned: learned("0.0.0.0/0 10.240.0.1", "::/0 fd00:240::1", "0.0.0.0/1 10.240.0.1", "128.0.0.0/1 10.240.0.1", "8000::/1 fd00:240::1"),
		want: from + `0.0.0.0/0 is not imported: a default route is the machine's own; right would be a static one.
` + from + `0.0.0.0/1 is not imported: it overlaps 0.0.0.0/8 (this network); right would be unicast networks that are not so wide.
` + from + `128.0.0.0/1 is not imported: it overlaps 169.254.0.0/16 (link-local); right would be unicast networks that are not so wide.
Node own: ImportRefused: Of what the BGP peer fd00:240::1 announces, 8000::/1 is not imported: it overlaps fe80::/10 (link-local); right would be unicast networks that are not so wide.
Node own: ImportRefused: Of what the BGP peer fd00:240::1 announces, ::/0 is not imported: a default route is the machine's own; right would be a static one.
`,
	}, {
		name:   "the cluster's own networks, and the world around them",
		config: wide,
		services: []*cluster.Service{{Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("203.0.113.9")}}},
		learned: learned("10.0.0.0/8 10.240.0.1", "10.200.0.0/16 10.240.0.1", "10.200.1.128/25 10.240.0.1", "10.200.9.0/24 10.240.0.1", "10.200.9.1/32 10.240.0.1",
			"10.96.0.1/32 10.240.0.1", "203.0.113.9/32 10.240.0.1", "203.0.113.0/24 10.240.0.1", "10.240.0.12/32 10.240.0.1", "fd00:200:1::/64 fd00:240::1"),
		want: `
10.0.0.0/8 via 10.240.0.1 dev eth0 proto 103 metric 2048
203.0.113.0/24 via 10.240.0.1 dev eth0 proto 103 metric 2048
` + from + `10.200.0.0/16, 10.200.1.128/25, 10.200.9.0/24, … is not imported: it is inside 10.200.0.0/16, which is the pods' network; right would be a router that does not announce what is the cluster's own.
` + from + `10.240.0.12/32 is not imported: it is inside 10.240.0.0/24, which is the network of link eth0; right would be a router that does not announce what is the cluster's own.
` + from + `10.96.0.1/32 is not imported: it is inside 10.96.0.0/16, which is the service range; right would be a router that does not announce what is the cluster's own.
` + from + `203.0.113.9/32 is not imported: it is inside 203.0.113.9/32, which is an address of Service default/web; right would be a router that does not announce what is the cluster's own.
Node own: ImportRefused: Of what the BGP peer fd00:240::1 announces, fd00:200:1::/64 is not imported: it is inside fd00:200::/32, which is the pods' network; right would be a router that does not announce what is the cluster's own.
`,
	}, {
		name:    "podCIDRs where nobody told of the pods' network",
		learned: learned("10.200.2.0/25 10.240.0.1"),
		want:    from + "10.200.2.0/25 is not imported: it is inside 10.200.2.0/24, which is the podCIDR of node b; right would be a router that does not announce what is the cluster's own.",
	}, {
		name:    "next hops that are none",
		learned: learned("172.16.0.0/12 10.240.0.1 198.51.100.1", "172.20.0.0/16 10.240.0.11", "172.21.0.0/16 fd00:240::1", "172.22.0.0/16 10.200.1.7"),
		want: `
172.16.0.0/12 via 10.240.0.1 dev eth0 proto 103 metric 2048
Node own: ImportRefused: Of what the BGP peer 10.200.1.7 announces, 172.22.0.0/16 is not sent to one of its next hops: the address 10.200.1.7 is in this node's own podCIDR 10.200.1.0/24; right would be an address in the node network.
Node own: ImportRefused: Of what the BGP peer 10.240.0.11 announces, 172.20.0.0/16 is not sent to one of its next hops: the address 10.240.0.11 is this node's own address (link eth0); right would be an address of the other node.
Node own: ImportRefused: Of what the BGP peer 198.51.100.1 announces, 172.16.0.0/12 is not sent to one of its next hops: the address 198.51.100.1 is on no link of this node; a direct route needs an address in one of its networks: 10.240.0.0/24 on eth0.
Node own: ImportRefused: Of what the BGP peer fd00:240::1 announces, 172.21.0.0/16 is not sent to one of its next hops: fd00:240::1 is of another family; right would be one of the same.
`,
	}} {
		t.Run(c.name, func(t *testing.T) {
			s := &cluster.Snapshot{Host: usualHost(), Services: c.services, Nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.200.2.0/24"), node("own", 1, usualOwn)}}
			if c.offline {
				s.Host = nil
			}
			c.config.NodeName = "own"
			for range 5 {
				if got, want := text(PlanLearned(s, c.config, c.learned)), strings.TrimPrefix(c.want, "\n"); strings.TrimSuffix(got, "\n") != strings.TrimSuffix(want, "\n") {
					t.Fatalf("got\n%s\nexpected\n%s", got, want)
				}
				rand.Shuffle(len(c.learned), func(i, j int) { c.learned[i], c.learned[j] = c.learned[j], c.learned[i] })
				for _, l := range c.learned {
					rand.Shuffle(len(l.Ways), func(i, j int) { l.Ways[i], l.Ways[j] = l.Ways[j], l.Ways[i] })
				}
			}
		})
	}
}

// TestPlanLearnedWithoutNode: as long as the own node is unknown, so is what is the cluster's own.
func TestPlanLearnedWithoutNode(t *testing.T) {
	if got, notes := PlanLearned(&cluster.Snapshot{Host: usualHost()}, Config{NodeName: "own"}, learned("172.16.0.0/12 10.240.0.1")); len(got.Routes) != 0 || notes != nil {
		t.Errorf("got %s, notes %v", got.Lines(), notes)
	}
}

// TestPlanLearnedAtScale: 20,000 prefixes in a cluster of 5,000 nodes, of which every other prefix is refused, take a moment and
// few Notes.
func TestPlanLearnedAtScale(t *testing.T) {
	s := &cluster.Snapshot{Host: usualHost(), Nodes: []*cluster.Node{node("own", 1, usualOwn)}}
	for i := range 5000 {
		s.Nodes = append(s.Nodes, node(fmt.Sprintf("z%d", i), 2, fmt.Sprintf("10.240.0.12 10.%d.%d.0/24", 100+i/256, i%256)))
	}
	slices.SortFunc(s.Nodes, func(a, b *cluster.Node) int { return strings.Compare(a.Name, b.Name) })
	var list []Learned
	for i := range 10_000 {
		list = append(list, learned(fmt.Sprintf("172.%d.%d.0/24 10.240.0.1 10.240.0.2", 100+i/256, i%256), fmt.Sprintf("10.100.%d.%d/32 10.240.0.1", i/256, i%256))...)
	}
	start := time.Now()
	table, notes := PlanLearned(s, Config{NodeName: "own", ClusterCIDRs: prefixes("10.96.0.0/11")}, list)
	t.Logf("%d routes and %d notes in %s", len(table.Routes), len(notes), time.Since(start))
	if len(table.Routes) != 10_000 || len(notes) != 1 {
		t.Errorf("%d routes, %d notes, expected 10000 and 1", len(table.Routes), len(notes))
	}
}
