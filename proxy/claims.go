package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/internal/ordered"
)

// Kinds of claims: what two Services can contend for.
const (
	addressClaims = iota
	nodePortClaims
)

// A claim is a place at which a port wants to be served: an address with a port number, or a node port.
type claim struct {
	port   *Port
	addr   netip.Addr // none for a node port
	number uint16
}

// settle orders the ports by what they claim, and takes a contested claim away from all but the oldest Service.
// kube-proxy leaves the winner to the order of a map. A Service's ClusterIP is its own, with all its ports: nobody
// else's external address can be the same. With a memo only what changed is put in order.
func (t *Table) settle(prev *Table) (notes []cluster.Note) {
	if prev == nil || prev.Family != t.Family {
		prev = &Table{}
	}
	gone, fresh := t.Since(prev)
	lost := map[claim]bool{}
	for kind := range t.claims {
		t.claims[kind] = ordered.Edit(prev.claims[kind], claimsOf(kind, gone), claimsOf(kind, fresh), compareClaimsAndAge)
		notes = append(notes, contest(t.claims[kind], lost)...)
	}
	if len(lost) > 0 {
		t.takeAway(lost)
	}
	return notes
}

// claimsOf returns the claims of a kind that ports make.
func claimsOf(kind int, ports []*Port) (list []claim) {
	for _, p := range ports {
		if kind == nodePortClaims {
			if p.NodePort != 0 {
				list = append(list, claim{p, netip.Addr{}, p.NodePort})
			}
			continue
		}
		list = append(list, claim{p, p.ClusterIP, p.Port})
		for _, a := range p.ExternalIPs {
			list = append(list, claim{p, a, p.Port})
		}
		for _, a := range p.LoadBalancerIPs {
			list = append(list, claim{p, a, p.Port})
		}
	}
	return list
}

// internal tells whether the claim is for the port's own ClusterIP.
func (c claim) internal() bool { return c.addr.IsValid() && c.addr == c.port.ClusterIP }

// contest finds the claims that lose against others.
func contest(claims []claim, lost map[claim]bool) (notes []cluster.Note) {
	lose := func(c, holder claim) {
		if !lost[c] {
			lost[c] = true
			notes = append(notes, conflictNote(c, holder))
		}
	}
	for first := 0; first < len(claims); {
		next := first + 1
		for next < len(claims) && claims[next].addr == claims[first].addr {
			next++
		}
		group := claims[first:next]
		first = next
		if i := slices.IndexFunc(group, claim.internal); i >= 0 {
			for _, c := range group {
				if !c.internal() {
					lose(c, group[i])
				}
			}
		}
		holder := group[0]
		for _, c := range group[1:] {
			if compareClaims(holder, c) == 0 && !lost[holder] {
				lose(c, holder)
				continue
			}
			holder = c
		}
	}
	return notes
}

func conflictNote(c, holder claim) cluster.Note {
	what := fmt.Sprintf("%s/%s", netip.AddrPortFrom(c.addr, c.number), c.port.Protocol)
	if !c.addr.IsValid() {
		what = fmt.Sprintf("node port %d/%s", c.number, c.port.Protocol)
	}
	why := "which is older"
	if holder.internal() && !c.internal() {
		why = "whose ClusterIP it is"
	}
	return cluster.Note{Object: c.port.Service.Ref(), Reason: cluster.ReasonAddressConflict,
		Detail: fmt.Sprintf("%s already belongs to Service %s/%s, %s; this Service does not get it", what, holder.port.Service.Namespace, holder.port.Service.Name, why)}
}

// takeAway replaces the ports that lost a claim by copies without it.
func (t *Table) takeAway(lost map[claim]bool) {
	poorer := map[*Port]*Port{}
	for c := range lost {
		if poorer[c.port] == nil {
			left := *c.port
			poorer[c.port] = &left
		}
		is := func(a netip.Addr) bool { return a == c.addr }
		left := poorer[c.port]
		switch {
		case !c.addr.IsValid():
			left.NodePort = 0
		case c.internal():
			left.ClusterIP = netip.Addr{}
		default:
			left.ExternalIPs = slices.DeleteFunc(slices.Clone(left.ExternalIPs), is)
			left.LoadBalancerIPs = slices.DeleteFunc(slices.Clone(left.LoadBalancerIPs), is)
		}
	}
	ports := make([]*Port, 0, len(t.Ports))
	for _, p := range t.Ports {
		if left := poorer[p]; left != nil {
			p = left
		}
		if p.ClusterIP.IsValid() || p.FromOutside() {
			ports = append(ports, p)
		}
	}
	t.Ports = ports
}

// Since returns the ports of prev that are no longer there, and those that were not there yet, both as they were before
// conflicts were settled. A changed port is in both. A Service's ports keep their pointers or are replaced together.
func (t *Table) Since(prev *Table) (gone, fresh []*Port) {
	old := prev.services
	for _, s := range t.services {
		for len(old) > 0 && old[0] != s && before(old[0].service, s.service) {
			gone = append(gone, old[0].ports...)
			old = old[1:]
		}
		if len(old) > 0 && (old[0] == s || !before(s.service, old[0].service)) {
			o := old[0]
			old = old[1:]
			if o == s || slices.Equal(o.ports, s.ports) {
				continue
			}
			gone = append(gone, o.ports...)
		}
		fresh = append(fresh, s.ports...)
	}
	for _, o := range old {
		gone = append(gone, o.ports...)
	}
	return gone, fresh
}

// compareClaims orders claims by address, protocol and number. Equal ones can't both be served.
func compareClaims(a, b claim) int {
	if c := a.addr.Compare(b.addr); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.port.Protocol, b.port.Protocol), cmp.Compare(a.number, b.number))
}

func compareClaimsAndAge(a, b claim) int {
	if c := compareClaims(a, b); c != 0 {
		return c
	}
	return compareAge(a.port, b.port)
}

// compareAge puts the older Service first. Creation times have whole seconds; the name decides between equals.
func compareAge(a, b *Port) int {
	return cmp.Or(a.Service.Created.Compare(b.Service.Created),
		cmp.Compare(a.Service.Namespace, b.Service.Namespace), cmp.Compare(a.Service.Name, b.Service.Name),
		cmp.Compare(a.Name.Port, b.Name.Port))
}
