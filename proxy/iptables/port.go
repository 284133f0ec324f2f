package iptables

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// The places where a port can have a rule that packets are dispatched by.
const (
	toAddress      = iota // nat, KUBE-SERVICES
	toNodePort            // nat, KUBE-NODEPORTS
	refuseAddress         // filter, KUBE-SERVICES
	refuseExternal        // filter, KUBE-EXTERNAL-SERVICES
	refuseNodePort        // filter, KUBE-EXTERNAL-SERVICES, behind the addresses
	refuseSource          // filter, KUBE-PROXY-FIREWALL
	healthCheck           // filter, KUBE-NODEPORTS
	places
)

// portRules are the rules of one service port: its chains in nat, and its entries at each place.
type portRules struct {
	chains  []*Chain
	entries [places][]*entry
}

func (r *portRules) add(place int, key netip.Addr, p *proxy.Port, rule string) {
	r.entries[place] = append(r.entries[place], &entry{key: key, rule: rule, port: p})
}

// A portRenderer writes the rules of single ports.
type portRenderer struct {
	family        cluster.Family
	options       Options
	local         proxy.LocalTraffic
	masqueradeAll bool
	// unknown tells that ClusterIPs outside of all ranges reject what is for no port of theirs.
	unknown bool
	ranges  []netip.Prefix
	// counted tells that what comes through a node port at 127.0.0.0/8 is counted.
	counted bool
	// oneIn are the matches for one packet in n, by n.
	oneIn []string
	// svc, group and sep are writers whose memory serves one port after the other.
	svc, group, sep chainWriter
}

func (r *portRenderer) render(p *proxy.Port) *portRules {
	rules := &portRules{}
	w := portWriter{r, p, rules, p.Name.String(), p.Protocol.String(), portHash(p)}
	w.refuse()
	w.perService()
	var internal string
	switch p.Internal {
	case proxy.ToCluster:
		internal = "KUBE-SVC-" + w.hash
	case proxy.ToLocal:
		internal = "KUBE-SVL-" + w.hash
	}
	if internal != "" && p.ClusterIP.IsValid() {
		rules.add(toAddress, p.ClusterIP, p, w.destination(p.ClusterIP, comment(w.name+" cluster IP"))+" -j "+internal)
	}
	if p.FromOutside() && p.External != proxy.Reject {
		w.external()
	}
	if len(p.Cluster) > 0 {
		w.balance("KUBE-SVC-"+w.hash, internal, p.Cluster)
	}
	if len(p.Local) > 0 {
		w.balance("KUBE-SVL-"+w.hash, internal, p.Local)
	}
	return rules
}

// A portWriter writes the rules of one port.
type portWriter struct {
	*portRenderer
	port                 *proxy.Port
	rules                *portRules
	name, protocol, hash string
}

// address returns the match for a destination address.
func address(a netip.Addr) string { return "-d " + network(a) }

func network(a netip.Addr) string { return a.String() + "/" + strconv.Itoa(a.BitLen()) }

// destination returns the matches for the port on an address, with a comment between.
func (w *portWriter) destination(a netip.Addr, about string) string {
	return address(a) + " -p " + w.protocol + about + dportMatch(w.protocol, w.port.Port)
}

// refuse writes what is rejected or dropped.
func (w *portWriter) refuse() {
	p := w.port
	if why, target := w.refusal(p.Internal); target != "" && p.ClusterIP.IsValid() {
		w.rules.add(refuseAddress, p.ClusterIP, p, w.destination(p.ClusterIP, why)+target)
	}
	why, target := w.refusal(p.External)
	if target == "" {
		return
	}
	for _, addrs := range [...][]netip.Addr{p.ExternalIPs, p.LoadBalancerIPs} {
		for _, a := range addrs {
			rule := w.destination(a, why) + target
			w.rules.add(refuseExternal, a, p, rule)
			// OUTPUT leads to KUBE-SERVICES only; kube-proxy lets the node's own packets go out.
			w.rules.add(refuseAddress, a, p, rule)
		}
	}
	if p.NodePort != 0 {
		w.rules.add(refuseNodePort, portKey(p.Protocol, p.NodePort), p,
			"-p "+w.protocol+why+" -m addrtype --dst-type LOCAL"+dportMatch(w.protocol, p.NodePort)+target)
	}
}

// perService writes what a Service has once, whatever its ports; the first one writes it.
func (w *portWriter) perService() {
	p, svc := w.port, w.port.Service
	if first := svc.Ports[0]; p.Name.Port != first.Name || p.Protocol != first.Protocol {
		return
	}
	if n := svc.HealthCheckNodePort; n != 0 {
		w.rules.add(healthCheck, portKey(cluster.TCP, n), p, "-p tcp"+comment(w.name+" health check node port")+dportMatch("tcp", n)+" -j ACCEPT")
	}
	inRange := slices.ContainsFunc(w.ranges, func(r netip.Prefix) bool { return r.Contains(p.ClusterIP) })
	if w.unknown && !inRange && p.ClusterIP.IsValid() {
		w.rules.entries[refuseAddress] = append(w.rules.entries[refuseAddress],
			&entry{p.ClusterIP, unknown(network(p.ClusterIP), svc.Namespace+"/"+svc.Name+" has no such port", w.family), p, true})
	}
}

