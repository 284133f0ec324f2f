package bgp

import (
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// annotated adds what kube-router's annotations on the node say to what the operator says. As in kube-router, the Node's peers
// count where the configuration gives it none.
func (p *planner) annotated() {
	node := p.node.KubeRouter
	if p.config.KubeRouter == nil || node == nil {
		return
	}
	p.notes = append(p.notes, node.Notes...)
	if p.config.Mesh == nil && (node.ReflectorClusterID.IsValid() || node.ReflectorClient) {
		p.note(cluster.ReasonNotSupported, "The annotations kube-router.io/rr.server and rr.client do not count: nodes have no BGP sessions with each other; right would be bgp.mesh in the agent's configuration.")
	}
	if node.ASN != 0 {
		p.config.ASN = node.ASN
	}
	if !slices.ContainsFunc(p.config.Peers, p.takes) {
		p.config.Peers = p.annotatedPeers()
	}
	p.config.Announce = slices.Clone(p.config.Announce)
	for i := range p.config.Announce {
		p.config.Announce[i].Attributes = p.annotatedAttributes(p.config.Announce[i].Attributes)
	}
	unconfigured := p.annotatedAttributes(*plain)
	p.plain = &unconfigured
	p.annotatedPrepend()
}

// annotatedPeers returns the peers that the Node names.
func (p *planner) annotatedPeers() (peers []PeerConfig) {
	for _, a := range p.node.KubeRouter.Peers {
		peer := *p.config.KubeRouter
		peer.Address, peer.ASN, peer.LocalAddress, peer.Password = a.Address, a.ASN, a.LocalAddress, a.Password
		if a.Port != 0 {
			peer.Port = a.Port
		}
		if !peer.LocalAddress.IsValid() {
			peer.LocalAddress = p.node.InternalIP(cluster.FamilyOf(a.Address))
		}
		for i, f := range cluster.Families {
			peer.Families[i] = f == cluster.FamilyOf(a.Address) || p.node.InternalIP(f).IsValid()
		}
		peers = append(peers, PeerConfig{Peer: peer})
	}
	return peers
}

// annotatedAttributes returns attributes with the Node's communities, and with the longer of the two paths.
func (p *planner) annotatedAttributes(a Attributes) Attributes {
	a.Communities = slices.Clone(a.Communities)
	for _, c := range p.node.KubeRouter.Communities {
		if !slices.Contains(a.Communities, Community(c)) {
			a.Communities = append(a.Communities, Community(c))
		}
	}
	a.Prepend = max(a.Prepend, p.annotatedRepeat())
	return a
}

// annotatedRepeat is how many times the Node has the path prepended. An iBGP peer would refuse it.
func (p *planner) annotatedRepeat() uint8 {
	if p.config.Mesh != nil || slices.ContainsFunc(p.config.Peers, func(peer PeerConfig) bool { return p.takes(peer) && peer.ASN == p.config.ASN }) {
		return 0
	}
	return p.node.KubeRouter.Prepend
}

// annotatedPrepend tells where the path that is announced is not the one of the annotations.
func (p *planner) annotatedPrepend() {
	switch node := p.node.KubeRouter; {
	case node.Prepend == 0:
	case p.annotatedRepeat() == 0:
		p.note(cluster.ReasonNotSupported, "The annotation kube-router.io/path-prepend.as does not count: a peer of this node has its own ASN %d, and would refuse the path. Right would be peers of other ASNs alone, and no bgp.mesh.", p.config.ASN)
	case node.PrependASN != p.config.ASN:
		p.note(cluster.ReasonNotSupported, "The annotation kube-router.io/path-prepend.as has %d, and the path is prepended with the node's own ASN %d as many times: routers refuse a path that does not begin with that. Right would be %[2]d.", node.PrependASN, p.config.ASN)
	}
}

// takes reports whether a peer's selector takes this node.
func (p *planner) takes(peer PeerConfig) bool {
	return p.node.HasLabels(peer.NodeSelector)
}

// annotatedChoice is what kube-router's annotations on a Service say about a kind of its addresses.
func (p *planner) annotatedChoice(s *cluster.Service, k Kind) cluster.Choice {
	if p.config.KubeRouter == nil || s.KubeRouter == nil {
		return cluster.Unchosen
	}
	return map[Kind]cluster.Choice{ClusterIPs: s.KubeRouter.ClusterIPs, ExternalIPs: s.KubeRouter.ExternalIPs, LoadBalancerIPs: s.KubeRouter.LoadBalancerIPs}[k]
}
