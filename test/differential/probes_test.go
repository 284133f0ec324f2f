package differential

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/trace"
)

// A place is where a packet can be sent to.
type place struct {
	at       netip.AddrPort
	protocol cluster.Protocol
}

func (p place) String() string { return fmt.Sprintf("%s/%s", p.at, p.protocol) }

// A kind tells what of a Service a place is.
type kind string

// The kinds.
const (
	clusterIP  kind = "ClusterIP"
	externalIP kind = "external IP"
	balancerIP kind = "load balancer IP"
	nodePort   kind = "node port"
	// healthCheck is where load balancers ask for the node's endpoints: no place for service traffic.
	healthCheck kind = "health check node port"
)

// A claim is a place that a Service wants to be served at.
type claim struct {
	place
	kind    kind
	service *corev1.Service
	port    string // the port's name
}

// A view is a cluster as one address family sees it.
type view struct {
	*objects
	family cluster.Family
	claims map[place][]claim
}

func (o *objects) view(f cluster.Family) *view {
	v := &view{objects: o, family: f, claims: map[place][]claim{}}
	for i := range o.services {
		if s := &o.services[i]; served(s) {
			for _, c := range v.claimsOf(s) {
				v.claims[c.place] = append(v.claims[c.place], c)
			}
		}
	}
	return v
}

// claimsOf returns the places of a Service in the family: none if it has no ClusterIP of it.
func (v *view) claimsOf(s *corev1.Service) (list []claim) {
	vips := v.addrs(s.Spec.ClusterIPs)
	if len(vips) == 0 {
		return nil
	}
	for _, p := range s.Spec.Ports {
		add := func(k kind, addrs []netip.Addr, port int32) {
			for _, a := range addrs {
				list = append(list, claim{place{netip.AddrPortFrom(a, uint16(port)), protocolOf(p.Protocol)}, k, s, p.Name})
			}
		}
		add(clusterIP, vips, p.Port)
		add(externalIP, v.addrs(s.Spec.ExternalIPs), p.Port)
		add(balancerIP, v.balancers(s), p.Port)
		if p.NodePort != 0 {
			add(nodePort, nodeAddrs(v.family), p.NodePort)
		}
	}
	if p := s.Spec.HealthCheckNodePort; p != 0 {
		for _, a := range nodeAddrs(v.family) {
			list = append(list, claim{place{netip.AddrPortFrom(a, uint16(p)), cluster.TCP}, healthCheck, s, ""})
		}
	}
	return list
}

// balancers returns the load balancer addresses that are the service proxy's.
func (v *view) balancers(s *corev1.Service) []netip.Addr {
	var texts []string
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IPMode == nil || *i.IPMode != corev1.LoadBalancerIPModeProxy {
			texts = append(texts, i.IP)
		}
	}
	return v.addrs(texts)
}

// addrs returns the addresses of the family.
func (v *view) addrs(texts []string) (list []netip.Addr) {
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil && cluster.FamilyOf(a) == v.family {
			list = append(list, a)
		}
	}
	return list
}

// endpoints returns the addresses of a Service's endpoints, whatever their conditions.
func (v *view) endpoints(s *corev1.Service) (list []netip.Addr) {
	for _, e := range v.entries(s) {
		if a := netip.MustParseAddr(e.Addresses[0]); !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// entries returns a Service's endpoints of the family as they are written.
func (v *view) entries(s *corev1.Service) (list []discoveryv1.Endpoint) {
	for _, slice := range v.slicesOf(s) {
		if string(slice.AddressType) == v.family.String() {
			list = append(list, slice.Endpoints...)
		}
	}
	return list
}

func protocolOf(p corev1.Protocol) cluster.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return cluster.UDP
	case corev1.ProtocolSCTP:
		return cluster.SCTP
	}
	return cluster.TCP
}

// testAddrs are the addresses that both nodes of a pair have on an interface of their own: the node's, and an external
// one. The Node object names the first of each family.
var testAddrs = []string{"192.168.0.2/24", "192.168.0.3/24", "198.51.100.6/32", "fd00:192:168::2/64", "fd00:192:168::3/64", "2001:db8::6/128"}

// podGateways are the addresses of the pods' bridge.
var podGateways = []string{"10.244.1.1", "fd00:10:244:1::1"}

// nodeAddrs returns the node's addresses of a family, the node's own first, loopback last.
func nodeAddrs(f cluster.Family) []netip.Addr { return allNodeAddrs[f] }

var allNodeAddrs = func() map[cluster.Family][]netip.Addr {
	var list []netip.Addr
	for _, t := range testAddrs {
		list = append(list, netip.MustParsePrefix(t).Addr())
	}
	for _, t := range podGateways {
		list = append(list, netip.MustParseAddr(t))
	}
	byFamily := map[cluster.Family][]netip.Addr{}
	for _, a := range append(list, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()) {
		byFamily[cluster.FamilyOf(a)] = append(byFamily[cluster.FamilyOf(a)], a)
	}
	return byFamily
}()

