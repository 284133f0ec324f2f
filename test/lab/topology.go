package lab

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Topology says what a lab consists of. Names of nodes, pods, clients and the router are unique among each other,
// at most 11 characters of lower-case letters, digits and hyphens: they become names of namespaces and links.
type Topology struct {
	// Networks are the wires. The first is the infrastructure network, which the nodes are on.
	Networks []NetworkSpec
	// Router is the name of the router; it has an interface in every network, eth0 in the first, eth1 in the second.
	Router string
	// RouterRoutes are routes of the router beyond its own networks.
	RouterRoutes []Route
	Nodes        []NodeSpec
	Clients      []ClientSpec
	// ClusterCIDRs and ServiceCIDRs become flags of the agents.
	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	// PodBridge is the name of the nodes' pod bridge; cni0 when empty.
	PodBridge string
	// NoHairpin leaves the pods' bridge ports without hairpin mode.
	NoHairpin bool
}

// A NetworkSpec is one layer-2 network.
type NetworkSpec struct {
	Name string
	// Prefixes are the network's subnets, one per family at most.
	Prefixes []netip.Prefix
	// Gateways are the router's addresses in the network.
	Gateways []netip.Addr
}

// A NodeSpec is a node.
type NodeSpec struct {
	Name string
	// Addrs are all addresses of eth0. The first of each family is the node's InternalIP and its source address.
	Addrs []netip.Addr
	// PodCIDRs are the node's pod networks, one per family at most; the pod bridge has the first address of each.
	PodCIDRs []netip.Prefix
	Pods     []PodSpec
	// NoForwarding leaves ip_forward off, as a machine is that nobody prepared.
	NoForwarding bool
}

// A PodSpec is a pod, with addresses out of its node's podCIDRs.
type PodSpec struct {
	Name  string
	Addrs []netip.Addr
}

// A ClientSpec is a machine that is no node.
type ClientSpec struct {
	Name string
	// Network is the name of the network it is on; the first network when empty.
	Network string
	Addrs   []netip.Addr
	// Routes come in addition to the default route, which goes to the router.
	Routes []Route
}

// A Route sends a destination to a neighbour.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// Bare is the bare-metal plan of the demo, IPv4 only: nodes node1 to node3 (10.240.0.11 to .13) with the pods pod1a,
// pod1b, … pod3b (10.200.1.2, 10.200.1.3, …), the router at 10.240.0.1, and the client "outside" (198.51.100.10) behind it.
func Bare() Topology {
	t := Topology{
		Networks: []NetworkSpec{
			{Name: "infra", Prefixes: prefixes("10.240.0.0/24"), Gateways: addrs("10.240.0.1")},
			{Name: "internet", Prefixes: prefixes("198.51.100.0/24"), Gateways: addrs("198.51.100.1")},
		},
		Router:       "router",
		Clients:      []ClientSpec{{Name: "outside", Network: "internet", Addrs: addrs("198.51.100.10")}},
		ClusterCIDRs: prefixes("10.200.0.0/16"),
		ServiceCIDRs: prefixes("10.32.0.0/24"),
	}
	for i := 1; i <= 3; i++ {
		t.Nodes = append(t.Nodes, NodeSpec{
			Name:     fmt.Sprintf("node%d", i),
			Addrs:    addrs(fmt.Sprintf("10.240.0.%d", 10+i)),
			PodCIDRs: prefixes(fmt.Sprintf("10.200.%d.0/24", i)),
			Pods: []PodSpec{
				{Name: fmt.Sprintf("pod%da", i), Addrs: addrs(fmt.Sprintf("10.200.%d.2", i))},
				{Name: fmt.Sprintf("pod%db", i), Addrs: addrs(fmt.Sprintf("10.200.%d.3", i))},
			},
		})
	}
	return t
}

