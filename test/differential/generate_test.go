package differential

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fairway-net/fairway/agent/source"
)

// A scene is a cluster from its creation on: what is written in each step. It is a function of the seed.
type scene struct {
	seed  uint64
	steps [][]action
}

// An action writes one object. Exactly one of the fields service, slice and zone is set.
type action struct {
	verb    string // create, update or delete
	service *corev1.Service
	slice   *discoveryv1.EndpointSlice
	zone    *string // of the own node; empty for a node without the label
}

func (a action) String() string {
	switch {
	case a.service != nil:
		return fmt.Sprintf("%s Service %s/%s", a.verb, a.service.Namespace, a.service.Name)
	case a.slice != nil:
		return fmt.Sprintf("%s EndpointSlice %s/%s of %q", a.verb, a.slice.Namespace, a.slice.Name, a.slice.Labels[discoveryv1.LabelServiceName])
	}
	return fmt.Sprintf("zone %q", *a.zone)
}

// namespaces are where all objects of a scene are.
var namespaces = []string{"alpha", "beta"}

// The names of nodes: the own one, and others.
const (
	ownNode   = "n1"
	otherNode = "n2"
	thirdNode = "n3"
)

var zones = []string{"z1", "z2", "z3"}

// What objects have their addresses from, by family: IPv4, IPv6.
var (
	vipPrefixes = [2][]string{
		{"10.96.0.", "10.96.1.", "10.96.16.", "10.100.3.", "10.111.255."},
		{"fd00:10:96::", "fd00:10:96::1:", "fd00:10:96::2:", "fd00:10:96::a:"},
	}
	// The last but one is an address of this node, the last the node's own.
	externalPool = [2][]string{
		{"198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4", "198.51.100.129", "198.51.100.6", "192.168.0.2"},
		{"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:9::4", "2001:db8::6", "fd00:192:168::2"},
	}
	balancerPool = [2][]string{
		{"203.0.113.10", "203.0.113.11", "203.0.113.12", "203.0.113.13", "203.0.113.14", "198.51.100.6"},
		{"2001:db8:1::10", "2001:db8:1::11", "2001:db8:1::12", "2001:db8:1::13", "2001:db8::6"},
	}
	// This node's pods, other nodes' pods, nodes, and something outside of the cluster.
	endpointPool = [2][]string{
		{"10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.10", "10.244.2.2", "10.244.2.3", "10.244.2.10", "10.244.3.2", "192.168.0.2", "192.168.0.4", "192.0.2.50"},
		{"fd00:10:244:1::2", "fd00:10:244:1::3", "fd00:10:244:1::a", "fd00:10:244:2::2", "fd00:10:244:2::3", "fd00:10:244:2::a", "fd00:192:168::2", "fd00:192:168::4", "2001:db8:5::50"},
	}
	// Addresses that the agent refuses as endpoints and the API does not.
	refusedEndpoints = [2]string{"239.1.2.3", "ff05::1:3"}
	rangePool        = []string{
		"192.0.2.0/24", " 198.51.100.128/25 ", "10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24", "192.168.0.2/32", "192.168.0.0/24", "203.0.113.0/28", "0.0.0.0/0",
		"2001:db8:9::/48", "fd00:10:244::/48", "fd00:10:244:1::/64", "fd00:192:168::2/128", "fd00:192:168::/64", "::/0",
	}
	servicePorts = []int32{80, 81, 443, 53, 54, 8080, 7, 1, 65535}
	targetPorts  = []int32{8080, 8081, 80, 53, 65535}
	nodePortBase = int32(30000)
	protocols    = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	timeouts     = []int32{1, 10, 10800, 86400}
)

// A generator makes up a cluster, and knows what is in it.
type generator struct {
	*rand.Rand
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
	awaited  []*corev1.Service // whose slices are there already
	actions  []action          // of the present step
	serial   int               // numbers names

	// The character of the scene.
	contested bool // addresses may be claimed twice
	refused   bool // endpoints may be on addresses that the agent refuses
	dense     int  // how many node ports apart Services are
}

