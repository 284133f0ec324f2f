package differential

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestSameSeedSameScene(t *testing.T) {
	for seed := range uint64(20) {
		if !reflect.DeepEqual(generate(seed), generate(seed)) {
			t.Fatalf("seed %d gives two different scenes", seed)
		}
	}
	if reflect.DeepEqual(generate(1).steps, generate(2).steps) {
		t.Error("two seeds give the same scene")
	}
}

// TestVariety: thirty scenes, which is what a run has by default, have everything in them that can be told apart.
func TestVariety(t *testing.T) {
	seen := map[string]bool{}
	for seed := uint64(1); seed <= 30; seed++ {
		for i, step := range generate(seed).steps {
			for _, a := range step {
				if i > 0 {
					seen[a.verb+" later"] = true
				}
				switch {
				case a.service != nil:
					lookAtService(seen, a.service)
				case a.slice != nil:
					lookAtSlice(seen, a.slice)
				default:
					seen["zone "+*a.zone] = true
				}
			}
		}
	}
	for _, want := range []string{
		"create later", "update later", "delete later", "zone ", "zone z1", "zone z2",
		"ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "headless", "label", "three ports", "TCP", "UDP", "SCTP", "unnamed port",
		"IPv4", "IPv6", "IPv4 IPv6", "IPv6 IPv4", "external IP", "ipMode nil", "ipMode VIP", "ipMode Proxy", "host name", "source ranges", "affinity",
		"internal Local", "external Local", "health check", "no node ports", "not ready published",
		"slice IPv4", "slice IPv6", "slice FQDN", "headless slice", "slice of nobody", "nil port", "zone hint", "node hint", "nil ready", "nil serving", "nil terminating",
		"ready terminating", "serving terminating", "own node", "other node", "no node", "empty slice", "crowd",
	} {
		if !seen[want] {
			t.Errorf("no scene has: %s", want)
		}
	}
}

func lookAtService(seen map[string]bool, s *corev1.Service) {
	see := func(what string, is bool) { seen[what] = seen[what] || is }
	see(string(s.Spec.Type), true)
	see("headless", s.Spec.ClusterIP == corev1.ClusterIPNone)
	see("label", len(s.Labels) > 0)
	see("three ports", len(s.Spec.Ports) == 3)
	for _, p := range s.Spec.Ports {
		see(string(p.Protocol), true)
		see("unnamed port", p.Name == "")
		see("no node ports", s.Spec.Type == corev1.ServiceTypeLoadBalancer && p.NodePort == 0)
	}
	families := ""
	for i, f := range s.Spec.IPFamilies {
		if i > 0 {
			families += " "
		}
		families += string(f)
	}
	see(families, true)
	see("external IP", len(s.Spec.ExternalIPs) > 0)
	for _, i := range s.Status.LoadBalancer.Ingress {
		see("host name", i.Hostname != "")
		see("ipMode nil", i.IP != "" && i.IPMode == nil)
		if i.IPMode != nil {
			see("ipMode "+string(*i.IPMode), true)
		}
	}
	see("source ranges", len(s.Spec.LoadBalancerSourceRanges) > 0)
	see("affinity", s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP)
	see("internal Local", s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal)
	see("external Local", s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal)
	see("health check", s.Spec.HealthCheckNodePort != 0)
	see("not ready published", s.Spec.PublishNotReadyAddresses)
}

func lookAtSlice(seen map[string]bool, s *discoveryv1.EndpointSlice) {
	see := func(what string, is bool) { seen[what] = seen[what] || is }
	see("slice "+string(s.AddressType), true)
	_, headless := s.Labels[corev1.IsHeadlessService]
	see("headless slice", headless)
	see("slice of nobody", s.Labels[discoveryv1.LabelServiceName] == "")
	for _, p := range s.Ports {
		see("nil port", p.Port == nil)
	}
	see("empty slice", len(s.Endpoints) == 0)
	see("crowd", len(s.Endpoints) > 200)
	is := func(b *bool) bool { return b != nil && *b }
	for _, e := range s.Endpoints {
		c := e.Conditions
		see("nil ready", c.Ready == nil)
		see("nil serving", c.Serving == nil)
		see("nil terminating", c.Terminating == nil)
		see("ready terminating", is(c.Ready) && is(c.Terminating))
		see("serving terminating", !is(c.Ready) && is(c.Serving) && is(c.Terminating))
		see("zone hint", e.Hints != nil && len(e.Hints.ForZones) > 0)
		see("node hint", e.Hints != nil && len(e.Hints.ForNodes) > 0)
		see("no node", e.NodeName == nil)
		see("own node", e.NodeName != nil && *e.NodeName == ownNode)
		see("other node", e.NodeName != nil && *e.NodeName == otherNode)
	}
}
