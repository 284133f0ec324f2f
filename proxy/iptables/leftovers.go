package iptables

import (
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
	builtin       map[string]bool
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
			s.tables = append(s.tables, savedTable{name: line[1:], builtin: map[string]bool{}})
			continue
		}
		if len(s.tables) == 0 || line == "" {
			continue
		}
		t := &s.tables[len(s.tables)-1]
		switch line[0] {
		case ':':
			name, policy, _ := strings.Cut(line[1:], " ")
			t.chains = append(t.chains, name)
			t.builtin[name] = !strings.HasPrefix(policy, "-")
		case '-':
			t.rules = append(t.rules, line)
		}
	}
	return s, nil
}

// Chains returns the chains that are picked and that Removal has something to do about, each as "table chain".
func (s *Saved) Chains(pick func(table, chain string) bool) (names []string) {
	for i := range s.tables {
		t := &s.tables[i]
		for _, c := range t.removal(pick).chains {
			names = append(names, t.name+" "+c)
		}
	}
	return names
}

// Removal returns what removes the chains that are picked, and every rule of kube-proxy's that leads to one of them. A chain that
// somebody else's rule leads to is emptied but stays.
func (s *Saved) Removal(pick func(table, chain string) bool) *Restore {
	r := &Restore{}
	for i := range s.tables {
		t := &s.tables[i]
		m := t.removal(pick)
		if len(m.chains) == 0 {
			continue
		}
		r.line("*", t.name)
		for _, c := range m.chains {
			r.line(":", c, " - [0:0]")
		}
		for _, rule := range m.rules {
			r.line("-D ", strings.TrimPrefix(rule, "-A "))
		}
		for _, c := range m.chains {
			if !m.kept[c] {
				r.line("-X ", c)
			}
		}
		r.line("COMMIT")
		r.chains += len(m.chains)
	}
	return r
}

// A removal is what is removed from a table: chains, of which those that are kept are only emptied, and rules elsewhere.
type removal struct {
	chains, rules []string
	kept          map[string]bool
}

func (t *savedTable) removal(pick func(table, chain string) bool) (m removal) {
	m.kept = map[string]bool{}
	full := map[string]bool{}
	for _, rule := range t.rules {
		from, to := chainOf(rule), target(rule)
		full[from] = true
		switch {
		case !pick(t.name, to) || pick(t.name, from):
		case t.foreign(from, to):
			m.kept[to] = true
		default:
			m.rules = append(m.rules, rule)
		}
	}
	for _, c := range t.chains {
		if pick(t.name, c) && (full[c] || !m.kept[c]) {
			m.chains = append(m.chains, c)
		}
	}
	slices.Sort(m.chains)
	return m
}

// foreign tells whether a rule that leads to a chain of kube-proxy's is somebody else's: one of a chain that is not kube-proxy's, or
// one that uses KUBE-MARK-MASQ.
func (t *savedTable) foreign(from, to string) bool {
	if t.builtin[from] {
		return to == chainMarkMasq
	}
	return !Owned(t.name, from) && !OfIPVS(t.name, from)
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