// generate makes up a scene.
func generate(seed uint64) scene {
	r := rand.New(rand.NewPCG(seed, 0xfa12))
	g := &generator{Rand: r, services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{},
		contested: r.IntN(5) == 0, refused: r.IntN(8) == 0, dense: 1 + r.IntN(3)}
	size := 4 + r.IntN(6)
	if r.IntN(4) == 0 {
		size = 20 + r.IntN(15)
	}
	s := scene{seed: seed}
	g.relabel()
	for range size {
		g.addService()
	}
	if seed%30 == 8 {
		g.crowd()
	}
	s.steps = append(s.steps, g.step())
	for range 2 + r.IntN(3) {
		for range 1 + r.IntN(5) {
			g.mutate()
		}
		s.steps = append(s.steps, g.step())
	}
	return s
}

// step returns the actions since the last step, in random order; but what is deleted and made anew is deleted first.
func (g *generator) step() []action {
	list := g.actions
	g.actions = nil
	g.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for i, a := range list {
		if a.service == nil || a.verb == "delete" {
			continue
		}
		for j, b := range list[i+1:] {
			if b.service != nil && b.service.Name == a.service.Name && b.verb == "delete" {
				list[i], list[i+1+j] = b, a
			}
		}
	}
	return list
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, list []T) T { return list[g.IntN(len(list))] }

func key(namespace, name string) string { return namespace + "/" + name }

// anyService returns a Service of the cluster, or nil.
func (g *generator) anyService() *corev1.Service {
	if len(g.services) == 0 {
		return nil
	}
	return g.services[pick(g, slices.Sorted(maps.Keys(g.services)))]
}

func (g *generator) anySlice() *discoveryv1.EndpointSlice {
	if len(g.slices) == 0 {
		return nil
	}
	return g.slices[pick(g, slices.Sorted(maps.Keys(g.slices)))]
}

// put records that an object is new or changed. An object that was put in this step already is written once.
func (g *generator) putService(s *corev1.Service) {
	k := key(s.Namespace, s.Name)
	verb := "update"
	if g.services[k] == nil {
		verb = "create"
	}
	g.services[k] = s
	for i, a := range g.actions {
		if a.service != nil && key(a.service.Namespace, a.service.Name) == k && a.verb != "delete" {
			g.actions[i].service = s.DeepCopy()
			return
		}
	}
	g.actions = append(g.actions, action{verb: verb, service: s.DeepCopy()})
}

func (g *generator) putSlice(s *discoveryv1.EndpointSlice) {
	k := key(s.Namespace, s.Name)
	verb := "update"
	if g.slices[k] == nil {
		verb = "create"
	}
	g.slices[k] = s
	for i, a := range g.actions {
		if a.slice != nil && key(a.slice.Namespace, a.slice.Name) == k && a.verb != "delete" {
			g.actions[i].slice = s.DeepCopy()
			return
		}
	}
	g.actions = append(g.actions, action{verb: verb, slice: s.DeepCopy()})
}

// deleteService records a deletion. An object that would have been written in this step is deleted before that is known.
func (g *generator) deleteService(s *corev1.Service) {
	k := key(s.Namespace, s.Name)
	delete(g.services, k)
	created := false
	g.actions = slices.DeleteFunc(g.actions, func(a action) bool {
		same := a.service != nil && key(a.service.Namespace, a.service.Name) == k && a.verb != "delete"
		created = created || same && a.verb == "create"
		return same
	})
	if !created {
		g.actions = append(g.actions, action{verb: "delete", service: s.DeepCopy()})
	}
}

func (g *generator) deleteSlice(s *discoveryv1.EndpointSlice) {
	k := key(s.Namespace, s.Name)
	delete(g.slices, k)
	created := false
	g.actions = slices.DeleteFunc(g.actions, func(a action) bool {
		same := a.slice != nil && key(a.slice.Namespace, a.slice.Name) == k
		created = created || same && a.verb == "create"
		return same
	})
	if !created {
		g.actions = append(g.actions, action{verb: "delete", slice: s.DeepCopy()})
	}
}

