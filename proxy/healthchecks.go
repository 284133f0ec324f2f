package proxy

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/fairway-net/fairway/agent/cluster"
)

// healthCheckOf returns the Service's health check in a family; one without port when it has none there.
func healthCheckOf(svc *cluster.Service, f cluster.Family, here locality) HealthCheck {
	if svc.HealthCheckNodePort == 0 || !svc.ClusterIP(f).IsValid() {
		return HealthCheck{}
	}
	return HealthCheck{Service: svc, Port: svc.HealthCheckNodePort, LocalEndpoints: readyHere(svc, f, here.node)}
}

// readyHere counts the addresses of a Service's ready endpoints on a node. As in kube-proxy, the node is the one that the
// slice names; an endpoint that only terminates doesn't count, although it may still get traffic; and every port of the
// slices counts, whether the Service has it or not.
func readyHere(svc *cluster.Service, f cluster.Family, node string) int {
	type portKind struct {
		name     string
		protocol cluster.Protocol
	}
	seen, ready := map[portKind]bool{}, map[netip.Addr]bool{}
	for _, slice := range svc.Slices {
		for _, p := range slice.Ports {
			kind := portKind{p.Name, p.Protocol}
			if slice.Family != f || seen[kind] {
				continue
			}
			seen[kind] = true
			for _, k := range collect(svc, cluster.ServicePort{Name: p.Name, Protocol: p.Protocol}, f) {
				if k.Ready && k.NodeName == node {
					ready[k.Addr] = true
				}
			}
		}
	}
	return len(ready)
}

// settleHealthChecks leaves a health check port that several Services want to the oldest of them. (The API gives each a
// port of its own; files need not, and kube-proxy leaves the winner to the order of a map.)
func (t *Table) settleHealthChecks() (notes []cluster.Note) {
	holders := make(map[uint16]*cluster.Service, len(t.HealthChecks))
	for _, h := range t.HealthChecks {
		if holder := holders[h.Port]; holder == nil || compareServiceAge(h.Service, holder) < 0 {
			holders[h.Port] = h.Service
		}
	}
	kept := t.HealthChecks[:0]
	for _, h := range t.HealthChecks {
		holder := holders[h.Port]
		if holder == h.Service {
			kept = append(kept, h)
			continue
		}
		notes = append(notes, cluster.Note{Object: h.Service.Ref(), Reason: cluster.ReasonAddressConflict,
			Detail: fmt.Sprintf("health check node port %d already belongs to Service %s/%s, which is older; this Service does not get it", h.Port, holder.Namespace, holder.Name)})
	}
	t.HealthChecks = kept
	return notes
}

// compareServiceAge puts the older Service first; the name decides between equals.
func compareServiceAge(a, b *cluster.Service) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
