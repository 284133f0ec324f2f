package source

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-net/fairway/agent/cluster"
)

// withPrefix puts kube-router's prefix before the names.
func withPrefix(annotations map[string]string) map[string]string {
	out := map[string]string{}
	for name, value := range annotations {
		out[kubeRouterPrefix+name] = value
	}
	return out
}

const secret = "hunter2"

// TestKubeRouterNode: what the annotations on a Node say in the vocabulary, and what is said about bad values: never a password.
func TestKubeRouterNode(t *testing.T) {
	peer := cluster.KubeRouterPeer{Address: ip("192.0.2.1"), ASN: 64500}
	for _, c := range []struct {
		name  string
		in    map[string]string
		want  cluster.KubeRouterNode
		notes []string
	}{
		{name: "peers in YAML", in: map[string]string{"peers": `
- {remoteip: 192.0.2.1, remoteasn: 64500}
- {remoteip: "2001:db8::1", remoteasn: 4200000000, localip: "2001:db8::11", port: 1790, password: aHVudGVyMg==, bfd: {enabled: false, port: 3785}}
`}, want: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{peer,
			{Address: ip("2001:db8::1"), ASN: 4200000000, LocalAddress: ip("2001:db8::11"), Port: 1790, Password: cluster.NewSecret(secret)}}}},
		{name: "they win over the lists", in: map[string]string{"peers": "[{remoteip: 192.0.2.1, remoteasn: 64500}]", "peer.ips": "192.0.2.9", "peer.asns": "1"},
			want: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{peer}}},
		{name: "peers in lists", in: map[string]string{"peer.ips": "192.0.2.1, 192.0.2.2", "peer.asns": "64500,64501", "peer.passwords": ",aHVudGVyMg==", "peer.ports": "179,1790", "peer.localips": ",192.0.2.11"},
			want: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{{Address: ip("192.0.2.1"), ASN: 64500, Port: 179},
				{Address: ip("192.0.2.2"), ASN: 64501, Port: 1790, LocalAddress: ip("192.0.2.11"), Password: cluster.NewSecret(secret)}}}},
		{name: "one bad peer of several", in: map[string]string{"peers": `[{remoteip: 192.0.2.1, remoteasn: 64500}, {remoteip: router, remoteasn: 64500}, {remoteip: 192.0.2.3},
			{remoteip: 192.0.2.4, remoteasn: 64500, localip: "2001:db8::11"}, {remoteip: 192.0.2.1, remoteasn: 64501}]`},
			want: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{peer}},
			notes: []string{`annotation kube-router.io/peers has "router", which is not the address of a router`, `annotation kube-router.io/peers has "", which is not a number from 1 to 4294967294`,
				"annotation kube-router.io/peers has the local address 2001:db8::11 for the peer 192.0.2.4, which it can't reach", "have 192.0.2.1 twice; the first counts"}},
		{name: "a password that is none leaves its peer out, and is not shown", in: map[string]string{"peers": "[{remoteip: 192.0.2.1, remoteasn: 64500}, {remoteip: 192.0.2.2, remoteasn: 64500, password: hunter2}]"},
			want: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{peer}}, notes: []string{"has a password (number 2) that is not in base64, so there is no session with 192.0.2.2"}},
		{name: "no YAML, which has a password", in: map[string]string{"peers": "- {remoteip: 192.0.2.1, password: hunter2, hunter2"}, notes: []string{"annotation kube-router.io/peers is not a list in YAML"}},
		{name: "a password in a wrong place", in: map[string]string{"peers": "[{remoteip: 192.0.2.1, remoteasn: 64500, bfd: hunter2}]"}, notes: []string{"annotation kube-router.io/peers is not a list in YAML"}},
		{name: "lists of different lengths", in: map[string]string{"peer.ips": "192.0.2.1,192.0.2.2", "peer.asns": "64500"}, notes: []string{"annotation kube-router.io/peer.ips has 2 items and kube-router.io/peer.asns 1"}},
		{name: "too few passwords", in: map[string]string{"peer.ips": "192.0.2.1,192.0.2.2", "peer.asns": "64500,64500", "peer.passwords": "aHVudGVyMg=="}, notes: []string{"annotation kube-router.io/peer.passwords has 1 items for 2 peers"}},
		{name: "BFD", in: map[string]string{"peers": "[{remoteip: 192.0.2.1, remoteasn: 64500, bfd: {enabled: true}}]"}, want: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{peer}},
			notes: []string{`annotation kube-router.io/peers asks for BFD with "192.0.2.1", which is not there; right would be a holdTime`}},
		{name: "numbers in hexadecimal, as it reads them", in: map[string]string{"node.asn": "0xfc00"}, want: cluster.KubeRouterNode{ASN: 64512}},
		{name: "no ASN", in: map[string]string{"node.asn": "AS64512"}, notes: []string{`annotation kube-router.io/node.asn has "AS64512", which is not a number from 1 to 4294967294`}},
		{name: "communities", in: map[string]string{"node.bgp.communities": "no-export, 4294967042,64512:100,planned-shut,64512:70000,64512:1:2,x"},
			want:  cluster.KubeRouterNode{Communities: []uint32{0xffffff01, 0xffffff02, 64512<<16 | 100, 0xffff0000}},
			notes: []string{`has "64512:70000", which is not a community`, `has "64512:1:2", which is not a community`, `has "x", which is not a community`}},
		{name: "what is not to be imported", in: map[string]string{"node.bgp.customimportreject": "10.0.0.0/16, 2001:db8::/32,everything"},
			want: cluster.KubeRouterNode{ImportReject: []netip.Prefix{cidr("10.0.0.0/16"), cidr("2001:db8::/32")}}, notes: []string{`has "everything", which is not a CIDR`}},
		{name: "a longer path", in: map[string]string{"path-prepend.as": "64512", "path-prepend.repeat-n": "3"}, want: cluster.KubeRouterNode{PrependASN: 64512, Prepend: 3}},
		{name: "half of a longer path", in: map[string]string{"path-prepend.as": "64512"}, notes: []string{"have no meaning without each other"}},
		{name: "too long a path", in: map[string]string{"path-prepend.as": "64512", "path-prepend.repeat-n": "256"}, notes: []string{`annotation kube-router.io/path-prepend.repeat-n has "256", which is not a number from 1 to 255`}},
		{name: "podCIDRs", in: map[string]string{"pod-cidrs": "10.244.9.0/24,fd00:9::/64"}, want: cluster.KubeRouterNode{PodCIDRs: []netip.Prefix{cidr("10.244.9.0/24"), cidr("fd00:9::/64")}}},
		{name: "one of two wins", in: map[string]string{"pod-cidr": "10.244.8.0/24", "pod-cidrs": "10.244.9.0/24"}, want: cluster.KubeRouterNode{PodCIDRs: []netip.Prefix{cidr("10.244.8.0/24")}}},
		{name: "unless it is none", in: map[string]string{"pod-cidr": "10.244.8.0/33", "pod-cidrs": "10.244.9.0/24"}, want: cluster.KubeRouterNode{PodCIDRs: []netip.Prefix{cidr("10.244.9.0/24")}},
			notes: []string{`annotation kube-router.io/pod-cidr has "10.244.8.0/33", which is not a CIDR`}},
		{name: "a route reflector", in: map[string]string{"rr.server": "42"}, want: cluster.KubeRouterNode{ReflectorClusterID: ip("0.0.0.42")}},
		{name: "a client of reflectors", in: map[string]string{"rr.server": "10.0.0.1", "rr.client": "0x0a000002"}, want: cluster.KubeRouterNode{ReflectorClusterID: ip("10.0.0.1"), ReflectorClient: true}},
		{name: "no cluster IDs", in: map[string]string{"rr.server": "yes", "rr.client": "0"}, notes: []string{`annotation kube-router.io/rr.server has "yes", which is not a cluster ID`, `annotation kube-router.io/rr.client has "0", which is not a cluster ID`}},
		{name: "what there is not", in: map[string]string{"bgp-local-addresses": "192.0.2.11"},
			notes: []string{"NotSupported: annotation kube-router.io/bgp-local-addresses does not count"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := Convert(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: withPrefix(c.in)}})
			if err != nil || o.node.KubeRouter == nil || len(o.remarks.all()) > 0 {
				t.Fatalf("%v, %+v; what is remarked: %v", err, o.node, o.remarks.all())
			}
			got := *o.node.KubeRouter
			told(t, got.Notes, c.notes)
			got.Notes = nil
			want := fmt.Sprintf("%+v", c.want)
			if s := fmt.Sprintf("%+v", got); s != want || !slices.Equal(got.Peers, c.want.Peers) {
				t.Errorf("got  %s\nwant %s", s, want)
			}
		})
	}
}