// relabel gives the own node another zone, or none.
func (g *generator) relabel() {
	zone := ""
	if g.chance(80) {
		zone = pick(g, zones)
	}
	g.actions = slices.DeleteFunc(g.actions, func(a action) bool { return a.zone != nil })
	g.actions = append(g.actions, action{verb: "update", zone: &zone})
}

// addService makes up a Service with its slices; now and then the one or the other comes without.
func (g *generator) addService() {
	if len(g.awaited) > 0 && g.chance(70) {
		svc := g.awaited[0]
		g.awaited = g.awaited[1:]
		g.rollRest(svc)
		g.putService(svc)
		return
	}
	g.serial++
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: pick(g, namespaces), Name: fmt.Sprintf("s%d", g.serial)}}
	g.rollKind(svc)
	withService, withSlices := true, true
	switch g.IntN(12) {
	case 0:
		withService = false
	case 1:
		withSlices = false
	}
	if withService {
		g.putService(svc)
	} else {
		g.awaited = append(g.awaited, svc)
	}
	if withSlices {
		g.addSlices(svc)
	}
}

// rollKind decides what the Service is, from its type on.
func (g *generator) rollKind(svc *corev1.Service) {
	svc.Labels, svc.Spec, svc.Status = nil, corev1.ServiceSpec{}, corev1.ServiceStatus{}
	if g.chance(5) {
		svc.Labels = map[string]string{source.LabelProxyName: pick(g, []string{"", "other"})}
	}
	g.rollPorts(svc)
	switch n := g.IntN(100); {
	case n < 5:
		svc.Spec.Type = corev1.ServiceTypeExternalName
		svc.Spec.ExternalName = "example.com"
		return
	case n < 10:
		svc.Spec.ClusterIP = corev1.ClusterIPNone
		svc.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		return
	}
	g.rollRest(svc)
}

// rollRest decides everything but the ports of a Service that has an address.
func (g *generator) rollRest(svc *corev1.Service) {
	svc.Spec = corev1.ServiceSpec{Ports: svc.Spec.Ports}
	for i := range svc.Spec.Ports {
		svc.Spec.Ports[i].NodePort = 0
	}
	g.rollFamilies(svc)
	g.rollType(svc)
	g.rollExternalIPs(svc)
	g.rollPolicies(svc)
	g.rollAffinity(svc)
	svc.Spec.PublishNotReadyAddresses = g.chance(10)
	g.settle(svc)
}

func (g *generator) rollFamilies(svc *corev1.Service) {
	four, six := corev1.IPv4Protocol, corev1.IPv6Protocol
	families := pick(g, [][]corev1.IPFamily{{four}, {four}, {six}, {four, six}, {four, six}, {six, four}})
	svc.Spec.IPFamilies, svc.Spec.ClusterIPs = families, nil
	policy := corev1.IPFamilyPolicySingleStack
	if len(families) == 2 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	svc.Spec.IPFamilyPolicy = &policy
	for _, f := range families {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, g.vip(f))
	}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
}

// vip returns an address that no Service has.
func (g *generator) vip(f corev1.IPFamily) string {
	for {
		vip := pick(g, vipPrefixes[familyIndex(f)]) + fmt.Sprint(2+g.IntN(80))
		if !slices.ContainsFunc(slices.Collect(maps.Values(g.services)), func(s *corev1.Service) bool { return slices.Contains(s.Spec.ClusterIPs, vip) }) {
			return vip
		}
	}
}

func familyIndex(f corev1.IPFamily) int {
	if f == corev1.IPv6Protocol {
		return 1
	}
	return 0
}

