package cluster

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A Family is an IP address family.
type Family uint8

// The two address families. The zero Family is none.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both families in the order in which everything treats them.
var Families = [...]Family{IPv4, IPv6}

// FamilyOf tells the family of an address. An IPv4-mapped IPv6 address counts as IPv6, as it does for the kernel;
// sources unmap addresses at the door, so none is found inside.
func FamilyOf(a netip.Addr) Family {
	switch {
	case a.Is4():
		return IPv4
	case a.Is6():
		return IPv6
	}
	return 0
}

// String returns "IPv4" or "IPv6", the spelling of the Kubernetes API and of the ip_family label of metrics.
func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	}
	return "none"
}

// A Protocol is a transport protocol, by its IANA number.
type Protocol uint8

// The protocols that a Service port can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the lower-case name that iptables uses ("tcp").
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return "none"
}

// A Snapshot is everything that the agent knows at one moment. A Source publishes a Snapshot only when it holds
// complete lists of all its kinds, so "not in the Snapshot" means "does not exist".
type Snapshot struct {
	// Nodes are all nodes, ordered by name.
	Nodes []*Node
	// Services are all Services that a service proxy looks after, ordered by namespace and name. Headless and
	// ExternalName Services and those with a service.kubernetes.io/service-proxy-name label are not among them.
	Services []*Service
	// ServiceCIDRs are the networks that ClusterIPs are from, by the cluster's ServiceCIDR objects (KEP-1880), in order
	// without duplicates; none where the API does not tell.
	ServiceCIDRs []netip.Prefix
	// Host is the node that this agent runs on, as its kernel sees itself; nil when unknown (offline rendering).
	Host *Host
	// Notes tell what of the objects was not taken over, and why.
	Notes []Note
	// Saved is when the Snapshot was programmed and written to the disk that it was read from; zero for one that a Source published. A
	// saved one is no complete list: what is not in it may exist by now.
	Saved time.Time
}

