package iptables

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// Options are the properties of a Ruleset that do not depend on any service.
type Options struct {
	// MasqueradeBit is the bit of the packet mark, 0 to 31, that says "replace the source"; kube-proxy's is 14.
	MasqueradeBit uint8
	// RandomFully randomises the ports of masqueraded connections, which avoids collisions (iptables ≥ 1.6.2).
	RandomFully bool
	// DropInvalid drops forwarded packets that conntrack calls INVALID. Without it an out-of-window segment escapes
	// the translation, and the surprised client resets the connection. Not wanted when
	// net.netfilter.nf_conntrack_tcp_be_liberal is set.
	DropInvalid bool
	// Large leaves out the comments of endpoints' rules, see [LargeCluster].
	Large bool
}

const (
	largeAbove = 1000
	smallBelow = 800
)

// LargeCluster tells whether the rules of endpoints go without comments: from more than 1,000 endpoints, as with
// kube-proxy, until there are fewer than 800 again. A comment costs legacy iptables 288 bytes of kernel memory; and
// crossing the line rewrites everything, so there are two.
func LargeCluster(endpoints int, was bool) bool {
	if was {
		return endpoints >= smallBelow
	}
	return endpoints > largeAbove
}

// memo is what Render keeps for the next Render: the inputs of every chain.
type memo struct {
	options  Options
	local    proxy.LocalTraffic
	all      bool
	rendered map[*proxy.Port]*portRules
	services []*Chain // the chains of services and endpoints in nat, by name
	dispatch map[string]*Chain
	filter   map[string]*Chain
}

// Render writes the rules for a Table, one family. prev is a memo and nothing else: the rules of a port that kept its
// pointer are taken over, and the result equals that of Render(t, o, nil).
func Render(t *proxy.Table, o Options, prev *Ruleset) *Ruleset {
	r := &Ruleset{Family: t.Family, Large: o.Large}
	m := &memo{options: o, local: t.Local, all: t.MasqueradeAll, rendered: make(map[*proxy.Port]*portRules, len(t.Ports))}
	old := &memo{}
	if prev != nil && prev.memo != nil && prev.Family == t.Family {
		old = prev.memo
	}
	known := old.rendered
	if old.options != m.options || old.local != m.local || old.all != m.all {
		known = nil
	}
	p := portRenderer{family: t.Family, options: o, local: t.Local, masqueradeAll: t.MasqueradeAll}
	var fresh []*Chain
	for _, port := range t.Ports {
		rules := known[port]
		if rules == nil {
			rules = p.render(port)
			fresh = append(fresh, rules.chains...)
		}
		m.rendered[port] = rules
	}
	if known == nil {
		slices.SortFunc(fresh, compareChains)
		m.services = fresh
	} else {
		m.services = mergeChains(old.services, known, m.rendered, fresh)
	}
	r.NAT = natTable(t, o, m, old)
	r.Filter = filterTable(t, o, m, old)
	r.memo = m
	return r
}

func compareChains(a, b *Chain) int { return strings.Compare(a.Name, b.Name) }

// mergeChains updates an ordered list of chains: out goes what belongs to ports that are no longer rendered.
func mergeChains(old []*Chain, was, is map[*proxy.Port]*portRules, fresh []*Chain) []*Chain {
	gone := map[*Chain]bool{}
	for port, rules := range was {
		if is[port] == nil {
			for _, c := range rules.chains {
				gone[c] = true
			}
		}
	}
	slices.SortFunc(fresh, compareChains)
	merged := make([]*Chain, 0, len(old)+len(fresh))
	for _, c := range old {
		if gone[c] {
			continue
		}
		for len(fresh) > 0 && fresh[0].Name < c.Name {
			merged, fresh = append(merged, fresh[0]), fresh[1:]
		}
		merged = append(merged, c)
	}
	return append(merged, fresh...)
}

