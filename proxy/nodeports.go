package proxy

import (
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// loopback4 is the network of the host itself (RFC 1122 §3.2.1.3).
var loopback4 = netip.MustParsePrefix("127.0.0.0/8")

// nodePorts decides at which addresses of the node a family's node ports are. Networks of one family decide about that
// family alone; the other has its node ports everywhere, as in kube-proxy. Unlike there, a node without a known primary
// address has its node ports nowhere rather than everywhere, and the addresses are those that the node has now.
func (c Config) nodePorts(f cluster.Family, s *cluster.Snapshot) (NodePorts, []cluster.Note) {
	if c.NodePorts == nil {
		return NodePorts{Everywhere: true}, nil
	}
	self := s.Node(c.NodeName)
	networks := c.NodePorts.CIDRs
	if c.NodePorts.Primary {
		a := c.nodeIP(f, self)
		if !a.IsValid() || a.IsLoopback() { // the configuration's may be 127.0.0.1, which nobody could reach
			return NodePorts{}, c.withoutPrimary(self)
		}
		networks = []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
	}
	own := ownAddresses(s.Host, f)
	if s.Host == nil && self != nil { // offline
		own = slices.Concat(self.InternalIPs, self.ExternalIPs)
		slices.SortFunc(own, netip.Addr.Compare)
	}
	return c.NodePorts.among(networks, f, own), nil
}

// among picks the addresses of a family that are in the networks.
func (p *NodePortPolicy) among(networks []netip.Prefix, f cluster.Family, own []netip.Addr) NodePorts {
	networks = slices.DeleteFunc(slices.Clone(networks), func(p netip.Prefix) bool { return cluster.FamilyOf(p.Addr()) != f })
	localhost := p.Localhost && f == cluster.IPv4
	if len(networks) == 0 || slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		return NodePorts{Everywhere: true, Localhost: localhost}
	}
	n := NodePorts{Localhost: localhost && slices.ContainsFunc(networks, loopback4.Overlaps)}
	for _, a := range own {
		if within(a, networks) && (!a.IsLoopback() || n.Localhost) {
			n.Addrs = append(n.Addrs, a)
		}
	}
	return n
}

// TakesFrom reports that a program of the node which waits at an address does not get what comes to a node port of the same
// number. A socket at :: takes IPv4 as well, as long as it was not told otherwise.
func (t *Table) TakesFrom(a netip.Addr) bool {
	n := t.NodePorts
	switch {
	case a.IsUnspecified():
		return (a.Is6() || t.Family == cluster.IPv4) && (n.Everywhere || len(n.Addrs) > 0)
	case cluster.FamilyOf(a) != t.Family:
		return false
	case a.IsLoopback():
		return n.Localhost && (n.Everywhere || slices.Contains(n.Addrs, a))
	}
	return n.Everywhere || slices.Contains(n.Addrs, a)
}

// withoutPrimary is what there is to say when a Node has no address at all. That it lacks one of a family is as it should be
// where the cluster has one family.
func (c Config) withoutPrimary(self *cluster.Node) []cluster.Note {
	if self == nil || c.nodeIP(cluster.IPv4, self).IsValid() || c.nodeIP(cluster.IPv6, self).IsValid() {
		return nil
	}
	return []cluster.Note{{Object: self.Ref(), Reason: cluster.ReasonNodeIncomplete,
		Detail: "nodePortAddresses of the agent's configuration is primary, but the Node has no address in its status; until it has one, its node ports are served nowhere"}}
}

// nodeIP returns the node's address of a family: the configuration's, else the first of its Node's InternalIPs, else of its
// ExternalIPs; the zero Addr when it has none. n may be nil.
func (c Config) nodeIP(f cluster.Family, n *cluster.Node) netip.Addr {
	for _, a := range c.NodeIPs {
		if cluster.FamilyOf(a) == f {
			return a
		}
	}
	if n == nil {
		return netip.Addr{}
	}
	for _, a := range slices.Concat(n.InternalIPs, n.ExternalIPs) {
		if cluster.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// serviceRanges returns the networks of a family that ClusterIPs are from, as the configuration and the cluster say, in order
// without duplicates.
func (c Config) serviceRanges(f cluster.Family, s *cluster.Snapshot) (list []netip.Prefix) {
	all := s.ServiceCIDRs
	if c.Addresses != nil {
		all = slices.Concat(c.Addresses.ServiceCIDRs, all)
	}
	for _, p := range all {
		if cluster.FamilyOf(p.Addr()) == f {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}
