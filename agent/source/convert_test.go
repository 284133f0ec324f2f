package source

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/agent/cluster"
)

func ip(s string) netip.Addr     { return netip.MustParseAddr(s) }
func cidr(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func lines(notes []cluster.Note) string {
	var b strings.Builder
	for _, n := range notes {
		fmt.Fprintln(&b, n)
	}
	return b.String()
}

func convertYAML(t *testing.T, into any, text string) *Object {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatalf("the test's own YAML: %v\n%s", err, text)
	}
	o, err := Convert(into)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func check(t *testing.T, got, want any, o *Object, notes string) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if s := lines(o.remarks.all()); s != strings.TrimLeft(notes, "\n") {
		t.Errorf("notes:\n%swant:\n%s", s, notes)
	}
}

func TestConvertRefusesOtherTypes(t *testing.T) {
	if o, err := Convert(&corev1.Pod{}); err == nil {
		t.Errorf("a Pod became %+v", o)
	}
}

func TestConvertNode(t *testing.T) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		name, in string
		want     *cluster.Node
		notes    string
	}{{
		name: "everything",
		in: `
metadata: {name: n1.example, uid: 1f0c, creationTimestamp: "2026-01-02T04:04:05+01:00", labels: {topology.kubernetes.io/zone: eu-1a, rack: r7, node.kubernetes.io/exclude-from-external-load-balancers: ""}, annotations: {fairway.dev/drain: "true"}}
spec: {podCIDR: 10.9.0.0/24, podCIDRs: [10.200.1.0/24, "fd00:1::/64"], taints: [{key: other, value: "1", effect: NoSchedule}]}
status:
  conditions: [{type: Ready, status: "False", reason: KubeletNotReady, message: "[container runtime is down, node is shutting down]"}]
  addresses:
  - {type: Hostname, address: n1}
  - {type: InternalIP, address: 10.240.0.011}
  - {type: ExternalIP, address: 192.0.2.1}
  - {type: InternalIP, address: "fd00::11"}
`,
		want: &cluster.Node{Name: "n1.example", UID: "1f0c", Created: created, Zone: "eu-1a", Excluded: true, Drain: true, ShuttingDown: true,
			Taints:      []cluster.Taint{{Key: "other", Value: "1", Effect: "NoSchedule"}},
			Labels:      []string{"node.kubernetes.io/exclude-from-external-load-balancers=", "rack=r7", "topology.kubernetes.io/zone=eu-1a"},
			PodCIDRs:    []netip.Prefix{cidr("10.200.1.0/24"), cidr("fd00:1::/64")},
			InternalIPs: []netip.Addr{ip("10.240.0.11"), ip("fd00::11")}, ExternalIPs: []netip.Addr{ip("192.0.2.1")}},
	}, {
		name: "podCIDR alone counts when podCIDRs is empty; host bits are masked",
		in:   `{metadata: {name: n1}, spec: {podCIDR: 10.200.1.7/24}}`,
		want: &cluster.Node{Name: "n1", PodCIDRs: []netip.Prefix{cidr("10.200.1.0/24")}},
	}, {
		name: "to be deleted, by taint",
		in:   `{metadata: {name: n1}, spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}}`,
		want: &cluster.Node{Name: "n1", ToBeDeleted: true, Taints: []cluster.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Effect: "NoSchedule"}}},
	}, {
		name: "not ready for another reason, and not drained",
		in: `{metadata: {name: n1, annotations: {fairway.dev/drain: "false"}}, status: {conditions: [{type: Ready, status: "False", message: "container runtime is down"},
			{type: Other, status: "False", message: "node is shutting down"}]}}`,
		want: &cluster.Node{Name: "n1"},
	}, {
		name:  "a drain that is none",
		in:    `{metadata: {name: n1, annotations: {fairway.dev/drain: "yes"}}}`,
		want:  &cluster.Node{Name: "n1"},
		notes: "\nNode n1: InvalidField: annotation fairway.dev/drain is \"yes\", which does not drain the Node; it can be true or false\n",
	}, {
		name: "to be deleted, by time",
		in:   `{metadata: {name: n1, deletionTimestamp: "2026-01-02T04:04:05Z"}}`,
		want: &cluster.Node{Name: "n1", ToBeDeleted: true},
	}, {
		name: "what does not parse is left out, the rest stays",
		in: `
metadata: {name: n1, uid: "a b", labels: {topology.kubernetes.io/zone: "a zone"}}
spec: {podCIDRs: [10.200.1.0/33, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 10.240.0.300}, {type: InternalIP, address: 127.0.0.1}, {type: InternalIP, address: 10.240.0.1}]}
`,
		want: &cluster.Node{Name: "n1", PodCIDRs: []netip.Prefix{cidr("fd00:1::/64")}, InternalIPs: []netip.Addr{ip("10.240.0.1")},
			Labels: []string{"topology.kubernetes.io/zone=a zone"}},
		notes: `
Node n1: InvalidField: metadata.uid is "a b", which is not a UID
Node n1: InvalidField: spec.podCIDRs is "10.200.1.0/33", which is not a CIDR such as 192.0.2.0/24 or 2001:db8::/64
Node n1: InvalidField: status.addresses[0] (InternalIP) is "10.240.0.300", which is not an IP address such as 192.0.2.1 or 2001:db8::1
Node n1: InvalidField: status.addresses[1] (InternalIP) is 127.0.0.1, a loopback address; an address of the cluster's own network is wanted
Node n1: InvalidField: label topology.kubernetes.io/zone is "a zone", which is not a label value
`,
	}, {
		name: "a name that cannot be",
		in:   `{metadata: {name: "n1\n-A INPUT -j ACCEPT"}, spec: {podCIDR: 10.200.1.0/24}}`,
		notes: `
Node "n1\n-A INPUT -j ACCEPT": InvalidField: metadata.name is "n1\n-A INPUT -j ACCEPT", which is not a name of a Node (RFC 1123 subdomain); the Node is left out
`,
	}} {
		t.Run(c.name, func(t *testing.T) {
			o := convertYAML(t, &corev1.Node{}, c.in)
			check(t, o.node, c.want, o, c.notes)
		})
	}
}

