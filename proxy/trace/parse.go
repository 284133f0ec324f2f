package trace

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// Rules are the tables of one address family, as parsed from iptables-save.
type Rules struct {
	family cluster.Family
	tables map[string]map[string]*chain
}

// A chain is a list of rules with what comes after them: a built-in chain's policy, or "" for a return.
type chain struct {
	name   string
	policy string
	rules  []*rule
}

// A rule is one line of iptables-save, parsed when a packet first meets it.
type rule struct {
	text    string
	parsed  bool
	err     error
	matches []match
	target  string
	options map[string]string // of the target
	asksOut bool              // for the interface that a packet leaves by
}

// A match tells whether a rule applies: no, yes, or with a probability.
type match func(*state) float64

// Parse reads what iptables-save printed, all its tables and chains. An error names the line.
func Parse(f cluster.Family, save string) (*Rules, error) {
	r := &Rules{family: f, tables: map[string]map[string]*chain{}}
	var table map[string]*chain
	n := 0
	for line := range strings.Lines(save) {
		n++
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*':
			table = map[string]*chain{}
			r.tables[line[1:]] = table
		case table == nil:
			return nil, fmt.Errorf("line %d: %q stands outside of a table", n, line)
		case line == "COMMIT":
			table = nil
		case line[0] == ':':
			name, policy, _ := strings.Cut(line[1:], " ")
			policy, _, _ = strings.Cut(policy, " ")
			if policy == "-" {
				policy = ""
			}
			table[name] = &chain{name: name, policy: policy}
		case strings.HasPrefix(line, "-A "):
			name, _, _ := strings.Cut(line[3:], " ")
			c := table[name]
			if c == nil { // a rendered Ruleset does not declare built-in chains
				c = &chain{name: name, policy: "ACCEPT"}
				table[name] = c
			}
			c.rules = append(c.rules, &rule{text: line})
		default:
			return nil, fmt.Errorf("line %d: %q is no chain, rule or COMMIT", n, line)
		}
	}
	return r, nil
}

// fields splits a rule into words; a quoted word is one.
func fields(text string) (words []string, err error) {
	for {
		text = strings.TrimLeft(text, " ")
		if text == "" {
			return words, nil
		}
		if text[0] != '"' {
			word, rest, _ := strings.Cut(text, " ")
			words, text = append(words, word), rest
			continue
		}
		var b strings.Builder
		i := 1
		for ; i < len(text) && text[i] != '"'; i++ {
			if text[i] == '\\' {
				i++
			}
			if i < len(text) {
				b.WriteByte(text[i])
			}
		}
		if i >= len(text) {
			return nil, fmt.Errorf("a quote is not closed")
		}
		words, text = append(words, b.String()), text[i+1:]
	}
}

// parse fills in the rule's matches and target.
func (r *rule) parse() error {
	if r.parsed {
		return r.err
	}
	r.parsed = true
	words, err := fields(r.text)
	if err == nil {
		err = r.words(words[2:])
	}
	if err != nil {
		r.err = fmt.Errorf("rule %q: %w", r.text, err)
	}
	return r.err
}

func (r *rule) words(words []string) error {
	not, rcheck := false, false
	for len(words) > 0 {
		option := words[0]
		words = words[1:]
		switch option {
		case "!":
			not = true
			continue
		case "-j", "-g":
			if len(words) == 0 || option == "-g" {
				return fmt.Errorf("%s is not understood", option)
			}
			return r.setTarget(words)
		}
		take, ok := arguments[option]
		if !ok {
			return fmt.Errorf("%s is not understood", option)
		}
		if len(words) < take {
			return fmt.Errorf("%s lacks a value", option)
		}
		r.asksOut = r.asksOut || option == "-o"
		rcheck = rcheck || option == "--rcheck"
		if option == "--name" && rcheck { // of -m recent
			option = "--rcheck"
		}
		m, err := newMatch(option, words[:take])
		if err != nil {
			return fmt.Errorf("%s: %w", option, err)
		}
		words = words[take:]
		if m != nil {
			r.matches = append(r.matches, negate(m, not))
		}
		not = false
	}
	return nil
}

func negate(m match, not bool) match {
	if !not {
		return m
	}
	return func(s *state) float64 { return 1 - m(s) }
}

// arguments are the options that stand for matches, with how many values each takes.
var arguments = map[string]int{
	"-s": 1, "-d": 1, "-i": 1, "-o": 1, "-p": 1, "-m": 1, "--comment": 1, "--dport": 1, "--sport": 1, "--ctstate": 1, "--mark": 1,
	"--src-type": 1, "--dst-type": 1, "--mode": 1, "--probability": 1, "--nfacct-name": 1, "--name": 1, "--mask": 1, "--seconds": 1,
	"--rcheck": 0, "--set": 0, "--reap": 0, "--rsource": 0,
}