// natTable assembles nat: what translates.
func natTable(t *proxy.Table, o Options, m, old *memo) Table {
	mark := fmt.Sprintf("%#x", uint32(1)<<o.MasqueradeBit)
	var vips, ports []entry
	for _, p := range t.ByClusterIP {
		if rule := m.rendered[p].clusterIP; rule != "" {
			vips = append(vips, entry{p.ClusterIP, rule, p})
		}
	}
	for _, p := range t.ByNodePort {
		if rule := m.rendered[p].nodePort; rule != "" {
			ports = append(ports, entry{portKey(p.Protocol, p.NodePort), rule, p})
		}
	}
	random := ""
	if o.RandomFully {
		random = " --random-fully"
	}
	d := dispatcher{jump: addressJump, memo: old.dispatch}
	d.build(chainServices, vips, nodePortTail(t.Family))
	d.jump = portJump
	d.build(chainNodePorts, ports)
	m.dispatch = byName(d.out)
	fixed := append(d.out,
		fixedChain(chainMarkMasq, fmt.Sprintf("-j MARK --set-xmark %s/%s", mark, mark)),
		fixedChain(chainPostrouting,
			fmt.Sprintf("-m mark ! --mark %s/%s -j RETURN", mark, mark),
			// Cleared, so that a packet that passes here again (through a tunnel) is not masqueraded twice.
			fmt.Sprintf("-j MARK --set-xmark %s/0x0", mark),
			`-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE`+random))
	slices.SortFunc(fixed, compareChains)
	return Table{Chains: mergeChains(m.services, nil, nil, fixed), Jumps: jumps(
		"PREROUTING", `-m comment --comment "kubernetes service portals" -j `+chainServices,
		"OUTPUT", `-m comment --comment "kubernetes service portals" -j `+chainServices,
		"POSTROUTING", `-m comment --comment "kubernetes postrouting rules" -j `+chainPostrouting)}
}

// nodePortTail is the rule that sends what no VIP took to the node ports. The loopback network is left out: its
// packets can't be sent elsewhere unless net.ipv4.conf.all.route_localnet opens the host's loopback services to the
// neighbours (CVE-2020-8558).
func nodePortTail(f cluster.Family) string {
	loopback := "127.0.0.0/8"
	if f == cluster.IPv6 {
		loopback = "::1/128"
	}
	return "! -d " + loopback + ` -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"` +
		" -m addrtype --dst-type LOCAL -j " + chainNodePorts
}

