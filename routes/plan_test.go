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

// day makes creation times: nodes of a lower day are older.
func day(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }

// node makes a Node from its age and a line of podCIDRs (with a slash) and InternalIPs (without).
func node(name string, age int, line string) *cluster.Node {
	n := &cluster.Node{Name: name, UID: "uid-" + name, Created: day(age)}
	for _, word := range strings.Fields(line) {
		if strings.Contains(word, "/") {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(word))
		} else {
			n.InternalIPs = append(n.InternalIPs, netip.MustParseAddr(word))
		}
	}
	return n
}

// link makes a Link; a name that ends in "!" is down.
func link(index int, name, addrs string) cluster.Link {
	l := cluster.Link{Index: index, Name: strings.TrimSuffix(name, "!"), Up: !strings.HasSuffix(name, "!"), Loopback: name == "lo"}
	for _, a := range strings.Fields(addrs) {
		l.Addrs = append(l.Addrs, netip.MustParsePrefix(a))
	}
	return l
}

func prefixes(s ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

func usualHost(more ...cluster.Link) *cluster.Host {
	return &cluster.Host{Links: append([]cluster.Link{
		link(1, "lo", "127.0.0.1/8 ::1/128"),
		link(2, "eth0", "10.240.0.11/24 fd00:240::11/64 fe80::1/64"),
		link(3, "br0", "10.200.1.1/24 fd00:200:1::1/64 fe80::2/64"),
	}, more...)}
}

const usualPods = "10.200.1.0/24 fd00:200:1::/64"

var usualOwn = "10.240.0.11 fd00:240::11 " + usualPods

// A planCase is a cluster seen from node "own", and the whole expected plan.
type planCase struct {
	name     string
	own      *cluster.Node
	nodes    []*cluster.Node
	services []*cluster.Service
	ranges   []netip.Prefix // of ServiceCIDR objects
	host     *cluster.Host
	config   Config
	want     string
}

func (c planCase) snapshot() (*cluster.Snapshot, Config) {
	nodes := slices.Clone(c.nodes)
	if c.own != nil {
		nodes = append(nodes, c.own)
	}
	slices.SortFunc(nodes, func(a, b *cluster.Node) int { return strings.Compare(a.Name, b.Name) })
	c.config.NodeName = "own"
	return &cluster.Snapshot{Nodes: nodes, ServiceCIDRs: c.ranges, Services: c.services, Host: c.host}, c.config
}

// text is what a plan is compared as.
func text(t *Table, notes []cluster.Note) string {
	var b strings.Builder
	b.WriteString(t.Lines())
	for _, n := range notes {
		b.WriteString(n.String() + "\n")
	}
	return b.String()
}

var planCases = []planCase{
	{
		name:  "both families",
		own:   node("own", 1, usualOwn),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 fd00:240::12 10.200.2.0/24 fd00:200:2::/64")},
		host:  usualHost(),
		want: `
10.200.2.0/24 via 10.240.0.12 dev eth0 proto 102
fd00:200:2::/64 via fd00:240::12 dev eth0 proto 102 metric 1024 pref medium
`,
	}, {
		name:  "offline",
		own:   node("own", 1, usualOwn),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.200.2.0/24 fd00:200:2::/64")},
		want: `
10.200.2.0/24 via 10.240.0.12 proto 102
Node b: NodeIncomplete: The node has the IPv6 podCIDR fd00:200:2::/64 but no InternalIP of that family; it needs one to be the next hop.
`,
	}, {
		name:  "an unmasked and a repeated podCIDR",
		own:   node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.200.2.9/24 10.200.2.0/24")},
		host:  usualHost(),
		want:  "10.200.2.0/24 via 10.240.0.12 dev eth0 proto 102",
	}, {
		name: "incomplete nodes",
		own:  node("own", 1, usualOwn),
		nodes: []*cluster.Node{
			node("b", 2, "10.240.0.12 fd00:240::12"), node("c", 2, "10.200.3.0/24 fd00:200:3::/64"),
			node("d", 2, "10.240.0.14 10.200.4.0/24"),
		},
		host: usualHost(),
		want: `
10.200.4.0/24 via 10.240.0.14 dev eth0 proto 102
Node b: NodeIncomplete: The node has no podCIDR yet; it gets a route when spec.podCIDRs is set.
Node c: NodeIncomplete: The node has no InternalIP yet; it gets a route when status.addresses has one.
Node d: NodeIncomplete: The node has no IPv6 podCIDR, while this node has fd00:200:1::/64; pods of the two do not reach each other over IPv6.
`,
	}, {
		name:  "a family that this node does not use",
		own:   node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.200.2.0/24 fd00:200:2::/64")},
		host:  usualHost(),
		want:  "10.200.2.0/24 via 10.240.0.12 dev eth0 proto 102",
	}, {
		name:  "this node is not in the API yet",
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.200.2.0/24")},
		host:  usualHost(),
		want:  "10.200.2.0/24 via 10.240.0.12 dev eth0 proto 102",
	}, {
		name: "ranges that are never pods'",
		own:  node("own", 9, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{
			node("b", 1, "10.240.0.12 0.0.0.0/0"), node("c", 1, "10.240.0.13 169.254.0.0/16"),
			node("d", 1, "10.240.0.14 10.201.0.0/24"), node("e", 1, "10.240.0.15 10.200.0.0/15"),
			node("f", 1, "10.240.0.16 10.32.0.0/25"), node("g", 1, "10.240.0.17 10.200.7.0/24"),
		},
		host: usualHost(),
		config: Config{ClusterCIDRs: prefixes("10.200.0.0/16", "10.32.0.0/16", "169.254.0.0/16", "fd00::/16"),
			ServiceCIDRs: prefixes("10.32.0.0/24")},
		want: `
10.200.7.0/24 via 10.240.0.17 dev eth0 proto 102
Node b: PodCIDRRefused: podCIDR 0.0.0.0/0 is the whole address space; right would be a part of the cluster's pod range.
Node c: PodCIDRRefused: podCIDR 169.254.0.0/16 overlaps the link-local range 169.254.0.0/16; right would be unicast addresses for pods.
Node d: PodCIDRRefused: podCIDR 10.201.0.0/24 is not inside the cluster's pod range 10.200.0.0/16, 10.32.0.0/16, 169.254.0.0/16; right would be a part of it.
Node e: PodCIDRRefused: podCIDR 10.200.0.0/15 is not inside the cluster's pod range 10.200.0.0/16, 10.32.0.0/16, 169.254.0.0/16; right would be a part of it.
Node f: PodCIDRRefused: podCIDR 10.32.0.0/25 overlaps the service range 10.32.0.0/24; right would be a range outside it.
`,
	}, {
		name:   "service ranges of the configuration and of the cluster",
		own:    node("own", 1, usualOwn),
		nodes:  []*cluster.Node{node("b", 2, "10.240.0.12 10.32.0.0/25"), node("c", 2, "10.240.0.13 10.33.0.0/25"), node("d", 2, "10.240.0.14 10.200.4.0/24")},
		ranges: prefixes("10.33.0.0/24", "fd00:32::/112"),
		host:   usualHost(),
		config: Config{ServiceCIDRs: prefixes("10.32.0.0/24")},
		want: `
10.200.4.0/24 via 10.240.0.14 dev eth0 proto 102
Node b: NodeIncomplete: The node has no IPv6 podCIDR, while this node has fd00:200:1::/64; pods of the two do not reach each other over IPv6.
Node b: PodCIDRRefused: podCIDR 10.32.0.0/25 overlaps the service range 10.32.0.0/24; right would be a range outside it.
Node c: NodeIncomplete: The node has no IPv6 podCIDR, while this node has fd00:200:1::/64; pods of the two do not reach each other over IPv6.
Node c: PodCIDRRefused: podCIDR 10.33.0.0/25 overlaps the service range 10.33.0.0/24; right would be a range outside it.
Node d: NodeIncomplete: The node has no IPv6 podCIDR, while this node has fd00:200:1::/64; pods of the two do not reach each other over IPv6.
`,
	}, {
		name:  "a range with a ClusterIP in it",
		own:   node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.32.0.0/24")},
		services: []*cluster.Service{{Namespace: "default", Name: "kubernetes", ClusterIPs: []netip.Addr{
			netip.MustParseAddr("10.32.0.1")}}},
		host:   usualHost(),
		config: Config{ServiceCIDRs: prefixes("fd00:32::/108")},
		want:   "Node b: PodCIDRRefused: podCIDR 10.32.0.0/24 covers the ClusterIP 10.32.0.1 of Service default/kubernetes; right would be a range outside the service range.",
	}, {
		name: "ranges with nodes in them, offline",
		own:  node("own", 5, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{
			node("b", 1, "10.250.0.2 10.200.2.0/24"),
			node("c", 2, "10.252.0.3 10.250.0.0/16"),   // covers the older b
			node("d", 3, "10.253.0.4 10.253.0.0/28"),   // covers itself
			node("e", 4, "10.251.0.4 10.240.0.8/29"),   // covers this node, which is younger
			node("f", 9, "10.200.2.200 10.200.6.0/24"), // reports an address in b's range
		},
		want: `
10.200.2.0/24 via 10.250.0.2 proto 102
10.200.6.0/24 via 10.200.2.200 proto 102
Node c: PodCIDRRefused: podCIDR 10.250.0.0/16 covers the InternalIP 10.250.0.2 of node b; right would be a range outside the node network.
Node d: PodCIDRRefused: podCIDR 10.253.0.0/28 covers the InternalIP 10.253.0.4 of node d; right would be a range outside the node network.
Node e: PodCIDRRefused: podCIDR 10.240.0.8/29 covers the InternalIP 10.240.0.11 of node own; right would be a range outside the node network.
`,
	}, {
		name: "ranges with links in or around them",
		own:  node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{
			node("b", 2, "10.240.0.12 192.168.7.0/24"), node("c", 2, "10.240.0.13 192.168.8.128/25"),
			node("d", 2, "10.240.0.14 10.240.0.0/16"), node("e", 2, "10.240.0.15 172.16.0.0/16"),
			node("f", 2, "10.240.0.16 10.96.0.10/32"), node("g", 2, "10.240.0.17 10.200.7.0/24"),
		},
		host: usualHost(link(7, "eth1", "192.168.7.1/30"), link(8, "eth2!", "192.168.8.1/24"), link(9, "tun0", "172.16.9.9/32"),
			link(10, "dns", "10.96.0.10/32")),
		want: `
10.200.7.0/24 via 10.240.0.17 dev eth0 proto 102
Node b: PodCIDRRefused: podCIDR 192.168.7.0/24 overlaps the network 192.168.7.0/30 of the link eth1; right would be a range that no link is in.
Node c: PodCIDRRefused: podCIDR 192.168.8.128/25 overlaps the network 192.168.8.0/24 of the link eth2; right would be a range that no link is in.
Node d: PodCIDRRefused: podCIDR 10.240.0.0/16 overlaps the network 10.240.0.0/24 of the link eth0; right would be a range that no link is in.
Node e: PodCIDRRefused: podCIDR 172.16.0.0/16 overlaps the network 172.16.9.9/32 of the link tun0; right would be a range that no link is in.
Node f: PodCIDRRefused: podCIDR 10.96.0.10/32 overlaps the network 10.96.0.10/32 of the link dns; right would be a range that no link is in.
`,
	}, {
		name: "two nodes with one podCIDR",
		own:  node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{
			node("b", 3, "10.240.0.12 10.200.2.0/24"), node("c", 2, "10.240.0.13 10.200.2.0/24"),
			node("d", 4, "10.240.0.14 10.200.2.128/25"),
		},
		host: usualHost(),
		want: `
10.200.2.0/24 via 10.240.0.13 dev eth0 proto 102
Node b: PodCIDRConflict: podCIDR 10.200.2.0/24 overlaps 10.200.2.0/24 of node c, which is older (created 2026-01-02T00:00:00Z) and keeps it; right would be a range of its own.
Node c: PodCIDRConflict: podCIDR 10.200.2.0/24 is also claimed by the younger node b (10.200.2.0/24) and 1 more, which gets no route; right would be a range for each.
Node d: PodCIDRConflict: podCIDR 10.200.2.128/25 overlaps 10.200.2.0/24 of node c, which is older (created 2026-01-02T00:00:00Z) and keeps it; right would be a range of its own.
`,
	}, {
		name: "a wide range over older narrow ones; what loses holds nothing",
		own:  node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{
			node("b", 2, "10.240.0.12 10.200.2.0/24"), node("c", 3, "10.240.0.13 10.200.2.0/23"),
			node("d", 4, "10.240.0.14 10.200.3.0/24"), node("e", 1, "10.240.0.15 0.0.0.0/0"),
		},
		host: usualHost(),
		want: `
10.200.2.0/24 via 10.240.0.12 dev eth0 proto 102
10.200.3.0/24 via 10.240.0.14 dev eth0 proto 102
Node b: PodCIDRConflict: podCIDR 10.200.2.0/24 is also claimed by the younger node c (10.200.2.0/23), which gets no route; right would be a range for each.
Node c: PodCIDRConflict: podCIDR 10.200.2.0/23 overlaps 10.200.2.0/24 of node b, which is older (created 2026-01-02T00:00:00Z) and keeps it; right would be a range of its own.
Node e: PodCIDRRefused: podCIDR 0.0.0.0/0 is the whole address space; right would be a part of the cluster's pod range.
`,
	}, {
		name:  "nodes of one second are told apart by UID",
		own:   node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{node("c", 2, "10.240.0.13 10.200.2.0/24"), node("b", 2, "10.240.0.12 10.200.2.0/24")},
		host:  usualHost(),
		want: `
10.200.2.0/24 via 10.240.0.12 dev eth0 proto 102
Node b: PodCIDRConflict: podCIDR 10.200.2.0/24 is also claimed by the younger node c (10.200.2.0/24), which gets no route; right would be a range for each.
Node c: PodCIDRConflict: podCIDR 10.200.2.0/24 overlaps 10.200.2.0/24 of node b, which is older (created 2026-01-02T00:00:00Z) and keeps it; right would be a range of its own.
`,
	}, {
		name:  "a younger node claims this node's range",
		own:   node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.200.0.0/16")},
		host:  usualHost(),
		want: `
Node b: PodCIDRConflict: podCIDR 10.200.0.0/16 overlaps 10.200.1.0/24 of node own, which is older (created 2026-01-01T00:00:00Z) and keeps it; right would be a range of its own.
Node own: PodCIDRConflict: podCIDR 10.200.1.0/24 is also claimed by the younger node b (10.200.0.0/16), which gets no route; right would be a range for each.
`,
	}, {
		name:  "an older node claims this node's range",
		own:   node("own", 3, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.200.1.0/24"), node("c", 4, "10.240.0.13 10.200.3.0/24")},
		host:  usualHost(),
		want: `
10.200.3.0/24 via 10.240.0.13 dev eth0 proto 102
Node b: PodCIDRConflict: podCIDR 10.200.1.0/24 is also claimed by the younger node own (10.200.1.0/24), which gets no route; right would be a range for each.
Node b: PodCIDRConflict: podCIDR 10.200.1.0/24 overlaps 10.200.1.0/24 of node own, which does not route its own pods away although it is younger; right would be a range for each.
Node own: PodCIDRConflict: podCIDR 10.200.1.0/24 overlaps 10.200.1.0/24 of node b, which is older (created 2026-01-02T00:00:00Z) and keeps it; right would be a range of its own.
`,
	}, {
		name: "next hops that are none",
		own:  node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{
			node("b", 2, "10.99.0.2 10.200.2.0/24"), node("c", 2, "10.240.0.11 10.200.3.0/24"),
			node("d", 2, "192.168.9.4 10.200.4.0/24"), node("e", 2, "127.0.0.1 10.200.5.0/24"),
			node("f", 2, "10.240.0.255 10.200.6.0/24"), node("g", 2, "10.200.1.7 10.200.7.0/24"),
			node("h", 2, "169.254.1.1 10.240.0.18 10.200.8.0/24"), node("i", 2, "10.200.1.1 10.200.9.0/24"),
		},
		host: usualHost(link(9, "eth1!", "192.168.9.1/24")),
		want: `
10.200.8.0/24 via 10.240.0.18 dev eth0 proto 102
Node b: NextHopUnreachable: InternalIP 10.99.0.2 is on no link of this node; a direct route needs an address in one of its networks: 10.240.0.0/24 on eth0, 192.168.9.0/24 on eth1.
Node c: NextHopUnreachable: InternalIP 10.240.0.11 is this node's own address (link eth0); right would be an address of the other node.
Node d: NextHopUnreachable: InternalIP 192.168.9.4 is on link eth1, which is down; the route comes back with the link.
Node e: NextHopUnreachable: InternalIP 127.0.0.1 cannot be a next hop; right would be a global unicast address in a network of this node.
Node f: NextHopUnreachable: InternalIP 10.240.0.255 is the broadcast address of 10.240.0.0/24 on link eth0; right would be the address of a host.
Node g: NextHopUnreachable: InternalIP 10.200.1.7 is in this node's own podCIDR 10.200.1.0/24; right would be an address in the node network.
Node i: NextHopUnreachable: InternalIP 10.200.1.1 is this node's own address (link br0); right would be an address of the other node.
`,
	}, {
		name:  "the most specific network wins, on the first link that is up",
		own:   node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 10.200.2.0/24"), node("c", 2, "10.240.0.99 10.200.3.0/24")},
		host: usualHost(link(5, "eth3!", "10.240.0.9/28"), link(6, "eth1", "10.240.0.10/28"), link(7, "eth2", "10.240.0.11/28"),
			link(8, "eth4!", "10.240.0.97/29")),
		want: `
10.200.2.0/24 via 10.240.0.12 dev eth1 proto 102
10.200.3.0/24 via 10.240.0.99 dev eth0 proto 102
`,
	}, {
		name:  "a network on lo leads nowhere",
		own:   node("own", 1, "10.240.0.11 10.200.1.0/24"),
		nodes: []*cluster.Node{node("b", 2, "10.98.0.2 10.200.2.0/24")},
		host: &cluster.Host{Links: []cluster.Link{
			{Index: 1, Name: "lo", Up: true, Loopback: true, Addrs: prefixes("127.0.0.1/8", "10.98.0.1/24")},
			link(2, "eth0", "10.240.0.11/24")}},
		want: "Node b: NextHopUnreachable: InternalIP 10.98.0.2 is on no link of this node; a direct route needs an address in one of its networks: 10.240.0.0/24 on eth0.",
	}, {
		name:  "no network of the family",
		own:   node("own", 1, usualOwn),
		nodes: []*cluster.Node{node("b", 2, "10.240.0.12 fd00:240::12 10.200.2.0/24 fd00:200:2::/64")},
		host:  &cluster.Host{Links: []cluster.Link{link(2, "eth0", "10.240.0.11/24")}},
		want: `
10.200.2.0/24 via 10.240.0.12 dev eth0 proto 102
Node b: NextHopUnreachable: InternalIP fd00:240::12 is on no link of this node, which has no IPv6 network.
`,
	},
}

func TestPlan(t *testing.T) {
	for _, c := range planCases {
		t.Run(c.name, func(t *testing.T) {
			got := text(Plan(c.snapshot()))
			if want := strings.TrimPrefix(strings.TrimSuffix(c.want, "\n"), "\n") + "\n"; got != want {
				t.Errorf("plan:\n%swant:\n%s", got, want)
			}
		})
	}
}

// The planner reads nodes by name, so their order is fixed; all else may come in any order.
func TestPlanOfShuffledInputIsTheSame(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range planCases {
		s, config := c.snapshot()
		want := text(Plan(s, config))
		for range 20 {
			rng.Shuffle(len(s.Services), func(i, j int) { s.Services[i], s.Services[j] = s.Services[j], s.Services[i] })
			nodes := slices.Clone(s.Nodes)
			for i, n := range nodes {
				other := *n
				other.PodCIDRs = slices.Clone(n.PodCIDRs)
				rng.Shuffle(len(other.PodCIDRs), func(i, j int) {
					other.PodCIDRs[i], other.PodCIDRs[j] = other.PodCIDRs[j], other.PodCIDRs[i]
				})
				nodes[i] = &other
			}
			shuffled := &cluster.Snapshot{ServiceCIDRs: s.ServiceCIDRs, Nodes: nodes, Services: s.Services, Host: s.Host}
			if got := text(Plan(shuffled, config)); got != want {
				t.Fatalf("%s, shuffled:\n%swant:\n%s", c.name, got, want)
			}
		}
	}
}

// TestNoTwoAgentsDisagree plans random clusters with overlapping ranges on every node: no node routes its own range away,
// no two nodes route one address to different nodes, and no plan has two overlapping routes.
func TestNoTwoAgentsDisagree(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 200 {
		s := randomCluster(rng, 8)
		ownerOf := map[netip.Prefix]string{}
		for _, n := range s.Nodes {
			table, _ := Plan(s, Config{NodeName: n.Name})
			for i, r := range table.Routes {
				if owner, ok := ownerOf[r.Dst]; ok && owner != r.Node {
					t.Fatalf("round %d: %s goes to both %s and %s", round, r.Dst, owner, r.Node)
				}
				ownerOf[r.Dst] = r.Node
				for _, own := range n.PodCIDRs {
					if own.Overlaps(r.Dst) {
						t.Fatalf("round %d: node %s routes %s of its own pods away: %s", round, n.Name, own, r)
					}
				}
				if i > 0 && table.Routes[i-1].Dst.Overlaps(r.Dst) {
					t.Fatalf("round %d: routes overlap: %s and %s", round, table.Routes[i-1], r)
				}
			}
		}
		if len(ownerOf) == 0 {
			t.Fatalf("round %d: no routes at all", round)
		}
	}
}

func randomCluster(rng *rand.Rand, n int) *cluster.Snapshot {
	s := &cluster.Snapshot{}
	for i := range n {
		bits := 21 + rng.IntN(5)
		pods := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, byte(rng.IntN(32)), byte(rng.IntN(256))}), bits).Masked()
		s.Nodes = append(s.Nodes, node(fmt.Sprintf("n%d", i), 1+rng.IntN(3), fmt.Sprintf("10.240.0.%d %s", 11+i, pods)))
	}
	return s
}

func TestRouteString(t *testing.T) {
	for _, c := range []struct {
		route Route
		want  string
	}{
		{Route{Dst: netip.MustParsePrefix("10.1.2.3/32"), Gateway: netip.MustParseAddr("10.0.0.1"), LinkIndex: 7},
			"10.1.2.3 via 10.0.0.1 dev if7 proto 102"},
		{Route{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd00::1"), Link: "eth0", Metric: 5},
			"default via fd00::1 dev eth0 proto 102 metric 5 pref medium"},
	} {
		if got := c.route.String(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// bigCluster has n nodes, each with a range of both families, and services ClusterIPs.
func bigCluster(n, services int) (*cluster.Snapshot, Config) {
	s := &cluster.Snapshot{Host: usualHost()}
	s.Host.Links[1].Addrs = prefixes("10.240.0.11/12", "fd00:240::ffff:11/64")
	for i := range n {
		hi, lo := byte(i/256), byte(i%256)
		nd := &cluster.Node{Name: fmt.Sprintf("node-%05d", i), UID: fmt.Sprintf("uid-%05d", (i*7919)%n), Created: day(1 + i%28),
			PodCIDRs: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{11, hi, lo, 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 11, 0, 0, hi, lo}), 64)},
			InternalIPs: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 241, hi, lo}),
				netip.AddrFrom16([16]byte{0xfd, 0, 2, 0x40, 14: hi, 15: lo})}}
		s.Nodes = append(s.Nodes, nd)
	}
	for i := range services {
		s.Services = append(s.Services, &cluster.Service{ClusterIPs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 96, byte(i / 256), byte(i % 256)})}})
	}
	return s, Config{NodeName: "node-00000", ClusterCIDRs: prefixes("11.0.0.0/8", "fd00:b::/32")}
}

