// Package textkernel is a stand-in for the kernel's side of iptables, for tests that walk through thousands of states:
// it does to text what iptables-restore --noflush does to tables. It knows chains and their order, not what rules mean;
// whether the text is what a kernel takes and prints is shown elsewhere, on a real one.
package textkernel

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/proxy/iptables"
)

// A table maps chains to their rules, without "-A CHAIN ".
type table map[string][]string

type kernel struct {
	tables map[string]table
	work   table // the table between its beginning and COMMIT
}

// Apply returns what the tables hold after a Restore. committed, when not nil, is told what they hold after each
// COMMIT, which is what packets meet in between. An error is one that iptables-restore would have: a chain that does not
// exist, or is not empty when it is deleted, or a rule to delete that is not there.
func Apply(have *iptables.Ruleset, r *iptables.Restore, committed func(*iptables.Ruleset)) (*iptables.Ruleset, error) {
	k := load(have)
	name := ""
	for line := range strings.Lines(r.String()) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line[0] == '*':
			name = line[1:]
			k.begin(name)
		case line == "COMMIT":
			if err := k.commit(name); err != nil {
				return nil, err
			}
			if committed == nil {
				continue
			}
			between, err := iptables.Parse(have.Family, k.save())
			if err != nil {
				return nil, err
			}
			committed(between)
		default:
			if err := k.do(line); err != nil {
				return nil, fmt.Errorf("table %s: %q: %w", name, line, err)
			}
		}
	}
	return iptables.Parse(have.Family, k.save())
}

func load(have *iptables.Ruleset) *kernel {
	k := &kernel{tables: map[string]table{
		iptables.Filter: {"INPUT": nil, "FORWARD": nil, "OUTPUT": nil},
		iptables.NAT:    {"PREROUTING": nil, "INPUT": nil, "OUTPUT": nil, "POSTROUTING": nil}}}
	for name, t := range k.tables {
		add := func(chain, line string) {
			t[chain] = append(t[chain], strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "-A "+chain+" "))
		}
		for _, c := range have.Table(name).Chains {
			t[c.Name] = nil
			for line := range strings.Lines(c.Rules) {
				add(c.Name, line)
			}
		}
		shared := have.Table(name).Shared
		if shared.Chain {
			t["KUBE-FIREWALL"] = nil
		}
		for _, j := range slices.Concat(shared.Rules, have.Table(name).Jumps) {
			add(j.From, j.Rule)
		}
	}
	return k
}

func (k *kernel) begin(name string) {
	k.work = table{}
	for c, rules := range k.tables[name] {
		k.work[c] = slices.Clone(rules)
	}
}

func (k *kernel) do(line string) error {
	if line[0] == ':' {
		name, _, _ := strings.Cut(line[1:], " ")
		k.work[name] = nil
		return nil
	}
	verb, rest, _ := strings.Cut(line, " ")
	chain, rule, _ := strings.Cut(rest, " ")
	rules, ok := k.work[chain]
	if !ok {
		return fmt.Errorf("there is no chain %s", chain)
	}
	switch verb {
	case "-A":
		k.work[chain] = append(rules, rule)
	case "-I":
		_, rule, _ = strings.Cut(rule, " ") // the position, always 1
		k.work[chain] = slices.Insert(rules, 0, rule)
	case "-D":
		i := slices.Index(rules, rule)
		if i < 0 {
			return fmt.Errorf("there is no such rule")
		}
		k.work[chain] = slices.Delete(rules, i, i+1)
	case "-X":
		if len(rules) > 0 {
			return fmt.Errorf("the chain is not empty")
		}
		delete(k.work, chain)
	default:
		return fmt.Errorf("the command is unknown")
	}
	return nil
}

func (k *kernel) commit(name string) error {
	for chain, rules := range k.work {
		for _, r := range rules {
			_, to, _ := strings.Cut(" "+r, " -j ")
			to, _, _ = strings.Cut(to, " ")
			if _, ok := k.work[to]; strings.HasPrefix(to, "KUBE-") && !ok {
				return fmt.Errorf("table %s: a rule of %s leads to %s, which does not exist: %s", name, chain, to, r)
			}
		}
	}
	k.tables[name] = k.work
	return nil
}

// save prints like iptables-save, which lists chains in an order of its own.
func (k *kernel) save() string {
	var b strings.Builder
	for _, name := range iptables.Tables {
		fmt.Fprintf(&b, "# Generated\n*%s\n", name)
		chains := slices.Collect(maps.Keys(k.tables[name]))
		for _, c := range chains {
			policy := "-"
			if !strings.HasPrefix(c, "KUBE-") {
				policy = "ACCEPT"
			}
			fmt.Fprintf(&b, ":%s %s [0:0]\n", c, policy)
		}
		for _, c := range chains {
			for _, r := range k.tables[name][c] {
				fmt.Fprintf(&b, "-A %s %s\n", c, r)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}
