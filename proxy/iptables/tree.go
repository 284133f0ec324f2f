package iptables

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sort"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

const (
	// flatRules is the number of rules up to which a dispatching chain stays a flat list. A small cluster looks
	// like kube-proxy's.
	flatRules = 16
	// inlineRules is the number of rules up to which a part of a tree is not worth a chain of its own.
	inlineRules = 2
	// stepBits is what one level of a tree decides: up to 16 ways.
	stepBits = 4
)

// An entry is a rule of a dispatcher, under the key that packets are dispatched by.
type entry struct {
	key netip.Addr
	// rule is the rule's text after "-A CHAIN ".
	rule string
	port *proxy.Port
	// last tells that the rule is for what is left of the key, and comes behind its others.
	last bool
}

// compareEntries orders entries by what they match. No two of one dispatcher match the same, but for the health check ports that two
// Services want: those rules do the same.
func compareEntries(a, b *entry) int {
	if c := a.key.Compare(b.key); c != 0 {
		return c
	}
	if a.last != b.last {
		return cmp.Compare(rank(a.last), rank(b.last))
	}
	return cmp.Or(cmp.Compare(a.port.Protocol, b.port.Protocol), cmp.Compare(a.port.Port, b.port.Port))
}

func rank(last bool) int {
	if last {
		return 1
	}
	return 0
}

// A dispatcher is a chain that sends packets to one of many chains by a key. It is a flat list while that is short,
// else a tree of prefixes of the key: every chain divides its entries by the next four bits that differ, and short
// parts stand in the chain itself. Jumps, not gotos: a packet that no entry of a part takes goes on behind the jump,
// since a VIP may be one of the node's own addresses, and node ports come last.
type dispatcher struct {
	// jump returns the match for a prefix of the key, with a space behind, and the name of the chain for it.
	jump func(netip.Prefix) (match, chain string)
	// gone and fresh collect the chains by which the tree differs from the one before.
	gone, fresh []*Chain
}

// A part is a chain of a dispatcher's tree and the parts that it sends packets to, in order.
type part struct {
	prefix netip.Prefix // of the keys of all entries; the root has none
	match  string       // what the jump to the chain matches, with a space behind
	chain  *Chain
	parts  []*part
}

// below returns the part of a prefix that is directly below p, or nil. p may be nil.
func (p *part) below(prefix netip.Prefix) *part {
	if p != nil {
		for _, q := range p.parts {
			if q.prefix == prefix {
				return q
			}
		}
	}
	return nil
}

// build makes a part, which has its name already, and all below it. entries are in order; the chain ends with
// tail, which is not divided. old is a memo: the part with that name in an earlier tree, or nil. An entry's rule depends on
// nothing but its port, so a flat list with the same ports has the same text.
func (d *dispatcher) build(p part, name string, entries []*entry, old *part, tail ...*entry) *part {
	if old != nil && len(tail) == 0 && old.chain.lists(entries) {
		return old
	}
	w := newChainWriter(name, len(entries)+len(tail))
	// Many ports of one address can't be divided any further.
	if len(entries) <= flatRules || entries[0].key == entries[len(entries)-1].key {
		for _, e := range entries {
			w.rule(e.port, e.rule)
		}
	} else {
		p.parts = d.divide(w, entries, old)
	}
	for _, e := range tail {
		w.rule(e.port, e.rule)
	}
	p.chain = w.chain()
	if old == nil {
		d.fresh = append(d.fresh, p.chain)
		return &p
	}
	if old.chain.equal(p.chain) {
		p.chain = old.chain
	} else {
		d.gone, d.fresh = append(d.gone, old.chain), append(d.fresh, p.chain)
	}
	for _, q := range old.parts {
		if p.below(q.prefix) == nil {
			d.drop(q)
		}
	}
	return &p
}

// drop notes that the chains of an earlier part and all below it are gone.
func (d *dispatcher) drop(p *part) {
	d.gone = append(d.gone, p.chain)
	for _, q := range p.parts {
		d.drop(q)
	}
}

// divide writes the rules that send each group of entries to a part of its own, and returns these parts.
func (d *dispatcher) divide(w *chainWriter, entries []*entry, old *part) (parts []*part) {
	bits := splitBits(entries[0].key, entries[len(entries)-1].key)
	for len(entries) > 0 {
		prefix, _ := entries[0].key.Prefix(bits)
		n := sort.Search(len(entries), func(i int) bool { return !prefix.Contains(entries[i].key) })
		group := entries[:n]
		entries = entries[n:]
		if n <= inlineRules {
			for _, e := range group {
				w.rule(e.port, e.rule)
			}
			continue
		}
		p, was := part{prefix: prefix}, old.below(prefix)
		var chain string
		if was != nil {
			p.match, chain = was.match, was.chain.Name
		} else {
			p.match, chain = d.jump(prefix)
		}
		w.rule(nil, p.match, "-j ", chain)
		parts = append(parts, d.build(p, chain, group, was))
	}
	return parts
}

