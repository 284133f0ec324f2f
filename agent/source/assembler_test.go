package source

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

func nodeObject(name, podCIDR string) *Object {
	return &Object{ID: ID{Kind: KindNode, Name: name}, node: &cluster.Node{Name: name, PodCIDRs: []netip.Prefix{cidr(podCIDR)}}}
}

func serviceObject(ns, name, uid string) *Object {
	s := &cluster.Service{Namespace: ns, Name: name, UID: uid, Type: "ClusterIP", ClusterIPs: []netip.Addr{ip("10.32.0.10")}}
	return &Object{ID: serviceID(s), service: s, remarks: &remarks{about: s.Ref()}}
}

func sliceObject(ns, service, name string, addrs ...string) *Object {
	s := &cluster.EndpointSlice{Name: name, Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 80}}}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, cluster.Endpoint{Addr: ip(a), Ready: true, Serving: true})
	}
	return &Object{ID: ID{Kind: KindEndpointSlice, Namespace: ns, Name: name}, owner: service, slice: s,
		remarks: &remarks{about: cluster.Ref{Kind: "Service", Namespace: ns, Name: service}}}
}

func rangeObject(name string, networks ...string) *Object {
	o := &Object{ID: ID{Kind: KindServiceCIDR, Name: name}}
	for _, n := range networks {
		o.serviceCIDRs = append(o.serviceCIDRs, cidr(n))
	}
	return o
}

func names(s *cluster.Snapshot) []string {
	var out []string
	for _, n := range s.Nodes {
		out = append(out, n.Name)
	}
	for _, svc := range s.Services {
		name := svc.Namespace + "/" + svc.Name
		for _, slice := range svc.Slices {
			name += "+" + slice.Name
		}
		out = append(out, name)
	}
	return out
}

