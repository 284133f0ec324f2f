package iptables

import (
	"fmt"
	"slices"
	"strings"
)

// A Kind is a kind of change that somebody else made to our rules. It is the "kind" label of fairway_drift_total.
type Kind string

// The kinds.
const (
	// TableFlushed: nothing of ours is left in the table.
	TableFlushed Kind = "table-flushed"
	// ChainMissing: a chain was deleted or renamed.
	ChainMissing Kind = "chain-missing"
	// ChainFlushed: a chain has lost all its rules.
	ChainFlushed Kind = "chain-flushed"
	// ChainAdded: a chain has appeared that has one of our names.
	ChainAdded Kind = "chain-added"
	// JumpMissing: a jump from a built-in chain was deleted or changed.
	JumpMissing Kind = "jump-missing"
	// JumpDisplaced: a rule that decides about packets was inserted before one of our jumps.
	JumpDisplaced Kind = "jump-displaced"
	// RuleMissing, RuleChanged and RuleInserted: a chain, or for the last also a built-in chain's jumps to ours, has fewer
	// rules, other ones, or more.
	RuleMissing  Kind = "rule-missing"
	RuleChanged  Kind = "rule-changed"
	RuleInserted Kind = "rule-inserted"
	// RuleOrder: the rules of a chain, or the jumps of a built-in chain, stand in another order.
	RuleOrder Kind = "rule-order"
)

// A Drift is one change that somebody else made.
type Drift struct {
	Table string
	Kind  Kind
	// Chain is where; empty for a table.
	Chain string
	// Rule is the rule that is missing, was inserted or changed (as it is now); empty for others.
	Rule string
	// Left is true when it stays as it is, and is only told.
	Left bool
}

// String words the Drift: "nat PREROUTING jump-missing: -A PREROUTING …".
func (d Drift) String() string {
	s := d.Table + " "
	if d.Chain != "" {
		s += d.Chain + " "
	}
	s += string(d.Kind)
	if d.Rule != "" {
		s += ": " + d.Rule
	}
	return s
}

// Drifts tells what somebody else did to the rules that were known to be there, by what was read since. Rules of others above
// our jumps do not count; see [Table.Above]. It takes the time of comparing pointers for chains that both share.
func Drifts(known, read *Ruleset) (list []Drift) {
	for _, name := range Tables {
		k, r := known.Table(name), read.Table(name)
		if k.Rules() > 0 && r.empty() {
			list = append(list, Drift{Table: name, Kind: TableFlushed})
			continue
		}
		t := driftingTable{name: name}
		t.chains(k.Chains, r.Chains)
		t.jumps(k, r)
		list = append(list, t.found...)
	}
	return list
}

// empty tells that a table has no rules of ours.
func (t *Table) empty() bool {
	return len(t.Jumps) == 0 && !slices.ContainsFunc(t.Chains, func(c *Chain) bool { return c.Rules != "" })
}

// A driftingTable collects what was done to a table.
type driftingTable struct {
	name  string
	found []Drift
}

func (t *driftingTable) add(kind Kind, chain, rule string) {
	t.found = append(t.found, Drift{Table: t.name, Kind: kind, Chain: chain, Rule: strings.TrimSuffix(rule, "\n")})
}

// chains compares two ordered lists.
func (t *driftingTable) chains(known, read []*Chain) {
	for len(known) > 0 || len(read) > 0 {
		switch {
		case len(read) == 0 || len(known) > 0 && known[0].Name < read[0].Name:
			t.add(ChainMissing, known[0].Name, "")
			known = known[1:]
		case len(known) == 0 || read[0].Name < known[0].Name:
			t.add(ChainAdded, read[0].Name, "")
			read = read[1:]
		default:
			t.chain(known[0], read[0])
			known, read = known[1:], read[1:]
		}
	}
}

func (t *driftingTable) chain(known, read *Chain) {
	switch {
	case known == read || known.Rules == read.Rules:
	case read.Rules == "":
		t.add(ChainFlushed, known.Name, "")
	default:
		t.rules(known.Name, lines(known.Rules), lines(read.Rules), RuleMissing)
	}
}

// jumps compares the jumps of every built-in chain, and the rules in chains that are shared.
func (t *driftingTable) jumps(known, read *Table) {
	for _, from := range builtins(known, read) {
		t.rules(from, texts(known.jumpsFrom(from)), texts(read.jumpsFrom(from)), JumpMissing)
	}
	for _, j := range read.Shared.lacks(known.Shared.Rules) {
		t.add(RuleMissing, j.From, j.Rule)
	}
}

// rules compares the rules of a chain; missing is the kind of one that is not there. Of a built-in chain's jumps, one that was
// changed is missing, and what it became is as good as inserted.
func (t *driftingTable) rules(chain string, known, read []string, missing Kind) {
	lost, extra := without(known, read), without(read, known)
	changed := 0
	if missing == RuleMissing {
		changed = min(len(lost), len(extra))
	}
	for _, rule := range extra[:changed] {
		t.add(RuleChanged, chain, rule)
	}
	for _, rule := range lost[changed:] {
		t.add(missing, chain, rule)
	}
	for _, rule := range extra[changed:] {
		t.add(RuleInserted, chain, rule)
	}
	if len(lost)+len(extra) == 0 && !slices.Equal(known, read) {
		t.add(RuleOrder, chain, "")
	}
}

// without returns the elements of a that b does not have, each as often as it has fewer.
func without(a, b []string) (rest []string) {
	count := make(map[string]int, len(b))
	for _, s := range b {
		count[s]++
	}
	for _, s := range a {
		if count[s]--; count[s] < 0 {
			rest = append(rest, s)
		}
	}
	return rest
}

func lines(text string) []string { return slices.Collect(strings.Lines(text)) }

func texts(jumps []Jump) (list []string) {
	for _, j := range jumps {
		list = append(list, j.Rule)
	}
	return list
}

// Summarize words what was done in one sentence, the first few changes with their rules.
func Summarize(drifts []Drift) string {
	const most = 3
	var parts []string
	for _, d := range drifts[:min(most, len(drifts))] {
		parts = append(parts, d.String())
	}
	if more := len(drifts) - most; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, "; ")
}
