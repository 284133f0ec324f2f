package iptables

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// Parse reads what iptables-save printed, see [Parser].
func Parse(f cluster.Family, save string) (*Ruleset, error) {
	p := NewParser(f, nil)
	_, err := p.Write([]byte(save))
	if err != nil {
		return nil, err
	}
	return p.Ruleset()
}

// A Parser reads what iptables-save prints (without counters of rules), for one table or several, while it comes: the text of
// a large rule set is megabytes, which need not be there as a whole. It keeps what is ours. Other tables and other
// chains are passed over, but not their rules that lead to our chains.
type Parser struct {
	rules, known *Ruleset
	lines        int
	rest         []byte       // the beginning of a line
	table        *parsedTable // nil between tables
	// run is the chain whose rules are coming, and text what came of them without another chain's rule between.
	run  *Chain
	text []byte
	err  error
}

// A parsedTable is a table of which the COMMIT has not been reached.
type parsedTable struct {
	*Table // nil when it is not ours
	name   string
	owned  map[string]*Chain
	others map[string]bool // chains that are neither ours nor built in
}

// NewParser returns a Parser for a family. known, which may be nil, is what is likely to come: where it does, the result
// shares its memory. It has no other influence.
func NewParser(f cluster.Family, known *Ruleset) *Parser {
	if known == nil {
		known = &Ruleset{}
	}
	return &Parser{rules: &Ruleset{Family: f}, known: known}
}

// Write implements [io.Writer]. An error means that the text is not iptables-save's; it names the line, and Ruleset returns
// it too.
func (p *Parser) Write(text []byte) (int, error) {
	for rest := text; p.err == nil; {
		line, after, complete := bytes.Cut(rest, []byte{'\n'})
		if !complete {
			p.rest = append(p.rest, line...)
			return len(text), nil
		}
		if len(p.rest) > 0 {
			line = append(p.rest, line...)
			p.rest = line[:0]
		}
		p.line(line)
		rest = after
	}
	return 0, p.err
}

// Ruleset returns what was read.
func (p *Parser) Ruleset() (*Ruleset, error) {
	if len(p.rest) > 0 && p.err == nil {
		p.line(p.rest)
	}
	if p.table != nil && p.err == nil {
		p.err = fmt.Errorf("parse iptables-save output: it ends within table %q", p.table.name)
	}
	if p.err != nil {
		return nil, p.err
	}
	for _, name := range Tables {
		slices.SortFunc(p.rules.Table(name).Chains, compareChains)
	}
	p.rules.Large = withoutComments(p.rules.NAT.Chains)
	return p.rules, nil
}

// Unshown returns the table that iptables-nft-save says in a line that it does not show; "" for any other line. To take such
// a table for empty would add our jumps to it again and again.
//
//	# Table `nat' is incompatible, use 'nft' tool.
func Unshown(line string) string {
	rest, found := strings.CutPrefix(line, "# Table `")
	table, rest, _ := strings.Cut(rest, "' ")
	if !found || !strings.HasPrefix(rest, "is incompatible") {
		return ""
	}
	return table
}

// An UnshownError is a table of ours that iptables-nft can't show.
type UnshownError string

func (table UnshownError) Error() string {
	return fmt.Sprintf("table %s has rules that this iptables-nft can't show, made by nft or by another version; nft list ruleset shows them, "+
		"and they need a table of their own", string(table))
}

func (p *Parser) line(line []byte) {
	p.lines++
	if p.table != nil && p.table.Table != nil && bytes.HasPrefix(line, []byte("-A ")) {
		p.rule(line)
		return
	}
	if err := p.other(string(line)); err != nil {
		p.err = fmt.Errorf("parse iptables-save output, line %d: %w", p.lines, err)
	}
}

// other takes a line that is no rule of a table of ours.
func (p *Parser) other(line string) error {
	switch {
	case p.rules.Table(Unshown(line)) != nil:
		return UnshownError(Unshown(line))
	case line == "" || line[0] == '#':
		return nil
	case line[0] == '*' && p.table != nil:
		return fmt.Errorf("%q begins within table %q", line, p.table.name)
	case line[0] == '*':
		p.table = &parsedTable{Table: p.rules.Table(line[1:]), name: line[1:], owned: map[string]*Chain{}, others: map[string]bool{}}
		return nil
	case p.table == nil:
		return fmt.Errorf("%q stands outside of a table", line)
	case line == "COMMIT":
		p.endRun()
		p.table = nil
		return nil
	case p.table.Table == nil:
		return nil
	case line[0] == ':':
		return p.table.declare(line[1:])
	}
	return fmt.Errorf("%q is no chain, rule or COMMIT", line)
}

func (p *Parser) rule(line []byte) {
	name, _, _ := bytes.Cut(line[len("-A "):], []byte{' '})
	c := p.table.owned[string(name)]
	if c == nil {
		p.table.jump(string(name), string(line))
		return
	}
	if p.run != c {
		p.endRun()
		p.run = c
	}
	p.text = append(append(p.text, line...), '\n')
}

// endRun gives the chain its rules. iptables-save prints those of a chain in one piece.
func (p *Parser) endRun() {
	if p.run == nil {
		return
	}
	known := p.known.Table(p.table.name).Chain(p.run.Name)
	if known != nil && p.run.Rules == "" && known.Rules == string(p.text) {
		p.run.Rules = known.Rules
	} else {
		p.run.Rules += string(p.text)
	}
	p.run, p.text = nil, p.text[:0]
}

func (t *parsedTable) declare(line string) error {
	name, policy, ok := strings.Cut(line, " ")
	if !ok || name == "" {
		return fmt.Errorf("chain %q has no policy", line)
	}
	switch {
	case !strings.HasPrefix(policy, "-"): // a built-in chain
	case t.name == Filter && name == chainKubelet:
		t.Shared.Chain = true
	case Owned(t.name, name):
		c := &Chain{Name: name}
		t.Chains = append(t.Chains, c)
		t.owned[name] = c
	default:
		t.others[name] = true
	}
	return nil
}

// jump takes a rule of a chain that is not ours, as far as it leads to one. In a built-in chain it is one of ours, unless it
// leads to a chain that only our own chains lead to: then it is somebody else's, who uses KUBE-MARK-MASQ for example.
func (t *parsedTable) jump(from, line string) {
	if t.name == Filter {
		t.Shared.see(from, line)
	}
	if from != chainKubelet && !t.others[from] {
		if t.Builtins == nil {
			t.Builtins = map[string][]string{}
		}
		t.Builtins[from] = append(t.Builtins[from], line+"\n")
	}
	to := target(line)
	if !Owned(t.name, to) {
		return
	}
	if !t.others[from] && to != chainMarkMasq && slices.Contains(fixedChains[t.name], to) {
		t.Jumps = append(t.Jumps, Jump{From: from, Rule: line + "\n"})
		return
	}
	if t.referenced == nil {
		t.referenced = map[string]bool{}
	}
	t.referenced[to] = true
}

// target returns the chain that a rule jumps or goes to. That is the last option of a rule, so what only looks like it in a
// comment or a log prefix is none.
func target(rule string) string {
	for _, option := range [...]string{" -j ", " -g "} {
		if i := strings.LastIndex(rule, option); i >= 0 {
			if to := rule[i+len(option):]; !strings.ContainsAny(to, ` "`) {
				return to
			}
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
