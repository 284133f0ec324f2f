package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Table is what this node's speaker should do. Without a RouterID, a speaker can't begin.
type Table struct {
	ASN        uint32
	RouterID   netip.Addr
	ListenPort uint16
	// Import are the prefixes that are taken from the peers; none when empty. What they announce is not part of the Table: see Select.
	Import []ImportRange
	// ImportReject are networks of which nothing is taken all the same.
	ImportReject []netip.Prefix
	// Reflected are the addresses of Services that a route reflector passes on, from whichever node announces them, in order; empty
	// for a node that is none. See also Peer.Pods.
	Reflected []ImportRange
	// Reflects tells that the node is a route reflector.
	Reflects bool
	// Peers are ordered by address, with no two of the same.
	Peers []Peer
	// Paths are ordered by prefix, with no two of the same.
	Paths []Path
	// Draining are the paths that a draining node would have besides, ordered like Paths, as they may be announced for a while
	// before they are withdrawn.
	Draining []Path
}

// A Path is a prefix that is announced to all peers that have its family.
type Path struct {
	Prefix netip.Prefix
	// NextHop is the address to send to; the zero Addr stands for the node's end of each session.
	NextHop    netip.Addr
	Attributes *Attributes
	// Kind says what the prefix is, and Service whose; nil for what is of no Service. Diff does not look at them.
	Kind    Kind
	Service *cluster.Service
}

// Family is the address family of the path.
func (p Path) Family() cluster.Family { return cluster.FamilyOf(p.Prefix.Addr()) }

// owner says what a path is, for people.
func (p Path) owner() string {
	if p.Service != nil {
		return fmt.Sprintf("%s of %s/%s", strings.TrimSuffix(p.Kind.String(), "s"), p.Service.Namespace, p.Service.Name)
	}
	return strings.TrimSuffix(p.Kind.String(), "s")
}

// String returns the path as a line of text.
func (p Path) String() string {
	text := p.Prefix.String()
	if p.NextHop.IsValid() {
		text += " via " + p.NextHop.String()
	}
	return text + p.Attributes.String() + " # " + p.owner()
}

// String returns the peer as a line of text. It has no secrets.
func (p Peer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "peer %s AS %d", netip.AddrPortFrom(p.Address, p.Port), p.ASN)
	for i, f := range cluster.Families {
		if p.Families[i] {
			b.WriteString(" " + f.String())
		}
	}
	if p.Multihop != 0 {
		fmt.Fprintf(&b, " multihop %d", p.Multihop)
	}
	if p.TTLSecurity != 0 {
		fmt.Fprintf(&b, " ttl-security %d", p.TTLSecurity)
	}
	if p.LocalAddress.IsValid() {
		fmt.Fprintf(&b, " from %s", p.LocalAddress)
	}
	if p.PasswordFile != "" || p.Password.Given {
		b.WriteString(" password")
	}
	fmt.Fprintf(&b, " hold %s keepalive %s retry %s", p.HoldTime, p.KeepaliveTime, p.ConnectRetryTime)
	if p.RestartTime != 0 {
		fmt.Fprintf(&b, " graceful-restart %s", p.RestartTime)
	}
	if p.Helps {
		b.WriteString(" graceful-restart helper")
	}
	if p.Passive {
		b.WriteString(" passive")
	}
	if p.ClusterID.IsValid() {
		fmt.Fprintf(&b, " client of cluster %s", p.ClusterID)
	}
	if p.MaxPrefixes != DefaultMaxPrefixes {
		fmt.Fprintf(&b, " max-prefixes %d", p.MaxPrefixes)
	}
	if p.Node != "" {
		b.WriteString(" # node " + p.Node)
	}
	for _, pods := range p.Pods {
		if pods.IsValid() {
			b.WriteString(" with " + pods.String())
		}
	}
	return b.String()
}

// Lines returns the Table as text: the speaker, its peers, what it reflects, what is imported from them, then its paths, each line ended. It is empty for a speaker that
// can't begin, and for none.
func (t *Table) Lines() string {
	if t == nil || !t.RouterID.IsValid() {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "AS %d router-id %s", t.ASN, t.RouterID)
	if t.ListenPort != 0 {
		fmt.Fprintf(&b, " listen %d", t.ListenPort)
	}
	b.WriteByte('\n')
	for _, p := range t.Peers {
		b.WriteString(p.String() + "\n")
	}
	for _, r := range t.Reflected {
		b.WriteString("reflect " + r.String() + "\n")
	}
	for _, r := range t.Import {
		b.WriteString("import " + r.String() + "\n")
	}
	for _, n := range t.ImportReject {
		b.WriteString("import reject " + n.String() + "\n")
	}
	for _, p := range t.Paths {
		b.WriteString(p.String() + "\n")
	}
	return b.String()
}

// comparePrefixes orders prefixes by family, address and length.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// SortPaths puts paths into the order that a Table has.
func SortPaths(paths []Path) {
	slices.SortFunc(paths, func(a, b Path) int { return comparePrefixes(a.Prefix, b.Prefix) })
}