// service is a Service that the cases below vary.
func service(vary func(*cluster.Service)) *cluster.Service {
	s := &cluster.Service{Namespace: "default", Name: "db", Type: "ClusterIP", ClusterIPs: []netip.Addr{ip("10.32.0.10")},
		Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 3306}}}
	if vary != nil {
		vary(s)
	}
	return s
}

func TestConvertService(t *testing.T) {
	const head = "metadata: {name: db, namespace: default}\n"
	for _, c := range []struct {
		name, in string
		want     *cluster.Service
		notes    string
	}{{
		name: "the least",
		in:   head + `spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}]}`,
		want: service(nil),
	}, {
		name: "what is announced",
		in:   `{metadata: {name: db, namespace: default, annotations: {fairway.dev/announce: "ClusterIPs, LoadBalancerIPs"}}, spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}]}}`,
		want: service(func(s *cluster.Service) {
			s.Announce = cluster.AnnounceChoice{Given: true, ClusterIPs: true, LoadBalancerIPs: true}
		}),
	}, {
		name: "nothing is announced",
		in:   `{metadata: {name: db, namespace: default, annotations: {fairway.dev/announce: None}}, spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}]}}`,
		want: service(func(s *cluster.Service) { s.Announce.Given = true }),
	}, {
		name: "a word that says nothing about announcements",
		in:   `{metadata: {name: db, namespace: default, annotations: {fairway.dev/announce: "ExternalIPs,true"}}, spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}]}}`,
		want: service(func(s *cluster.Service) { s.Announce = cluster.AnnounceChoice{Given: true, ExternalIPs: true} }),
		notes: `
Service default/db: InvalidField: annotation fairway.dev/announce has "true", which announces nothing; it can be None, or some of ClusterIPs, ExternalIPs and LoadBalancerIPs with commas between them
`,
	}, {
		name: "everything",
		in: `
metadata: {name: db, namespace: default, uid: u-1, creationTimestamp: "2026-01-02T03:04:05Z"}
spec:
  type: LoadBalancer
  clusterIP: 10.32.0.10
  clusterIPs: [10.32.0.10, "fd00::10"]
  ipFamilies: [IPv4, IPv6]
  ports:
  - {name: http, protocol: TCP, port: 80, targetPort: web, nodePort: 30080}
  - {name: dns, protocol: UDP, port: 53}
  - {name: sig, protocol: SCTP, port: 132}
  externalIPs: [198.51.100.7, "2001:db8::7"]
  loadBalancerSourceRanges: [" 10.0.0.0/8 ", "fd00::/8"]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}}
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 32000
status: {loadBalancer: {ingress: [{ip: 203.0.113.9}, {ip: 203.0.113.10, ipMode: VIP}, {ip: 203.0.113.11, ipMode: Proxy}, {hostname: lb.example}]}}
`,
		want: service(func(s *cluster.Service) {
			s.UID, s.Created, s.Type = "u-1", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "LoadBalancer"
			s.ClusterIPs = []netip.Addr{ip("10.32.0.10"), ip("fd00::10")}
			s.Ports = []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80, NodePort: 30080}, {Name: "dns", Protocol: cluster.UDP, Port: 53}, {Name: "sig", Protocol: cluster.SCTP, Port: 132}}
			s.ExternalIPs = []netip.Addr{ip("198.51.100.7"), ip("2001:db8::7")}
			s.LoadBalancerIPs = []netip.Addr{ip("203.0.113.9"), ip("203.0.113.10")}
			s.LoadBalancerSourceRanges = []netip.Prefix{cidr("10.0.0.0/8"), cidr("fd00::/8")}
			s.InternalTrafficPolicy, s.ExternalTrafficPolicy = cluster.PolicyLocal, cluster.PolicyLocal
			s.HealthCheckNodePort, s.Affinity = 32000, 10*time.Second
		}),
	}, {
		name: "headless", in: head + `spec: {clusterIP: None, ports: [{port: 1}]}`,
	}, {
		name: "ExternalName", in: head + `spec: {type: ExternalName, externalName: db.example}`,
	}, {
		name: "another proxy's, whatever the label's value",
		in: `
metadata: {name: db, namespace: default, labels: {service.kubernetes.io/service-proxy-name: ""}}
spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}]}
`,
	}, {
		name:  "no clusterIP",
		in:    head + `spec: {ports: [{port: 3306}]}`,
		notes: "Service default/db: InvalidField: spec.clusterIP is empty; the API server gives every Service but a headless one an address\n",
	}, {
		name: "without ipFamilies only clusterIP counts",
		in:   head + `spec: {clusterIP: 10.32.0.10, clusterIPs: [10.32.0.10, "fd00::10"], ports: [{port: 3306}]}`,
		want: service(nil),
	}, {
		name: "a clusterIP that is not of the family at its place",
		in:   head + `spec: {clusterIP: 10.32.0.10, clusterIPs: [10.32.0.10, "10.32.0.11", "fd00::10"], ipFamilies: [IPv4, IPv6], ports: [{port: 3306}]}`,
		want: service(nil),
		notes: `
Service default/db: InvalidField: spec.clusterIPs[1] is 10.32.0.11, but spec.ipFamilies does not have IPv4 at this place
Service default/db: InvalidField: spec.clusterIPs[2] is fd00::10, but spec.ipFamilies does not have IPv6 at this place
`,
	}, {
		name: "two clusterIPs of one family",
		in:   head + `spec: {clusterIP: 10.32.0.10, clusterIPs: [10.32.0.10, "10.32.0.11"], ipFamilies: [IPv4, IPv4], ports: [{port: 3306}]}`,
		want: service(nil),
		notes: `
Service default/db: InvalidField: spec.clusterIPs[1] is 10.32.0.11, a second IPv4 address; a Service has one of each family at most
`,
	}, {
		name: "leading zeros and IPv4-mapped addresses are what they mean",
		in:   head + `spec: {clusterIP: "::ffff:10.32.0.010", externalIPs: [198.51.100.007], ports: [{port: 3306}]}`,
		want: service(func(s *cluster.Service) { s.ExternalIPs = []netip.Addr{ip("198.51.100.7")} }),
	}, {
		name: "special addresses are no Service's",
		in: head + `
spec: {clusterIP: 10.32.0.10, externalIPs: ["::ffff:127.0.0.1", 169.254.169.254, 0.0.0.0], ports: [{port: 3306}]}
status: {loadBalancer: {ingress: [{ip: 224.0.0.1}]}}
`,
		want: service(nil),
		notes: `
Service default/db: InvalidField: spec.externalIPs[0] is 127.0.0.1, a loopback address; an address of the cluster's own network is wanted
Service default/db: InvalidField: spec.externalIPs[1] is 169.254.169.254, a link-local address; an address of the cluster's own network is wanted
Service default/db: InvalidField: spec.externalIPs[2] is 0.0.0.0, the unspecified address; an address of the cluster's own network is wanted
Service default/db: InvalidField: status.loadBalancer.ingress[0].ip is 224.0.0.1, a multicast address; an address of the cluster's own network is wanted
`,
	}, {
		name: "ports that cannot be",
		in: head + `
spec:
  clusterIP: 10.32.0.10
  ports:
  - {port: 3306}
  - {name: zero, port: 0}
  - {name: big, port: 65536}
  - {name: "-j ACCEPT", port: 81}
  - {name: proto, port: 82, protocol: ICMP}
  - {name: twice, port: 3306}
  - {name: np, port: 83, nodePort: 70000}
`,
		want: service(func(s *cluster.Service) {
			s.Ports = append(s.Ports, cluster.ServicePort{Name: "np", Protocol: cluster.TCP, Port: 83})
		}),
		notes: `
Service default/db: InvalidField: spec.ports[1].port is 0; a port is a number from 1 to 65535
Service default/db: InvalidField: spec.ports[2].port is 65536; a port is a number from 1 to 65535
Service default/db: InvalidField: spec.ports[3].name is "-j ACCEPT", which is not a name of a port (RFC 1123 label); the port is left out
Service default/db: InvalidField: spec.ports[4].protocol is "ICMP"; TCP, UDP and SCTP are supported
Service default/db: InvalidField: spec.ports[5] (name "twice", port 3306/tcp) repeats the name or the number of a port before it, and is left out
Service default/db: InvalidField: and 1 more
`,
	}, {
		name: "one name or number for two protocols is allowed",
		in:   head + `spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}, {port: 3306, protocol: UDP}]}`,
		want: service(func(s *cluster.Service) {
			s.Ports = append(s.Ports, cluster.ServicePort{Protocol: cluster.UDP, Port: 3306})
		}),
	}, {
		name: "affinity by default",
		in:   head + `spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}], sessionAffinity: ClientIP}`,
		want: service(func(s *cluster.Service) { s.Affinity = 3 * time.Hour }),
	}, {
		name: "affinity out of range",
		in:   head + `spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}`,
		want: service(func(s *cluster.Service) { s.Affinity = 3 * time.Hour }),
		notes: `
Service default/db: InvalidField: spec.sessionAffinityConfig.clientIP.timeoutSeconds is 0; it is taken as 10800, and can be 1 to 86400
`,
	}, {
		name: "unknown words",
		in:   head + `spec: {type: Anycast, clusterIP: 10.32.0.10, ports: [{port: 3306}], sessionAffinity: Cookie, internalTrafficPolicy: Near, externalTrafficPolicy: Far}`,
		want: service(nil),
		notes: `
Service default/db: InvalidField: spec.type is "Anycast"; it is taken as ClusterIP
Service default/db: InvalidField: spec.internalTrafficPolicy is "Near"; it is taken as Cluster, and can be Cluster or Local
Service default/db: InvalidField: spec.externalTrafficPolicy is "Far"; it is taken as Cluster, and can be Cluster or Local
Service default/db: InvalidField: spec.sessionAffinity is "Cookie"; it is taken as None, and can be None or ClientIP
`,
	}, {
		name: "externalTrafficPolicy Local means nothing without external traffic",
		in:   head + `spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}], externalTrafficPolicy: Local, healthCheckNodePort: 32000}`,
		want: service(nil),
	}, {
		name: "externalTrafficPolicy Local for externalIPs",
		in:   head + `spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}], externalTrafficPolicy: Local, externalIPs: [198.51.100.7]}`,
		want: service(func(s *cluster.Service) {
			s.ExternalIPs, s.ExternalTrafficPolicy = []netip.Addr{ip("198.51.100.7")}, cluster.PolicyLocal
		}),
	}, {
		name: "a health check port is a LoadBalancer's",
		in:   head + `spec: {type: NodePort, clusterIP: 10.32.0.10, ports: [{port: 3306}], externalTrafficPolicy: Local, healthCheckNodePort: 32000}`,
		want: service(func(s *cluster.Service) { s.Type, s.ExternalTrafficPolicy = "NodePort", cluster.PolicyLocal }),
	}, {
		name: "one unreadable source range",
		in:   head + `spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}], loadBalancerSourceRanges: ["10.0.0.0/8", "everybody"]}`,
		want: service(func(s *cluster.Service) { s.LoadBalancerSourceRanges = []netip.Prefix{cidr("10.0.0.0/8")} }),
		notes: `
Service default/db: InvalidField: spec.loadBalancerSourceRanges[1] is "everybody", which is not a CIDR such as 192.0.2.0/24 or 2001:db8::/64
`,
	}, {
		name: "no readable source range closes",
		in:   head + `spec: {clusterIP: 10.32.0.10, ports: [{port: 3306}], loadBalancerSourceRanges: ["::ffff:10.0.0.0/104"]}`,
		want: service(func(s *cluster.Service) {
			s.LoadBalancerSourceRanges = []netip.Prefix{cidr("0.0.0.0/32"), cidr("::/128")}
		}),
		notes: `
Service default/db: InvalidField: spec.loadBalancerSourceRanges[0] is "::ffff:10.0.0.0/104", which is not a CIDR such as 192.0.2.0/24 or 2001:db8::/64
`,
	}, {
		name: "a name that cannot be",
		in:   `{metadata: {name: "db\" -j ACCEPT", namespace: default}, spec: {clusterIP: 10.32.0.10}}`,
		notes: `
Service default/"db\" -j ACCEPT": InvalidField: metadata.name is "db\" -j ACCEPT", which is not a name of a Service (RFC 1123 label); the Service is left out
`,
	}, {
		name: "a namespace that cannot be",
		in:   `{metadata: {name: db, namespace: a.b}, spec: {clusterIP: 10.32.0.10}}`,
		notes: `
Service a.b/db: InvalidField: metadata.namespace is "a.b", which is not a name of a Namespace (RFC 1123 label); the Service is left out
`,
	}} {
		t.Run(c.name, func(t *testing.T) {
			o := convertYAML(t, &corev1.Service{}, c.in)
			check(t, o.service, c.want, o, c.notes)
		})
	}
}

