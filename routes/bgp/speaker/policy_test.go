package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/fairway-net/fairway/routes/bgp"
)

// prefixesKnown are those that a router has in its table, without attributes.
func (r *router) prefixesKnown() (list []string) {
	r.Helper()
	for _, f := range apiFamilies {
		err := r.ListPath(context.Background(), &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: f}, func(d *api.Destination) { list = append(list, d.Prefix) })
		if err != nil {
			r.Fatal(err)
		}
	}
	slices.Sort(list)
	return list
}

func paths(prefixes ...string) (list []bgp.Path) {
	for _, p := range prefixes {
		list = append(list, path(p, nil))
	}
	return list
}

// TestReflect: a reflector takes of each node its own podCIDRs and of any the addresses of Services, and passes them on to nodes and iBGP routers.
// What a router announces goes nowhere. When other podCIDRs are a node's, what it has announced before is judged again.
func TestReflect(t *testing.T) {
	const asn = 64512
	first, second := newRouter(t, "127.0.0.41", asn, "10.244.1.0/24"), newRouter(t, "127.0.0.42", asn, "10.244.2.0/24")
	inside, outside := newRouter(t, "127.0.0.43", asn, "100.64.3.0/24"), newRouter(t, "127.0.0.44", 64504, "100.64.4.0/24")
	first.announce(asn, paths("10.244.3.0/24", "10.244.2.0/24", "10.244.1.0/25", "0.0.0.0/0", "203.0.113.1/32", "203.0.113.0/25", "10.96.0.0/16", "10.96.7.0/24", "fd00:1::/64", "fd00:2::/64", "::/0")...)
	inside.announce(asn, paths("203.0.113.3/32", "10.244.1.0/24")...)
	second.announce(asn, paths("203.0.113.2/32")...)

	id := netip.MustParseAddr("192.0.2.11")
	node := func(r *router, name string, pods ...string) bgp.Peer {
		p := r.peer(asn)
		p.Node, p.Helps, p.ClusterID = name, true, id
		for i, text := range pods {
			p.Pods[i] = netip.MustParsePrefix(text)
		}
		return p
	}
	gateway := inside.peer(asn)
	gateway.ClusterID, gateway.RestartTime = id, time.Minute
	table := &bgp.Table{ASN: asn, RouterID: id, Reflects: true, Peers: []bgp.Peer{node(first, "w1", "10.244.1.0/24", "fd00:1::/64"), node(second, "w2", "10.244.2.0/24"), gateway, outside.peer(64504)}}
	for _, r := range []string{"10.96.0.0/16 16", "10.96.0.0/16 32", "203.0.113.0/24 32"} {
		var prefix string
		var length uint8
		if _, err := fmt.Sscan(r, &prefix, &length); err != nil {
			t.Fatal(err)
		}
		table.Reflected = append(table.Reflected, bgp.ImportRange{Prefix: netip.MustParsePrefix(prefix), Least: length, Most: length})
	}
	s := New(func(netip.Addr, bool) {}, func() {})
	sync := func() {
		t.Helper()
		for result, err := s.Sync(table); result.Again > 0 || err != nil; result, err = s.Sync(table) {
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(result.Again)
		}
	}
	sync()
	up := func() bool {
		return !slices.ContainsFunc(s.Sessions(), func(s Session) bool { return !s.Up() })
	}
	eventually(t, "all sessions are up", up)
	knows := func(r *router, want string) {
		t.Helper()
		eventually(t, want, func() bool { return strings.Join(r.prefixesKnown(), " ") == want })
	}
	const passed = "10.96.0.0/16 203.0.113.1/32 203.0.113.2/32"
	told := []string{"10.244.1.0/24", "10.244.2.0/24", "fd00:1::/64"}
	with := func(own ...string) string {
		list := slices.Sorted(slices.Values(slices.Concat(own, told, strings.Fields(passed))))
		return strings.Join(slices.Compact(list), " ")
	}
	knows(inside, with("100.64.3.0/24", "203.0.113.3/32"))
	knows(second, with("10.244.2.0/24"))
	knows(outside, "100.64.4.0/24")
	for _, session := range s.Sessions() {
		if session.Peer.Address == inside.at && (session.Announced != [2]int{5, 1} || session.Received[0] != 3) {
			t.Errorf("the session with the router counts %v announced, %v received", session.Announced, session.Received)
		}
	}

	table.Peers = slices.Clone(table.Peers)
	table.Peers[0] = node(first, "w1", "10.244.3.0/24", "fd00:1::/64")
	sync()
	told[0] = "10.244.3.0/24"
	knows(inside, with("100.64.3.0/24", "203.0.113.3/32", "10.244.1.0/24"))
	if !up() {
		t.Error("sessions were reset")
	}
	// It is no reflector any more: what it had taken is gone everywhere.
	table.Reflects, table.Reflected = false, nil
	for i := range table.Peers {
		table.Peers[i].ClusterID, table.Peers[i].Pods = netip.Addr{}, [2]netip.Prefix{}
	}
	sync()
	knows(inside, "10.244.1.0/24 100.64.3.0/24 203.0.113.3/32")
	knows(second, "10.244.2.0/24 203.0.113.2/32")
}
