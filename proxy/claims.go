package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/internal/ordered"
)

// A claim kind is what two Services can contend for.
const (
	clusterIPs = iota
	nodePorts
)

// settle orders the ports by what they claim, and takes a contested claim away from all but the oldest Service.
// kube-proxy leaves the winner to the order of a map. With a memo only what changed is put in order.
func (t *Table) settle(prev *Table) (notes []cluster.Note) {
	if prev == nil || prev.Family != t.Family {
		prev = &Table{}
	}
	gone, fresh := t.Since(prev)
	lost := map[*Port][2]bool{}
	for kind := range t.claims {
		order := func(a, b *Port) int {
			if c := compareClaims(kind, a, b); c != 0 {
				return c
			}
			return compareAge(a, b)
		}
		ports := ordered.Edit(prev.claims[kind], claiming(kind, gone), claiming(kind, fresh), order)
		t.claims[kind] = ports
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

// claiming returns the ports that make a claim of the kind.
func claiming(kind int, ports []*Port) (list []*Port) {
	for _, p := range ports {
		if kind == clusterIPs || p.NodePort != 0 {
			list = append(list, p)
		}
	}
	return list
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
	ports := make([]*Port, 0, len(t.Ports))
	for _, p := range t.Ports {
		if l, ok := lost[p]; ok {
			left := *p
			if l[clusterIPs] {
				left.ClusterIP = netip.Addr{}
			}
			if l[nodePorts] {
				left.NodePort = 0
			}
			p = &left
		}
		if p.ClusterIP.IsValid() || p.NodePort != 0 {
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

func compareClaims(kind int, a, b *Port) int {
	if kind == nodePorts {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.NodePort, b.NodePort))
	}
	if c := a.ClusterIP.Compare(b.ClusterIP); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// compareAge puts the older Service first. Creation times have whole seconds; the name decides between equals.
func compareAge(a, b *Port) int {
	return cmp.Or(a.Service.Created.Compare(b.Service.Created),
		cmp.Compare(a.Service.Namespace, b.Service.Namespace), cmp.Compare(a.Service.Name, b.Service.Name),
		cmp.Compare(a.Name.Port, b.Name.Port))
}