func TestConvertServiceCIDR(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []netip.Prefix
		notes    string
	}{{
		name: "both families, on its way out",
		in:   `{metadata: {name: kubernetes, uid: 1f0c, deletionTimestamp: "2026-01-02T04:04:05Z"}, spec: {cidrs: [10.32.0.0/24, "fd00:32::/112"]}}`,
		want: []netip.Prefix{cidr("10.32.0.0/24"), cidr("fd00:32::/112")},
	}, {
		name: "what does not parse is left out, the rest stays",
		in:   `{metadata: {name: more}, spec: {cidrs: [10.33.0.0, 0.0.0.0/0, 10.32.0.7/24]}}`,
		want: []netip.Prefix{cidr("10.32.0.0/24")},
		notes: `
ServiceCIDR more: InvalidField: spec.cidrs[0] is "10.33.0.0", which is not a CIDR such as 192.0.2.0/24 or 2001:db8::/64
ServiceCIDR more: InvalidField: spec.cidrs[1] is 0.0.0.0/0, every address there is; the network that ClusterIPs are from is wanted
`,
	}} {
		t.Run(c.name, func(t *testing.T) {
			o := convertYAML(t, &networkingv1.ServiceCIDR{}, c.in)
			check(t, o.serviceCIDRs, c.want, o, c.notes)
		})
	}
}

