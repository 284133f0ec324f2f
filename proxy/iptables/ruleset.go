package iptables

import (
	"cmp"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// The tables that fairway writes to.
const (
	Filter = "filter"
	NAT    = "nat"
)

// Tables lists the tables that a Ruleset has, in their order.
var Tables = [...]string{Filter, NAT}

// The chains that have no hash in their name.
const (
	chainServices    = "KUBE-SERVICES"
	chainExternal    = "KUBE-EXTERNAL-SERVICES"
	chainNodePorts   = "KUBE-NODEPORTS"
	chainForward     = "KUBE-FORWARD"
	chainPostrouting = "KUBE-POSTROUTING"
	chainMarkMasq    = "KUBE-MARK-MASQ"
	chainFirewall    = "KUBE-PROXY-FIREWALL"
)

var fixedChains = map[string][]string{
	Filter: {chainServices, chainExternal, chainNodePorts, chainForward, chainFirewall},
	NAT:    {chainServices, chainNodePorts, chainPostrouting, chainMarkMasq},
}

// prefixes begin the names of the chains that belong to one service, endpoint or part of a dispatcher; kube-proxy
// sweeps the same.
var prefixes = [...]string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"}

// Owned tells whether a chain of a table is fairway's (and kube-proxy's, whose place it takes). KUBE-FIREWALL,
// KUBE-IPTABLES-HINT and the canaries are not: kubelet keeps them.
func Owned(table, chain string) bool {
	return slices.Contains(fixedChains[table], chain) || prefixed(chain)
}

// prefixed tells whether a chain's name begins with one of the prefixes.
func prefixed(chain string) bool {
	return slices.ContainsFunc(prefixes[:], func(p string) bool { return strings.HasPrefix(chain, p) })
}

// A Ruleset is what the tables of one address family hold of ours, rendered or read back.
type Ruleset struct {
	Family cluster.Family
	Filter Table
	NAT    Table
	// Large is true when the rules of endpoints carry no comments.
	Large bool

	memo *memo
}

// Table returns the Ruleset's table of a name; nil for a table that it does not have.
func (r *Ruleset) Table(name string) *Table {
	switch name {
	case Filter:
		return &r.Filter
	case NAT:
		return &r.NAT
	}
	return nil
}

// Lines counts the lines of the Ruleset as iptables-save prints it: a line per chain and one per rule.
func (r *Ruleset) Lines() (n int) {
	for _, name := range Tables {
		t := r.Table(name)
		n += len(t.Chains) + t.Rules()
	}
	return n
}

// String returns the Ruleset in the form of iptables-save, as far as it is ours. The built-in chains are shown with
// nothing but our jumps.
func (r *Ruleset) String() string {
	var b strings.Builder
	for _, name := range Tables {
		t := r.Table(name)
		b.WriteString("*" + name + "\n")
		for _, c := range t.Chains {
			b.WriteString(":" + c.Name + " - [0:0]\n")
		}
		if t.Shared.Chain {
			b.WriteString(":" + chainKubelet + " - [0:0]\n")
		}
		for _, j := range t.Shared.Rules {
			b.WriteString(j.Rule)
		}
		for _, j := range t.Jumps {
			b.WriteString(j.Rule)
		}
		for _, c := range t.Chains {
			b.WriteString(c.Rules)
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// A Table is one table's part of a Ruleset.
type Table struct {
	// Chains are our chains, ordered by name.
	Chains []*Chain
	// Jumps are the rules of built-in chains that lead to our chains, in the order in which they stand.
	Jumps []Jump
	// Shared are the rules that we need in a chain which others have, too.
	Shared Shared
	// Builtins are all rules of the built-in chains, ours and others', a line "-A NAME …\n" each, as far as they were read.
	// Rendered tables have none.
	Builtins map[string][]string
	// referenced are our chains that somebody else's rules jump to. They can be emptied but not deleted.
	referenced map[string]bool
	// move names the built-in chains whose jumps are to be put first again, although they are as they should be.
	move map[string]bool
	// place is after how many rules of others our jumps stood in a built-in chain that has lost them all.
	place map[string]int
}

// Rules counts the rules of our chains and our jumps.
func (t *Table) Rules() int {
	n := len(t.Jumps) + len(t.Shared.Rules)
	for _, c := range t.Chains {
		n += strings.Count(c.Rules, "\n")
	}
	return n
}

// Chain returns the chain of a name, or nil.
func (t *Table) Chain(name string) *Chain {
	i, ok := slices.BinarySearchFunc(t.Chains, name, func(c *Chain, name string) int { return cmp.Compare(c.Name, name) })
	if !ok {
		return nil
	}
	return t.Chains[i]
}

// A Chain is a chain of ours with its rules.
type Chain struct {
	Name string
	// Rules is the text of the rules, a line "-A NAME …\n" each, as iptables-save prints it.
	Rules string
	// ports are the service ports that the rules are for: one port for all rules, or one (or nil) for each of the
	// first rules. Only rendered chains have them.
	ports []*proxy.Port
}

// portOf returns the service port that a rule (counted from 0) is for, or nil.
func (c *Chain) portOf(rule int) *proxy.Port {
	switch {
	case len(c.ports) == 1:
		return c.ports[0]
	case rule < len(c.ports):
		return c.ports[rule]
	}
	return nil
}

// A Jump is a rule of a built-in chain that leads to one of ours.
type Jump struct {
	// From is the built-in chain, Rule the line "-A FROM …\n".
	From, Rule string
}
