package proxy

import (
	"net/netip"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Table is what one node does with the service traffic of one address family.
type Table struct {
	Family cluster.Family
	// Ports are the service ports that this family serves, in the order of their Services and spec.ports. A port
	// whose inputs did not change keeps its pointer from one Table to the next.
	Ports []*Port
	// Endpoints is the number of endpoints known to the ports, whatever their conditions; kube-proxy's measure of a
	// large cluster.
	Endpoints int
	// Local tells traffic of this node's (or cluster's) pods from other traffic.
	Local LocalTraffic
	// MasqueradeAll replaces the source of everything sent to a cluster IP.
	MasqueradeAll bool
	// NodePorts says at which addresses of the node its node ports are.
	NodePorts NodePorts
	// ServiceRanges are the networks that ClusterIPs are from, as far as they are known: what goes there and is no service
	// port is rejected. RejectUnknown tells that it is; without ranges then only at ClusterIPs that there are.
	ServiceRanges []netip.Prefix
	RejectUnknown bool
	// HealthChecks are the health check node ports of Services, in the order of the Services.
	HealthChecks []HealthCheck

	// What follows is the memo for the next Plan.
	config   Config
	here     locality
	services []*planned
	claims   [2][]claim // before conflicts were settled
	guard    guard
}

// A HealthCheck is a port at which load balancers ask whether this node has endpoints of a Service (spec.healthCheckNodePort).
type HealthCheck struct {
	Service *cluster.Service
	Port    uint16
	// LocalEndpoints counts the addresses of ready endpoints of the family that are on this node, whatever their ports.
	LocalEndpoints int
}

// NodePorts are the addresses of the node at which node ports are served.
type NodePorts struct {
	// Everywhere means all addresses that the node has, and Addrs is empty.
	Everywhere bool
	// Addrs are those addresses otherwise, in order.
	Addrs []netip.Addr
	// Localhost tells that node ports are served at 127.0.0.0/8 too: to all of it with Everywhere, else to the addresses
	// of it among Addrs. IPv4 only: the kernel has no route_localnet for IPv6.
	Localhost bool
}

// A Verdict is what happens to traffic.
type Verdict uint8

// The verdicts.
const (
	// Reject: there are no endpoints at all; the client is told.
	Reject Verdict = iota
	// Drop: there are endpoints, but none that may be used here (policy Local).
	Drop
	// ToCluster spreads the traffic over Port.Cluster.
	ToCluster
	// ToLocal spreads the traffic over Port.Local.
	ToLocal
)

// String returns "reject", "drop", "cluster" or "local".
func (v Verdict) String() string { return [...]string{"reject", "drop", "cluster", "local"}[v] }

// A Port is what happens to the traffic of one service port.
type Port struct {
	// Name is the port's full name, which names its chains and stands in its comments.
	Name PortName
	// Service is the Service that the port belongs to.
	Service  *cluster.Service
	Protocol cluster.Protocol
	// ClusterIP and Port are the port's internal address; ClusterIP is the zero Addr when an older Service holds it.
	ClusterIP netip.Addr
	Port      uint16
	// ExternalIPs and LoadBalancerIPs are addresses outside of the cluster on which Port is served too, without those that
	// were refused or that an older Service holds.
	ExternalIPs, LoadBalancerIPs []netip.Addr
	// NodePort is the port's number on every address of the node, 0 when there is none.
	NodePort uint16
	// AllowedSources are the networks that may use LoadBalancerIPs; nil means everybody. AllowSelf tells that an address
	// of this node is among them: then connections that come with a load balancer IP as their source are the node's own.
	AllowedSources []netip.Prefix
	AllowSelf      bool
	// Internal is what happens to traffic to the ClusterIP, External to traffic from outside to everything else. When
	// External is ToLocal or Drop, the policy is Local: then traffic of pods and of the node itself goes to Cluster all
	// the same, as through the ClusterIP.
	Internal, External Verdict
	// Cluster and Local are the endpoints for either verdict. They share the traffic evenly, and are ordered by the text of
	// address and port as kube-proxy's rules are. A list that nothing refers to is empty.
	Cluster, Local []Backend
	// Serving are the endpoints whose UDP flows may go on: all that serve or are ready, wherever they are; in the order
	// of their addresses and ports. Other protocols' connections are never cut, and have none.
	Serving []netip.AddrPort
	// Affinity is how long a client stays with its endpoint, counted from its last new connection, in whole seconds; 0 for
	// not at all.
	Affinity time.Duration
}

// FromOutside tells whether there is a way to the port besides its ClusterIP.
func (p *Port) FromOutside() bool {
	return p.NodePort != 0 || len(p.ExternalIPs)+len(p.LoadBalancerIPs) > 0
}

// A PortName names a service port the way kube-proxy does.
type PortName struct {
	Namespace, Service, Port string
}

// String returns "namespace/service", or "namespace/service:port" for a port with a name.
func (n PortName) String() string {
	s := n.Namespace + "/" + n.Service
	if n.Port != "" {
		s += ":" + n.Port
	}
	return s
}

// A Backend is an endpoint that gets traffic.
type Backend struct {
	Addr netip.AddrPort
	// Local is true when the endpoint is on this node, or may be: only such an endpoint can reach itself through
	// its own Service here, and then needs its source replaced (hairpin).
	Local bool
}

// LocalTraffic tells which sources are pods and so need no masquerading on the way to a cluster IP. The zero value
// means that there is no telling: nothing is masqueraded for its source.
type LocalTraffic struct {
	// CIDR matches by source address.
	CIDR netip.Prefix
	// Interface matches by the interface that the packet came in on; used when CIDR is not valid. A trailing "+"
	// matches every interface whose name begins so.
	Interface string
}

// Known tells whether there is any way to tell.
func (l LocalTraffic) Known() bool { return l.CIDR.IsValid() || l.Interface != "" }

// A DetectMode is a way to tell pods' traffic from other traffic, named as in kube-proxy's detectLocalMode.
type DetectMode string

// The detect-local modes.
const (
	DetectClusterCIDR         DetectMode = "ClusterCIDR"
	DetectNodeCIDR            DetectMode = "NodeCIDR"
	DetectBridgeInterface     DetectMode = "BridgeInterface"
	DetectInterfaceNamePrefix DetectMode = "InterfaceNamePrefix"
)

// A Config is what an operator sets about services.
type Config struct {
	// NodeName is the name of the node that the plan is for.
	NodeName string
	// Detect is the detect-local mode; empty means DetectClusterCIDR.
	Detect DetectMode
	// ClusterCIDRs are the pods' networks, at most one per family, for DetectClusterCIDR.
	ClusterCIDRs [2]netip.Prefix
	// Interface is the bridge's name or the prefix of interface names, for the modes that need one.
	Interface string
	// MasqueradeAll replaces the source of everything sent to a cluster IP.
	MasqueradeAll bool
	// NodePorts says where node ports are served; nil means at every address, and not at 127.0.0.0/8. It is not changed.
	NodePorts *NodePortPolicy
	// NodeIPs replace the addresses of the Node's status where the family has one; see kube-proxy's bindAddress.
	NodeIPs [2]netip.Addr
	// ForwardUnknown lets packets to the service range that are for no service port follow the node's routes, as kube-proxy
	// does, instead of rejecting them.
	ForwardUnknown bool
	// Addresses says which external and load balancer IPs are served; nil means no external IP and every load balancer
	// IP that is not part of the cluster. It is not changed.
	Addresses *AddressPolicy
}

// A NodePortPolicy says at which addresses of the node its node ports are served.
type NodePortPolicy struct {
	// CIDRs are the networks that such an address is from; those of one family decide about that family, and a family without
	// any has its node ports at every address.
	CIDRs []netip.Prefix
	// Primary means the node's own addresses of its status instead, one for each family.
	Primary bool
	// Localhost serves node ports at 127.0.0.0/8 too, if CIDRs allow it.
	Localhost bool
}

// PairOf sorts CIDRs by family into the form that Config.ClusterCIDRs has.
func PairOf(cidrs []netip.Prefix) (pair [2]netip.Prefix) {
	for _, c := range cidrs {
		i := 0
		if cluster.FamilyOf(c.Addr()) == cluster.IPv6 {
			i = 1
		}
		if !pair[i].IsValid() {
			pair[i] = c
		}
	}
	return pair
}

func (c Config) localTraffic(f cluster.Family, node *cluster.Node) LocalTraffic {
	switch c.Detect {
	case DetectNodeCIDR:
		if node == nil {
			return LocalTraffic{}
		}
		return LocalTraffic{CIDR: node.PodCIDR(f)}
	case DetectBridgeInterface:
		return LocalTraffic{Interface: c.Interface}
	case DetectInterfaceNamePrefix:
		return LocalTraffic{Interface: strings.TrimSuffix(c.Interface, "+") + "+"}
	}
	if f == cluster.IPv6 {
		return LocalTraffic{CIDR: c.ClusterCIDRs[1]}
	}
	return LocalTraffic{CIDR: c.ClusterCIDRs[0]}
}