func (g *generator) rollPorts(svc *corev1.Service) {
	svc.Spec.Ports = nil
	n := 1 + g.IntN(3)
	for i := range n {
		p := corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Protocol: protocols[[...]int{0, 0, 0, 1, 1, 2}[g.IntN(6)]], Port: pick(g, servicePorts)}
		if n == 1 && g.chance(60) {
			p.Name = ""
		}
		if i > 0 && g.chance(40) {
			p.Port = svc.Spec.Ports[0].Port
		}
		p.TargetPort = intstr.FromInt32(pick(g, targetPorts)) // which a service proxy must not look at
		if !slices.ContainsFunc(svc.Spec.Ports, func(q corev1.ServicePort) bool { return q.Port == p.Port && q.Protocol == p.Protocol }) {
			svc.Spec.Ports = append(svc.Spec.Ports, p)
		}
	}
}

func (g *generator) rollType(svc *corev1.Service) {
	svc.Spec.Type = pick(g, []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer})
	svc.Spec.AllocateLoadBalancerNodePorts = nil
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		allocate := g.chance(80)
		svc.Spec.AllocateLoadBalancerNodePorts = &allocate
		g.rollBalancer(svc)
		g.rollRanges(svc)
	}
}

func (g *generator) rollBalancer(svc *corev1.Service) {
	svc.Status.LoadBalancer.Ingress = nil
	if g.chance(15) {
		return
	}
	for range 1 + g.IntN(3) {
		if g.chance(10) {
			svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{Hostname: "lb.example.com"})
			continue
		}
		mode := pick(g, []*corev1.LoadBalancerIPMode{nil, new(corev1.LoadBalancerIPModeVIP), new(corev1.LoadBalancerIPModeVIP), new(corev1.LoadBalancerIPModeProxy)})
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: g.outside(svc, balancerPool[g.IntN(2)]), IPMode: mode})
	}
}

func (g *generator) rollRanges(svc *corev1.Service) {
	svc.Spec.LoadBalancerSourceRanges = nil
	if g.chance(50) {
		for range 1 + g.IntN(3) {
			svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges, pick(g, rangePool))
		}
	}
}

func (g *generator) rollExternalIPs(svc *corev1.Service) {
	svc.Spec.ExternalIPs = nil
	if g.chance(25) {
		for range 1 + g.IntN(2) {
			if a := g.outside(svc, externalPool[g.IntN(2)]); !slices.Contains(svc.Spec.ExternalIPs, a) {
				svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, a)
			}
		}
	}
}

// outside picks an external address. In most scenes no two Services contend for one: then the address is from a part of
// the pool's networks that belongs to the Service.
func (g *generator) outside(svc *corev1.Service, pool []string) string {
	a := netip.MustParseAddr(pick(g, pool))
	if g.contested {
		if g.chance(5) {
			if other := g.anyService(); other != nil && len(other.Spec.ClusterIPs) > 0 && other.Spec.ClusterIP != corev1.ClusterIPNone {
				return pick(g, other.Spec.ClusterIPs)
			}
		}
		return a.String()
	}
	for try := 0; g.claimed(svc, a); try++ {
		a = a.Next()
		if try > 300 {
			panic("the pool of external addresses is exhausted")
		}
	}
	return a.String()
}

// claimed tells whether another Service has an external address on one of the Service's ports.
func (g *generator) claimed(svc *corev1.Service, a netip.Addr) bool {
	for _, other := range g.services {
		if other.Namespace == svc.Namespace && other.Name == svc.Name {
			continue
		}
		has := slices.Contains(other.Spec.ExternalIPs, a.String()) ||
			slices.ContainsFunc(other.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool { return i.IP == a.String() })
		if has && slices.ContainsFunc(other.Spec.Ports, func(p corev1.ServicePort) bool {
			return slices.ContainsFunc(svc.Spec.Ports, func(q corev1.ServicePort) bool { return p.Port == q.Port && p.Protocol == q.Protocol })
		}) {
			return true
		}
	}
	return false
}

