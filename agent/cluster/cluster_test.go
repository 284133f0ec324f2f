package cluster

import (
	"net/netip"
	"reflect"
	"testing"
)

func TestNodeLookup(t *testing.T) {
	n := &Node{Name: "b",
		PodCIDRs:    []netip.Prefix{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.0.1.0/24")},
		InternalIPs: []netip.Addr{netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("192.168.0.2")}}
	s := &Snapshot{Nodes: []*Node{{Name: "a"}, n, {Name: "c"}}}
	if s.Node("b") != n || s.Node("bb") != nil || (&Snapshot{}).Node("a") != nil {
		t.Error("a node is not found by its name")
	}
	if got := n.PodCIDR(IPv4).String() + " " + n.InternalIP(IPv6).String() + " " + n.InternalIP(IPv4).String(); got != "10.0.1.0/24 fd00::1 192.168.0.1" {
		t.Errorf("got %s", got)
	}
	if s.Node("a").PodCIDR(IPv4).IsValid() || s.Node("a").InternalIP(IPv6).IsValid() {
		t.Error("a node without addresses has some")
	}
}

func TestSortNotes(t *testing.T) {
	web := Ref{Kind: "Service", Namespace: "default", Name: "web"}
	node := Ref{Kind: "Node", Name: "n"}
	one := Note{web, ReasonInvalidField, "one"}
	two := Note{web, ReasonAddressConflict, "two"}
	three := Note{node, ReasonPodCIDRRefused, "three"}
	if got, want := SortNotes([]Note{one, two, three, one}), []Note{three, two, one}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, expected %v", got, want)
	}
	if got := one.String() + "; " + three.String(); got != "Service default/web: InvalidField: one; Node n: PodCIDRRefused: three" {
		t.Errorf("got %s", got)
	}
}