// local tells whether an address is the node's.
func local(a netip.Addr) bool {
	return a.IsLoopback() || slices.Contains(nodeAddrs(cluster.FamilyOf(a)), a)
}

// podNetworks are the own node's podCIDRs.
var podNetworks = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}

func ownPod(a netip.Addr) bool {
	return slices.ContainsFunc(podNetworks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// A client is where a packet comes from.
type client struct {
	name string
	addr netip.Addr
	in   string // the interface; empty for a process of the node
}

// strangers are clients that are no part of the cluster; what makes them different is which source ranges they are in.
var strangers = [2][]string{
	{"192.0.2.9", "198.51.100.200", "203.0.113.3", "100.64.0.1"},
	{"2001:db8:9::9", "2001:db8:ffff::1"},
}

// clients returns the sources that every Service is probed from. podIn is the interface that this node's pods come in from.
func clients(f cluster.Family, podIn string) (list []client) {
	i := 0
	pods, nodes := [2]string{"10.244.1.77", "10.244.2.77"}, nodeAddrs(f)
	if f == cluster.IPv6 {
		i = 1
		pods = [2]string{"fd00:10:244:1::77", "fd00:10:244:2::77"}
	}
	list = append(list,
		client{"pod", netip.MustParseAddr(pods[0]), podIn},
		client{"node", nodes[0], ""},
		client{"outside", netip.MustParseAddr(strangers[i][0]), outsideInterface},
		client{"other node's pod", netip.MustParseAddr(pods[1]), outsideInterface},
		client{"node by its second address", nodes[1], ""},
		client{"node by the pods' gateway", netip.MustParseAddr(podGateways[i]), ""},
	)
	for _, a := range strangers[i][1:] {
		list = append(list, client{"outside", netip.MustParseAddr(a), outsideInterface})
	}
	return list
}

const (
	outsideInterface = "eth0"
	podBridge        = "cni0"
)

// clientAt returns the endpoint at an address as a client: an endpoint may reach itself through its Service.
func clientAt(a netip.Addr, podIn string) client {
	switch {
	case local(a):
		return client{"endpoint on the node", a, ""}
	case ownPod(a):
		return client{"endpoint here", a, podIn}
	}
	return client{"endpoint elsewhere", a, outsideInterface}
}

// A probe is a packet to walk through both rule sets.
type probe struct {
	trace.Packet
	from string
	// claims say what is at the destination; nobody's near a destination.
	claims []claim
	// what says what the destination is.
	what string
	// recent is the list of clients that the source is in, or empty.
	recent string
}

func (p probe) String() string {
	text := fmt.Sprintf("%s from %s %s (in %q) to %s %s", p.Protocol, p.from, p.Src.Addr(), p.In, p.what, p.Dst)
	if p.Invalid {
		text += ", INVALID"
	}
	if p.recent != "" {
		text += ", known to " + p.recent
	}
	return text
}

// node is what the rules ask about the machine. A packet that a process of the node sends has a source of the node's:
// that is how a load balancer address can be one, when it is bound there.
func (p probe) node() trace.Node {
	src := p.Src.Addr()
	return trace.Node{
		Local:  func(a netip.Addr) bool { return local(a) || p.In == "" && a == src },
		Recent: func(list string) bool { return list == p.recent },
	}
}

// mostEndpoints is from how many of its own endpoints a Service is probed.
const mostEndpoints = 10

// A prober makes up probes.
type prober struct {
	*rand.Rand
	*view
	podIn  string
	recent map[string][]string // lists of clients by full port name
	list   []probe
}

// probes returns what is sent in a cluster: to every place that there is from every kind of source, and to places beside them, places
// that were, and places that the rules name, from a few.
func (v *view) probes(r *rand.Rand, podIn string, was []place, texts ...string) []probe {
	pr := &prober{Rand: r, view: v, podIn: podIn, recent: recentLists(texts)}
	everybody := clients(v.family, podIn)
	places := sortedPlaces(v.claims)
	for _, at := range places {
		pr.claimed(at, everybody)
	}
	near := map[place]bool{}
	for _, at := range places {
		for _, miss := range besides(at) {
			near[miss] = true
		}
	}
	for _, at := range was {
		near[at] = true
	}
	for _, text := range texts {
		for _, at := range named(text, v.family) {
			near[at] = true
		}
	}
	for _, at := range sortedPlaces(near) {
		if v.claims[at] == nil {
			for _, i := range pr.Perm(4)[:2] {
				pr.add(at, nil, "no place of a Service", everybody[i])
			}
		}
	}
	return pr.list
}

func sortedPlaces[V any](m map[place]V) (list []place) {
	for p := range m {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b place) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return int(a.protocol) - int(b.protocol)
	})
	return list
}

