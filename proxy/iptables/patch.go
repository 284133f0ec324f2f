package iptables

import (
	"cmp"
	"maps"
	"slices"
)

// Patch returns have with the named chains as they are in part, which was read later. Chains that part does not have are gone.
// A built-in chain stands for its jumps. have is left as it is.
func Patch(have, part *Ruleset, chains []ChainName) *Ruleset {
	r := *have
	for _, name := range Tables {
		var named []string
		for _, c := range chains {
			if c.Table == name {
				named = append(named, c.Chain)
			}
		}
		if len(named) > 0 {
			r.Table(name).patch(part.Table(name), named)
		}
	}
	return &r
}

func (t *Table) patch(part *Table, named []string) {
	chains := make([]*Chain, 0, len(t.Chains)+len(part.Chains))
	for _, c := range t.Chains {
		if !slices.Contains(named, c.Name) {
			chains = append(chains, c)
		}
	}
	for _, c := range part.Chains {
		if slices.Contains(named, c.Name) {
			chains = append(chains, c)
		}
	}
	slices.SortFunc(chains, func(a, b *Chain) int { return cmp.Compare(a.Name, b.Name) })
	var jumps []Jump
	for _, j := range t.Jumps {
		if !slices.Contains(named, j.From) {
			jumps = append(jumps, j)
		}
	}
	for _, name := range named {
		jumps = append(jumps, part.jumpsFrom(name)...)
	}
	t.Chains, t.Jumps = chains, jumps
	shared := Shared{Chain: t.Shared.Chain}
	for _, j := range t.Shared.Rules {
		if !slices.Contains(named, j.From) {
			shared.Rules = append(shared.Rules, j)
		}
	}
	shared.Rules = append(shared.Rules, part.Shared.Rules...)
	t.Shared = shared
	builtins := make(map[string][]string, len(t.Builtins))
	maps.Copy(builtins, t.Builtins)
	for _, name := range named {
		delete(builtins, name)
		if rules, ok := part.Builtins[name]; ok {
			builtins[name] = rules
		}
	}
	t.Builtins = builtins
	referenced := maps.Clone(t.referenced)
	if referenced == nil {
		referenced = map[string]bool{}
	}
	maps.Copy(referenced, part.referenced)
	t.referenced = referenced
}
