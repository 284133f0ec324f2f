package netfilter

import (
	"maps"
	"strings"

	"github.com/fairway-net/fairway/proxy/iptables"
)

// A spelling is how this host's iptables prints chains that it prints in other words than ours, by table and chain.
// It is empty with the versions that the renderer is tested with.
type spelling map[[2]string]spelled

type spelled struct {
	rendered, printed string
}

// learn remembers the chains that turned up differently right after they were written in place of have. A chain with
// another number of rules is no matter of spelling, and one that was not written has no excuse.
func (s spelling) learn(have, written, read *iptables.Ruleset) {
	maps.DeleteFunc(s, func(key [2]string, _ spelled) bool {
		return iptables.Owned(key[0], key[1]) && written.Table(key[0]).Chain(key[1]) == nil
	})
	for _, name := range iptables.Tables {
		h, w, p := have.Table(name), written.Table(name), read.Table(name)
		for _, c := range w.Chains {
			if old := h.Chain(c.Name); old != nil && old.Rules == c.Rules {
				continue
			}
			if printed := p.Chain(c.Name); printed != nil {
				s.compare(name, c.Name, c.Rules, printed.Rules)
			}
		}
		before, printed := jumpsByChain(h), jumpsByChain(p)
		for from, rendered := range jumpsByChain(w) {
			if before[from] != rendered {
				s.compare(name, from, rendered, printed[from])
			}
		}
	}
}

func (s spelling) compare(table, chain, rendered, printed string) {
	key := [2]string{table, chain}
	delete(s, key)
	if rendered != printed && strings.Count(rendered, "\n") == strings.Count(printed, "\n") {
		s[key] = spelled{rendered, printed}
	}
}

// translate puts what was read into our words, in place.
func (s spelling) translate(read *iptables.Ruleset) *iptables.Ruleset {
	if len(s) == 0 {
		return read
	}
	for _, name := range iptables.Tables {
		t := read.Table(name)
		for _, c := range t.Chains {
			if known, ok := s[[2]string{name, c.Name}]; ok && known.printed == c.Rules {
				c.Rules = known.rendered
			}
		}
		for from, printed := range jumpsByChain(t) {
			if known, ok := s[[2]string{name, from}]; ok && known.printed == printed {
				setJumps(t, from, known.rendered)
			}
		}
	}
	return read
}

// jumpsByChain returns the text of a table's jumps by built-in chain.
func jumpsByChain(t *iptables.Table) map[string]string {
	text := map[string]string{}
	for _, j := range t.Jumps {
		text[j.From] += j.Rule
	}
	return text
}

// setJumps replaces the text of the jumps from a built-in chain by as many lines.
func setJumps(t *iptables.Table, from, text string) {
	i := 0
	for line := range strings.Lines(text) {
		for t.Jumps[i].From != from {
			i++
		}
		t.Jumps[i].Rule = line
		i++
	}
}