func (g *generator) rollPolicies(svc *corev1.Service) {
	internal := corev1.ServiceInternalTrafficPolicyCluster
	if g.chance(25) {
		internal = corev1.ServiceInternalTrafficPolicyLocal
	}
	svc.Spec.InternalTrafficPolicy = &internal
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	if g.chance(45) {
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
}

func (g *generator) rollAffinity(svc *corev1.Service) {
	svc.Spec.SessionAffinity, svc.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	if g.chance(25) {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		if g.chance(70) {
			timeout := pick(g, timeouts)
			svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
		}
	}
}

// settle makes the fields of a Service fit each other, as the API wants them.
func (g *generator) settle(svc *corev1.Service) {
	spec := &svc.Spec
	if spec.Type != corev1.ServiceTypeLoadBalancer {
		spec.AllocateLoadBalancerNodePorts, spec.LoadBalancerSourceRanges, svc.Status.LoadBalancer.Ingress = nil, nil, nil
	}
	if spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) == 0 {
		spec.ExternalTrafficPolicy = ""
	} else if spec.ExternalTrafficPolicy == "" {
		spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	wanted := spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer && *spec.AllocateLoadBalancerNodePorts
	for i := range spec.Ports {
		switch {
		case !wanted:
			spec.Ports[i].NodePort = 0
		case spec.Ports[i].NodePort == 0:
			spec.Ports[i].NodePort = g.nodePort(svc)
			// The API lets two ports share a node port if they share the port too.
			if i == 1 && spec.Ports[1].Port == spec.Ports[0].Port && g.chance(50) {
				spec.Ports[1].NodePort = spec.Ports[0].NodePort
			}
		}
	}
	if spec.Type != corev1.ServiceTypeLoadBalancer || spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		spec.HealthCheckNodePort = 0
	} else if spec.HealthCheckNodePort == 0 {
		spec.HealthCheckNodePort = g.nodePort(svc)
	}
}

// nodePort returns a node port that nobody has.
func (g *generator) nodePort(svc *corev1.Service) int32 {
	taken := func(n int32) bool {
		has := func(s *corev1.Service) bool {
			return s.Spec.HealthCheckNodePort == n || slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort == n })
		}
		return has(svc) || slices.ContainsFunc(slices.Collect(maps.Values(g.services)), has)
	}
	for {
		if n := nodePortBase + int32(g.IntN(200)*g.dense); !taken(n) {
			return n
		}
	}
}

// addSlices makes up the EndpointSlices of a Service.
func (g *generator) addSlices(svc *corev1.Service) {
	families := svc.Spec.IPFamilies
	if len(families) == 0 || g.chance(10) {
		families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	for _, f := range families {
		for range [...]int{0, 1, 1, 1, 1, 2, 2, 3}[g.IntN(8)] {
			g.addSlice(svc, discoveryv1.AddressType(f))
		}
	}
	if g.chance(3) {
		g.addSlice(svc, discoveryv1.AddressTypeFQDN)
	}
}

// crowd gives a Service so many endpoints that the cluster is a large one for kube-proxy (more than 1,000 of a family).
func (g *generator) crowd() {
	svc := g.anyService()
	if svc == nil {
		return
	}
	for i := range 4 {
		s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
		s.Namespace, s.Name = svc.Namespace, fmt.Sprintf("%s-crowd-%d", svc.Name, i)
		s.Labels = map[string]string{discoveryv1.LabelServiceName: svc.Name}
		g.rollSlicePorts(s, svc)
		for j := range 260 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.%d", 100+2*i+j/250, 2+j%250)}, NodeName: new(thirdNode)})
		}
		g.putSlice(s)
	}
}

func (g *generator) addSlice(svc *corev1.Service, kind discoveryv1.AddressType) {
	g.serial++
	s := &discoveryv1.EndpointSlice{AddressType: kind}
	s.Namespace, s.Name = svc.Namespace, fmt.Sprintf("%s-%d", svc.Name, g.serial)
	s.Labels = map[string]string{discoveryv1.LabelServiceName: svc.Name}
	switch g.IntN(30) {
	case 0:
		s.Labels[corev1.IsHeadlessService] = ""
	case 1:
		delete(s.Labels, discoveryv1.LabelServiceName)
	}
	g.rollSlicePorts(s, svc)
	g.rollEndpoints(s)
	g.putSlice(s)
	g.reconcile(s)
}