// Conformance is the dual-stack lab of the conformance cases. The node under test, n1, has 192.168.0.2, .3 and the
// pods p1 (10.244.1.2) and p2 (10.244.1.3); n2 has 192.168.0.4 and p3 (10.244.2.2). The client c (192.168.0.100, .101,
// .102) is their neighbour and routes the service ranges, 10.96.0.0/12 and fd00:10:96::/112, through n1. The router is
// at .1. IPv6 repeats the pattern: fd00:192:168::2 is n1, fd00:10:244:1::2 is p1.
func Conformance() Topology {
	t := Topology{
		Networks: []NetworkSpec{{
			Name:     "infra",
			Prefixes: prefixes("192.168.0.0/24", "fd00:192:168::/64"),
			Gateways: addrs("192.168.0.1", "fd00:192:168::1"),
		}},
		Router: "router",
		Nodes: []NodeSpec{
			{
				Name:     "n1",
				Addrs:    addrs("192.168.0.2", "192.168.0.3", "fd00:192:168::2", "fd00:192:168::3"),
				PodCIDRs: prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
				Pods: []PodSpec{
					{Name: "p1", Addrs: addrs("10.244.1.2", "fd00:10:244:1::2")},
					{Name: "p2", Addrs: addrs("10.244.1.3", "fd00:10:244:1::3")},
				},
			},
			{
				Name:     "n2",
				Addrs:    addrs("192.168.0.4", "fd00:192:168::4"),
				PodCIDRs: prefixes("10.244.2.0/24", "fd00:10:244:2::/64"),
				Pods:     []PodSpec{{Name: "p3", Addrs: addrs("10.244.2.2", "fd00:10:244:2::2")}},
			},
		},
		Clients: []ClientSpec{{
			Name: "c",
			Addrs: addrs("192.168.0.100", "192.168.0.101", "192.168.0.102",
				"fd00:192:168::100", "fd00:192:168::101", "fd00:192:168::102"),
		}},
		ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		ServiceCIDRs: prefixes("10.96.0.0/12", "fd00:10:96::/112"),
	}
	for i, p := range t.ServiceCIDRs {
		via := addrs("192.168.0.2", "fd00:192:168::2")[i]
		t.Clients[0].Routes = append(t.Clients[0].Routes, Route{Dst: p, Via: via})
	}
	return t
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?$`)

// check tells what of the Topology cannot be built.
func (t *Topology) check() error {
	if len(t.Networks) == 0 {
		return fmt.Errorf("the topology has no network")
	}
	seen := map[string]bool{}
	for _, name := range t.names() {
		if !nameForm.MatchString(name) {
			return fmt.Errorf("name %q: want 1 to 11 lower-case letters, digits and hyphens", name)
		}
		if seen[name] {
			return fmt.Errorf("name %q is used twice", name)
		}
		seen[name] = true
	}
	for _, c := range t.Clients {
		if t.network(c.Network) == nil {
			return fmt.Errorf("client %s: there is no network %q", c.Name, c.Network)
		}
	}
	return nil
}

// switchName is the name of the namespace that holds the networks' bridges.
const switchName = "switch"

// names lists the namespaces that the Topology needs, the switch first.
func (t *Topology) names() []string {
	out := []string{switchName, t.Router}
	for _, n := range t.Nodes {
		out = append(out, n.Name)
		for _, p := range n.Pods {
			out = append(out, p.Name)
		}
	}
	for _, c := range t.Clients {
		out = append(out, c.Name)
	}
	return out
}

// network finds a network by name, the first one by the empty name.
func (t *Topology) network(name string) *NetworkSpec {
	for i := range t.Networks {
		if name == "" || t.Networks[i].Name == name {
			return &t.Networks[i]
		}
	}
	return nil
}

func (t *Topology) podBridge() string {
	if t.PodBridge == "" {
		return "cni0"
	}
	return t.PodBridge
}

// subnetOf gives an address the length of the subnet that it is in, or of a host route when it is in none.
func subnetOf(a netip.Addr, subnets []netip.Prefix) netip.Prefix {
	for _, s := range subnets {
		if s.Contains(a) {
			return netip.PrefixFrom(a, s.Bits())
		}
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// first returns the first address of a family; the zero Addr when there is none.
func first(list []netip.Addr, f cluster.Family) netip.Addr {
	for _, a := range list {
		if cluster.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}
