package routes

import (
	"fmt"
	"net/netip"

	"github.com/fairway-net/fairway/agent/cluster"
)

// neverPods are ranges that no pod can have an address from, with what they are for (RFC 6890 and its updates).
var neverPods = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/3"), "multicast and reserved"},
	{netip.MustParsePrefix("::/96"), "loopback and unspecified"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// rangeFacts is what lies inside a claimed prefix: the first found of each kind.
type rangeFacts struct {
	// oldest is the oldest node with an InternalIP inside, which is oldestAddr.
	oldest     *cluster.Node
	oldestAddr netip.Addr
	// service has its ClusterIP serviceAddr inside.
	service     *cluster.Service
	serviceAddr netip.Addr
	// link has the network linkNet inside.
	link    *cluster.Link
	linkNet netip.Prefix
	// holder is the oldest accepted claim inside.
	holder *claim
}

// judge refuses the claims that must not be routed to anybody.
func (p *planner) judge() {
	p.collectNodes()
	p.collectServices()
	networks := p.collectLinks()
	for i := range p.claims {
		c := &p.claims[i]
		why := p.implausible(c)
		if c.node == p.own.node {
			c.refused, c.lost = why != "", p.coversHosts(c, networks) != ""
			continue
		}
		if why == "" {
			why = p.coversHosts(c, networks)
		}
		if why != "" {
			c.refused = true
			p.note(c.node, cluster.ReasonPodCIDRRefused, why)
		}
	}
}

func (p *planner) collectNodes() {
	for i := range p.members {
		for _, a := range p.members[i].node.InternalIPs {
			for _, r := range p.ranges.covering(host(a)) {
				if r.oldest == nil {
					r.oldest, r.oldestAddr = p.members[i].node, a
				}
			}
		}
	}
}

func (p *planner) collectServices() {
	for _, s := range p.snap.Services {
		for _, a := range s.ClusterIPs {
			for _, r := range p.ranges.covering(host(a)) {
				if r.service == nil {
					r.service, r.serviceAddr = s, a
				}
			}
		}
	}
}

// collectLinks returns the networks of this host's links, those of its own pods aside: a claim that overlaps these
// is a conflict with this node's own claim, and says so.
func (p *planner) collectLinks() *prefixMap[*cluster.Link] {
	networks := newPrefixMap[*cluster.Link](0)
	if p.snap.Host == nil {
		return networks
	}
	for i := range p.snap.Host.Links {
		link := &p.snap.Host.Links[i]
		for _, a := range link.Addrs {
			network := a.Masked()
			if networks.values[network] != nil || p.insideOwn(network) {
				continue
			}
			networks.put(network, link)
			for _, r := range p.ranges.covering(network) {
				if r.link == nil {
					r.link, r.linkNet = link, network
				}
			}
		}
	}
	return networks
}

func (p *planner) insideOwn(network netip.Prefix) bool {
	for i := range p.own.claims {
		c := &p.own.claims[i]
		if p.implausible(c) == "" && contains(c.prefix, network) {
			return true
		}
	}
	return false
}

// implausible says why a claim cannot be a range of pods, wherever; "" when it can.
func (p *planner) implausible(c *claim) string {
	if c.prefix.Bits() == 0 {
		return fmt.Sprintf("podCIDR %s is the whole address space; right would be a part of the cluster's pod range.", c.prefix)
	}
	f := familyIndex(c.prefix.Addr())
	if pods := p.podRanges[f]; len(pods) > 0 && !inside(pods, c.prefix) {
		return fmt.Sprintf("podCIDR %s is not inside the cluster's pod range %s; right would be a part of it.", c.prefix, list(pods))
	}
	for _, never := range neverPods {
		if never.prefix.Overlaps(c.prefix) {
			return fmt.Sprintf("podCIDR %s overlaps the %s range %s; right would be unicast addresses for pods.",
				c.prefix, never.what, never.prefix)
		}
	}
	for _, s := range p.serviceRanges[f] {
		if s.Overlaps(c.prefix) {
			return fmt.Sprintf("podCIDR %s overlaps the service range %s; right would be a range outside it.", c.prefix, s)
		}
	}
	if r := c.inside; len(p.serviceRanges[f]) == 0 && r.service != nil {
		return fmt.Sprintf("podCIDR %s covers the ClusterIP %s of %s; right would be a range outside the service range.",
			c.prefix, r.serviceAddr, r.service.Ref())
	}
	return ""
}

// coversHosts says which host would be cut off by routing the claim to its node; "" when none.
//
// A younger node's InternalIP is no argument against an older node's range: else one kubelet could have everybody's
// routes withdrawn by reporting an address in their ranges. (A node network that this host is attached to is defended
// by the link, whatever the ages.)
func (p *planner) coversHosts(c *claim, networks *prefixMap[*cluster.Link]) string {
	r := c.inside
	if r.link != nil {
		return overlapsLink(c.prefix, r.linkNet, r.link)
	}
	for network, link := range networks.covering(c.prefix) {
		return overlapsLink(c.prefix, network, link)
	}
	if r.oldest != nil && compareAge(r.oldest, c.node) < 0 {
		return coversNode(c.prefix, r.oldestAddr, r.oldest)
	}
	for _, n := range []*cluster.Node{c.node, p.own.node} {
		if n == nil {
			continue
		}
		for _, a := range n.InternalIPs {
			if c.prefix.Contains(a) {
				return coversNode(c.prefix, a, n)
			}
		}
	}
	return ""
}

func overlapsLink(prefix, network netip.Prefix, link *cluster.Link) string {
	return fmt.Sprintf("podCIDR %s overlaps the network %s of the link %s; right would be a range that no link is in.",
		prefix, network, link.Name)
}

func coversNode(prefix netip.Prefix, a netip.Addr, n *cluster.Node) string {
	return fmt.Sprintf("podCIDR %s covers the InternalIP %s of node %s; right would be a range outside the node network.",
		prefix, a, n.Name)
}

// settle gives every contested range to its oldest claimant, and refuses all other claims that overlap it.
//
// The order of age is the same for every agent, so all route a contested range alike, with one exception: what
// overlaps this node's own range is never routed away from here, however old the other claimant is.
func (p *planner) settle() {
	held := newPrefixMap[*claim](len(p.claims))
	for i := range p.claims {
		c := &p.claims[i]
		if c.refused {
			continue
		}
		if holder := p.holderOver(held, c); holder != nil {
			c.refused = c.node != p.own.node // this node's own range stays its own, here
			c.lost = true
			holder.rivals = append(holder.rivals, c)
			p.note(c.node, cluster.ReasonPodCIDRConflict, fmt.Sprintf(
				"podCIDR %s overlaps %s of node %s, which is older (created %s) and keeps it; right would be a range of its own.",
				c.prefix, holder.prefix, holder.node.Name, created(holder.node)))
			continue
		}
		if held.values[c.prefix] == nil {
			held.put(c.prefix, c)
		}
		for _, r := range p.ranges.covering(c.prefix) {
			if r.holder == nil {
				r.holder = c
			}
		}
	}
	p.keepOwn()
	for i := range p.claims {
		p.noteRivals(&p.claims[i])
	}
}

// holderOver returns an accepted claim of another node that overlaps c, or nil.
func (p *planner) holderOver(held *prefixMap[*claim], c *claim) *claim {
	for _, holder := range held.covering(c.prefix) {
		if holder.node != c.node {
			return holder
		}
	}
	if holder := c.inside.holder; holder != nil && holder.node != c.node {
		return holder
	}
	return nil
}

// keepOwn refuses what is left that overlaps a range of this node: claims of older nodes.
func (p *planner) keepOwn() {
	own := p.ownRanges()
	for i := range p.claims {
		c := &p.claims[i]
		if c.refused || c.node == p.own.node {
			continue
		}
		for _, o := range own {
			if o.Overlaps(c.prefix) {
				c.refused = true
				p.note(c.node, cluster.ReasonPodCIDRConflict, fmt.Sprintf(
					"podCIDR %s overlaps %s of node %s, which does not route its own pods away although it is younger;"+
						" right would be a range for each.", c.prefix, o, p.own.node.Name))
			}
		}
	}
}

func (p *planner) noteRivals(c *claim) {
	if len(c.rivals) == 0 {
		return
	}
	first := c.rivals[0]
	more := ""
	if n := len(c.rivals) - 1; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	p.note(c.node, cluster.ReasonPodCIDRConflict, fmt.Sprintf(
		"podCIDR %s is also claimed by the younger node %s (%s)%s, which gets no route; right would be a range for each.",
		c.prefix, first.node.Name, first.prefix, more))
}

// contains reports whether all of inner is in outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

func inside(ranges []netip.Prefix, p netip.Prefix) bool {
	for _, r := range ranges {
		if contains(r, p) {
			return true
		}
	}
	return false
}

// byFamily sorts ranges into those of IPv4 and those of IPv6, see familyIndex.
func byFamily(ranges []netip.Prefix) [2][]netip.Prefix {
	var sorted [2][]netip.Prefix
	for _, r := range ranges {
		f := familyIndex(r.Addr())
		sorted[f] = append(sorted[f], r.Masked())
	}
	return sorted
}

// list writes ranges for a note.
func list(ranges []netip.Prefix) string {
	s := ranges[0].String()
	for _, r := range ranges[1:] {
		s += ", " + r.String()
	}
	return s
}
