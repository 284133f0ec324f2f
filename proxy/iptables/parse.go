package iptables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// Parse reads what iptables-save printed (without counters of rules), in one piece or several, and returns what is ours in
// it. Other tables and other chains are passed over, but not their rules that lead to our chains. An error means that
// the text is not iptables-save's; it names the line. The Ruleset is made of parts of the text, and keeps it in memory.
func Parse(f cluster.Family, saves ...string) (*Ruleset, error) {
	r := &Ruleset{Family: f}
	for _, save := range saves {
		if err := parseInto(r, save); err != nil {
			return nil, fmt.Errorf("parse iptables-save output: %w", err)
		}
	}
	for _, name := range Tables {
		t := r.Table(name)
		slices.SortFunc(t.Chains, compareChains)
	}
	r.Large = withoutComments(r.NAT.Chains)
	return r, nil
}

func parseInto(r *Ruleset, save string) error {
	p := parser{}
	n := 0
	for line := range strings.Lines(save) {
		n++
		if err := p.line(r, line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if p.inTable {
		return fmt.Errorf("it ends within table %q", p.name)
	}
	return nil
}

// A parser is the state between two lines of iptables-save output.
type parser struct {
	inTable bool
	name    string
	table   *Table // nil in a table that is not ours
	owned   map[string]*chainText
	foreign map[string]bool
}

// chainText collects a chain's rules. iptables-save prints a chain's rules in one piece, so that is usually one
// substring of its output.
type chainText struct {
	chain *Chain
	// first is the text from the first rule to the end of the table's text, of which the first n bytes are the chain's.
	first string
	n     int
	// apart is all that was collected, when it was not in one piece.
	apart []byte
}

// rule adds a line, which begins the rest of the text.
func (c *chainText) rule(line string) {
	switch {
	case c.n == 0:
		c.first, c.n = line, len(line)
	}
}

func (p *parser) line(r *Ruleset, line string) error {
	rule := line
	line = strings.TrimSuffix(line, "\n")
	switch {
	case line == "" || line[0] == '#':
		return nil
	case line[0] == '*':
		*p = parser{inTable: true, name: line[1:], table: r.Table(line[1:]), owned: map[string]*chainText{}, foreign: map[string]bool{}}
		return nil
	case !p.inTable:
		return fmt.Errorf("%q stands outside of a table", line)
	case line == "COMMIT":
		*p = parser{}
		return nil
	case p.table == nil:
		return nil
	case line[0] == ':':
		return p.declare(line[1:])
	case strings.HasPrefix(line, "-A "):
		p.rule(rule)
		return nil
	}
	return fmt.Errorf("%q is no chain, rule or COMMIT", line)
}

func (p *parser) declare(line string) error {
	name, policy, ok := strings.Cut(line, " ")
	if !ok || name == "" {
		return fmt.Errorf("chain %q has no policy", line)
	}
	switch {
	case !strings.HasPrefix(policy, "-"): // a built-in chain
	case Owned(p.name, name):
		c := &chainText{chain: &Chain{Name: name}}
		p.table.Chains = append(p.table.Chains, c.chain)
		p.owned[name] = c
	default:
		p.foreign[name] = true
	}
	return nil
}

func (p *parser) rule(line string) {
	name, _, _ := strings.Cut(line[len("-A "):], " ")
	if c := p.owned[name]; c != nil {
		c.rules.WriteString(line)
		c.rules.WriteByte('\n')
		return
	}
	to := target(line)
	if !Owned(p.name, to) {
		return
	}
	if !p.foreign[name] {
		p.table.Jumps = append(p.table.Jumps, Jump{From: name, Rule: line + "\n"})
		return
	}
	if p.table.referenced == nil {
		p.table.referenced = map[string]bool{}
	}
	p.table.referenced[to] = true
}

// target returns what a rule jumps or goes to; a jump to a chain is the last option of a rule.
func target(rule string) string {
	for _, option := range [...]string{" -j ", " -g "} {
		if i := strings.LastIndex(rule, option); i >= 0 {
			to, _, _ := strings.Cut(rule[i+len(option):], " ")
			return to
		}
	}
	return ""
}

// withoutComments tells whether the rules that lead to endpoints carry no comments.
func withoutComments(nat []*Chain) bool {
	for _, c := range nat {
		if !strings.HasPrefix(c.Name, "KUBE-SVC-") {
			continue
		}
		last := c.Rules[strings.LastIndex(strings.TrimSuffix(c.Rules, "\n"), "\n")+1:]
		if strings.Contains(last, " -j DNAT ") || strings.Contains(last, " -j KUBE-SEP-") {
			return !strings.Contains(last, " --comment ")
		}
	}
	return false
}