// told fails the test unless there are these Notes, each with one of the texts, and no secret.
func told(t *testing.T, notes []cluster.Note, want []string) {
	t.Helper()
	if len(notes) != len(want) {
		t.Errorf("the notes are %v, expected %d", notes, len(want))
	}
	for i, text := range want {
		if i < len(notes) && !strings.Contains(notes[i].String(), text) {
			t.Errorf("%s, expected %s", notes[i], text)
		}
	}
	if s := fmt.Sprint(notes); strings.Contains(s, secret) || strings.Contains(s, "aHVudGVy") {
		t.Errorf("a password is shown: %s", s)
	}
}

// TestSecrets: no verb of fmt shows one.
func TestSecrets(t *testing.T) {
	p := cluster.KubeRouterPeer{Password: cluster.NewSecret(secret)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		for _, v := range []any{p, &p, []cluster.KubeRouterPeer{p}, p.Password, &p.Password} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, secret) || strings.Contains(strings.ToLower(s), fmt.Sprintf("%x", secret)) {
				t.Errorf("%s of %T: %s", verb, v, s)
			}
		}
	}
}

func TestKubeRouterService(t *testing.T) {
	for _, c := range []struct {
		in    map[string]string
		want  cluster.KubeRouterService
		notes []string
	}{
		{in: map[string]string{"service.advertise.clusterip": "true", "service.advertise.externalip": "F", "service.advertise.loadbalancerip": "1"},
			want: cluster.KubeRouterService{ClusterIPs: cluster.Yes, ExternalIPs: cluster.No, LoadBalancerIPs: cluster.Yes}},
		{in: map[string]string{"service.advertise.clusterip": "yes"}, want: cluster.KubeRouterService{ClusterIPs: cluster.No}, notes: []string{`service.advertise.clusterip is "yes", which is neither true nor false; it is taken as false`}},
		{in: map[string]string{"service.advertise.loadbalancerip": "true", "service.skiplbips": "false"}, want: cluster.KubeRouterService{LoadBalancerIPs: cluster.No}},
		{in: map[string]string{"service.local": "true"}, want: cluster.KubeRouterService{Local: true}},
		{in: map[string]string{"service.local": "false"}},
		{in: map[string]string{"service.local": "True"}, notes: []string{`service.local is "True", which does not make the policy Local`}},
		{in: map[string]string{"service.hairpin": "", "service.scheduler": "rr"}}, // as it is anyway
		{in: map[string]string{"service.dsr": "tunnel", "service.scheduler": "mh", "service.schedflags": "flag-1"},
			notes: []string{"service.dsr does not count", "service.scheduler does not count", "service.schedflags does not count"}},
	} {
		t.Run(strings.Join(slices.Sorted(maps.Keys(c.in)), " "), func(t *testing.T) {
			o, err := Convert(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", Annotations: withPrefix(c.in)}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
			if err != nil || o.service.KubeRouter == nil {
				t.Fatalf("%v, %+v", err, o)
			}
			got := *o.service.KubeRouter
			told(t, got.Notes, c.notes)
			got.Notes = nil
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
	o, err := Convert(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", Annotations: map[string]string{"kube-router": "", AnnotationAnnounce: "None"}}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
	if err != nil || o.service.KubeRouter != nil {
		t.Errorf("without such annotations: %v, %+v", err, o.service.KubeRouter)
	}
}