// claimed probes a place that somebody claims.
func (pr *prober) claimed(at place, everybody []client) {
	claims := pr.claims[at]
	what := string(claims[0].kind) + " of " + key(claims[0].service.Namespace, claims[0].service.Name)
	if at.at.Addr().IsLoopback() {
		pr.add(at, claims, what, client{"node", at.at.Addr(), ""})
		pr.martian(at, claims, what, everybody)
		return
	}
	from := slices.Clone(everybody)
	for _, c := range claims {
		endpoints := pr.endpoints(c.service)
		for _, i := range pr.Perm(len(endpoints))[:min(len(endpoints), mostEndpoints)] {
			from = append(from, clientAt(endpoints[i], pr.podIn))
		}
		if c.kind == balancerIP {
			from = append(from, client{"the load balancer's address", at.at.Addr(), ""})
		}
	}
	if at.at.Addr() != nodeAddrs(pr.family)[0] && !slices.ContainsFunc(claims, func(c claim) bool { return c.kind != nodePort && c.kind != healthCheck }) {
		// Node ports are at many addresses, all alike.
		pr.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		from = from[:3]
	}
	for _, c := range from {
		pr.add(at, claims, what, c)
	}
	pr.add(at, claims, what, everybody[2])
	pr.list[len(pr.list)-1].Invalid = true
	for _, c := range claims {
		name := key(c.service.Namespace, c.service.Name)
		if c.port != "" {
			name += ":" + c.port
		}
		for _, list := range pr.recent[name] {
			pr.add(at, claims, what, everybody[pr.IntN(3)])
			pr.list[len(pr.list)-1].recent = list
		}
	}
}

// martian probes a loopback address, and a port next to it, from outside: with localhost node ports, the kernel lets
// such packets in, and rules must stop them (CVE-2020-8558).
func (pr *prober) martian(at place, claims []claim, what string, everybody []client) {
	if !at.at.Addr().Is4() {
		return
	}
	pr.add(at, claims, what, everybody[2])
	pr.add(at, claims, what, everybody[0])
	other := place{netip.AddrPortFrom(at.at.Addr(), at.at.Port()-1), at.protocol}
	if pr.claims[other] == nil {
		pr.add(other, nil, "the host's own port", everybody[2])
		pr.add(other, nil, "the host's own port", client{"node", at.at.Addr(), ""})
	}
}

func (pr *prober) add(at place, claims []claim, what string, from client) {
	pr.list = append(pr.list, probe{
		Packet: trace.Packet{Protocol: at.protocol, Src: netip.AddrPortFrom(from.addr, 40000), Dst: at.at, In: from.in},
		from:   from.name, claims: claims, what: what,
	})
}

// besides returns places next to one.
func besides(p place) (list []place) {
	a, port := p.at.Addr(), p.at.Port()
	if port > 1 {
		list = append(list, place{netip.AddrPortFrom(a, port-1), p.protocol})
	}
	if port < 65535 {
		list = append(list, place{netip.AddrPortFrom(a, port+1), p.protocol})
	}
	for _, other := range []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP} {
		if other != p.protocol {
			list = append(list, place{p.at, other})
		}
	}
	if a.IsLoopback() {
		return nil // no packet goes beside it
	}
	return append(list, place{netip.AddrPortFrom(a.Next(), port), p.protocol})
}

var (
	destinations = regexp.MustCompile(`-d (\S+)/(?:32|128) .*-p (tcp|udp|sctp) .*--dport (\d+) `)
	rechecks     = regexp.MustCompile(`--comment "(\S+) -> \S+" -m recent --rcheck --seconds (\d+) .*--name (\S+) `)
)

// named returns the places that rules name.
func named(text string, f cluster.Family) (list []place) {
	for _, m := range destinations.FindAllStringSubmatch(text, -1) {
		a, err := netip.ParseAddr(m[1])
		n, err2 := strconv.ParseUint(m[3], 10, 16)
		if err == nil && err2 == nil && cluster.FamilyOf(a) == f {
			list = append(list, place{netip.AddrPortFrom(a, uint16(n)), protocolOf(corev1.Protocol(strings.ToUpper(m[2])))})
		}
	}
	return list
}

// recentLists returns the lists of clients that rules ask for, by the full names of service ports.
func recentLists(texts []string) map[string][]string {
	lists := map[string][]string{}
	for _, text := range texts {
		for _, m := range rechecks.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(lists[m[1]], m[3]) {
				lists[m[1]] = append(lists[m[1]], m[3])
			}
		}
	}
	for name := range lists {
		slices.Sort(lists[name])
	}
	return lists
}

// timeoutsOf returns for how many seconds rules remember clients, by list.
func timeoutsOf(text string) map[string]string {
	timeouts := map[string]string{}
	for _, m := range rechecks.FindAllStringSubmatch(text, -1) {
		timeouts[m[3]] = m[2]
	}
	return timeouts
}

// otherTimeout describes a list for which two rule sets have different times; empty when there is none. Which lists are asked for
// where is what probes find out.
func otherTimeout(proxy, agent string) string {
	ours := timeoutsOf(agent)
	for list, seconds := range timeoutsOf(proxy) {
		if s, both := ours[list]; both && s != seconds {
			return fmt.Sprintf("%s remembers clients for %s s with kube-proxy, for %s s with fairway", list, seconds, s)
		}
	}
	return ""
}
