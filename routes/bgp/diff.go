package bgp

import "net/netip"

// Changes is what turns one Table into another. The identity of the speaker (ASN, RouterID, ListenPort) is no part of it: to
// change that takes a new speaker.
type Changes struct {
	// Withdraw are prefixes to be announced no more.
	Withdraw []netip.Prefix
	// Announce are paths to be announced, or to take the place of the one with the same prefix.
	Announce []Path
	// Remove are peers whose session ends.
	Remove []netip.Addr
	// Reset are peers whose session ends and begins anew, as something that is settled when it begins has changed.
	Reset []Peer
	// Update are peers whose session goes on.
	Update []Peer
	// Add are new peers.
	Add []Peer
}

// Diff returns the changes from one Table to another. A nil Table has nothing.
func Diff(have, want *Table) (c Changes) {
	if have == nil {
		have = &Table{}
	}
	if want == nil {
		want = &Table{}
	}
	walk(have.Paths, want.Paths, func(a, b Path) int { return comparePrefixes(a.Prefix, b.Prefix) }, func(old, now *Path) {
		switch {
		case now == nil:
			c.Withdraw = append(c.Withdraw, old.Prefix)
		case old == nil || old.NextHop != now.NextHop || !old.Attributes.equal(now.Attributes):
			c.Announce = append(c.Announce, *now)
		}
	})
	WalkPeers(have.Peers, want.Peers, func(old, now *Peer) {
		switch {
		case now == nil:
			c.Remove = append(c.Remove, old.Address)
		case old == nil:
			c.Add = append(c.Add, *now)
		case *old == *now:
		case old.sameSession(*now):
			c.Update = append(c.Update, *now)
		default:
			c.Reset = append(c.Reset, *now)
		}
	})
	return c
}

// WalkPeers visits the peers of two Tables together: what one Table alone has, the other has as nil.
func WalkPeers(have, want []Peer, visit func(old, now *Peer)) {
	walk(have, want, func(a, b Peer) int { return a.Address.Compare(b.Address) }, visit)
}

// walk visits two ordered lists together: an element that both have, by compare, is visited once.
func walk[T any](have, want []T, compare func(a, b T) int, visit func(old, now *T)) {
	for len(have) > 0 || len(want) > 0 {
		order := 0
		switch {
		case len(want) == 0:
			order = -1
		case len(have) == 0:
			order = 1
		default:
			order = compare(have[0], want[0])
		}
		switch {
		case order < 0:
			visit(&have[0], nil)
			have = have[1:]
		case order > 0:
			visit(nil, &want[0])
			want = want[1:]
		default:
			visit(&have[0], &want[0])
			have, want = have[1:], want[1:]
		}
	}
}
