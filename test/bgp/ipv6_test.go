package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// onlyIPv6 takes everything of IPv4 out of a topology.
func onlyIPv6(t *lab.Topology) {
	addrs := func(list *[]netip.Addr) { *list = slices.DeleteFunc(*list, netip.Addr.Is4) }
	prefixes := func(list *[]netip.Prefix) {
		*list = slices.DeleteFunc(*list, func(p netip.Prefix) bool { return p.Addr().Is4() })
	}
	prefixes(&t.ClusterCIDRs)
	prefixes(&t.ServiceCIDRs)
	for i := range t.Networks {
		prefixes(&t.Networks[i].Prefixes)
		addrs(&t.Networks[i].Gateways)
	}
	for i := range t.Clients {
		addrs(&t.Clients[i].Addrs)
	}
	for i := range t.Nodes {
		addrs(&t.Nodes[i].Addrs)
		prefixes(&t.Nodes[i].PodCIDRs)
		for j := range t.Nodes[i].Pods {
			addrs(&t.Nodes[i].Pods[j].Addrs)
		}
	}
}

// TestIPv6Only: where there is no IPv4 at all, nodes with a BGP identifier each have their mesh, and a gateway learns of pods and Services over
// IPv6. A node without an identifier says what would be right, and serves.
func TestIPv6Only(t *testing.T) {
	top := topology(3)
	onlyIPv6(&top)
	l := lab.ForTest(t, top)
	cl, err := l.Cluster()
	r := &rig{T: t, lab: l, cluster: cl, backend: lab.NFT, n1: l.Node("n1"), outside: l.Client("outside"), agents: map[*lab.Node]*lab.Agent{}, files: map[*lab.Node]string{}}
	r.ok(err)
	r.web = lab.Service("web", []netip.Addr{webIP6}, lab.TCPPort("", webPort, targetPort))
	cl.SetService(r.web)
	p3 := l.Pod("p3")
	_, err = p3.Serve(lab.Server{Name: "p3", Proto: lab.TCP, Port: targetPort})
	r.ok(err)
	cl.SetEndpoints(r.web, lab.Ready(p3))
	r.ok(cl.Write())
	nodes := r.nodes()
	config := func(identity string) string {
		return "syncPeriod: 2s\nbgp: {asn: 64512, " + identity + "mesh: {}, peers: [{address: '2001:db8:2::1', asn: 64500}], announce: [{addresses: [PodCIDRs, ClusterIPs]}]}\n"
	}
	gateway := "log stderr all;\nrouter id 192.0.2.1;\nprotocol device { }\nprotocol kernel { ipv6 { export all; }; }\n"
	for i := range nodes {
		gateway += fmt.Sprintf("protocol bgp node%d { local as 64500; neighbor 2001:db8:2::1%d as 64512; ipv6 { import all; export none; }; }\n", i+1, i+1)
	}
	g := startBIRD(t, l.Router(), gateway)
	for i, n := range nodes[:2] {
		r.start(config(fmt.Sprintf("routerID: 192.0.2.1%d, ", i+1)), n)
	}
	r.start(config(""), nodes[2])
	r.eventually(sessionBound, func() error { return r.noted(nodes[2], cluster.ReasonNodeIncomplete, "bgp.routerID") })
	r.eventually(sessionBound, func() error {
		return errors.Join(r.up(nodes[0], 1), r.up(nodes[1], 1), g.learned("fd00:10:244:1::/64", "fd00:10:244:2::/64", "fd00:10:96::10/128", "!fd00:10:244:3::/64"))
	})
	r.eventually(sessionBound, func() error { return r.reaches(webIP6, webPort, "p3") }) // by n1 or n2, and the route from there to n3
	r.edit(nodes[2], config("routerID: 192.0.2.13, "))
	for i, n := range nodes {
		r.eventually(2*sessionBound, func() error { return errors.Join(r.meshUp(n, 2), r.up(n, 1)) })
		for j := range nodes {
			if j == i {
				continue
			}
			r.eventually(sessionBound, func() error {
				return errors.Join(r.receives(n, fmt.Sprintf("fd00:10:244:%d::/64 2001:db8:2::1%d", j+1, j+1)),
					kernelHas(n.Namespace, cluster.IPv6, fmt.Sprintf("fd00:10:244:%d::/64 via 2001:db8:2::1%d", j+1, j+1)))
			})
		}
	}
	r.eventually(sessionBound, func() error { return g.learned("fd00:10:244:3::/64") })
	r.eventually(sessionBound, func() error { return r.reaches(p3.Addr(cluster.IPv6), targetPort, "p3") })
}