// Node returns the Node with the given name, or nil.
func (s *Snapshot) Node(name string) *Node {
	i, ok := slices.BinarySearchFunc(s.Nodes, name, func(n *Node, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		return nil
	}
	return s.Nodes[i]
}

// A Node is a Kubernetes Node.
type Node struct {
	Name string
	UID  string
	// Created is the creation time, in whole seconds as the API has it. Of two nodes that claim the same podCIDR,
	// the older keeps it.
	Created time.Time
	// PodCIDRs are spec.podCIDRs as given, masked; at most one per family in a valid cluster.
	PodCIDRs []netip.Prefix
	// InternalIPs and ExternalIPs are the addresses of status.addresses of these types, in their order.
	InternalIPs, ExternalIPs []netip.Addr
	// Zone is the topology.kubernetes.io/zone label; empty when absent.
	Zone string
	// ToBeDeleted is true when the Node has a deletion timestamp or carries the taint
	// ToBeDeletedByClusterAutoscaler: a load balancer should send it no new traffic.
	ToBeDeleted bool
	// Excluded is true when the Node has the label node.kubernetes.io/exclude-from-external-load-balancers, whatever its value:
	// no traffic from outside of the cluster should be drawn to it.
	Excluded bool
	// Taints are spec.taints, in their order.
	Taints []Taint
	// Drain is what the annotation fairway.dev/drain says: no traffic to Services should be drawn to the Node.
	Drain bool
	// ShuttingDown is true when the Node's kubelet says that the machine is about to shut down.
	ShuttingDown bool
	// Labels are the Node's labels as "key=value", in order.
	Labels []string
	// KubeRouter is what kube-router's annotations say; nil without any.
	KubeRouter *KubeRouterNode
}

// A Taint is a taint of a Node. Its Value may be empty.
type Taint struct {
	Key, Value, Effect string
}

// String returns the taint as kubectl writes it: "key=value:NoSchedule", or "key:NoSchedule" for one without a value.
func (t Taint) String() string {
	text := t.Key
	if t.Value != "" {
		text += "=" + t.Value
	}
	return text + ":" + t.Effect
}

// HasLabel tells whether the Node has a label, which is written as Labels are.
func (n *Node) HasLabel(label string) bool {
	_, ok := slices.BinarySearch(n.Labels, label)
	return ok
}

// HasLabels tells whether the Node has all of the labels.
func (n *Node) HasLabels(labels []string) bool {
	return !slices.ContainsFunc(labels, func(l string) bool { return !n.HasLabel(l) })
}

// Ref names the Node in a Note.
func (n *Node) Ref() Ref { return Ref{Kind: "Node", Name: n.Name, UID: n.UID} }

// InternalIP returns the Node's first InternalIP of a family; the zero Addr when it has none.
func (n *Node) InternalIP(f Family) netip.Addr {
	for _, a := range n.InternalIPs {
		if FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// PodCIDR returns the Node's first podCIDR of a family; the zero Prefix when it has none.
func (n *Node) PodCIDR(f Family) netip.Prefix {
	for _, p := range n.PodCIDRs {
		if FamilyOf(p.Addr()) == f {
			return p
		}
	}
	return netip.Prefix{}
}

// A TrafficPolicy is a Service's internalTrafficPolicy or externalTrafficPolicy.
type TrafficPolicy uint8

// The traffic policies. The zero value is Cluster, the API's default.
const (
	PolicyCluster TrafficPolicy = iota
	PolicyLocal
)

// String returns the spelling of the Kubernetes API.
func (p TrafficPolicy) String() string {
	if p == PolicyLocal {
		return "Local"
	}
	return "Cluster"
}

// A Service is a Kubernetes Service with the endpoints of its EndpointSlices.
type Service struct {
	Namespace, Name string
	UID             string
	// Created is the creation time, in whole seconds. Of two Services that claim the same address and port, the
	// older keeps it.
	Created time.Time
	// Type is spec.type: ClusterIP, NodePort or LoadBalancer.
	Type string
	// ClusterIPs holds the ClusterIP of each family that the Service has; one per family at most.
	ClusterIPs []netip.Addr
	// Ports are spec.ports, in their order.
	Ports []ServicePort
	// ExternalIPs are spec.externalIPs of both families.
	ExternalIPs []netip.Addr
	// LoadBalancerIPs are the addresses of status.loadBalancer.ingress that are not of ipMode Proxy.
	LoadBalancerIPs []netip.Addr
	// LoadBalancerSourceRanges are spec.loadBalancerSourceRanges of both families; empty means no restriction.
	LoadBalancerSourceRanges []netip.Prefix
	InternalTrafficPolicy    TrafficPolicy
	ExternalTrafficPolicy    TrafficPolicy
	// HealthCheckNodePort is spec.healthCheckNodePort; 0 when there is none.
	HealthCheckNodePort uint16
	// Affinity is the timeout of sessionAffinity ClientIP, in whole seconds; 0 means no affinity.
	Affinity time.Duration
	// Announce is what the annotation fairway.dev/announce says.
	Announce AnnounceChoice
	// KubeRouter is what kube-router's annotations say; nil without any.
	KubeRouter *KubeRouterService
	// Slices are the Service's EndpointSlices, ordered by name. A slice that did not change keeps its pointer.
	Slices []*EndpointSlice
}

// Ref names the Service in a Note.
func (s *Service) Ref() Ref {
	return Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name, UID: s.UID}
}

// ClusterIP returns the Service's ClusterIP of a family; the zero Addr when it has none.
func (s *Service) ClusterIP(f Family) netip.Addr {
	for _, a := range s.ClusterIPs {
		if FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// An AnnounceChoice says which of a Service's addresses are announced to routers, in place of what the agent's configuration
// says.
type AnnounceChoice struct {
	// Given is false when the Service leaves it to the configuration; then so are the others.
	Given                                    bool
	ClusterIPs, ExternalIPs, LoadBalancerIPs bool
}

// A ServicePort is one port of a Service.
type ServicePort struct {
	// Name is empty for the only port of a Service that does not name it.
	Name     string
	Protocol Protocol
	Port     uint16
	// NodePort is 0 when there is none.
	NodePort uint16
}

// An EndpointSlice is one Kubernetes EndpointSlice: every Port applies to every Endpoint.
type EndpointSlice struct {
	Name   string
	Family Family
	// Triggered is when the change happened that led to this version of the slice (annotation
	// endpoints.kubernetes.io/last-change-trigger-time); zero when it does not say.
	Triggered time.Time
	Ports     []EndpointPort
	// Endpoints have one address each, of the slice's Family.
	Endpoints []Endpoint
}

// An EndpointPort is a port of an EndpointSlice. It belongs to the Service port of the same name and protocol.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// An Endpoint is one address of an EndpointSlice, with the API's defaults applied to its conditions.
type Endpoint struct {
	Addr netip.Addr
	// NodeName is the node that the endpoint is on; empty when the slice does not say.
	NodeName string
	// Ready, Serving and Terminating are the endpoint's conditions; unset means true, true and false.
	Ready, Serving, Terminating bool
	// ForZones and ForNodes are the topology hints.
	ForZones, ForNodes []string
}

// A Host is the machine that the agent runs on, as rtnetlink shows it.
type Host struct {
	// Links are the network interfaces, ordered by index.
	Links []Link
}

// A Link is a network interface of the Host.
type Link struct {
	Index int
	Name  string
	// Up is true when the link is administratively up. Carrier is not considered: the kernel keeps routes over a
	// link that merely lost it.
	Up bool
	// Loopback is true for lo.
	Loopback bool
	// Addrs are the link's addresses with the length of their subnet's prefix, not masked.
	Addrs []netip.Prefix
}

// A Ref names a Kubernetes object.
type Ref struct {
	Kind, Namespace, Name, UID string
}

// String returns "Kind namespace/name", or "Kind name" for an object without namespace.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// A Note is a decision not to act, and why. It is shown to people: by render and in the log, as an Event on the
// object, and as a metric by Reason.
type Note struct {
	Object Ref
	// Reason is a CamelCase word as an Event has it, from a closed set: the Reason constants.
	Reason string
	// Detail is one sentence that names the offending value, and what would be right.
	Detail string
}

// String returns the Note as a line of text.
func (n Note) String() string { return n.Object.String() + ": " + n.Reason + ": " + n.Detail }

// SortNotes puts notes into the order in which they are shown, and removes duplicates.
func SortNotes(notes []Note) []Note {
	slices.SortFunc(notes, func(a, b Note) int {
		return cmp.Or(
			strings.Compare(a.Object.Kind, b.Object.Kind),
			strings.Compare(a.Object.Namespace, b.Object.Namespace),
			strings.Compare(a.Object.Name, b.Object.Name),
			strings.Compare(a.Reason, b.Reason),
			strings.Compare(a.Detail, b.Detail),
			strings.Compare(a.Object.UID, b.Object.UID))
	})
	return slices.Compact(notes)
}
