package netfilter

import (
	"maps"
	"slices"
	"time"

	"github.com/fairway-net/fairway/proxy/iptables"
)

// How often our jumps are put first again in a built-in chain. Two programs that both insist must not fight for ever.
const (
	maxMoves   = 3
	moveWindow = 10 * time.Minute
)

// An Above is a rule of somebody else that stands before our jumps in a built-in chain, and decides about packets that they
// should see first.
type Above struct {
	Table, Chain, Rule string
	// Contested is true when our jumps were put first again as often as they may be, and the rule came back each time.
	Contested bool
}

// places follow which rules of others stand before our jumps.
//
// Those that stood there at the start stay, and so do all in filter: an operator or a network policy wants to be asked first
// there. A rule that comes before our jumps in nat later makes them move, unless that happened too often.
type places struct {
	keepFirst bool
	chains    map[iptables.ChainName]*place
}

type place struct {
	// tolerated are the rules that may stay above, with true for those that are contested.
	tolerated map[string]bool
	moves     []time.Time
}

// look takes what was read, marks in it which jumps are to be moved, and returns what is new. first tells that nothing is known
// of what was there before.
func (p *places) look(read *iptables.Ruleset, first bool, now time.Time) (list []iptables.Drift) {
	if p.chains == nil {
		p.chains = map[iptables.ChainName]*place{}
	}
	for _, table := range iptables.Tables {
		t := read.Table(table)
		for builtin := range t.Builtins {
			name := iptables.ChainName{Table: table, Chain: builtin}
			c := p.chains[name]
			atStart := c == nil && first
			if c == nil {
				c = &place{}
				p.chains[name] = c
			}
			fresh, contested := c.compare(t.Above(builtin), now)
			movable := table == iptables.NAT && p.keepFirst && !atStart
			if len(fresh) == 0 {
				continue
			}
			if !atStart {
				for _, rule := range fresh {
					list = append(list, iptables.Drift{Table: table, Kind: iptables.JumpDisplaced, Chain: builtin, Rule: rule[:len(rule)-1], Left: !movable || contested})
				}
			}
			if movable && !contested {
				c.moves = append(c.moves, now)
				t.MoveFirst(builtin)
				continue
			}
			for _, rule := range fresh {
				c.tolerated[rule] = movable
			}
		}
	}
	return list
}

// compare returns which rules were not above before, and whether our jumps have been moved too often for another time.
func (c *place) compare(above []string, now time.Time) (fresh []string, contested bool) {
	tolerated := map[string]bool{}
	for _, rule := range above {
		if contested, known := c.tolerated[rule]; known {
			tolerated[rule] = contested
		} else {
			fresh = append(fresh, rule)
		}
	}
	c.tolerated = tolerated
	c.moves = slices.DeleteFunc(c.moves, func(t time.Time) bool { return now.Sub(t) >= moveWindow })
	return fresh, len(c.moves) >= maxMoves
}

// above returns the rules that stand above our jumps now.
func (p *places) above(have *iptables.Ruleset) (list []Above) {
	for _, table := range iptables.Tables {
		t := have.Table(table)
		for _, builtin := range slices.Sorted(maps.Keys(t.Builtins)) {
			for _, rule := range t.Above(builtin) {
				a := Above{Table: table, Chain: builtin, Rule: rule[:len(rule)-1]}
				if c := p.chains[iptables.ChainName{Table: table, Chain: builtin}]; c != nil {
					a.Contested = c.tolerated[rule]
				}
				list = append(list, a)
			}
		}
	}
	return list
}