// filterTable assembles filter: what is rejected, and what forwarding must not stop.
func filterTable(t *proxy.Table, o Options, m, old *memo) Table {
	mark := fmt.Sprintf("%#x", uint32(1)<<o.MasqueradeBit)
	var vips []entry
	external := chainWriter{name: chainExternal}
	for _, p := range t.ByClusterIP {
		if rule := m.rendered[p].rejectClusterIP; rule != "" {
			vips = append(vips, entry{p.ClusterIP, rule, p})
		}
	}
	for _, p := range t.ByNodePort {
		if rule := m.rendered[p].rejectNodePort; rule != "" {
			external.rule(rule, p)
		}
	}
	d := dispatcher{jump: addressJump, memo: old.filter}
	d.build(chainServices, vips)
	m.filter = byName(d.out)
	forward := []string{
		fmt.Sprintf(`-m comment --comment "kubernetes forwarding rules" -m mark --mark %s/%s -j ACCEPT`, mark, mark),
		`-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
	}
	if o.DropInvalid {
		forward = slices.Insert(forward, 0, "-m conntrack --ctstate INVALID -j DROP")
	}
	chains := append(d.out, external.chain(nil), fixedChain(chainForward, forward...))
	slices.SortFunc(chains, compareChains)
	portals := `-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j ` + chainServices
	visible := `-m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j ` + chainExternal
	return Table{Chains: chains, Jumps: jumps(
		"INPUT", visible,
		"FORWARD", `-m comment --comment "kubernetes forwarding rules" -j `+chainForward,
		"FORWARD", portals,
		"FORWARD", visible,
		"OUTPUT", portals)}
}

func jumps(pairs ...string) (list []Jump) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, Jump{From: pairs[i], Rule: "-A " + pairs[i] + " " + pairs[i+1] + "\n"})
	}
	return list
}

func byName(chains []*Chain) map[string]*Chain {
	m := make(map[string]*Chain, len(chains))
	for _, c := range chains {
		m[c.Name] = c
	}
	return m
}

func fixedChain(name string, rules ...string) *Chain {
	w := chainWriter{name: name}
	for _, r := range rules {
		w.rule(r, nil)
	}
	return w.chain(nil)
}

// portRules are the rules of one service port. A dispatcher's rules are without "-A CHAIN ", since the dispatcher
// says where they stand; empty means that there is none.
type portRules struct {
	chains                          []*Chain
	clusterIP, nodePort             string
	rejectClusterIP, rejectNodePort string
}

// A portRenderer writes the rules of single ports.
type portRenderer struct {
	family        cluster.Family
	options       Options
	local         proxy.LocalTraffic
	masqueradeAll bool
}

func (r *portRenderer) render(p *proxy.Port) *portRules {
	rules := &portRules{}
	name, protocol := p.Name.String(), p.Protocol.String()
	vip := ""
	if p.ClusterIP.IsValid() {
		vip = fmt.Sprintf("-d %s/%d", p.ClusterIP, p.ClusterIP.BitLen())
	}
	dport := fmt.Sprintf("-m %s --dport %d", protocol, p.Port)
	if len(p.Backends) == 0 {
		reject := " -j REJECT --reject-with " + rejectWith(r.family)
		none := comment(name + " has no endpoints")
		if vip != "" {
			rules.rejectClusterIP = vip + " -p " + protocol + none + " " + dport + reject
		}
		if p.NodePort != 0 {
			rules.rejectNodePort = fmt.Sprintf("-p %s%s -m addrtype --dst-type LOCAL -m %s --dport %d%s", protocol, none, protocol, p.NodePort, reject)
		}
		return rules
	}
	h := portHash(p)
	svc := chainWriter{name: "KUBE-SVC-" + h}
	portal := comment(name + " cluster IP")
	if vip != "" {
		rules.clusterIP = vip + " -p " + protocol + portal + " " + dport + " -j " + svc.name
		if src, in, ok := r.masqueraded(); ok {
			svc.rule(src+vip+in+" -p "+protocol+r.detail(portal)+" "+dport+" -j "+chainMarkMasq, p)
		}
	}
	if p.NodePort != 0 {
		ext := chainWriter{name: "KUBE-EXT-" + h}
		ext.rule(strings.TrimPrefix(r.detail(comment("masquerade traffic for "+name+" external destinations"))+" -j "+chainMarkMasq, " "), p)
		ext.rule("-j "+svc.name, p)
		rules.chains = append(rules.chains, ext.one(p))
		rules.nodePort = fmt.Sprintf("-p %s%s -m %s --dport %d -j %s", protocol, comment(name), protocol, p.NodePort, ext.name)
	}
	r.balance(&svc, p, name, rules)
	rules.chains = append(rules.chains, svc.one(p))
	return rules
}

// balance writes the rules that pick a backend: the i-th of n takes 1/(n-i) of what comes that far, so each gets an
// equal share. A backend elsewhere is translated at once; one on this node has a chain that recognises its own
// connections, which would otherwise be answered past the node.
func (r *portRenderer) balance(svc *chainWriter, p *proxy.Port, name string, rules *portRules) {
	protocol := p.Protocol.String()
	for i, b := range p.Backends {
		endpoint := b.Addr.String()
		pick := r.detail(comment(name+" -> "+endpoint)) + probability(len(p.Backends)-i)
		if !b.Local {
			svc.rule("-p "+protocol+pick+" -j DNAT --to-destination "+endpoint, p)
			continue
		}
		sep := chainWriter{name: endpointChain(p, endpoint)}
		svc.rule(strings.TrimPrefix(pick+" -j "+sep.name, " "), p)
		about := r.detail(comment(name))
		sep.rule(fmt.Sprintf("-s %s/%d%s -j %s", b.Addr.Addr(), b.Addr.Addr().BitLen(), about, chainMarkMasq), p)
		sep.rule("-p "+protocol+about+" -j DNAT --to-destination "+endpoint, p)
		rules.chains = append(rules.chains, sep.one(p))
	}
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

// probability returns the match that holds for one packet in n, in the kernel's resolution of 1/2^31 and the eleven
// digits that iptables-save prints (libxt_statistic). One in one needs no match.
func probability(n int) string {
	if n == 1 {
		return ""
	}
	p := math.Round(float64(1<<31)/float64(n)) / (1 << 31)
	return fmt.Sprintf(" -m statistic --mode random --probability %.11f", p)
}

func rejectWith(f cluster.Family) string {
	if f == cluster.IPv6 {
		return "icmp6-port-unreachable"
	}
	return "icmp-port-unreachable"
}

// one returns the chain as one that is for a single port.
func (w *chainWriter) one(p *proxy.Port) *Chain {
	return &Chain{Name: w.name, Rules: w.rules.String(), ports: []*proxy.Port{p}}
}
