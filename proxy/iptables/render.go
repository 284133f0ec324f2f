package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/internal/ordered"
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
	// Counters counts the packets of two rules in nfacct objects, LocalhostCounter and InvalidCounter, which must be there.
	Counters bool
	// Large leaves out the comments of endpoints' rules, see [LargeCluster].
	Large bool
}

// The names of the nfacct objects, as in kube-proxy.
const (
	LocalhostCounter = "localhost_nps_accepted_pkts"
	InvalidCounter   = "ct_state_invalid_dropped_pkts"
)

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

// inputs are what the rules of all ports depend on.
type inputs struct {
	family  cluster.Family
	options Options
	local   proxy.LocalTraffic
	all     bool
	unknown bool
	// ranges is the text of the service ranges.
	ranges string
	// localhost tells that node ports are served at 127.0.0.0/8.
	localhost bool
}

// memo is what Render keeps for the next Render. Everything in it is in the Ruleset too; it only tells what came from
// which port.
type memo struct {
	inputs
	// serviceRanges and nodePorts are the Table's. inputs has of them what the rules of ports depend on.
	serviceRanges []netip.Prefix
	nodePorts     proxy.NodePorts
	ports         []*proxy.Port
	rules         []*portRules // of these ports
	entries       [places][]*entry
	trees         [places]*part
}

// Render writes the rules for a Table, one family. prev is a memo and nothing else: the rules of a port that kept its
// pointer are taken over, and the result equals that of Render(t, o, nil).
func Render(t *proxy.Table, o Options, prev *Ruleset) *Ruleset {
	m := &memo{serviceRanges: t.ServiceRanges, nodePorts: t.NodePorts,
		inputs: inputs{t.Family, o, t.Local, t.MasqueradeAll, t.RejectUnknown, fmt.Sprint(t.ServiceRanges), t.NodePorts.Localhost}}
	if prev == nil || prev.memo == nil || prev.memo.inputs != m.inputs {
		prev = &Ruleset{memo: &memo{}}
	}
	gone, fresh := m.renderPorts(t.Ports, prev.memo)
	for place := range m.entries {
		m.entries[place] = ordered.Edit(prev.memo.entries[place], entriesAt(place, gone), entriesAt(place, fresh), compareEntries)
	}
	r := &Ruleset{Family: t.Family, Large: o.Large, memo: m}
	r.NAT = m.nat(prev, gone, fresh)
	r.Filter = m.filter(prev)
	return r
}

// renderPorts writes the rules of all ports, and returns those which an earlier Render had more, and fewer.
func (m *memo) renderPorts(ports []*proxy.Port, old *memo) (gone, fresh []*portRules) {
	m.ports, m.rules = ports, make([]*portRules, 0, len(ports))
	p := portRenderer{family: m.family, options: m.options, local: m.local, masqueradeAll: m.all,
		unknown: m.unknown, ranges: m.serviceRanges, counted: m.localhost && m.options.Counters}
	i := 0
	for _, port := range ports {
		for i < len(old.ports) && old.ports[i] != port && !later(old.ports[i], port) {
			gone = append(gone, old.rules[i])
			i++
		}
		if i < len(old.ports) && old.ports[i] == port {
			m.rules = append(m.rules, old.rules[i])
			i++
			continue
		}
		rules := p.render(port)
		m.rules, fresh = append(m.rules, rules), append(fresh, rules)
	}
	return append(gone, old.rules[i:]...), fresh
}

// later tells whether a port's Service comes after another's in the order of Tables.
func later(p, than *proxy.Port) bool {
	if p.Name.Namespace != than.Name.Namespace {
		return p.Name.Namespace > than.Name.Namespace
	}
	return p.Name.Service > than.Name.Service
}

func entriesAt(place int, rules []*portRules) (list []*entry) {
	for _, r := range rules {
		list = append(list, r.entries[place]...)
	}
	return list
}

func compareChains(a, b *Chain) int { return strings.Compare(a.Name, b.Name) }

// nat assembles nat: what translates.
func (m *memo) nat(prev *Ruleset, gone, fresh []*portRules) Table {
	d := dispatcher{}
	for _, r := range gone {
		d.gone = append(d.gone, r.chains...)
	}
	for _, r := range fresh {
		d.fresh = append(d.fresh, r.chains...)
	}
	m.dispatch(&d, toAddress, chainServices, addressJump("KUBE-SVC-"), prev, nodePortTail(m.family, m.nodePorts)...)
	m.dispatch(&d, toNodePort, chainNodePorts, portJump, prev)
	if len(prev.NAT.Chains) == 0 {
		mark, random := m.mark(), ""
		if m.options.RandomFully {
			random = " --random-fully"
		}
		d.fresh = append(d.fresh,
			fixedChain(chainMarkMasq, "-j MARK --set-xmark "+mark+"/"+mark),
			fixedChain(chainPostrouting,
				"-m mark ! --mark "+mark+"/"+mark+" -j RETURN",
				// Cleared, so that a packet that passes here again (through a tunnel) is not masqueraded twice.
				"-j MARK --set-xmark "+mark+"/0x0",
				`-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE`+random))
	}
	return Table{Chains: ordered.Edit(prev.NAT.Chains, d.gone, d.fresh, compareChains), Jumps: jumps(
		"PREROUTING", `-m comment --comment "kubernetes service portals" -j `+chainServices,
		"OUTPUT", `-m comment --comment "kubernetes service portals" -j `+chainServices,
		"POSTROUTING", `-m comment --comment "kubernetes postrouting rules" -j `+chainPostrouting)}
}

