package iptables

import (
	"maps"
	"slices"
	"strings"
)

// DiffInStages is Diff for iptables-nft. Of the chains that nat gains or loses, it writes those that no packet gets to yet
// before all else, and deletes those to which nothing leads any more after all else, in commits of at most so many chains
// each. It is Diff when there are no more than that. Chains that are there are written before as well when no packet gets to
// them: who flushes the table leaves all of them, empty.
//
// What packets meet is the same: a chain to which nothing leads is none to them, and all that leads to one is still written in
// one commit. What filter gains comes before all of that: the first rules of nat turn connection tracking on, and a first load
// takes seconds, in which a packet to a Service that is not rejected would be forwarded as it is, and remembered so: a later
// connection from the same port would not be translated either. A Restore that fails or is killed midway leaves chains that the
// next difference takes over or deletes.
func DiffInStages(have, want *Ruleset, chains int) *Restore {
	filter, nat := compare(&have.Filter, &want.Filter), compare(&have.NAT, &want.NAT)
	r := &Restore{}
	r.grow(nat)
	gains, losses := filter.around(nat)
	r.write(Filter, gains)
	for _, list := range nat.takeUnmet(&have.NAT, chains) {
		r.write(NAT, &change{set: list})
	}
	gone := nat.takeGone(&have.NAT, chains)
	r.write(NAT, nat)
	r.write(Filter, losses)
	for _, names := range gone {
		r.write(NAT, &change{remove: names})
	}
	return r
}

// takeUnmet takes the chains that no packet gets to out of a change when they are more than most, and returns them in groups
// of no more, what a chain leads to in its own group or an earlier one.
func (c *change) takeUnmet(have *Table, most int) (groups [][]chainChange) {
	if len(c.set) <= most {
		return nil
	}
	met := have.met()
	unmet := map[string]chainChange{}
	var chains []*Chain
	for _, s := range c.set {
		if s.isNew || !met[s.Name] {
			unmet[s.Name] = s
			chains = append(chains, s.Chain)
		}
	}
	if len(chains) <= most {
		return nil
	}
	c.set = slices.DeleteFunc(c.set, func(s chainChange) bool { return unmet[s.Name].Chain != nil })
	for group := range slices.Chunk(calleesFirst(chains), most) {
		var list []chainChange
		for _, chain := range group {
			list = append(list, unmet[chain.Name])
		}
		groups = append(groups, list)
	}
	return groups
}

// met returns the names of our chains that packets get to.
func (t *Table) met() map[string]bool {
	met := maps.Clone(t.referenced)
	if met == nil {
		met = map[string]bool{}
	}
	ahead := slices.Collect(maps.Keys(met))
	follow := func(rule string) {
		if to := target(strings.TrimSuffix(rule, "\n")); to != "" && !met[to] {
			met[to] = true
			ahead = append(ahead, to)
		}
	}
	for _, j := range t.Jumps {
		follow(j.Rule)
	}
	for len(ahead) > 0 {
		c := t.Chain(ahead[len(ahead)-1])
		ahead = ahead[:len(ahead)-1]
		if c == nil {
			continue
		}
		for rule := range strings.Lines(c.Rules) {
			follow(rule)
		}
	}
	return met
}

// takeGone is takeUnmet for the chains that a change deletes, all that leads to a chain in its own group or an earlier one.
func (c *change) takeGone(have *Table, most int) (groups [][]string) {
	if len(c.remove) <= most {
		return nil
	}
	var chains []*Chain
	for _, name := range c.remove {
		chains = append(chains, have.Chain(name))
	}
	c.remove = nil
	ordered := calleesFirst(chains)
	slices.Reverse(ordered)
	for group := range slices.Chunk(ordered, most) {
		var names []string
		for _, chain := range group {
			names = append(names, chain.Name)
		}
		groups = append(groups, names)
	}
	return groups
}

// calleesFirst orders chains so that each comes after those of them that its rules lead to, and close to them: chains of one
// group then name few of other groups.
func calleesFirst(chains []*Chain) []*Chain {
	byName := make(map[string]*Chain, len(chains))
	for _, c := range chains {
		byName[c.Name] = c
	}
	ordered := make([]*Chain, 0, len(chains))
	var visit func(c *Chain)
	visit = func(c *Chain) {
		delete(byName, c.Name)
		for rule := range strings.Lines(c.Rules) {
			if callee := byName[target(strings.TrimSuffix(rule, "\n"))]; callee != nil {
				visit(callee)
			}
		}
		ordered = append(ordered, c)
	}
	for _, c := range chains {
		if byName[c.Name] != nil {
			visit(c)
		}
	}
	return ordered
}