func wantNames(t *testing.T, s *cluster.Snapshot, want ...string) {
	t.Helper()
	if got := names(s); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAssemblerJoins(t *testing.T) {
	a := NewAssembler()
	if s := a.Snapshot(); s == nil || len(names(s)) != 0 || s != a.Snapshot() {
		t.Errorf("a new Assembler has %v", s)
	}
	a.Set(sliceObject("b", "db", "db-2", "10.0.0.2"))
	a.Set(sliceObject("b", "none", "none-1", "10.0.0.3"))
	before := a.Snapshot()
	wantNames(t, before)
	a.Set(serviceObject("b", "db", ""))
	a.Set(serviceObject("a.b", "x", "")) // no valid namespace, but 'a.b' < 'b' must hold in the order
	a.Set(serviceObject("a", "z", ""))
	a.Set(nodeObject("n2", "10.1.2.0/24"))
	a.Set(nodeObject("n1", "10.1.1.0/24"))
	a.Set(sliceObject("b", "db", "db-1", "10.0.0.1"))
	wantNames(t, a.Snapshot(), "n1", "n2", "a/z", "a.b/x", "b/db+db-1+db-2")
	wantNames(t, before) // what is published stays

	a.Set(sliceObject("b", "none", "db-1", "10.0.0.1")) // the slice changes hands
	a.Set(serviceObject("b", "none", ""))
	wantNames(t, a.Snapshot(), "n1", "n2", "a/z", "a.b/x", "b/db+db-2", "b/none+db-1+none-1")

	a.Delete(ID{Kind: KindService, Namespace: "b", Name: "db"})
	a.Delete(ID{Kind: KindNode, Name: "n1"})
	a.Delete(ID{Kind: KindNode, Name: "n1"})
	a.Delete(ID{Kind: KindEndpointSlice, Namespace: "b", Name: "db-1"})
	wantNames(t, a.Snapshot(), "n2", "a/z", "a.b/x", "b/none+none-1")

	a.Set(serviceObject("b", "db", "")) // comes back, and finds its slice
	wantNames(t, a.Snapshot(), "n2", "a/z", "a.b/x", "b/db+db-2", "b/none+none-1")

	a.Replace(KindService, []*Object{serviceObject("b", "db", "")})
	wantNames(t, a.Snapshot(), "n2", "b/db+db-2")
}

func TestAssemblerKeepsPointers(t *testing.T) {
	a := NewAssembler()
	load := func() {
		a.Replace(KindNode, []*Object{nodeObject("n1", "10.1.1.0/24"), nodeObject("n2", "10.1.2.0/24")})
		a.Replace(KindService, []*Object{serviceObject("a", "x", ""), serviceObject("a", "y", "")})
		a.Replace(KindEndpointSlice, []*Object{sliceObject("a", "x", "x-1", "10.0.0.1"), sliceObject("a", "x", "x-2", "10.0.0.2"), sliceObject("a", "y", "y-1", "10.0.0.3")})
	}
	load()
	first := a.Snapshot()
	load()
	if a.Snapshot() != first {
		t.Error("the same objects again gave a new Snapshot")
	}
	a.Set(sliceObject("a", "gone", "gone-1", "10.0.0.1"))
	if a.Snapshot() != first {
		t.Error("a slice without Service gave a new Snapshot")
	}
	a.Set(sliceObject("a", "x", "x-2", "10.0.0.9"))
	second := a.Snapshot()
	switch x1, x2 := first.Services[0], second.Services[0]; {
	case second == first || x1 == x2 || x1.Slices[1] == x2.Slices[1]:
		t.Error("the change did not give new values")
	case x1.Slices[0] != x2.Slices[0] || first.Services[1] != second.Services[1] || first.Nodes[0] != second.Nodes[0]:
		t.Error("what did not change lost its pointer")
	case x1.Slices[1].Endpoints[0].Addr != ip("10.0.0.2"):
		t.Error("a published Snapshot was changed")
	}
	a.Set(nodeObject("n2", "10.1.9.0/24"))
	third := a.Snapshot()
	if third.Nodes[0] != first.Nodes[0] || third.Nodes[1] == first.Nodes[1] || third.Services[0] != second.Services[0] {
		t.Error("a Node's change touched the wrong pointers")
	}
}

// TestAssemblerRanges: the ranges of all ServiceCIDRs, whatever the objects that they are from.
func TestAssemblerRanges(t *testing.T) {
	a := NewAssembler()
	a.Set(nodeObject("n1", "10.1.1.0/24"))
	before := a.Snapshot()
	want := func(text string) *cluster.Snapshot {
		t.Helper()
		s := a.Snapshot()
		if got := fmt.Sprint(s.ServiceCIDRs); got != text {
			t.Errorf("ranges %s, want %s", got, text)
		}
		return s
	}
	a.Set(rangeObject("kubernetes", "10.96.0.0/16", "fd00::/112"))
	first := want("[10.96.0.0/16 fd00::/112]")
	if first == before || first.Nodes[0] != before.Nodes[0] {
		t.Error("a range must give a new Snapshot with the same nodes")
	}
	a.Set(rangeObject("copy", "fd00::/112"))
	if want("[10.96.0.0/16 fd00::/112]") != first {
		t.Error("a second object with a known range gave a new Snapshot")
	}
	a.Set(rangeObject("more", "10.32.0.0/16"))
	want("[10.32.0.0/16 10.96.0.0/16 fd00::/112]")
	a.Delete(rangeObject("kubernetes").ID)
	want("[10.32.0.0/16 fd00::/112]")
	refused := rangeObject("none")
	refused.remarks = &remarks{about: cluster.Ref{Kind: "ServiceCIDR", Name: "none"}}
	refused.remarks.invalid("a field")
	a.Set(refused)
	if notes := lines(a.Snapshot().Notes); notes != "ServiceCIDR none: InvalidField: a field\n" {
		t.Errorf("notes: %s", notes)
	}
	a.Replace(KindServiceCIDR, nil)
	if s := want("[]"); len(s.Notes) > 0 {
		t.Errorf("notes of what is gone: %v", s.Notes)
	}
	wantNames(t, first, "n1")
}

// TestAssemblerIgnoresTriggers: a slice that says nothing new but another trigger time is the same slice; with something
// else it has its own.
func TestAssemblerIgnoresTriggers(t *testing.T) {
	a := NewAssembler()
	at := func(second int, addr string) *Object {
		o := sliceObject("a", "x", "x-1", addr)
		o.slice.Triggered = time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC)
		return o
	}
	a.Set(serviceObject("a", "x", ""))
	a.Set(at(1, "10.0.0.1"))
	first := a.Snapshot()
	a.Set(at(2, "10.0.0.1"))
	if a.Snapshot() != first {
		t.Error("a trigger time alone gave a new Snapshot")
	}
	a.Set(at(3, "10.0.0.2"))
	second := a.Snapshot()
	if got := second.Services[0].Slices[0].Triggered.Second(); second == first || got != 3 {
		t.Errorf("the change of second 3 came with a slice of second %d", got)
	}
}

