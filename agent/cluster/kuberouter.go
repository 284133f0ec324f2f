package cluster

import (
	"fmt"
	"io"
	"net/netip"
)

// A KubeRouterNode is what the annotations of kube-router on a Node say, as far as there is something like it here. Whether it
// counts, the configuration says (bgp.kubeRouterAnnotations).
type KubeRouterNode struct {
	// ASN is the Node's autonomous system (node.asn); 0 when it does not say.
	ASN uint32
	// PodCIDRs stand in place of spec.podCIDRs (pod-cidr, pod-cidrs), masked; empty when it does not say.
	PodCIDRs []netip.Prefix
	// Peers are the routers of this Node alone (peers, or peer.ips and its like).
	Peers []KubeRouterPeer
	// Communities are added to what is announced (node.bgp.communities).
	Communities []uint32
	// PrependASN stands Prepend times before the path (path-prepend.as, path-prepend.repeat-n).
	PrependASN uint32
	Prepend    uint8
	// ImportReject are networks that no route learned may be in (node.bgp.customimportreject), masked.
	ImportReject []netip.Prefix
	// ReflectorClusterID makes the Node a route reflector of that cluster ID (rr.server), an IPv4 address; the zero Addr when it does not.
	// ReflectorClient tells that it is a client of reflectors (rr.client).
	ReflectorClusterID netip.Addr
	ReflectorClient    bool
	// Notes tell what of the annotations was not taken over.
	Notes []Note
}

// A KubeRouterPeer is a BGP peer of one Node.
type KubeRouterPeer struct {
	Address netip.Addr
	ASN     uint32
	// LocalAddress is the Node's end of the session; the zero Addr when it does not say.
	LocalAddress netip.Addr
	// Port is 0 when it does not say.
	Port uint16
	// Password is the key of TCP-MD5 (RFC 2385).
	Password Secret
}

// A KubeRouterService is what the annotations of kube-router on a Service say, likewise.
type KubeRouterService struct {
	// ClusterIPs, ExternalIPs and LoadBalancerIPs tell whether these are announced (service.advertise.*, service.skiplbips).
	ClusterIPs, ExternalIPs, LoadBalancerIPs Choice
	// Local is true for externalTrafficPolicy Local, whatever spec says (service.local).
	Local bool
	// Notes tell what of the annotations was not taken over.
	Notes []Note
}

// A Choice is yes, no, or left to the configuration.
type Choice uint8

// The choices.
const (
	Unchosen Choice = iota
	Yes
	No
)

// A Secret is a text that is written nowhere: not by fmt with any verb, and not as JSON. One that was read from a saved
// Snapshot has Given, and no text any more.
type Secret struct {
	Given bool
	text  string
}

// NewSecret returns a Secret; without a text, that of nothing.
func NewSecret(text string) Secret { return Secret{Given: text != "", text: text} }

// Reveal returns the text.
func (s Secret) Reveal() string { return s.text }

// String tells whether there is a secret.
func (s Secret) String() string {
	if s.Given {
		return "(secret)"
	}
	return ""
}

// Format writes what String returns, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, s.String()) // a formatter has nobody to tell
}
