package conformance_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// A hinted is an endpoint with topology hints. Without any, its slice says nothing.
type hinted struct {
	lab.Endpoint
	zones, nodes []string
}

func inZones(e lab.Endpoint, zones ...string) hinted { return hinted{Endpoint: e, zones: zones} }

func (h hinted) hints() *discoveryv1.EndpointHints {
	if len(h.zones)+len(h.nodes) == 0 {
		return nil
	}
	out := &discoveryv1.EndpointHints{}
	for _, z := range h.zones {
		out.ForZones = append(out.ForZones, discoveryv1.ForZone{Name: z})
	}
	for _, n := range h.nodes {
		out.ForNodes = append(out.ForNodes, discoveryv1.ForNode{Name: n})
	}
	return out
}

// putHinted is put for endpoints with hints.
func (s *stage) putHinted(svc *corev1.Service, endpoints ...hinted) {
	s.cluster.SetService(svc)
	for _, f := range cluster.Families {
		slice := lab.Slice(svc, strings.ToLower(f.String()), f)
		for _, h := range endpoints {
			e := lab.Slice(svc, "", f, h.Endpoint).Endpoints[0]
			e.Hints = h.hints()
			slice.Endpoints = append(slice.Endpoints, e)
		}
		s.cluster.SetSlice(slice)
	}
}

// zone labels n1, for the next write; with an empty zone it has no such label.
func (s *stage) zone(name string) {
	n := lab.NodeObject(s.n1.NodeSpec)
	if name != "" {
		n.Labels[corev1.LabelTopologyZone] = name
	}
	s.cluster.SetNode(n)
}

// Hints for zones keep traffic in the zone of the node, wherever the endpoints are, as long as every ready endpoint has one
// and the node's zone is known. Node ports follow them too. All of that changes without a restart.
func TestCase56ZoneHints(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := nodePort(web(10), port)
		s.zone("z1")
		s.putHinted(svc, inZones(lab.Ready(s.p1), "z2"), inZones(lab.Ready(s.p2), "z1", "z2"), inZones(lab.Ready(s.p3), "z1"))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p1.Namespace, tcp(vip(f, 10), 80), saw(s.p1.Addr(f), "p2", "p3"))
			sees(t, s.n1.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p2", "p3"))
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p2", "p3"))
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p2", "p3"))
			// n2 is in no zone.
			if have := look(s.p3.Namespace, tcp(vip(f, 10), 80)); len(have) != 3 {
				t.Errorf("on a node without a zone p3 sees %v, want three endpoints", have)
			}
		})
		comesTo := func(names ...string) {
			t.Helper()
			s.write(t)
			for _, f := range cluster.Families {
				comesToSee(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, names...))
				sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, names...))
			}
		}
		s.zone("z2")
		comesTo("p1", "p2")
		s.zone("")
		comesTo("p1", "p2", "p3")
		s.zone("z1")
		comesTo("p2", "p3")
		s.zone("z9") // for which there is no endpoint
		comesTo("p1", "p2", "p3")
		s.zone("z1")
		s.putHinted(svc, inZones(lab.Ready(s.p1), "z2"), inZones(lab.NotReady(s.p2)), inZones(lab.Ready(s.p3), "z1"))
		comesTo("p3") // one that is not ready needs no hint
		s.putHinted(svc, inZones(lab.Ready(s.p1), "z2"), inZones(lab.Ready(s.p2)), inZones(lab.Ready(s.p3), "z1"))
		comesTo("p1", "p2", "p3")
		s.putHinted(svc, inZones(lab.Terminating(s.p1), "z2"), inZones(lab.Terminating(s.p3), "z1"))
		comesTo("p1", "p3") // hints are for ready ones
	})
}

// Hints for nodes come before those for zones, which are used when none is for this node. Neither limits a policy Local; but
// who is led to all endpoints in spite of one is led to those that are hinted.
func TestCase57NodeHints(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		on := func(e lab.Endpoint, zone, node string) hinted {
			return hinted{Endpoint: e, zones: []string{zone}, nodes: []string{node}}
		}
		s.zone("z1")
		s.putHinted(web(10), on(lab.Ready(s.p1), "z1", "n1"), on(lab.Ready(s.p3), "z1", "n2"))
		s.putHinted(web(11), on(lab.Ready(s.p1), "z2", "n2"), on(lab.Ready(s.p3), "z1", "n2"))
		s.putHinted(web(12), on(lab.Ready(s.p1), "z1", "n1"), inZones(lab.Ready(s.p3), "z1"))
		local := []hinted{on(lab.Ready(s.p1), "z2", "n2"), on(lab.Ready(s.p3), "z1", "n1")}
		s.putHinted(internalLocal(web(13)), local...)
		s.putHinted(externalLocal(nodePort(web(14), port)), local...)
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for n, names := range map[int][]string{10: {"p1"}, 11: {"p3"}, 12: {"p1", "p3"}, 13: {"p1"}, 14: {"p3"}} {
				sees(t, s.p2.Namespace, tcp(vip(f, n), 80), saw(s.p2.Addr(f), names...))
				sees(t, s.c.Namespace, tcp(vip(f, n), 80), s.masqueraded(f, names...))
			}
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
			sees(t, s.p2.Namespace, tcp(s.gateway(f), port), saw(s.p2.Addr(f), "p3"))
			sees(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
		})
		// n1 loses its only hint of service 10, and the zone decides.
		s.putHinted(web(10), on(lab.Ready(s.p1), "z2", "n2"), on(lab.Ready(s.p3), "z1", "n2"))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p3"))
		})
	})
}