// modules are the match modules that are understood by their options.
var modules = map[string]bool{"comment": true, "tcp": true, "udp": true, "sctp": true, "conntrack": true, "mark": true,
	"addrtype": true, "statistic": true, "nfacct": true, "recent": true}

// newMatch returns the match of an option; nil for an option that lets everything pass.
func newMatch(option string, values []string) (match, error) {
	value := ""
	if len(values) > 0 {
		value = values[0]
	}
	switch option {
	case "-m":
		if !modules[value] {
			return nil, fmt.Errorf("the module %s is not understood", value)
		}
		return nil, nil
	case "--mode":
		if value != "random" {
			return nil, fmt.Errorf("%s is not understood", value)
		}
		return nil, nil
	case "-s", "-d":
		return addressMatch(option, value)
	case "-i":
		return func(s *state) float64 { return is(sameInterface(value, s.in)) }, nil
	case "-o":
		return func(s *state) float64 { return is(sameInterface(value, s.out)) }, nil
	case "-p":
		return func(s *state) float64 { return is(s.protocol.String() == value) }, nil
	case "--dport":
		return portMatch(value, func(s *state) uint16 { return s.dst.Port() })
	case "--sport":
		return portMatch(value, func(s *state) uint16 { return s.src.Port() })
	case "--ctstate":
		return stateMatch(value), nil
	case "--mark":
		return markMatch(value)
	case "--src-type", "--dst-type":
		if value != "LOCAL" {
			return nil, fmt.Errorf("%s is not understood", value)
		}
		if option == "--src-type" {
			return func(s *state) float64 { return is(s.local(s.src.Addr())) }, nil
		}
		return func(s *state) float64 { return is(s.local(s.dst.Addr())) }, nil
	case "--probability":
		p, err := strconv.ParseFloat(value, 64)
		return func(*state) float64 { return p }, err
	case "--rcheck":
		if value == "" { // the list's name follows
			return nil, nil
		}
		return func(s *state) float64 { return is(s.recent(value)) }, nil
	}
	return nil, nil
}

func is(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func addressMatch(option, value string) (match, error) {
	if !strings.Contains(value, "/") {
		a, err := netip.ParseAddr(value)
		if err != nil {
			return nil, err
		}
		value = netip.PrefixFrom(a, a.BitLen()).String()
	}
	p, err := netip.ParsePrefix(value)
	if err != nil {
		return nil, err
	}
	if option == "-s" {
		return func(s *state) float64 { return is(p.Contains(s.src.Addr())) }, nil
	}
	return func(s *state) float64 { return is(p.Contains(s.dst.Addr())) }, nil
}

func sameInterface(pattern, name string) bool {
	if prefix, any := strings.CutSuffix(pattern, "+"); any {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

func portMatch(value string, of func(*state) uint16) (match, error) {
	first, last, isRange := strings.Cut(value, ":")
	if !isRange {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return nil, err
	}
	to, err := strconv.ParseUint(last, 10, 16)
	return func(s *state) float64 { return is(from <= uint64(of(s)) && uint64(of(s)) <= to) }, err
}

// stateMatch knows the states of a connection's first packet: NEW, or INVALID when it is one, and DNAT once it was
// translated.
func stateMatch(value string) match {
	states := strings.Split(value, ",")
	return func(s *state) float64 {
		for _, name := range states {
			if name == "NEW" && !s.invalid || name == "INVALID" && s.invalid || name == "DNAT" && s.translated {
				return 1
			}
		}
		return 0
	}
}

func markMatch(value string) (match, error) {
	mark, mask, err := markAndMask(value)
	return func(s *state) float64 { return is(s.mark&mask == mark) }, err
}

func markAndMask(value string) (mark, mask uint32, err error) {
	first, second, masked := strings.Cut(value, "/")
	if !masked {
		second = "0xffffffff"
	}
	a, err := strconv.ParseUint(first, 0, 32)
	if err != nil {
		return 0, 0, err
	}
	b, err := strconv.ParseUint(second, 0, 32)
	return uint32(a), uint32(b), err
}

// watches tells whether a target does nothing to packets.
func watches(target string) bool { return target == "LOG" || target == "NFLOG" }

func (r *rule) setTarget(words []string) error {
	r.target = words[0]
	r.options = map[string]string{}
	if watches(r.target) {
		return nil
	}
	for words = words[1:]; len(words) > 0; {
		switch words[0] {
		case "--random-fully", "--random", "--persistent":
			words = words[1:]
		case "--to-destination", "--set-xmark", "--reject-with":
			if len(words) < 2 {
				return fmt.Errorf("%s lacks a value", words[0])
			}
			r.options[words[0]] = words[1]
			words = words[2:]
		default:
			return fmt.Errorf("%s of target %s is not understood", words[0], r.target)
		}
	}
	return nil
}
