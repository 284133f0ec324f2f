package routes

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// randomRoutes makes routes over few destinations and gateways, so that many collide. Of a list that may be a Table, no
// two have the same key.
func randomRoutes(rng *rand.Rand, isTable bool) []Route {
	var list []Route
	seen := map[Key]bool{}
	for range rng.IntN(12) {
		r := Route{
			Dst:       netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, byte(rng.IntN(6)), 0}), 24),
			Gateway:   netip.AddrFrom4([4]byte{10, 240, 0, byte(2 + rng.IntN(3))}),
			LinkIndex: 2 + rng.IntN(2),
			Metric:    uint32(rng.IntN(2)),
			Node:      fmt.Sprint("n", rng.IntN(3)),
		}
		// The kernel holds no two routes that are the same in everything.
		if same := func(o Route) bool { return o.Same(r) }; slices.ContainsFunc(list, same) || (isTable && seen[r.Key()]) {
			continue
		}
		seen[r.Key()] = true
		list = append(list, r)
	}
	return list
}

// apply does to a list what the kernel does to its table.
func apply(t *testing.T, have []Route, c Changes) []Route {
	t.Helper()
	table := slices.Clone(have)
	for _, r := range c.Set {
		if slices.ContainsFunc(table, func(o Route) bool { return o.Same(r) }) {
			t.Fatalf("set of what is there, the kernel would refuse it: %s", r)
		}
		if i := slices.IndexFunc(table, func(o Route) bool { return o.Key() == r.Key() }); i >= 0 {
			table[i] = r
		} else {
			table = append(table, r)
		}
	}
	for _, r := range c.Delete {
		i := slices.IndexFunc(table, func(o Route) bool { return o.Same(r) })
		if i < 0 {
			t.Fatalf("delete of what is not there: %s", r)
		}
		table = slices.Delete(table, i, i+1)
	}
	return table
}

func TestHavePlusDiffIsWant(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 5000 {
		have, want := randomRoutes(rng, false), &Table{Routes: randomRoutes(rng, true)}
		c := Diff(have, want)
		got := apply(t, have, c)
		slices.SortFunc(got, Compare)
		slices.SortFunc(want.Routes, Compare)
		if !slices.EqualFunc(got, want.Routes, Route.Same) {
			t.Fatalf("have %v\nwant %v\nchanges %+v\ngot %v", have, want.Routes, c, got)
		}
		if again := Diff(got, want); !again.Empty() {
			t.Fatalf("from want to want: %+v", again)
		}
	}
}

func TestDiffWritesNoMoreThanNeeded(t *testing.T) {
	r := func(dst, gw string, link int) Route {
		return Route{Dst: netip.MustParsePrefix(dst), Gateway: netip.MustParseAddr(gw), LinkIndex: link}
	}
	have := []Route{
		r("10.200.1.0/24", "10.240.0.1", 2), r("10.200.2.0/24", "10.240.0.2", 2), r("10.200.3.0/24", "10.240.0.3", 2),
		r("10.200.4.0/24", "10.240.0.9", 2), r("10.200.4.0/24", "10.240.0.4", 2),
	}
	want := &Table{Routes: []Route{
		r("10.200.1.0/24", "10.240.0.1", 2), r("10.200.2.0/24", "10.240.0.22", 2), r("10.200.4.0/24", "10.240.0.4", 2),
		r("10.200.5.0/24", "10.240.0.5", 2),
	}}
	want.Routes[0].Link, want.Routes[0].Node = "eth0", "a" // not the kernel's business
	got := fmt.Sprint(Diff(have, want))
	const expected = "{[10.200.2.0/24 via 10.240.0.22 dev if2 proto 102 10.200.5.0/24 via 10.240.0.5 dev if2 proto 102]" +
		" [10.200.3.0/24 via 10.240.0.3 dev if2 proto 102 10.200.4.0/24 via 10.240.0.9 dev if2 proto 102]}"
	if got != expected {
		t.Errorf("got  %s\nwant %s", got, expected)
	}
}
