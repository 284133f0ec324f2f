package agent

import (
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// annotated is what kube-router's annotations make of the objects of a Snapshot: those that they change, by what they were. An
// object that did not change keeps its pointer from one Plan to the next.
type annotated struct {
	nodes    map[*cluster.Node]*cluster.Node
	services map[*cluster.Service]*cluster.Service
	// notes are those about Services; a Node's own agent has those about the Node.
	notes []cluster.Note
}

// annotate returns the Snapshot as kube-router would read it: with the podCIDRs of its annotations, and the policy of
// service.local. prev may be nil.
func annotate(s *cluster.Snapshot, prev *Plan) (*cluster.Snapshot, annotated) {
	a := annotated{nodes: map[*cluster.Node]*cluster.Node{}, services: map[*cluster.Service]*cluster.Service{}}
	var memo annotated
	if prev != nil {
		memo = prev.annotated
	}
	next := *s
	next.Nodes, next.Services = slices.Clone(s.Nodes), slices.Clone(s.Services)
	for i, n := range s.Nodes {
		if n.KubeRouter != nil && len(n.KubeRouter.PodCIDRs) > 0 {
			next.Nodes[i] = replaced(n, memo.nodes, a.nodes, func(n *cluster.Node) { n.PodCIDRs = n.KubeRouter.PodCIDRs })
		}
	}
	for i, svc := range s.Services {
		if svc.KubeRouter == nil {
			continue
		}
		a.notes = append(a.notes, svc.KubeRouter.Notes...)
		reached := svc.Type != "ClusterIP" || len(svc.ExternalIPs) > 0 // from outside
		if svc.KubeRouter.Local && reached && svc.ExternalTrafficPolicy != cluster.PolicyLocal {
			next.Services[i] = replaced(svc, memo.services, a.services, func(s *cluster.Service) { s.ExternalTrafficPolicy = cluster.PolicyLocal })
		}
	}
	if len(a.nodes)+len(a.services) == 0 {
		return s, a
	}
	return &next, a
}

// replaced returns a changed copy of an object, the same one as the last time, and remembers it.
func replaced[T any](old *T, memo, now map[*T]*T, change func(*T)) *T {
	next := memo[old]
	if next == nil {
		copied := *old
		change(&copied)
		next = &copied
	}
	now[old] = next
	return next
}
