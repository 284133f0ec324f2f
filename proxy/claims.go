package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A claim kind is what two Services can contend for.
const (
	clusterIPs = iota
	nodePorts
)

// settle orders the ports by what they claim, and takes a contested claim away from all but the oldest Service.
// kube-proxy leaves the winner to the order of a map.
func (t *Table) settle(prev *Table) (notes []cluster.Note) {
	for kind := range t.claims {
		t.claims[kind] = t.sortClaims(kind, prev)
	}
	t.ByClusterIP, t.ByNodePort = t.claims[clusterIPs], t.claims[nodePorts]
	lost := map[*Port][2]bool{}
	for kind, ports := range t.claims {
		for i := 1; i < len(ports); i++ {
			holder, p := ports[i-1], ports[i]
			if compareClaims(kind, holder, p) != 0 {
				continue
			}
			if lost[holder][kind] { // three Services and more: all lose against the first
				holder = ports[slices.IndexFunc(ports, func(o *Port) bool { return compareClaims(kind, o, p) == 0 })]
			}
			l := lost[p]
			l[kind] = true
			lost[p] = l
			notes = append(notes, conflictNote(kind, p, holder))
		}
	}
	if len(lost) > 0 {
		t.takeAway(lost)
	}
	return notes
}

func conflictNote(kind int, p, holder *Port) cluster.Note {
	what := fmt.Sprintf("%s:%d/%s", p.ClusterIP, p.Port, p.Protocol)
	if kind == nodePorts {
		what = fmt.Sprintf("node port %d/%s", p.NodePort, p.Protocol)
	}
	return cluster.Note{Object: p.Service.Ref(), Reason: cluster.ReasonAddressConflict,
		Detail: fmt.Sprintf("%s already belongs to Service %s/%s, which is older; this Service does not get it", what, holder.Service.Namespace, holder.Service.Name)}
}

// takeAway replaces the ports that lost a claim by copies without it.
func (t *Table) takeAway(lost map[*Port][2]bool) {
	t.ByClusterIP, t.ByNodePort = nil, nil
	ports := make([]*Port, 0, len(t.Ports))
	loser := make(map[*Port]*Port, len(lost))
	for _, p := range t.Ports {
		l, ok := lost[p]
		if !ok {
			ports = append(ports, p)
			continue
		}
		left := *p
		if l[clusterIPs] {
			left.ClusterIP = netip.Addr{}
		}
		if l[nodePorts] {
			left.NodePort = 0
		}
		loser[p] = &left
		if left.ClusterIP.IsValid() || left.NodePort != 0 {
			ports = append(ports, &left)
		}
	}
	t.Ports = ports
	keep := func(kind int) (kept []*Port) {
		for _, p := range t.claims[kind] {
			if lost[p][kind] {
				continue
			}
			if left := loser[p]; left != nil {
				p = left
			}
			kept = append(kept, p)
		}
		return kept
	}
	t.ByClusterIP, t.ByNodePort = keep(clusterIPs), keep(nodePorts)
}

// sortClaims returns the ports with a claim of the kind in claim order. With a memo it merges what is new into the
// previous order, so that one changed Service in ten thousand does not cost a sort.
func (t *Table) sortClaims(kind int, prev *Table) []*Port {
	claims := func(ports []*Port) []*Port {
		var claiming []*Port
		for _, p := range ports {
			if kind == clusterIPs || p.NodePort != 0 {
				claiming = append(claiming, p)
			}
		}
		return claiming
	}
	order := func(a, b *Port) int {
		return cmp.Or(compareClaims(kind, a, b), compareAge(a, b))
	}
	if prev == nil || prev.Family != t.Family {
		all := claims(t.original())
		slices.SortFunc(all, order)
		return all
	}
	gone, fresh := t.Since(prev)
	fresh = claims(fresh)
	slices.SortFunc(fresh, order)
	merged := make([]*Port, 0, len(prev.claims[kind])+len(fresh))
	for _, p := range prev.claims[kind] {
		if gone[p] {
			continue
		}
		for len(fresh) > 0 && order(fresh[0], p) < 0 {
			merged, fresh = append(merged, fresh[0]), fresh[1:]
		}
		merged = append(merged, p)
	}
	return append(merged, fresh...)
}

// original returns the ports as planned, before conflicts were settled.
func (t *Table) original() []*Port {
	var all []*Port
	for _, s := range t.services {
		all = append(all, s.ports...)
	}
	return all
}

// Since returns the ports of prev that are no longer there, and those that were not there yet, both as they were before
// conflicts were settled. A changed port is in both. A Service's ports keep their pointers or are replaced together.
func (t *Table) Since(prev *Table) (gone map[*Port]bool, fresh []*Port) {
	gone = map[*Port]bool{}
	drop := func(s planned) {
		for _, p := range s.ports {
			gone[p] = true
		}
	}
	old := prev.services
	for _, s := range t.services {
		for len(old) > 0 && before(old[0].service, s.service) {
			drop(old[0])
			old = old[1:]
		}
		if len(old) > 0 && !before(s.service, old[0].service) {
			o := old[0]
			old = old[1:]
			if slices.Equal(o.ports, s.ports) {
				continue
			}
			drop(o)
		}
		fresh = append(fresh, s.ports...)
	}
	for _, s := range old {
		drop(s)
	}
	return gone, fresh
}

func compareClaims(kind int, a, b *Port) int {
	if kind == nodePorts {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.NodePort, b.NodePort))
	}
	return cmp.Or(a.ClusterIP.Compare(b.ClusterIP), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// compareAge puts the older Service first. Creation times have whole seconds; the name decides between equals.
func compareAge(a, b *Port) int {
	return cmp.Or(a.Service.Created.Compare(b.Service.Created),
		cmp.Compare(a.Service.Namespace, b.Service.Namespace), cmp.Compare(a.Service.Name, b.Service.Name),
		cmp.Compare(a.Name.Port, b.Name.Port))
}