// rollSlicePorts gives a slice the ports that fit the Service, nearly.
func (g *generator) rollSlicePorts(s *discoveryv1.EndpointSlice, svc *corev1.Service) {
	s.Ports = nil
	for _, p := range svc.Spec.Ports {
		name, protocol, port := p.Name, p.Protocol, pick(g, targetPorts)
		ep := discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
		switch g.IntN(40) {
		case 0:
			other := "other"
			ep.Name = &other
		case 1:
			ep.Name = nil
		case 2:
			ep.Port = nil
		case 3:
			zero := int32(0)
			ep.Port = &zero
		case 4:
			other := pick(g, protocols)
			ep.Protocol = &other
		case 5:
			continue
		case 6:
			ep.Protocol = nil
		}
		s.Ports = append(s.Ports, ep)
	}
	if g.chance(5) {
		name, port := "more", int32(9999)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port})
	}
}

// rollEndpoints gives a slice endpoints.
func (g *generator) rollEndpoints(s *discoveryv1.EndpointSlice) {
	s.Endpoints = nil
	hints := g.IntN(10) // one kind for all, with exceptions
	mood := g.IntN(8)
	for range [...]int{0, 1, 1, 2, 2, 3, 4, 6}[g.IntN(8)] {
		e := g.endpoint(s.AddressType, hints)
		if mood == 0 { // all of the slice are leaving
			e.Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(g.chance(80)), Terminating: new(true)}
		}
		if !slices.ContainsFunc(s.Endpoints, func(o discoveryv1.Endpoint) bool { return o.Addresses[0] == e.Addresses[0] }) {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
}

func (g *generator) endpoint(kind discoveryv1.AddressType, hints int) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{}
	if kind == discoveryv1.AddressTypeFQDN {
		e.Addresses = []string{"pod.example.com"}
		return e
	}
	f := familyIndex(corev1.IPFamily(kind))
	a := pick(g, endpointPool[f])
	if g.refused && g.chance(5) {
		a = refusedEndpoints[f]
	}
	e.Addresses = []string{a}
	g.rollConditions(&e)
	g.rollNodeName(&e)
	g.rollHints(&e, hints)
	return e
}

func (g *generator) rollConditions(e *discoveryv1.Endpoint) {
	yes, no := new(true), new(false)
	switch n := g.IntN(100); {
	case n < 50:
		e.Conditions = discoveryv1.EndpointConditions{Ready: yes, Serving: yes, Terminating: no}
	case n < 60:
		e.Conditions = discoveryv1.EndpointConditions{Ready: no, Serving: no, Terminating: no}
	case n < 70:
		e.Conditions = discoveryv1.EndpointConditions{Ready: no, Serving: yes, Terminating: yes}
	case n < 75: // with publishNotReadyAddresses
		e.Conditions = discoveryv1.EndpointConditions{Ready: yes, Serving: new(g.chance(50)), Terminating: yes}
	default:
		any := []*bool{nil, yes, no}
		e.Conditions = discoveryv1.EndpointConditions{Ready: pick(g, any), Serving: pick(g, any), Terminating: pick(g, any)}
	}
}

// rollNodeName says where the endpoint is: where its address says, mostly.
func (g *generator) rollNodeName(e *discoveryv1.Endpoint) {
	name := thirdNode
	switch a := e.Addresses[0]; {
	case strings.HasPrefix(a, "10.244.1.") || strings.HasPrefix(a, "fd00:10:244:1:") || a == "192.168.0.2" || a == "fd00:192:168::2":
		name = ownNode
	case strings.HasPrefix(a, "10.244.2.") || strings.HasPrefix(a, "fd00:10:244:2:") || a == "192.168.0.4" || a == "fd00:192:168::4":
		name = otherNode
	}
	e.NodeName = &name
	switch g.IntN(15) {
	case 0:
		e.NodeName = nil
	case 1:
		e.NodeName = new(pick(g, []string{ownNode, otherNode, thirdNode}))
	}
}

