package routes

import (
	"iter"
	"net/netip"
	"slices"
)

// A prefixMap maps masked prefixes of both families to values, and finds those that contain a given one with one
// look-up for each length that occurs in the map. Clusters use one or two lengths per family, so this is faster and
// smaller than a tree, and it is never quadratic.
type prefixMap[V any] struct {
	values map[netip.Prefix]V
	// lengths are the prefix lengths that occur, ascending: [0] for IPv4, [1] for IPv6.
	lengths [2][]int
}

func newPrefixMap[V any](size int) *prefixMap[V] {
	return &prefixMap[V]{values: make(map[netip.Prefix]V, size)}
}

func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (m *prefixMap[V]) put(p netip.Prefix, v V) {
	m.values[p] = v
	lengths := &m.lengths[familyIndex(p.Addr())]
	if i, ok := slices.BinarySearch(*lengths, p.Bits()); !ok {
		*lengths = slices.Insert(*lengths, i, p.Bits())
	}
}

// covering yields the prefixes of the map that contain q, q itself included, the widest first.
func (m *prefixMap[V]) covering(q netip.Prefix) iter.Seq2[netip.Prefix, V] {
	return func(yield func(netip.Prefix, V) bool) {
		for _, bits := range m.lengths[familyIndex(q.Addr())] {
			if bits > q.Bits() {
				return
			}
			p := netip.PrefixFrom(q.Addr(), bits).Masked()
			if v, ok := m.values[p]; ok && !yield(p, v) {
				return
			}
		}
	}
}

// host returns the prefix that holds one address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