// splitBits returns the length of the prefixes that divide a range of keys: as far as the keys agree, rounded down to
// a whole step, and one step more.
func splitBits(first, last netip.Addr) int {
	a, b := first.As16(), last.As16()
	common := 0
	for i := range a {
		x := a[i] ^ b[i]
		if x == 0 {
			common += 8
			continue
		}
		for x&0x80 == 0 {
			common++
			x <<= 1
		}
		break
	}
	if first.Is4() {
		common -= 96
	}
	return min(common/stepBits*stepBits+stepBits, first.BitLen())
}

// addressJump dispatches by destination address, to chains whose names begin so; each tree of a table has its own.
func addressJump(begin string) func(netip.Prefix) (match, chain string) {
	return func(p netip.Prefix) (match, chain string) { return "-d " + p.String() + " ", prefixChain(begin, p) }
}

// portKey makes a key of protocol and port, so that node ports are dispatched by the same tree as addresses: the
// protocols that a Service can have differ in the upper half of their numbers, so the first step divides by protocol.
func portKey(protocol cluster.Protocol, port uint16) netip.Addr {
	return netip.AddrFrom4([4]byte{0, byte(protocol), byte(port >> 8), byte(port)})
}

// portJump dispatches by protocol and a range of destination ports.
func portJump(p netip.Prefix) (match, chain string) {
	key := p.Addr().As4()
	protocol := protocolOf(key[1]).String()
	first := uint16(key[2])<<8 | uint16(key[3])
	last := first
	if free := 32 - p.Bits(); free >= 16 {
		first, last = 0, 65535
	} else {
		last |= 1<<free - 1
	}
	chain = rangeChain(protocol, first, last)
	if first == 0 && last == 65535 {
		return "-p " + protocol + " ", chain
	}
	return fmt.Sprintf("-p %s -m %s --dport %d:%d ", protocol, protocol, first, last), chain
}

// protocolOf completes the number of a protocol of which the lower half may be masked away.
func protocolOf(b byte) cluster.Protocol {
	for _, p := range [...]cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP} {
		if b>>stepBits == byte(p)>>stepBits {
			return p
		}
	}
	return 0
}

// lists tells whether the chain is the flat list of just these entries.
func (c *Chain) lists(entries []*entry) bool {
	if len(c.ports) != len(entries) || len(entries) > flatRules {
		return false
	}
	for i, e := range entries {
		if c.ports[i] != e.port {
			return false
		}
	}
	return true
}

// equal tells whether two chains of one name are the same.
func (c *Chain) equal(d *Chain) bool { return c.Rules == d.Rules && slices.Equal(c.ports, d.ports) }

// A chainWriter writes the rules of one chain.
type chainWriter struct {
	name  string
	rules []byte
	ports []*proxy.Port
}

// usualRule is about the length of a dispatching rule with its comment, in bytes.
const usualRule = 200

// newChainWriter returns a writer with room for a number of rules, up to those of a flat list.
func newChainWriter(name string, rules int) *chainWriter {
	rules = min(rules, flatRules+1)
	return &chainWriter{name, make([]byte, 0, rules*usualRule), make([]*proxy.Port, 0, rules)}
}

// rule adds a rule, which is given in pieces, for a port or, when that is nil, for none.
func (w *chainWriter) rule(p *proxy.Port, pieces ...string) {
	w.rules = append(append(append(w.rules, "-A "...), w.name...), ' ')
	for _, s := range pieces {
		w.rules = append(w.rules, s...)
	}
	w.rules = append(w.rules, '\n')
	w.ports = append(w.ports, p)
}

// chain returns the chain as written.
func (w *chainWriter) chain() *Chain {
	return &Chain{Name: w.name, Rules: string(w.rules), ports: slices.Clip(w.ports)}
}

// one returns the chain as one that is for a single port, and makes the writer ready for another chain.
func (w *chainWriter) one(p *proxy.Port) *Chain {
	c := &Chain{Name: w.name, Rules: string(w.rules), ports: []*proxy.Port{p}}
	w.rules, w.ports = w.rules[:0], w.ports[:0]
	return c
}