func (g *generator) rollHints(e *discoveryv1.Endpoint, kind int) {
	e.Hints = nil
	if kind > 4 || g.chance(4) {
		return
	}
	e.Hints = &discoveryv1.EndpointHints{}
	if kind > 0 {
		for range 1 + g.IntN(2) {
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: pick(g, zones[:2])})
		}
	}
	if kind < 2 {
		for range 1 + g.IntN(2) {
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: pick(g, []string{ownNode, otherNode, thirdNode})})
		}
	}
	if len(e.Hints.ForZones) == 2 && e.Hints.ForZones[0] == e.Hints.ForZones[1] {
		e.Hints.ForZones = e.Hints.ForZones[:1]
	}
	if len(e.Hints.ForNodes) == 2 && e.Hints.ForNodes[0] == e.Hints.ForNodes[1] {
		e.Hints.ForNodes = e.Hints.ForNodes[:1]
	}
}

// reconcile makes the entries for one address in the slices of a Service agree, as far as kube-proxy is undecided about
// them: it prefers one that is not terminating, and between two such, or two terminating ones, the order of a map decides.
func (g *generator) reconcile(changed *discoveryv1.EndpointSlice) {
	owner := changed.Labels[discoveryv1.LabelServiceName]
	for i := range changed.Endpoints {
		e := &changed.Endpoints[i]
		for _, k := range slices.Sorted(maps.Keys(g.slices)) {
			s := g.slices[k]
			if s == changed || s.Namespace != changed.Namespace || s.Labels[discoveryv1.LabelServiceName] != owner || s.AddressType != changed.AddressType {
				continue
			}
			for _, o := range s.Endpoints {
				if o.Addresses[0] == e.Addresses[0] && terminating(o) == terminating(*e) {
					addresses := e.Addresses
					o.DeepCopyInto(e)
					e.Addresses = addresses
				}
			}
		}
	}
	g.putSlice(changed)
}

func terminating(e discoveryv1.Endpoint) bool {
	return e.Conditions.Terminating != nil && *e.Conditions.Terminating
}

// mutate changes something.
func (g *generator) mutate() {
	switch n := g.IntN(100); {
	case n < 8:
		g.addService()
	case n < 16:
		g.removeService()
	case n < 20:
		g.relabel()
	case n < 26:
		g.replaceService()
	case n < 55:
		g.changeService()
	case n < 60:
		if s := g.anySlice(); s != nil {
			g.deleteSlice(s)
		}
	case n < 68:
		if svc := g.anyService(); svc != nil {
			g.addSlices(svc)
		}
	case n < 74:
		g.drain()
	default:
		g.changeSlice()
	}
}

// removeService deletes a Service; its slices stay for a while, or for ever.
func (g *generator) removeService() {
	svc := g.anyService()
	if svc == nil {
		return
	}
	g.deleteService(svc)
	if g.chance(60) {
		for _, s := range g.slicesOf(svc) {
			g.deleteSlice(s)
		}
	}
}

// replaceService makes another Service of the same name.
func (g *generator) replaceService() {
	old := g.anyService()
	if old == nil {
		return
	}
	svc := old.DeepCopy()
	g.deleteService(old)
	g.rollKind(svc)
	g.putService(svc)
}

// slicesOf returns the slices that name a Service, in the order of their names.
func (g *generator) slicesOf(svc *corev1.Service) (list []*discoveryv1.EndpointSlice) {
	for _, k := range slices.Sorted(maps.Keys(g.slices)) {
		if s := g.slices[k]; s.Namespace == svc.Namespace && s.Labels[discoveryv1.LabelServiceName] == svc.Name {
			list = append(list, s)
		}
	}
	return list
}