func TestAssemblerNotes(t *testing.T) {
	a := NewAssembler()
	slice := func(name string, n int) *Object {
		o := sliceObject("a", "x", name)
		for i := range n {
			o.remarks.add(cluster.ReasonEndpointRefused, "%s %d", name, i)
		}
		return o
	}
	want := func(text string) {
		t.Helper()
		if got := lines(a.Snapshot().Notes); got != text {
			t.Errorf("notes:\n%swant:\n%s", got, text)
		}
	}
	a.Set(slice("x-1", 2))
	want("") // nobody asks about a Service that does not exist
	svc := serviceObject("a", "x", "uid-1")
	svc.remarks.invalid("a field")
	a.Set(svc)
	want("Service a/x: EndpointRefused: x-1 0\nService a/x: EndpointRefused: x-1 1\nService a/x: InvalidField: a field\n")
	for _, n := range a.Snapshot().Notes {
		if n.Object != svc.service.Ref() {
			t.Errorf("Note %v is about %+v", n, n.Object)
		}
	}
	a.Set(slice("x-2", 7))
	want("Service a/x: EndpointRefused: and 5 more\nService a/x: EndpointRefused: x-1 0\nService a/x: EndpointRefused: x-1 1\n" +
		"Service a/x: EndpointRefused: x-2 0\nService a/x: EndpointRefused: x-2 1\nService a/x: InvalidField: a field\n")
	a.Delete(slice("x-2", 0).ID)
	a.Set(slice("x-1", 0))
	want("Service a/x: InvalidField: a field\n")
	refused := &Object{ID: ID{Kind: KindNode, Name: "N"}, remarks: &remarks{about: cluster.Ref{Kind: "Node", Name: `"N"`}}}
	refused.remarks.invalid("its name")
	a.Set(refused)
	want("Node \"N\": InvalidField: its name\nService a/x: InvalidField: a field\n")
	a.Delete(svc.ID)
	a.Delete(refused.ID)
	want("")
}

// However a state came about, the Snapshot is that of the state.
func TestAssemblerHasNoHistory(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	object := func() *Object {
		n := fmt.Sprint(rnd.IntN(6))
		switch rnd.IntN(4) {
		case 3:
			return rangeObject("r"+n, fmt.Sprintf("10.96.%d.0/24", rnd.IntN(4)))
		case 0:
			return nodeObject("n"+n, fmt.Sprintf("10.1.%d.0/24", rnd.IntN(3)))
		case 1:
			o := serviceObject("ns"+fmt.Sprint(rnd.IntN(2)), "s"+n, fmt.Sprint(rnd.IntN(3)))
			if rnd.IntN(4) == 0 {
				o.service = nil
			}
			return o
		}
		o := sliceObject("ns"+fmt.Sprint(rnd.IntN(2)), "s"+fmt.Sprint(rnd.IntN(6)), "e"+n, fmt.Sprintf("10.0.0.%d", 1+rnd.IntN(3)))
		if rnd.IntN(4) == 0 {
			o.remarks.invalid("slice %s", n)
		}
		return o
	}
	a := NewAssembler()
	state := map[ID]*Object{}
	for step := range 3000 {
		o := object()
		if rnd.IntN(3) == 0 {
			a.Delete(o.ID)
			delete(state, o.ID)
		} else {
			a.Set(o)
			state[o.ID] = o
		}
		if rnd.IntN(4) > 0 {
			continue // several changes in one Snapshot
		}
		fresh := NewAssembler()
		for _, o := range state {
			fresh.Set(o)
		}
		got, want := a.Snapshot(), fresh.Snapshot()
		if !slices.Equal(names(got), names(want)) || lines(got.Notes) != lines(want.Notes) || !slices.Equal(got.ServiceCIDRs, want.ServiceCIDRs) ||
			len(got.Services) > 0 && !reflect.DeepEqual(got.Services, want.Services) || len(got.Nodes) > 0 && !reflect.DeepEqual(got.Nodes, want.Nodes) {
			t.Fatalf("step %d: with history\n%q\n%swithout\n%q\n%s", step, names(got), lines(got.Notes), names(want), lines(want.Notes))
		}
	}
}

// BenchmarkAssembler measures a cluster of 10,000 Services with 5 endpoints each.
func BenchmarkAssembler(b *testing.B) {
	const n = 10000
	name := func(i int) string { return fmt.Sprintf("svc-%05d", i) }
	endpoints := func(i, j int) *Object {
		var addrs []string
		for k := range 5 {
			addrs = append(addrs, fmt.Sprintf("10.%d.%d.%d", i/250, i%250, 1+k+j))
		}
		return sliceObject("ns", name(i), name(i)+"-x", addrs...)
	}
	load := func() *Assembler {
		a := NewAssembler()
		var services, slices []*Object
		for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(n) {
			services, slices = append(services, serviceObject("ns", name(i), "")), append(slices, endpoints(i, 0))
		}
		a.Replace(KindService, services)
		a.Replace(KindEndpointSlice, slices)
		a.Snapshot()
		return a
	}
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			load()
		}
	})
	b.Run("one-slice", func(b *testing.B) {
		a := load()
		versions := [2]*Object{endpoints(5000, 1), endpoints(5000, 2)}
		for i := 0; b.Loop(); i++ {
			a.Set(versions[i%2])
			a.Snapshot()
		}
	})
}
