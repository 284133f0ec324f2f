package iptables

import (
	"slices"
	"strings"
)

// Where our jumps stand in the built-in chains.
//
// In nat they go first. In filter they stay where they are, so that what an operator or a network policy put above them is
// met first; only into a chain that has none of them do they go first.

// placeOf returns after how many rules of a built-in chain its jumps belong, not counting those that are dropped.
func (t *Table) placeOf(builtin string, dropped []Jump) (n int) {
	none := len(t.jumpsFrom(builtin)) == 0
	for i, rule := range t.Builtins[builtin] {
		if none && i >= t.place[builtin] || t.ours(builtin, rule) {
			return n
		}
		if !slices.Contains(dropped, Jump{builtin, rule}) {
			n++
		}
	}
	if none {
		return n
	}
	return 0 // the rules were not read
}

// ours tells whether a rule of a built-in chain is one of our jumps.
func (t *Table) ours(builtin, rule string) bool {
	return slices.Contains(t.Jumps, Jump{builtin, rule})
}

// Above returns the rules of others that stand before the last of our jumps in a built-in chain and decide about packets: they
// accept, refuse or translate them. Rules that only lead to chains, log or mark are no concern of ours, and neither are those
// for packets of connections that are established.
func (t *Table) Above(builtin string) (rules []string) {
	var seen []string
	for _, rule := range t.Builtins[builtin] {
		switch {
		case t.ours(builtin, rule):
			rules = seen
		case decides(rule):
			seen = append(seen, rule)
		}
	}
	return rules
}

// deciding are the targets that end a packet's way through a built-in chain.
var deciding = [...]string{"ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP", "SYNPROXY"}

// Refuses tells that a rule, as iptables-save prints it, drops or rejects what it applies to.
func Refuses(rule string) bool {
	words := strings.Fields(unquoted(rule))
	i := slices.Index(words, "-j")
	return i >= 0 && i+1 < len(words) && (words[i+1] == "DROP" || words[i+1] == "REJECT")
}

func decides(rule string) bool {
	words := strings.Fields(unquoted(rule))
	i := slices.Index(words, "-j")
	if i < 0 || i+1 == len(words) || !slices.Contains(deciding[:], words[i+1]) {
		return false
	}
	states := slices.Index(words, "--ctstate")
	established := states > 0 && states+1 < len(words) && words[states-1] != "!" && !strings.Contains(words[states+1], "NEW")
	return !established
}

// unquoted returns a rule without what stands in quotation marks, such as comments.
func unquoted(rule string) string {
	var b strings.Builder
	for i, part := range strings.Split(strings.ReplaceAll(rule, `\"`, ""), `"`) {
		if i%2 == 0 {
			b.WriteString(part)
		}
	}
	return b.String()
}

// MoveFirst makes the next Diff from the Table put the jumps of a built-in chain first.
func (t *Table) MoveFirst(builtin string) {
	if t.move == nil {
		t.move = map[string]bool{}
	}
	t.move[builtin] = true
}

// Remember makes a filter table that was read know where the jumps stood that it lost since: below the rules that stood above
// them before and are still there.
func (t *Table) Remember(before *Table) {
	for builtin := range before.Builtins {
		if len(t.jumpsFrom(builtin)) > 0 || len(before.jumpsFrom(builtin)) == 0 {
			continue
		}
		above := before.Builtins[builtin][:before.placeOf(builtin, nil)]
		n := 0
		for i, rule := range t.Builtins[builtin] {
			if slices.Contains(above, rule) {
				n = i + 1
			}
		}
		if t.place == nil {
			t.place = map[string]int{}
		}
		t.place[builtin] = n
	}
}

// Written returns want together with what is known of the built-in chains once Diff(have, want) is applied.
func Written(have, want *Ruleset) *Ruleset {
	r := *want
	for _, name := range Tables {
		h, t := have.Table(name), r.Table(name)
		c := &change{}
		c.compareJumps(h, t)
		t.Builtins = h.rebuilt(c)
	}
	return &r
}

// rebuilt returns the rules of the built-in chains after a change.
func (t *Table) rebuilt(c *change) map[string][]string {
	if len(c.drop)+len(c.insert)+len(c.shared) == 0 || t.Builtins == nil {
		return t.Builtins
	}
	rules := make(map[string][]string, len(t.Builtins))
	for builtin, list := range t.Builtins {
		rules[builtin] = slices.Clone(list)
	}
	for _, j := range c.drop {
		if i := slices.Index(rules[j.From], j.Rule); i >= 0 {
			rules[j.From] = slices.Delete(rules[j.From], i, i+1)
		}
	}
	insert := func(j Jump, at int) {
		rules[j.From] = slices.Insert(rules[j.From], min(at, len(rules[j.From])), j.Rule)
	}
	for _, j := range reversed(c.insert) {
		insert(j, c.after[j.From])
	}
	for _, j := range c.shared {
		if j.From != chainKubelet {
			insert(j, 0)
		}
	}
	return rules
}