// changeService rolls one aspect of a Service again.
func (g *generator) changeService() {
	old := g.anyService()
	if old == nil || old.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.ClusterIP == corev1.ClusterIPNone {
		return
	}
	svc := old.DeepCopy()
	switch g.IntN(10) {
	case 0:
		g.rollPorts(svc)
		g.rollExternalIPs(svc)
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			g.rollBalancer(svc)
		}
	case 1:
		g.rollType(svc)
	case 2:
		g.rollPolicies(svc)
	case 3:
		g.rollAffinity(svc)
	case 4:
		g.rollExternalIPs(svc)
	case 5, 6:
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			g.rollBalancer(svc)
		} else {
			g.rollExternalIPs(svc)
		}
	case 7:
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			g.rollRanges(svc)
		} else {
			g.rollPolicies(svc)
		}
	case 8:
		if svc.Labels = nil; g.chance(50) {
			svc.Labels = map[string]string{source.LabelProxyName: "other"}
		}
	case 9:
		g.changeFamilies(svc)
	}
	g.settle(svc)
	g.putService(svc)
}

// changeFamilies gives a Service a second family, or takes it away; the first one is for good.
func (g *generator) changeFamilies(svc *corev1.Service) {
	if len(svc.Spec.IPFamilies) == 2 {
		svc.Spec.IPFamilies, svc.Spec.ClusterIPs = svc.Spec.IPFamilies[:1], svc.Spec.ClusterIPs[:1]
		svc.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicySingleStack)
		return
	}
	other := corev1.IPv6Protocol
	if svc.Spec.IPFamilies[0] == other {
		other = corev1.IPv4Protocol
	}
	svc.Spec.IPFamilies = append(slices.Clone(svc.Spec.IPFamilies), other)
	svc.Spec.ClusterIPs = append(slices.Clone(svc.Spec.ClusterIPs), g.vip(other))
	svc.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
}

// drain makes all endpoints of a Service leave, the one way or the other, or all come back.
func (g *generator) drain() {
	svc := g.anyService()
	if svc == nil {
		return
	}
	how := g.IntN(4)
	for _, s := range g.slicesOf(svc) {
		s = s.DeepCopy()
		for i := range s.Endpoints {
			c := &s.Endpoints[i].Conditions
			switch how {
			case 0:
				*c = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
			case 1:
				*c = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false), Terminating: new(false)}
			case 2:
				*c = discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}
			}
		}
		if how == 3 {
			s.Endpoints = nil
		}
		g.putSlice(s)
	}
	for _, s := range g.slicesOf(svc) {
		g.reconcile(s)
	}
}

// changeSlice rolls one aspect of a slice again.
func (g *generator) changeSlice() {
	old := g.anySlice()
	if old == nil {
		return
	}
	s := old.DeepCopy()
	one := -1
	if len(s.Endpoints) > 0 {
		one = g.IntN(len(s.Endpoints))
	}
	switch n := g.IntN(8); {
	case n == 0:
		if svc := g.services[key(s.Namespace, s.Labels[discoveryv1.LabelServiceName])]; svc != nil {
			g.rollSlicePorts(s, svc)
		}
	case n == 1 || one < 0:
		g.rollEndpoints(s)
	case n == 2:
		s.Endpoints = slices.Delete(s.Endpoints, one, one+1)
	case n == 3:
		g.rollHints(&s.Endpoints[one], g.IntN(10))
	case n == 4:
		g.rollNodeName(&s.Endpoints[one])
	case n == 5:
		if e := g.endpoint(s.AddressType, g.IntN(10)); !slices.ContainsFunc(s.Endpoints, func(o discoveryv1.Endpoint) bool { return o.Addresses[0] == e.Addresses[0] }) {
			s.Endpoints = append(s.Endpoints, e)
		}
	default:
		g.rollConditions(&s.Endpoints[one])
	}
	g.slices[key(s.Namespace, s.Name)] = s
	g.reconcile(s)
}