// dispatch builds the tree of a place.
func (m *memo) dispatch(d *dispatcher, place int, chain string, jump func(netip.Prefix) (match, chain string), prev *Ruleset, tail ...*entry) {
	d.jump = jump
	m.trees[place] = d.build(part{}, chain, m.entries[place], prev.memo.trees[place], tail...)
}

// mark is the packet mark that says "replace the source", as iptables-save prints it.
func (m *memo) mark() string { return fmt.Sprintf("%#x", uint32(1)<<m.options.MasqueradeBit) }

// counted returns the match that counts in an nfacct object. iptables prints two spaces before its name (libxt_nfacct).
func counted(name string) string { return " -m nfacct --nfacct-name  " + name }

// nodePortTail are the rules that send what no VIP took to the node ports. The loopback network is left out unless node ports
// are to be there: its packets can't be sent elsewhere unless net.ipv4.conf.all.route_localnet lets them.
func nodePortTail(f cluster.Family, n proxy.NodePorts) (tail []*entry) {
	const about = ` -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"`
	if !n.Everywhere {
		for _, a := range n.Addrs {
			tail = append(tail, &entry{rule: address(a) + about + " -j " + chainNodePorts})
		}
		return tail
	}
	not := ""
	switch {
	case f == cluster.IPv6:
		not = "! -d ::1/128"
	case !n.Localhost:
		not = "! -d 127.0.0.0/8"
	}
	return []*entry{{rule: strings.TrimPrefix(not+about+" -m addrtype --dst-type LOCAL -j "+chainNodePorts, " ")}}
}

// unknownTail are the rules for the service ranges.
func (m *memo) unknownTail() (tail []*entry) {
	if !m.unknown {
		return nil
	}
	for _, r := range m.serviceRanges {
		tail = append(tail, &entry{rule: unknown(r.String(), "no Service has this address and port", m.family)})
	}
	return tail
}

// filter assembles filter: what is rejected, and what forwarding must not stop.
func (m *memo) filter(prev *Ruleset) Table {
	d := dispatcher{}
	m.dispatch(&d, refuseAddress, chainServices, addressJump("KUBE-SVC-"), prev, m.unknownTail()...)
	m.dispatch(&d, refuseExternal, chainExternal, addressJump("KUBE-EXT-"), prev, m.entries[refuseNodePort]...)
	m.dispatch(&d, refuseSource, chainFirewall, addressJump("KUBE-FW-"), prev)
	checks := len(m.entries[healthCheck]) > 0
	if checks {
		m.dispatch(&d, healthCheck, chainNodePorts, portJump, prev)
	} else if old := prev.memo.trees[healthCheck]; old != nil {
		d.drop(old)
	}
	if len(prev.Filter.Chains) == 0 {
		mark := m.mark()
		forward := []string{
			`-m comment --comment "kubernetes forwarding rules" -m mark --mark ` + mark + "/" + mark + " -j ACCEPT",
			`-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
		}
		if m.options.DropInvalid {
			counter := ""
			if m.options.Counters {
				counter = counted(InvalidCounter)
			}
			forward = slices.Insert(forward, 0, "-m conntrack --ctstate INVALID"+counter+" -j DROP")
		}
		d.fresh = append(d.fresh, fixedChain(chainForward, forward...))
	}
	portals := `-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j ` + chainServices
	visible := `-m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j ` + chainExternal
	ways := []string{
		"INPUT", visible,
		"FORWARD", `-m comment --comment "kubernetes forwarding rules" -j ` + chainForward,
		"FORWARD", portals,
		"FORWARD", visible,
		"OUTPUT", portals,
	}
	// Jumps to chains that have nothing would cost every packet something for nothing.
	if checks {
		ways = slices.Insert(ways, 0, "INPUT", `-m comment --comment "kubernetes health check service ports" -j `+chainNodePorts)
	}
	if len(m.entries[refuseSource]) > 0 {
		// The firewall comes first in each.
		firewall := `-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j ` + chainFirewall
		for _, from := range [...]string{"INPUT", "FORWARD", "OUTPUT"} {
			ways = slices.Insert(ways, slices.Index(ways, from), from, firewall)
		}
	}
	t := Table{Chains: ordered.Edit(prev.Filter.Chains, d.gone, d.fresh, compareChains), Jumps: jumps(ways...)}
	if m.localhost {
		t.Shared = Shared{Chain: true, Rules: guards}
	}
	return t
}

func jumps(pairs ...string) (list []Jump) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, Jump{From: pairs[i], Rule: "-A " + pairs[i] + " " + pairs[i+1] + "\n"})
	}
	return list
}

func fixedChain(name string, rules ...string) *Chain {
	w := newChainWriter(name, len(rules))
	for _, r := range rules {
		w.rule(nil, r)
	}
	return w.chain()
}