// unknown writes the rule that rejects what is for no service port. Addresses of this machine are spared: what is sent to
// them does not leave it, and a process may serve there, as a DNS cache does.
func unknown(destination, why string, f cluster.Family) string {
	return "-d " + destination + comment(why) + " -m addrtype ! --dst-type LOCAL -j REJECT --reject-with " + rejectWith(f)
}

// refusal returns the comment and target for a verdict; the target is empty for one that lets traffic through.
func (w *portWriter) refusal(v proxy.Verdict) (why, target string) {
	switch v {
	case proxy.Reject:
		return comment(w.name + " has no endpoints"), " -j REJECT --reject-with " + rejectWith(w.family)
	case proxy.Drop:
		return comment(w.name + " has no local endpoints"), " -j DROP"
	}
	return "", ""
}

// external writes the chain for what comes from outside, and what leads there.
func (w *portWriter) external() {
	p, ext := w.port, &w.sep
	entrance := "KUBE-EXT-" + w.hash
	for _, a := range p.ExternalIPs {
		w.rules.add(toAddress, a, p, w.destination(a, comment(w.name+" external IP"))+" -j "+entrance)
	}
	if p.NodePort != 0 {
		w.rules.add(toNodePort, portKey(p.Protocol, p.NodePort), p, "-p "+w.protocol+comment(w.name)+dportMatch(w.protocol, p.NodePort)+" -j "+entrance)
	}
	w.balancers(entrance)
	ext.name = entrance
	about := func(text string) string { return w.detail(comment(text + " for " + w.name + " external destinations")) }
	rule := func(pieces ...string) { ext.rule(p, strings.TrimPrefix(strings.Join(pieces, ""), " ")) }
	svc := "KUBE-SVC-" + w.hash
	if p.NodePort != 0 && w.counted {
		rule("-d 127.0.0.0/8", counted(LocalhostCounter))
	}
	if p.External == proxy.ToCluster {
		rule(about("masquerade traffic"), " -j ", chainMarkMasq)
		rule("-j ", svc)
	} else {
		// The policy is Local. Pods' and the node's own traffic is not from outside: it goes to any endpoint.
		if w.local.CIDR.IsValid() {
			rule("-s ", w.local.CIDR.String(), about("pod traffic"), " -j ", svc)
		} else if w.local.Interface != "" {
			rule("-i ", w.local.Interface, about("pod traffic"), " -j ", svc)
		}
		const own = " -m addrtype --src-type LOCAL -j "
		rule(about("masquerade LOCAL traffic"), own, chainMarkMasq)
		rule(about("route LOCAL traffic"), own, svc)
		if p.External == proxy.ToLocal {
			rule("-j KUBE-SVL-", w.hash)
		}
	}
	w.rules.chains = append(w.rules.chains, ext.one(p))
}

// balancers writes what leads from the load balancer IPs to the entrance: through a chain that lets the allowed sources
// pass, if not everybody may. What does not pass keeps its destination, and by that the filter table knows it.
func (w *portWriter) balancers(entrance string) {
	p, fw := w.port, &w.sep
	to := entrance
	about := comment(w.name + " loadbalancer IP")
	if len(p.LoadBalancerIPs) > 0 && p.AllowedSources != nil {
		to = "KUBE-FW-" + w.hash
		fw.name = to
		for _, n := range p.AllowedSources {
			fw.rule(p, "-s ", n.String(), about, " -j ", entrance)
		}
		for _, a := range p.LoadBalancerIPs {
			if p.AllowSelf {
				fw.rule(p, "-s ", network(a), about, " -j ", entrance)
			}
			w.rules.add(refuseSource, a, p, w.destination(a, comment(w.name+" traffic not accepted by "+to))+" -j DROP")
		}
		fw.rule(p, strings.TrimPrefix(comment("other traffic to "+w.name+" will be dropped by "+chainFirewall), " "))
		w.rules.chains = append(w.rules.chains, fw.one(p))
	}
	for _, a := range p.LoadBalancerIPs {
		w.rules.add(toAddress, a, p, w.destination(a, about)+" -j "+to)
	}
}

// dportMatch returns the match for a destination port, with a space before.
func dportMatch(protocol string, port uint16) string {
	return " -m " + protocol + " --dport " + strconv.Itoa(int(port))
}

// balance writes a chain that picks a backend: the i-th of n takes 1/(n-i) of what comes that far, so each gets an equal
// share; of very many backends, a group is picked first. Clients that have a backend already are asked for first. internal is the chain that the ClusterIP leads to.
func (w *portWriter) balance(chain, internal string, backends []proxy.Backend) {
	p, svc := w.port, &w.svc
	svc.name = chain
	if src, in, ok := w.masqueraded(); ok && chain == internal && p.ClusterIP.IsValid() {
		svc.rule(p, src, address(p.ClusterIP), in, " -p ", w.protocol, w.detail(comment(w.name+" cluster IP")), dportMatch(w.protocol, p.Port), " -j ", chainMarkMasq)
	}
	if p.Affinity > 0 {
		for _, b := range backends {
			sep := endpointChain(p, b.Addr.String())
			svc.rule(p, strings.TrimPrefix(w.toEndpoint(b)+" -m recent --rcheck --seconds "+strconv.Itoa(int(p.Affinity/time.Second))+
				" --reap"+w.clients(sep)+" -j "+sep, " "))
		}
	}
	if len(backends) <= flatBackends {
		w.pick(svc, backends)
	} else {
		w.divide(svc, backends)
	}
	w.rules.chains = append(w.rules.chains, svc.one(p))
}

