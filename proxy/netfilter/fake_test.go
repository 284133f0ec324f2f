package netfilter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// fakeTables is a kernel that understands what iptables.Diff writes, commits table by table as the real ones do, and
// counts what it is asked.
type fakeTables struct {
	family         cluster.Family
	tables         map[string]map[string][]string // table, chain, rules
	reads, applies int
	// refuse tells whether a table's part of the input is refused, which names the line of its COMMIT as legacy does.
	refuse func(section string) bool
	// fail is returned by the next Read or Apply.
	fail error
	// print changes how a rule is shown.
	print func(rule string) string
}

var builtin = map[string][]string{
	iptables.Filter: {"INPUT", "FORWARD", "OUTPUT"},
	iptables.NAT:    {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
}

// rank puts the built-in chains first, in their order.
func rank(table, chain string) int {
	if i := slices.Index(builtin[table], chain); i >= 0 {
		return i
	}
	return len(builtin[table])
}

func newFake(f cluster.Family) *fakeTables {
	k := &fakeTables{family: f, tables: map[string]map[string][]string{}}
	for table, chains := range builtin {
		k.tables[table] = map[string][]string{}
		for _, c := range chains {
			k.tables[table][c] = nil
		}
	}
	return k
}

func (k *fakeTables) Read(_ context.Context, f cluster.Family, _ *iptables.Ruleset) (*iptables.Ruleset, error) {
	k.reads++
	if err := k.fail; err != nil {
		k.fail = nil
		return nil, err
	}
	var out strings.Builder
	for _, table := range iptables.Tables {
		chains := k.tables[table]
		fmt.Fprintf(&out, "*%s\n", table)
		for name := range chains {
			policy := "-"
			if slices.Contains(builtin[table], name) {
				policy = "ACCEPT"
			}
			fmt.Fprintf(&out, ":%s %s [0:0]\n", name, policy)
		}
		order := func(a, b string) int {
			return cmp.Or(cmp.Compare(rank(table, a), rank(table, b)), cmp.Compare(a, b))
		}
		for _, name := range slices.SortedFunc(maps.Keys(chains), order) {
			for _, r := range chains[name] {
				line := "-A " + name + " " + r
				if k.print != nil {
					line = k.print(line)
				}
				out.WriteString(line + "\n")
			}
		}
		out.WriteString("COMMIT\n")
	}
	return iptables.Parse(f, out.String())
}

// Diff writes in stages, of a few chains, so that every test meets them.
func (k *fakeTables) Diff(have, want *iptables.Ruleset) *iptables.Restore {
	return iptables.DiffInStages(have, want, 5)
}

func (k *fakeTables) ReadChains(ctx context.Context, f cluster.Family, chains []iptables.ChainName) (*iptables.Ruleset, error) {
	all, err := k.Read(ctx, f, nil)
	if err != nil {
		return nil, err
	}
	return iptables.Patch(&iptables.Ruleset{Family: f}, all, chains), nil
}

func (k *fakeTables) Apply(_ context.Context, f cluster.Family, r *iptables.Restore) error {
	k.applies++
	if err := k.fail; err != nil {
		k.fail = nil
		return err
	}
	if f != k.family {
		return errors.New("the other family's rules")
	}
	line := 0
	for section := range strings.SplitAfterSeq(r.String(), "COMMIT\n") {
		if section == "" {
			continue
		}
		line += strings.Count(section, "\n")
		if k.refuse != nil && k.refuse(section) {
			return newRestoreError(f, &exitError{1, fmt.Sprintf("iptables-restore: line %d failed", line)}, r.String())
		}
		if err := k.commit(section); err != nil {
			return err
		}
	}
	return nil
}

func (k *fakeTables) commit(section string) error {
	var chains map[string][]string
	for line := range strings.Lines(section) {
		line = strings.TrimSuffix(line, "\n")
		op, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		switch {
		case line[0] == '*':
			chains = k.tables[line[1:]]
		case line[0] == ':':
			chains[op[1:]] = nil
		case op == "-A":
			chains[name] = append(chains[name], rule)
		case op == "-I":
			chains[name] = slices.Insert(chains[name], 0, strings.TrimPrefix(rule, "1 "))
		case op == "-D":
			i := slices.Index(chains[name], rule)
			if i < 0 {
				return fmt.Errorf("no such rule: %s", line)
			}
			chains[name] = slices.Delete(chains[name], i, i+1)
		case op == "-X":
			delete(chains, name)
		case line != "COMMIT":
			return fmt.Errorf("not understood: %s", line)
		}
	}
	return nil
}
