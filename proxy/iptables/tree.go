package iptables

import (
	"fmt"
	"net/netip"
	"strings"

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
}

// A dispatcher is a chain that sends packets to one of many chains by a key. It is a flat list while that is short,
// else a tree of prefixes of the key: every chain divides its entries by the next four bits that differ, and short
// parts stand in the chain itself. Jumps, not gotos: a packet that no entry of a part takes goes on behind the jump,
// since a VIP may be one of the node's own addresses, and node ports come last.
type dispatcher struct {
	// jump returns the match for a prefix of the key, with a space behind, and the name of the chain for it.
	jump func(netip.Prefix) (match, chain string)
	// memo are the chains of an earlier tree. An entry's rule depends on nothing but its port, so a list with the same
	// ports has the same text.
	memo map[string]*Chain
	out  []*Chain
}

// build adds a chain of the dispatcher's tree and all below it. entries are ordered by key; the chain ends with tail,
// rules after "-A CHAIN ".
func (d *dispatcher) build(name string, entries []entry, tail ...string) {
	if old := d.memo[name]; old != nil && len(tail) == 0 && old.lists(entries) {
		d.out = append(d.out, old)
		return
	}
	w := chainWriter{name: name}
	w.grow(len(entries))
	// Many ports of one address can't be divided any further.
	if len(entries) <= flatRules || entries[0].key == entries[len(entries)-1].key {
		for _, e := range entries {
			w.rule(e.rule, e.port)
		}
	} else {
		d.divide(&w, entries)
	}
	for _, r := range tail {
		w.rule(r, nil)
	}
	d.out = append(d.out, w.chain(d.memo[name]))
}

// divide writes the rules that send each group of entries to a chain of its own.
func (d *dispatcher) divide(w *chainWriter, entries []entry) {
	bits := splitBits(entries[0].key, entries[len(entries)-1].key)
	for len(entries) > 0 {
		prefix, _ := entries[0].key.Prefix(bits)
		n := 1
		for n < len(entries) && prefix.Contains(entries[n].key) {
			n++
		}
		group := entries[:n]
		entries = entries[n:]
		if n <= inlineRules {
			for _, e := range group {
				w.rule(e.rule, e.port)
			}
			continue
		}
		match, chain := d.jump(prefix)
		w.rule(match+"-j "+chain, nil)
		d.build(chain, group)
	}
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

// addressJump dispatches by destination address.
func addressJump(p netip.Prefix) (match, chain string) {
	return "-d " + p.String() + " ", prefixChain(p)
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
func (c *Chain) lists(entries []entry) bool {
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

// A chainWriter writes the rules of one chain.
type chainWriter struct {
	name  string
	rules strings.Builder
	ports []*proxy.Port
}

// usualRule is about the length of a dispatching rule with its comment, in bytes.
const usualRule = 200

// grow makes room for a number of rules, up to those of a flat list.
func (w *chainWriter) grow(rules int) {
	rules = min(rules, flatRules)
	w.rules.Grow(rules * usualRule)
	w.ports = make([]*proxy.Port, 0, rules)
}

func (w *chainWriter) rule(r string, p *proxy.Port) {
	w.rules.WriteString("-A ")
	w.rules.WriteString(w.name)
	w.rules.WriteByte(' ')
	w.rules.WriteString(r)
	w.rules.WriteByte('\n')
	w.ports = append(w.ports, p)
}

// chain returns the chain as written. It shares the text of the old one when that says the same.
func (w *chainWriter) chain(old *Chain) *Chain {
	c := &Chain{Name: w.name, Rules: w.rules.String(), ports: w.ports}
	if old != nil && old.Rules == c.Rules {
		c.Rules = old.Rules
	}
	return c
}
