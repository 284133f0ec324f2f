package source

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/fairway-net/fairway/agent/cluster"
)

// FuzzConvert holds what the rest of the agent relies on: whatever an object contains, conversion does not panic, and
// what comes out can be written into a rule.
func FuzzConvert(f *testing.F) {
	for _, seed := range []string{
		`{"metadata":{"name":"n1","uid":"u","labels":{"topology.kubernetes.io/zone":"z"}},"spec":{"podCIDRs":["10.1.0.0/24","fd00::/64"]},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.01"}]}}`,
		`{"metadata":{"name":"db","namespace":"default"},"spec":{"clusterIP":"::ffff:10.0.0.1","clusterIPs":["10.0.0.1","fd00::1"],"ipFamilies":["IPv4","IPv6"],"ports":[{"name":"a","port":80,"nodePort":30000,"protocol":"UDP"}],"externalIPs":["1.2.3.4"],"loadBalancerSourceRanges":["0.0.0.0/0"],"sessionAffinity":"ClientIP"},"status":{"loadBalancer":{"ingress":[{"ip":"1.2.3.5"}]}}}`,
		`{"metadata":{"name":"db","namespace":"default","labels":{"kubernetes.io/service-name":"db"}},"addressType":"IPv4","ports":[{"name":"a","port":80}],"endpoints":[{"addresses":["10.0.0.1"],"nodeName":"n1","conditions":{"ready":false},"hints":{"forZones":[{"name":"z"}]}}]}`,
		`{"metadata":{"name":"\" -j ACCEPT\n","namespace":"%s","uid":"\u0000","labels":{"kubernetes.io/service-name":"-A"}}}`,
		`{"metadata":{"name":"a","namespace":"a","labels":{"kubernetes.io/service-name":"a"}},"addressType":"IPv6","endpoints":[{"addresses":["fe80::1%eth0"]},{"addresses":["::ffff:127.0.0.1"]},{}]}`,
		`{"metadata":{"name":"a","namespace":"a"},"spec":{"clusterIP":"10.0.0.1","ports":[{"port":-1},{"port":80,"nodePort":-1}],"healthCheckNodePort":99999,"type":"LoadBalancer","externalTrafficPolicy":"Local"}}`,
		`{"metadata":{"name":"kubernetes","uid":"u","deletionTimestamp":"2026-01-02T03:04:05Z"},"spec":{"cidrs":["10.96.0.0/12","fd00::/108"]}}`,
		`{"metadata":{"name":"x\n-A","annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"\u0000"}},"spec":{"cidrs":["::ffff:10.0.0.0/104","0.0.0.0/0","::/0","-A"]}}`,
		`{"metadata":{"name":"a","namespace":"a","labels":{"kubernetes.io/service-name":"a"},"annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-02T03:04:05.000000001+14:00"}},"addressType":"IPv4"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, obj := range []any{&corev1.Node{}, &corev1.Service{}, &discoveryv1.EndpointSlice{}, &networkingv1.ServiceCIDR{}} {
			if json.Unmarshal(data, obj) != nil {
				continue
			}
			o, err := Convert(obj)
			if err != nil {
				t.Fatal(err)
			}
			v := verifier{t}
			v.notes(o.remarks.all())
			if o.node != nil {
				v.node(o.node)
			}
			if o.service != nil {
				v.service(o.service)
			}
			if o.slice != nil {
				v.slice(o.slice)
			}
			v.prefixes(o.serviceCIDRs)
			for _, p := range o.serviceCIDRs {
				v.require(p.Bits() > 0, "service range", p.String())
			}
		}
	})
}

type verifier struct{ *testing.T }

func (v verifier) require(ok bool, what string, value any) {
	if !ok {
		v.Fatalf("%s: %q", what, value)
	}
}

func (v verifier) addrs(addrs ...netip.Addr) {
	for _, a := range addrs {
		v.require(a.IsValid() && !a.Is4In6() && a.Zone() == "" && special(a) == "", "address", a.String())
	}
}

func (v verifier) prefixes(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		v.require(p.IsValid() && !p.Addr().Is4In6() && p == p.Masked(), "prefix", p.String())
	}
}

func (v verifier) notes(notes []cluster.Note) {
	v.require(len(notes) <= maxRemarks+1, "number of notes", len(notes))
	for _, n := range notes {
		s := n.String()
		v.require(len(s) < 1024 && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl), "note", s)
	}
}

func (v verifier) node(n *cluster.Node) {
	v.require(isSubdomain(n.Name) && isUID(n.UID), "node", n)
	v.require(n.Zone == "" || isLabelValue(n.Zone), "zone", n.Zone)
	v.addrs(n.InternalIPs...)
	v.addrs(n.ExternalIPs...)
	v.prefixes(n.PodCIDRs)
}

func (v verifier) service(s *cluster.Service) {
	v.require(isLabel(s.Name) && isLabel(s.Namespace) && isUID(s.UID), "service", s)
	v.require(len(s.ClusterIPs) >= 1 && len(s.ClusterIPs) <= 2, "clusterIPs", s.ClusterIPs)
	v.addrs(s.ClusterIPs...)
	v.addrs(s.ExternalIPs...)
	v.addrs(s.LoadBalancerIPs...)
	v.prefixes(s.LoadBalancerSourceRanges)
	for _, p := range s.Ports {
		v.require(p.Name == "" || isLabel(p.Name), "port", p.Name)
		v.require(p.Port != 0 && p.Protocol.String() != "none", "port", p)
	}
}

func (v verifier) slice(s *cluster.EndpointSlice) {
	v.require(isSubdomain(s.Name), "slice", s.Name)
	for _, p := range s.Ports {
		v.require((p.Name == "" || isLabel(p.Name)) && p.Port != 0 && p.Protocol.String() != "none", "port", p)
	}
	for _, e := range s.Endpoints {
		v.addrs(e.Addr)
		v.require(cluster.FamilyOf(e.Addr) == s.Family, "family", e.Addr.String())
		v.require(e.NodeName == "" || isSubdomain(e.NodeName), "nodeName", e.NodeName)
		for _, z := range e.ForZones {
			v.require(isLabelValue(z), "zone", z)
		}
		for _, n := range e.ForNodes {
			v.require(isSubdomain(n), "node", n)
		}
	}
}
