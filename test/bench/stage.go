package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/synth"
)

const (
	clientPod = "client"
	localPods = "local"
	restName  = "rest"
	// lastEndpoint is the last byte of the highest address of an endpoint: the client's pod is above.
	lastEndpoint = 249
	// targetPort is where all endpoints serve.
	targetPort = 8080
)

// elsewhere is an address of the services' network that none of the made-up clusters uses.
var elsewhere = netip.MustParseAddr("10.111.0.1")

// clientAddr is the address of the pod that connections come from.
var clientAddr = netip.MustParseAddr("10.128.0.252")

// A stage is the first node of the made-up cluster for one contender, and all others: "rest" is one machine with the
// addresses of all other nodes, which takes every connection to their pods. The pods of the node itself are one
// as well. All stages are alike; what differs is the address from which a node reaches the API.
//
//	client pod ── node ── rest (all other nodes and their pods)
//	             │    │
//	   local pods     API
type stage struct {
	lab  *lab.Lab
	node *lab.Node
	ends ends
}

// stageTopology is the machines of a stage.
func stageTopology() lab.Topology {
	t := nodeTopology()
	n := &t.Nodes[0]
	local := lab.PodSpec{Name: localPods}
	for a := n.PodCIDRs[0].Addr().Next().Next(); a.As4()[3] <= lastEndpoint; a = a.Next() {
		local.Addrs = append(local.Addrs, a)
	}
	n.Pods = []lab.PodSpec{{Name: clientPod, Addrs: []netip.Addr{clientAddr}}, local}
	rest := lab.ClientSpec{Name: restName, Routes: []lab.Route{{Dst: n.PodCIDRs[0], Via: n.Addrs[0]}}}
	for i := 1; i < nodes; i++ {
		rest.Addrs = append(rest.Addrs, synth.Node(i).InternalIPs[0])
	}
	t.Clients = []lab.ClientSpec{rest}
	return t
}

// newStage makes a stage. Its node has routes to the other nodes' pods if asked to: fairway makes them itself.
func newStage(routes bool) (s *stage, err error) {
	l, err := lab.New(stageTopology(), lab.Options{})
	if err != nil {
		return nil, err
	}
	s = &stage{lab: l, node: l.Node(synth.NodeName), ends: ends{client: l.Pod(clientPod).Namespace}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	rest := l.Client(restName)
	if err := servePods(rest); err != nil {
		return nil, err
	}
	for _, ns := range []*lab.Namespace{rest.Namespace, l.Pod(localPods).Namespace} {
		if err := s.ends.listen(ns, targetPort); err != nil {
			return nil, err
		}
	}
	// A connection that was made and reset is forgotten soon: the table of connections has room for some seconds of them only.
	if err := s.node.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", "1"); err != nil {
		return nil, err
	}
	for i := 1; routes && i < nodes; i++ {
		n := synth.Node(i)
		if err := s.node.AddRoute(lab.Route{Dst: n.PodCIDRs[0], Via: n.InternalIPs[0]}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *stage) close() error {
	s.ends.close()
	return s.lab.Close()
}

// servePods makes all addresses of the pods of all other nodes local on a machine.
func servePods(rest *lab.Client) error {
	lo, err := rest.Handle().LinkByName("lo")
	if err != nil {
		return err
	}
	for i := 1; i < nodes; i++ {
		p := synth.Node(i).PodCIDRs[0]
		dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		err := rest.Handle().RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST})
		if err != nil {
			return fmt.Errorf("serve the pods of %s: %w", p, err)
		}
	}
	return nil
}

// nodeTopology is the first node of the made-up clusters in its network.
func nodeTopology() lab.Topology {
	n := synth.Node(0)
	return lab.Topology{
		Networks: []lab.NetworkSpec{{Name: "infra", Prefixes: infrastructure,
			Gateways: []netip.Addr{netip.MustParseAddr("10.0.255.1"), netip.MustParseAddr("fd00::ffff")}}},
		Router:       "router",
		Nodes:        []lab.NodeSpec{{Name: n.Name, Addrs: n.InternalIPs, PodCIDRs: n.PodCIDRs}},
		ClusterCIDRs: []netip.Prefix{clusterCIDR},
		ServiceCIDRs: []netip.Prefix{serviceCIDR},
	}
}

// ofStage changes a made-up cluster so that stages can have it: endpoints of the first node move from the addresses above those of
// the local pods, and a Service from the address that the API server takes for its own.
func ofStage(s *cluster.Snapshot) {
	for _, svc := range s.Services {
		if svc.ClusterIPs[0] == serviceCIDR.Addr().Next() {
			svc.ClusterIPs[0] = elsewhere
		}
		for i := range svc.Slices[0].Endpoints {
			e := &svc.Slices[0].Endpoints[i]
			if b := e.Addr.As4(); b[3] > lastEndpoint {
				b[3] -= 100
				e.Addr = netip.AddrFrom4(b)
			}
		}
	}
}
