package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Packet is the first packet of a connection.
type Packet struct {
	Protocol cluster.Protocol
	// Src and Dst are where it comes from and wants to go. The source port matters to no service rule.
	Src, Dst netip.AddrPort
	// In is the interface that it comes in on; empty for a packet that a process of this node sends.
	In string
	// Out is the interface that it leaves by when it is forwarded, if that is known; a rule that asks for it is an error when it is not.
	Out string
	// Invalid makes it one that conntrack calls INVALID.
	Invalid bool
}

// A Node is what the rules ask about the machine.
type Node struct {
	// Local tells whether an address is one of the machine's own.
	Local func(netip.Addr) bool
	// Recent tells whether the source of the packet is in the list of a name (xt_recent), which makes an endpoint keep
	// its clients; nil means that no list has anybody.
	Recent func(list string) bool
}

// A Verdict is what becomes of a packet.
type Verdict string

// The verdicts.
const (
	Accept Verdict = "accept"
	Reject Verdict = "reject"
	Drop   Verdict = "drop"
)

// An Outcome is one thing that can become of a packet.
type Outcome struct {
	// Share is its probability.
	Share   float64
	Verdict Verdict
	// Dst is the destination that the packet ends up with; the original one when nothing translated it.
	Dst netip.AddrPort
	// Masquerade tells that the source is replaced by an address of the node.
	Masquerade bool
	// Rules are the rules that decided: those that applied, in order.
	Rules []string
}

// String returns the Outcome in a line, without its rules.
func (o Outcome) String() string {
	text := fmt.Sprintf("%5.1f%% %s %s", o.Share*100, o.Verdict, o.Dst)
	if o.Masquerade {
		text += " masqueraded"
	}
	return text
}

// state is a packet on its way.
type state struct {
	protocol   cluster.Protocol
	src, dst   netip.AddrPort
	in, out    string
	invalid    bool
	translated bool
	masquerade bool
	mark       uint32
	share      float64
	path       []string
	local      func(netip.Addr) bool
	recent     func(string) bool
}

// with returns a copy for a part of the probability; the path is not shared.
func (s *state) with(share float64) *state {
	c := *s
	c.share *= share
	c.path = slices.Clip(s.path)
	return &c
}

// maxDepth bounds the jumps of a packet; the kernel refuses loops, so more is a fault of the text.
const maxDepth = 64

// Trace returns what becomes of a packet: Outcomes whose shares add up to one, the likeliest first. Outcomes that differ
// in nothing but their rules are given as one. The error names a rule that is not understood.
func (r *Rules) Trace(p Packet, n Node) ([]Outcome, error) {
	s := &state{protocol: p.Protocol, src: p.Src, dst: p.Dst, in: p.In, out: p.Out, invalid: p.Invalid, share: 1, local: n.Local, recent: n.Recent}
	if s.recent == nil {
		s.recent = func(string) bool { return false }
	}
	w := walker{rules: r}
	if p.In == "" {
		w.hook("nat", "OUTPUT", s, func(s *state) { w.hook("filter", "OUTPUT", s, w.routed) })
	} else {
		w.hook("nat", "PREROUTING", s, w.routed)
	}
	return merge(w.outcomes), w.err
}

// A walker collects outcomes. Since a rule may apply with a probability, what comes after it is a continuation that runs
// once for each way.
type walker struct {
	rules    *Rules
	outcomes []Outcome
	err      error
}

// routed goes on where the packet's destination leads: to a process of this node, or through and out.
func (w *walker) routed(s *state) {
	leave := func(s *state) {
		w.hook("nat", "POSTROUTING", s, func(s *state) { w.end(s, Accept) })
	}
	switch {
	case s.local(s.dst.Addr()):
		if s.in == "" {
			s.in = "lo"
		}
		w.hook("filter", "INPUT", s, func(s *state) { w.end(s, Accept) })
	case s.in == "":
		leave(s)
	default:
		w.hook("filter", "FORWARD", s, leave)
	}
}

func (w *walker) end(s *state, v Verdict) {
	w.outcomes = append(w.outcomes, Outcome{Share: s.share, Verdict: v, Dst: s.dst, Masquerade: s.masquerade, Rules: s.path})
}