func TestPlanOfABigCluster(t *testing.T) {
	s, c := bigCluster(5000, 10)
	table, notes := Plan(s, c)
	if len(table.Routes) != 2*4999 || len(notes) != 0 {
		t.Fatalf("%d routes and %d notes (%v…)", len(table.Routes), len(notes), notes[:min(1, len(notes))])
	}
}

func BenchmarkPlan(b *testing.B) {
	s, c := bigCluster(5000, 10000)
	for b.Loop() {
		Plan(s, c)
	}
}

// BenchmarkPlanWorstCase has every node claim one and the same range, and one node the range around all.
func BenchmarkPlanWorstCase(b *testing.B) {
	s, c := bigCluster(5000, 0)
	for i, n := range s.Nodes {
		n.PodCIDRs = prefixes("11.0.0.0/24")
		if i == 99 {
			n.PodCIDRs = prefixes("11.0.0.0/8")
		}
	}
	for b.Loop() {
		Plan(s, c)
	}
}

// TestOwn: of its own podCIDRs a node may tell others what other nodes route to it, and no more.
func TestOwn(t *testing.T) {
	for _, c := range []struct{ name, own, want string }{
		{"both families", "192.0.2.5 10.244.5.0/24 fd00:5::/64", "[10.244.5.0/24 fd00:5::/64]"},
		{"an older node has it", "192.0.2.5 10.244.1.128/25 fd00:5::/64", "[fd00:5::/64]"},
		{"a younger node claims it, too", "192.0.2.5 10.244.2.0/24", "[10.244.2.0/24]"},
		{"everything", "192.0.2.5 0.0.0.0/0", "[]"},
		{"the nodes' network", "192.0.2.5 192.0.2.0/24", "[]"},
		{"services", "192.0.2.5 10.96.1.0/24", "[]"},
	} {
		s := &cluster.Snapshot{Nodes: []*cluster.Node{node("a", 1, "192.0.2.1 10.244.1.0/24"), node("own", 5, c.own), node("z", 9, "192.0.2.9 10.244.2.0/24")}}
		table, _ := Plan(s, Config{NodeName: "own", ServiceCIDRs: prefixes("10.96.0.0/16")})
		if got := fmt.Sprint(table.Own); got != c.want {
			t.Errorf("%s: %s, expected %s", c.name, got, c.want)
		}
	}
}
