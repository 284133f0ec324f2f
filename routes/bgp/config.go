package bgp

import (
	"net/netip"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Config is what the operator says about BGP.
type Config struct {
	// NodeName is the node that the plan is for.
	NodeName string
	// ASN is this node's autonomous system.
	ASN uint32
	// RouterID is the node's BGP identifier, an IPv4 address; the zero Addr stands for the node's first IPv4 InternalIP.
	RouterID netip.Addr
	// ListenPort is the TCP port on which peers may connect; 0 for none.
	ListenPort uint16
	// Peers are all peers of all nodes.
	Peers []PeerConfig
	// Announce says what is announced, and how; what is in none of them is not. A Kind is in one of them at most.
	Announce []Announcement
	// Import are the prefixes that are taken from peers; none when empty.
	Import []ImportRange
	// FromExcluded announces addresses of Services also from nodes with the label
	// node.kubernetes.io/exclude-from-external-load-balancers.
	FromExcluded bool
	// DrainTaints are the taints of a node that draws no traffic to Services, besides one that asks for that itself.
	DrainTaints []TaintMatch
	// NoticeTime is how long paths are announced with GRACEFUL_SHUTDOWN (RFC 8326) before they are withdrawn on purpose, QuietTime
	// how long the sessions stay after that when the node leaves.
	NoticeTime, QuietTime time.Duration
	// KubeRouter has the annotations of kube-router count, and is what the peers that they name are like otherwise; nil when they
	// do not count.
	KubeRouter *Peer
	// ServiceCIDRs are networks that ClusterIPs are from, besides those that the Snapshot has.
	ServiceCIDRs []netip.Prefix
	// Mesh has nodes speak BGP with each other; nil for none.
	Mesh *MeshConfig
}

// A PeerConfig is a peer of the nodes that have all the labels of its NodeSelector.
type PeerConfig struct {
	Peer
	// NodeSelector are labels as Node.Labels has them.
	NodeSelector []string
}

// A Peer is a BGP neighbour and how to reach it.
type Peer struct {
	Address netip.Addr
	Port    uint16
	ASN     uint32
	// Families are the address families that the session carries, by their place in cluster.Families.
	Families [2]bool
	// Multihop is how many hops an eBGP peer may be away; 0 for one that is on a link.
	Multihop uint8
	// TTLSecurity is the same for a session whose packets must have come no further (RFC 5082); 0 for no such check.
	TTLSecurity uint8
	// LocalAddress is this node's end of the session; the zero Addr leaves it to the kernel.
	LocalAddress netip.Addr
	// PasswordFile holds the key of TCP-MD5 (RFC 2385); empty for none.
	PasswordFile string
	// Password is the key itself, for a peer that has it in an annotation.
	Password cluster.Secret `json:",omitzero"`
	// HoldTime, KeepaliveTime and ConnectRetryTime are those of RFC 4271, in whole seconds.
	HoldTime, KeepaliveTime, ConnectRetryTime time.Duration
	// MaxPrefixes is how many prefixes of each family the peer may send before its session is ended.
	MaxPrefixes uint32
	// RestartTime is for how long the peer is asked to keep the node's routes when the session is lost (graceful restart,
	// RFC 4724), in whole seconds; 0 for not at all.
	RestartTime time.Duration
	// Node is the node that the peer is; empty for a router.
	Node string
	// Passive leaves it to the peer to connect.
	Passive bool
	// Helps keeps what the peer announces while the peer is restarted, without asking for the same (graceful restart's helper); with a
	// RestartTime, that is so anyway.
	Helps bool
	// ClusterID makes the peer a client of this node, which is a route reflector of this cluster ID (RFC 4456): it is told what
	// other nodes announce. The zero Addr for one that is not.
	ClusterID netip.Addr
	// Pods are the podCIDRs that a reflector takes from the node to pass them on, by their family's place in cluster.Families; the
	// zero Prefix for none.
	Pods [2]netip.Prefix
}

// DefaultMaxPrefixes is for a peer of which nothing else is said. Each prefix takes about 1.5 KB, whether it is imported or not, and a
// router that sends a full table by mistake must not fill the node's memory.
const DefaultMaxPrefixes = 20_000

// sameSession reports whether a peer can become the other without a new session. Another file may have the same password; whether
// it has, who reads it knows.
func (p Peer) sameSession(o Peer) bool {
	o.ConnectRetryTime, o.MaxPrefixes, o.PasswordFile = p.ConnectRetryTime, p.MaxPrefixes, p.PasswordFile
	return p == o.OfNode(p.Node, p.Pods)
}

// OfNode returns the peer with another node's name and podCIDRs, of which the session itself knows nothing.
func (p Peer) OfNode(name string, pods [2]netip.Prefix) Peer {
	p.Node, p.Pods = name, pods
	return p
}

// A Kind is a kind of address that can be announced.
type Kind uint8

// The kinds, in their order of precedence: a prefix that is of two kinds is announced as the first.
const (
	// PodCIDRs are the node's own.
	PodCIDRs Kind = iota
	// ServiceCIDRs are the networks of all ClusterIPs as a whole, and besides them the ClusterIPs with policy Local, from
	// the nodes that have an endpoint.
	ServiceCIDRs
	// ClusterIPs, ExternalIPs and LoadBalancerIPs are single addresses of Services.
	ClusterIPs
	ExternalIPs
	LoadBalancerIPs
)

// Kinds are all of them.
var Kinds = [...]Kind{PodCIDRs, ServiceCIDRs, ClusterIPs, ExternalIPs, LoadBalancerIPs}

// String returns the word of the configuration.
func (k Kind) String() string {
	return [...]string{"PodCIDRs", "ServiceCIDRs", "ClusterIPs", "ExternalIPs", "LoadBalancerIPs"}[k]
}

// MarshalText returns the word of the configuration.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// An Announcement says which kinds of addresses are announced, and with which attributes.
type Announcement struct {
	Kinds      []Kind
	Attributes Attributes
}

// DefaultLocalPref is the LOCAL_PREF that is taken where none is given (as in every implementation).
const DefaultLocalPref = 100

// Attributes are the path attributes that an operator can set. They are not changed.
type Attributes struct {
	Communities      []Community
	LargeCommunities []LargeCommunity
	// LocalPref goes to iBGP peers alone.
	LocalPref uint32
	// MED is not sent when 0, which means the same.
	MED uint32
	// Prepend is how many times more than once the path has the node's ASN, for eBGP peers.
	Prepend uint8
}

// familyIndex is a prefix's or address's place in cluster.Families.
func familyIndex(a netip.Addr) int {
	if cluster.FamilyOf(a) == cluster.IPv6 {
		return 1
	}
	return 0
}