// hook runs a built-in chain; next gets what is accepted. In nat only a connection's first packet is looked at, and
// INVALID ones never are.
func (w *walker) hook(table, name string, s *state, next func(*state)) {
	c := w.rules.tables[table][name]
	if c == nil || table == "nat" && s.invalid {
		next(s)
		return
	}
	w.chain(table, c, 0, s, 0, next, func(s *state) {
		if c.policy == "DROP" {
			w.end(s, Drop)
			return
		}
		next(s)
	})
}

// chain runs a chain from its i-th rule on. accept gets what a rule accepts or translates, done what reaches the end or
// returns.
func (w *walker) chain(table string, c *chain, i int, s *state, depth int, accept, done func(*state)) {
	if depth > maxDepth {
		w.err = fmt.Errorf("chain %s: more than %d jumps", c.name, maxDepth)
		return
	}
	for ; i < len(c.rules); i++ {
		r := c.rules[i]
		if err := r.parse(); err != nil {
			w.err = err
			return
		}
		if r.asksOut && s.out == "" {
			w.err = fmt.Errorf("rule %q: -o: output interfaces are not known here", r.text)
			return
		}
		applies := r.applies(s)
		if applies == 0 {
			continue
		}
		goOn := func(s *state) { w.chain(table, c, i+1, s, depth, accept, done) }
		if applies < 1 {
			w.apply(table, r, s.with(applies), depth, accept, done, goOn)
			s = s.with(1 - applies)
			continue
		}
		w.apply(table, r, s, depth, accept, done, goOn)
		return
	}
	done(s)
}

// applies returns the probability with which all matches of a rule hold.
func (r *rule) applies(s *state) float64 {
	p := 1.0
	for _, m := range r.matches {
		if p *= m(s); p == 0 {
			return 0
		}
	}
	return p
}

// apply does what a rule says to a packet that it applies to.
func (w *walker) apply(table string, r *rule, s *state, depth int, accept, done, goOn func(*state)) {
	s.path = append(s.path, r.text)
	if watches(r.target) {
		goOn(s)
		return
	}
	switch r.target {
	case "":
		goOn(s)
	case "ACCEPT":
		accept(s)
	case "RETURN":
		done(s)
	case "DROP":
		w.end(s, Drop)
	case "REJECT":
		w.end(s, Reject)
	case "MARK":
		mark, mask, err := markAndMask(r.options["--set-xmark"])
		if err != nil {
			w.err = fmt.Errorf("rule %q: %w", r.text, err)
			return
		}
		s.mark = s.mark&^mask ^ mark
		goOn(s)
	case "MASQUERADE":
		s.masquerade = true
		accept(s)
	case "DNAT":
		to, err := destination(r.options["--to-destination"], s.dst.Port())
		if err != nil {
			w.err = fmt.Errorf("rule %q: %w", r.text, err)
			return
		}
		s.dst, s.translated = to, true
		accept(s)
	default:
		c := w.rules.tables[table][r.target]
		if c == nil {
			w.err = fmt.Errorf("rule %q: there is no chain %s", r.text, r.target)
			return
		}
		w.chain(table, c, 0, s, depth+1, accept, goOn)
	}
}

// destination reads a DNAT's address, with or without a port.
func destination(text string, port uint16) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(a, port), nil
	}
	return netip.ParseAddrPort(text)
}

// merge joins outcomes that a packet's owner can't tell apart, and orders them.
func merge(all []Outcome) (merged []Outcome) {
	for _, o := range all {
		i := slices.IndexFunc(merged, func(m Outcome) bool {
			return m.Verdict == o.Verdict && m.Dst == o.Dst && m.Masquerade == o.Masquerade
		})
		if i < 0 {
			merged = append(merged, o)
			continue
		}
		merged[i].Share += o.Share
	}
	slices.SortStableFunc(merged, func(a, b Outcome) int {
		switch {
		case a.Share > b.Share+1e-6:
			return -1
		case b.Share > a.Share+1e-6:
			return 1
		}
		return a.Dst.Compare(b.Dst)
	})
	return merged
}
