package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/synth"
)

// A world is the API server that all contenders read their cluster from.
type world struct {
	ctx      context.Context
	lab      *lab.Lab
	cp       objects
	snapshot *cluster.Snapshot // what the API has, after so many changes
	changes  int
	moving   *cluster.Service // beside those of the snapshot; its only endpoint moves
	moves    int
	wires    int
}

// newWorld builds and starts a control plane.
func newWorld(ctx context.Context) (w *world, err error) {
	progress("building etcd, kube-apiserver and kube-proxy; the first time it takes minutes")
	binaries, err := controlplane.Build(controlplane.KubeProxy)
	if err != nil {
		return nil, err
	}
	w = &world{ctx: ctx, snapshot: &cluster.Snapshot{}}
	w.lab, err = lab.New(lab.Topology{
		Networks: []lab.NetworkSpec{{Name: "api", Prefixes: []netip.Prefix{netip.MustParsePrefix("172.31.0.0/24")},
			Gateways: []netip.Addr{netip.MustParseAddr("172.31.0.1")}}},
		Router:  "router",
		Clients: []lab.ClientSpec{{Name: "control", Addrs: []netip.Addr{netip.MustParseAddr("172.31.0.2")}}},
	}, lab.Options{})
	if err != nil {
		return nil, err
	}
	cp, err := controlplane.Start(binaries, w.lab.Client("control"), controlplane.Options{Dir: w.lab.Dir, ServiceCIDRs: []netip.Prefix{serviceCIDR}})
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	w.cp = objects{cp}
	return w, nil
}

func (w *world) close() error { return w.lab.Close() }

// connect gives a stage's node a way to the API.
func (w *world) connect(s *stage) error {
	w.wires++
	n := 4 * w.wires // a /30 for each
	near, far := netip.AddrFrom4([4]byte{172, 30, byte(n >> 8), byte(n) + 1}), netip.AddrFrom4([4]byte{172, 30, byte(n >> 8), byte(n) + 2})
	err := lab.Wire(
		lab.WireEnd{Namespace: w.cp.Namespace, Link: fmt.Sprint("stage", w.wires), Addr: netip.PrefixFrom(near, 30)},
		lab.WireEnd{Namespace: s.node.Namespace, Link: "api", Addr: netip.PrefixFrom(far, 30)})
	if err != nil {
		return err
	}
	return s.node.AddRoute(lab.Route{Dst: netip.PrefixFrom(w.cp.Addr, 32), Via: near})
}

// grow creates what a larger cluster has more.
func (w *world) grow(services, endpoints int) error {
	progress("creating objects through the API until there are %d Services", services)
	s := madeUp(services, endpoints)
	there := map[cluster.Ref]*cluster.Service{}
	for _, svc := range w.snapshot.Services {
		there[svc.Ref()] = svc
	}
	more := &cluster.Snapshot{}
	if w.moving == nil {
		more.Nodes = s.Nodes
		w.moving = movingService()
		more.Services = append(more.Services, w.moving)
	}
	for i, svc := range s.Services {
		if old := there[svc.Ref()]; old != nil {
			s.Services[i] = old // with the changes made so far
		} else {
			more.Services = append(more.Services, svc)
		}
	}
	w.snapshot = s
	return w.cp.create(w.ctx, more)
}

// movingService is the Service that a follower follows.
func movingService() *cluster.Service {
	return &cluster.Service{Namespace: "bench", Name: "moving", Type: "ClusterIP", ClusterIPs: []netip.Addr{elsewhere.Next()},
		Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}},
		Slices: []*cluster.EndpointSlice{{Name: "moving-x", Family: cluster.IPv4,
			Ports:     []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: targetPort}},
			Endpoints: []cluster.Endpoint{place(0)}}}}
}

// place is where the endpoint of the moving Service is after so many moves: on all other nodes, in turn.
func place(i int) cluster.Endpoint {
	return synth.Endpoint(synth.Node(1+i%(nodes-1)), i/(nodes-1)%200)
}

// here is where the endpoint of the moving Service is.
func (w *world) here() netip.Addr { return place(w.moves).Addr }

// move moves the endpoint of the moving Service, as f expects. It returns the place's number and when the API had answered.
func (w *world) move(f *follower) (number int, answered time.Time, err error) {
	w.moves++
	number = f.expect(w.here())
	w.moving.Slices[0].Endpoints[0] = place(w.moves)
	err = w.cp.updateSlice(w.ctx, w.moving)
	return number, time.Now(), err
}

// change changes one endpoint of one of the other Services.
func (w *world) change() error {
	i := (w.changes * 997) % len(w.snapshot.Services)
	next := synth.Changed(w.snapshot, i, 200)
	if next.Services[i].Slices[0].Endpoints[0].Addr == w.snapshot.Services[i].Slices[0].Endpoints[0].Addr { // changed before
		next = synth.Changed(w.snapshot, i, 201)
	}
	w.snapshot = next
	w.changes++
	return w.cp.updateSlice(w.ctx, next.Services[i])
}