// divide writes rules that pick a group of backends, in proportion to its size, and a chain for each group that picks a backend.
func (w *portWriter) divide(svc *chainWriter, backends []proxy.Backend) {
	left := len(backends)
	for i, members := range groups(backends) {
		if len(members) == 0 {
			continue
		}
		group := &w.group
		group.name = groupChain(svc.name, i)
		svc.rule(w.port, strings.TrimPrefix(w.detail(comment(w.name))+w.odds(len(members), left)+" -j ", " "), group.name)
		w.pick(group, members)
		w.rules.chains = append(w.rules.chains, group.one(w.port))
		left -= len(members)
	}
}

// pick writes the rules that pick one of some backends.
func (w *portWriter) pick(from *chainWriter, backends []proxy.Backend) {
	p := w.port
	for i, b := range backends {
		to, odds := w.toEndpoint(b), w.odds(1, len(backends)-i)
		if !b.Local && p.Affinity == 0 {
			from.rule(p, "-p ", w.protocol, to, odds, " -j DNAT --to-destination ", b.Addr.String())
			continue
		}
		from.rule(p, strings.TrimPrefix(to+odds+" -j ", " "), w.endpoint(b))
	}
}

// toEndpoint returns the comment of a rule that leads to a backend.
func (w *portWriter) toEndpoint(b proxy.Backend) string {
	if w.options.Large {
		return ""
	}
	return comment(w.name + " -> " + b.Addr.String())
}

// endpoint writes the chain of a backend, unless it is there already, and returns its name. A backend on this node has
// one because it must recognise its own connections, which would otherwise be answered past the node; and with affinity
// each has one that remembers its clients.
func (w *portWriter) endpoint(b proxy.Backend) string {
	p, sep, addr := w.port, &w.sep, b.Addr.Addr()
	name := endpointChain(p, b.Addr.String())
	if slices.ContainsFunc(w.rules.chains, func(c *Chain) bool { return c.Name == name }) {
		return name
	}
	sep.name = name
	about := w.detail(comment(w.name))
	if b.Local {
		sep.rule(p, "-s ", addr.String(), "/", strconv.Itoa(addr.BitLen()), about, " -j ", chainMarkMasq)
	}
	remember := ""
	if p.Affinity > 0 {
		remember = " -m recent --set" + w.clients(name)
	}
	sep.rule(p, "-p ", w.protocol, about, remember, " -j DNAT --to-destination ", b.Addr.String())
	w.rules.chains = append(w.rules.chains, sep.one(p))
	return name
}

// clients returns the options of the recent match that name an endpoint's list of clients, by their whole address.
func (w *portWriter) clients(list string) string {
	mask := "255.255.255.255"
	if w.family == cluster.IPv6 {
		mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return " --name " + list + " --mask " + mask + " --rsource"
}

// detail returns a comment match that a large cluster goes without.
func (r *portRenderer) detail(comment string) string {
	if r.options.Large {
		return ""
	}
	return comment
}

// masqueraded returns the matches, before and after the destination, for the traffic to cluster IPs that needs its
// source replaced; ok is false when there is none.
func (r *portRenderer) masqueraded() (src, in string, ok bool) {
	switch {
	case r.masqueradeAll:
		return "", "", true
	case r.local.CIDR.IsValid():
		return "! -s " + r.local.CIDR.String() + " ", "", true
	case r.local.Interface != "":
		return "", " ! -i " + r.local.Interface, true
	}
	return "", "", false
}

// comment returns a comment match. Names come validated and without a character that would need escaping, and the
// longest text stays below the kernel's 256 bytes (XT_MAX_COMMENT_LEN).
func comment(text string) string { return ` -m comment --comment "` + text + `"` }

// odds returns the match that holds for k packets in n. All of them need no match.
func (r *portRenderer) odds(k, n int) string {
	switch {
	case k == n:
		return ""
	case k > 1:
		return probability(k, n)
	}
	for i := len(r.oneIn); i <= n; i++ {
		r.oneIn = append(r.oneIn, probability(1, max(i, 1)))
	}
	return r.oneIn[n]
}

// probability words the match in the kernel's resolution of 1/2^31, and with the eleven digits that iptables-save prints (libxt_statistic).
func probability(k, n int) string {
	const most = 1 << 31
	return fmt.Sprintf(" -m statistic --mode random --probability %.11f", math.Round(most*float64(k)/float64(n))/most)
}

func rejectWith(f cluster.Family) string {
	if f == cluster.IPv6 {
		return "icmp6-port-unreachable"
	}
	return "icmp-port-unreachable"
}
