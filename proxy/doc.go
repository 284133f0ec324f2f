// Package proxy decides what this node does with traffic to Services: for every service port of one address family
// which endpoints it is spread over, what is rejected, and whose source address is replaced. The result is a
// [Table], a plain value; package proxy/iptables turns it into rules, and nothing else in the agent decides
// anything about services.
//
// The behaviour is that of kube-proxy's iptables mode: readiness, fallback to terminating endpoints, endpoint
// identity by address and port, traffic policies, topology hints, affinity, masquerading. Where two Services claim the
// same address and port, the older one keeps it, and the other gets a Note; so does a Service that claims an address
// which it may not have, see [AddressPolicy].
//
// The package is pure. It knows no rule syntax, no kernel, and no Kubernetes type.
package proxy
