package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/routes"
)

// An ImportRange are prefixes that may be imported: those inside Prefix with a length from Least to Most, as routers' prefix
// lists have it (ge, le).
type ImportRange struct {
	Prefix      netip.Prefix
	Least, Most uint8
}

// String returns the range as a prefix list has it.
func (r ImportRange) String() string { return fmt.Sprintf("%s ge %d le %d", r.Prefix, r.Least, r.Most) }

// Takes reports whether a prefix is in the range.
func (r ImportRange) Takes(p netip.Prefix) bool {
	return r.Prefix.Contains(p.Addr()) && p.Bits() >= int(r.Least) && p.Bits() <= int(r.Most)
}

// A Received is a path that a peer announces.
type Received struct {
	Peer    netip.Addr
	Prefix  netip.Prefix
	NextHop netip.Addr
	// Internal tells that the peer is of this node's own autonomous system (iBGP).
	Internal bool
	// LocalPref is DefaultLocalPref where there is none, as from eBGP peers.
	LocalPref uint32
	// ASPath are all the autonomous systems of the AS_PATH, PathLength is the length that counts when paths are compared: a set
	// counts once, a confederation's segments not at all (RFC 4271, section 9.1.2.2; RFC 5065).
	ASPath     []uint32
	PathLength int
	// Origin is 0 for IGP, 1 for EGP, 2 for INCOMPLETE.
	Origin uint8
	MED    uint32
	// Originator is ORIGINATOR_ID, which a route reflector sets; the zero Addr where there is none.
	Originator netip.Addr
}

// neighbourAS is the autonomous system that the path came from, within which MEDs are compared; 0 for this one.
func (r *Received) neighbourAS() uint32 {
	if len(r.ASPath) == 0 {
		return 0
	}
	return r.ASPath[0]
}

// Select returns what peers announce of the Table's import ranges: for each prefix all ways that are equally good by the decision
// process of RFC 4271, section 9.1.2.2, as far as its step d: the highest local preference, the shortest AS_PATH, the lowest
// origin, the lowest MED of those from one neighbouring AS, then eBGP before iBGP. What is left is not told apart any further,
// so the AS_PATHs may be different ones of the same length. A path that has been here before, by its AS_PATH or ORIGINATOR_ID,
// is none; nor is one to a part of the Table's ImportReject.
func Select(t *Table, received []Received) (learned []routes.Learned) {
	candidates := slices.DeleteFunc(slices.Clone(received), func(r Received) bool {
		return slices.Contains(r.ASPath, t.ASN) || r.Originator.IsValid() && r.Originator == t.RouterID ||
			!slices.ContainsFunc(t.Import, func(i ImportRange) bool { return i.Takes(r.Prefix) }) || within(r.Prefix, t.ImportReject)
	})
	slices.SortFunc(candidates, func(a, b Received) int {
		return cmp.Or(comparePrefixes(a.Prefix, b.Prefix), a.Peer.Compare(b.Peer))
	})
	for len(candidates) > 0 {
		n := 1
		for n < len(candidates) && candidates[n].Prefix == candidates[0].Prefix {
			n++
		}
		l := routes.Learned{Prefix: candidates[0].Prefix}
		for _, r := range best(candidates[:n]) {
			l.Ways = append(l.Ways, routes.Way{NextHop: r.NextHop, Peer: r.Peer})
		}
		learned = append(learned, l)
		candidates = candidates[n:]
	}
	return learned
}

// within reports whether a prefix is one of networks or a part of one.
func within(p netip.Prefix, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) })
}

// best returns those of the paths to one prefix that none is better than. It changes their order.
func best(paths []Received) []Received {
	paths = least(paths, func(r *Received) int64 { return -int64(r.LocalPref) })
	paths = least(paths, func(r *Received) int64 { return int64(r.PathLength) })
	paths = least(paths, func(r *Received) int64 { return int64(r.Origin) })
	lowest := map[uint32]uint32{}
	for i := range paths {
		as := paths[i].neighbourAS()
		if med, ok := lowest[as]; !ok || paths[i].MED < med {
			lowest[as] = paths[i].MED
		}
	}
	paths = slices.DeleteFunc(paths, func(r Received) bool { return r.MED != lowest[r.neighbourAS()] })
	return least(paths, func(r *Received) int64 {
		if r.Internal {
			return 1
		}
		return 0
	})
}

// least returns the paths whose value is the least.
func least(paths []Received, value func(*Received) int64) []Received {
	if len(paths) < 2 {
		return paths
	}
	lowest := value(&paths[0])
	for i := range paths {
		lowest = min(lowest, value(&paths[i]))
	}
	return slices.DeleteFunc(paths, func(r Received) bool { return value(&r) != lowest })
}