func TestConvertEndpointSlice(t *testing.T) {
	const head = "metadata: {name: db-x1, namespace: default, labels: {kubernetes.io/service-name: db}}\n"
	ready := cluster.Endpoint{Ready: true, Serving: true}
	at := func(s string) cluster.Endpoint { e := ready; e.Addr = ip(s); return e }
	slice := func(endpoints ...cluster.Endpoint) *cluster.EndpointSlice {
		return &cluster.EndpointSlice{Name: "db-x1", Family: cluster.IPv4, Endpoints: endpoints}
	}
	for _, c := range []struct {
		name, in string
		want     *cluster.EndpointSlice
		notes    string
	}{{
		name: "everything",
		in: head + `
addressType: IPv4
ports:
- {name: "", port: 3306}
- {name: dns, port: 53, protocol: UDP}
- {port: 1}
- {name: none}
- {name: zero, port: 0}
endpoints:
- {addresses: [10.244.1.2, 10.244.1.3], nodeName: n1, hints: {forZones: [{name: eu-1a}], forNodes: [{name: n1}]}}
- {addresses: [10.244.1.04], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.1.5], conditions: {ready: false, serving: false}}
`,
		want: &cluster.EndpointSlice{Name: "db-x1", Family: cluster.IPv4,
			Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 3306}, {Name: "dns", Protocol: cluster.UDP, Port: 53}},
			Endpoints: []cluster.Endpoint{
				{Addr: ip("10.244.1.2"), NodeName: "n1", Ready: true, Serving: true, ForZones: []string{"eu-1a"}, ForNodes: []string{"n1"}},
				{Addr: ip("10.244.1.4"), Serving: true, Terminating: true},
				{Addr: ip("10.244.1.5")},
			}},
	}, {
		name: "triggered",
		in: `
metadata:
  name: db-x1
  namespace: default
  labels: {kubernetes.io/service-name: db}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2026-01-02T04:04:05.000000006+01:00"}
addressType: IPv4
`,
		want: &cluster.EndpointSlice{Name: "db-x1", Family: cluster.IPv4, Triggered: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)},
	}, {
		name: "triggered at no time",
		in: `
metadata:
  name: db-x1
  namespace: default
  labels: {kubernetes.io/service-name: db}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: yesterday}
addressType: IPv4
endpoints: [{addresses: [10.244.1.2]}]
`,
		want: slice(at("10.244.1.2")),
		notes: `
Service default/db: InvalidField: EndpointSlice db-x1: annotation endpoints.kubernetes.io/last-change-trigger-time is "yesterday", which is not a time such as 2026-01-02T15:04:05.123Z (RFC 3339); how long the change takes is not measured
`,
	}, {
		name: "IPv6",
		in:   head + "addressType: IPv6\nendpoints: [{addresses: [\"FD00::0002\"]}]",
		want: &cluster.EndpointSlice{Name: "db-x1", Family: cluster.IPv6, Endpoints: []cluster.Endpoint{at("fd00::2")}},
	}, {
		name: "no Service", in: "metadata: {name: db-x1, namespace: default}\naddressType: IPv4",
	}, {
		name: "of a headless Service",
		in:   "metadata: {name: db-x1, namespace: default, labels: {kubernetes.io/service-name: db, service.kubernetes.io/headless: \"\"}}\naddressType: IPv4",
	}, {
		name:  "host names",
		in:    head + "addressType: FQDN\nendpoints: [{addresses: [db.example]}]",
		notes: "Service default/db: NotSupported: EndpointSlice db-x1 has host names (addressType FQDN); a Service's rules need addresses\n",
	}, {
		name:  "no family",
		in:    head + "addressType: IPX",
		notes: "Service default/db: InvalidField: EndpointSlice db-x1: addressType is \"IPX\"; it can be IPv4 or IPv6\n",
	}, {
		name:  "a name that cannot be",
		in:    "metadata: {name: DB, namespace: default, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4",
		notes: "Service default/db: InvalidField: EndpointSlice \"DB\" has no name of an EndpointSlice (RFC 1123 subdomain), and is left out\n",
	}, {
		name: "endpoints that are refused",
		in: head + `
addressType: IPv4
endpoints:
- addresses: [127.0.0.1]
- addresses: [169.254.169.254]
- addresses: ["::ffff:127.0.0.1"]
- addresses: ["fd00::1"]
- addresses: ["10.244.1.2"]
- addresses: []
- addresses: ["10.244.1.2 "]
- addresses: ["0.0.0.0"]
- addresses: ["::ffff:10.244.1.3"]
`,
		want: slice(at("10.244.1.2"), at("10.244.1.3")),
		notes: `
Service default/db: EndpointRefused: EndpointSlice db-x1: endpoints[0] is 127.0.0.1, a loopback address; an endpoint is a pod's or another host's own address
Service default/db: EndpointRefused: EndpointSlice db-x1: endpoints[1] is 169.254.169.254, a link-local address; an endpoint is a pod's or another host's own address
Service default/db: EndpointRefused: EndpointSlice db-x1: endpoints[2] is 127.0.0.1, a loopback address; an endpoint is a pod's or another host's own address
Service default/db: EndpointRefused: EndpointSlice db-x1: endpoints[3] is fd00::1, but the slice's addressType is IPv4
Service default/db: InvalidField: EndpointSlice db-x1: endpoints[5].addresses is empty; the endpoint is left out
Service default/db: InvalidField: and 2 more
`,
	}, {
		name: "an IPv4-mapped address is no IPv6 endpoint",
		in:   head + "addressType: IPv6\nendpoints: [{addresses: [\"::ffff:10.244.1.3\"]}]",
		want: &cluster.EndpointSlice{Name: "db-x1", Family: cluster.IPv6, Endpoints: []cluster.Endpoint{}},
		notes: `
Service default/db: EndpointRefused: EndpointSlice db-x1: endpoints[0] is 10.244.1.3, but the slice's addressType is IPv6
`,
	}, {
		name: "names inside that cannot be",
		in: head + `
addressType: IPv4
ports: [{name: "A b", port: 1}, {name: big, port: 65536}]
endpoints: [{addresses: [10.244.1.2], nodeName: "n 1", hints: {forZones: [{name: "z 1"}], forNodes: [{name: "n 1"}]}}]
`,
		want: slice(at("10.244.1.2")),
		notes: `
Service default/db: InvalidField: EndpointSlice db-x1: ports[0].name is "A b", which is not a name of a port (RFC 1123 label); the port is left out
Service default/db: InvalidField: EndpointSlice db-x1: ports[1].port is 65536; a port is a number from 1 to 65535
Service default/db: InvalidField: EndpointSlice db-x1: endpoints[0].nodeName is "n 1", which is not a name of a Node (RFC 1123 subdomain); the endpoint counts as on no node
Service default/db: InvalidField: EndpointSlice db-x1: endpoints[0].hints.forZones[0] is "z 1", which is not a zone (a label value)
Service default/db: InvalidField: EndpointSlice db-x1: endpoints[0].hints.forNodes[0] is "n 1", which is not a name of a Node (RFC 1123 subdomain)
`,
	}} {
		t.Run(c.name, func(t *testing.T) {
			o := convertYAML(t, &discoveryv1.EndpointSlice{}, c.in)
			check(t, o.slice, c.want, o, c.notes)
		})
	}
}
