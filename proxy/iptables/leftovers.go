package iptables

import (
	"fmt"
	"slices"
	"strings"
)

// Canary is the empty chain that a kube-proxy in iptables mode has in each table. It looks for the one in mangle, and takes its
// absence for a flush of all tables: then it writes everything anew, and makes its canaries again.
const Canary = "KUBE-PROXY-CANARY"

// ipvsChains are the chains that only a kube-proxy in IPVS mode has. The others that it has are ours as well.
var ipvsChains = []string{"KUBE-LOAD-BALANCER", "KUBE-NODE-PORT", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER", "KUBE-SOURCE-RANGES-FIREWALL"}

// OfIPVS tells whether a chain is one that only a kube-proxy in IPVS mode has.
func OfIPVS(_, chain string) bool { return slices.Contains(ipvsChains, chain) }

// IsCanary tells whether a chain is kube-proxy's Canary.
func IsCanary(_, chain string) bool { return chain == Canary }

// A Saved is what iptables-save printed of one backend and family, of all tables.
type Saved struct {
	tables []savedTable
}

type savedTable struct {
	name          string
	chains, rules []string
}

// ParseSaved reads what iptables-save printed. It is an error when iptables-nft says that it can't show a table of ours.
func ParseSaved(save string) (*Saved, error) {
	s := &Saved{}
	for line := range strings.Lines(save) {
		line = strings.TrimSuffix(line, "\n")
		if name := Unshown(line); name == Filter || name == NAT {
			return nil, UnshownError(name)
		}
		if strings.HasPrefix(line, "*") {
			s.tables = append(s.tables, savedTable{name: line[1:]})
			continue
		}
		if len(s.tables) == 0 || line == "" {
			continue
		}
		t := &s.tables[len(s.tables)-1]
		switch line[0] {
		case ':':
			name, _, _ := strings.Cut(line[1:], " ")
			t.chains = append(t.chains, name)
		case '-':
			t.rules = append(t.rules, line)
		}
	}
	return s, nil
}

// Chains returns the chains that are picked, each as "table chain".
func (s *Saved) Chains(pick func(table, chain string) bool) (names []string) {
	for _, t := range s.tables {
		for _, c := range t.chains {
			if pick(t.name, c) {
				names = append(names, t.name+" "+c)
			}
		}
	}
	return names
}

// Removal returns what removes the chains that are picked, and every rule that leads to one of them.
func (s *Saved) Removal(pick func(table, chain string) bool) *Restore {
	r := &Restore{}
	for _, t := range s.tables {
		var doomed []string
		for _, c := range t.chains {
			if pick(t.name, c) {
				doomed = append(doomed, c)
			}
		}
		if len(doomed) == 0 {
			continue
		}
		slices.Sort(doomed)
		r.line("*", t.name)
		for _, c := range doomed {
			r.line(":", c, " - [0:0]")
		}
		for _, rule := range t.rules {
			if slices.Contains(doomed, target(rule)) && !slices.Contains(doomed, chainOf(rule)) {
				r.line("-D ", strings.TrimPrefix(rule, "-A "))
			}
		}
		for _, c := range doomed {
			r.line("-X ", c)
		}
		r.line("COMMIT")
		r.chains += len(doomed)
	}
	return r
}

// chainOf returns the chain that a rule stands in.
func chainOf(rule string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(rule, "-A "), " ")
	return name
}

// Strays returns what picks the chains of filter under our prefixes that only such chains lead to, if any do. There a kube-proxy in
// iptables mode has none and does not look for them; it only ceases to lead there.
func (s *Saved) Strays() func(table, chain string) bool {
	used := map[string]bool{}
	rules := s.rules(Filter)
	for more := true; more; {
		more = false
		for _, rule := range rules {
			from, to := chainOf(rule), target(rule)
			if prefixed(to) && !used[to] && (!prefixed(from) || used[from]) {
				used[to], more = true, true
			}
		}
	}
	return func(table, chain string) bool { return table == Filter && prefixed(chain) && !used[chain] }
}

func (s *Saved) rules(table string) []string {
	for _, t := range s.tables {
		if t.name == table {
			return t.rules
		}
	}
	return nil
}

// A TableChange tells what turning one Ruleset into another does to a table.
type TableChange struct {
	Table                    string
	Added, Replaced, Removed []string // chains
	// JumpsAdded and JumpsRemoved are rules of built-in chains. One that changes its place is in both.
	JumpsAdded, JumpsRemoved []string
}

// Empty tells that nothing changes.
func (c TableChange) Empty() bool {
	return len(c.Added)+len(c.Replaced)+len(c.Removed)+len(c.JumpsAdded)+len(c.JumpsRemoved) == 0
}

// String counts what changes.
func (c TableChange) String() string {
	return fmt.Sprintf("%d chains added, %d replaced, %d removed; %d jumps added, %d removed",
		len(c.Added), len(c.Replaced), len(c.Removed), len(c.JumpsAdded), len(c.JumpsRemoved))
}

// Changes returns what [Diff] of the same would do, table by table, for people to read.
func Changes(have, want *Ruleset) (list []TableChange) {
	for _, name := range Tables {
		h := have.Table(name)
		diff := compare(h, want.Table(name))
		c := TableChange{Table: name, Removed: diff.remove}
		for _, s := range diff.set {
			if h.Chain(s.Name) == nil {
				c.Added = append(c.Added, s.Name)
			} else {
				c.Replaced = append(c.Replaced, s.Name)
			}
		}
		if diff.create {
			c.Added = append(c.Added, chainKubelet)
		}
		for _, j := range slices.Concat(diff.insert, diff.shared) {
			c.JumpsAdded = append(c.JumpsAdded, strings.TrimSuffix(j.Rule, "\n"))
		}
		for _, j := range diff.drop {
			c.JumpsRemoved = append(c.JumpsRemoved, strings.TrimSuffix(j.Rule, "\n"))
		}
		list = append(list, c)
	}
	return list
}

// Serving tells whether the built-in chains lead to the chains by which Services are served: those that every Ruleset of an agent
// has.
func (r *Ruleset) Serving() bool {
	for _, from := range []string{"PREROUTING", "OUTPUT"} {
		leads := slices.ContainsFunc(r.NAT.jumpsFrom(from), func(j Jump) bool { return target(strings.TrimSuffix(j.Rule, "\n")) == chainServices })
		if !leads {
			return false
		}
	}
	return r.NAT.Chain(chainServices) != nil && r.NAT.Chain(chainPostrouting) != nil
}
