package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// Fault 16: somebody deletes the route to a node, of either family.
func TestFault16RouteDeleted(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	m, flows := r.monitor(r.n1), r.traffic()
	var worst time.Duration
	for range 5 {
		for _, p := range r.n2.PodCIDRs {
			command := "route del " + p.String()
			if p.Addr().Is6() {
				command = "-6 " + command
			}
			began := time.Now()
			r.ip(r.n1, command)
			flows.more(10)
			worst = max(worst, m.repair(began))
		}
	}
	r.measured("one route deleted, the slowest of 10", worst, time.Second)
	flows.works(podTCP, podTCP6, podUDP)
	flows.stop(otherTCP)
}

// Fault 17: somebody flushes all our routes of a node in a cluster of a thousand.
func TestFault17TableFlushed(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	const more = 1000
	for i := range more {
		r.setNode(nodeSpec(fmt.Sprintf("far%d", i), 100+i))
	}
	r.write()
	r.eventually(startBound, func() error { return r.exact(r.n1) })
	r.ready(r.n1, r.n2, r.n3)
	m, flows := r.monitor(r.n1), r.traffic()
	for _, family := range []string{"-4", "-6"} {
		began := time.Now()
		r.ip(r.n1, family+" route flush proto 102")
		r.measured(fmt.Sprintf("%d routes flushed (ip %s)", more+2, family), m.repair(began), time.Second)
	}
	flows.works(podTCP, podTCP6, podUDP, otherTCP)
	flows.stop(nobody)
}

// Fault 18: the link goes down and comes back. With it go all its routes, and its IPv6 addresses, which the
// network's daemon (this test) gives back, and the default routes too.
func TestFault18LinkBounced(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	m, flows := r.monitor(r.n1), r.traffic()
	for range 3 {
		r.ip(r.n1, "link set eth0 down")
		r.eventually(eventBound, func() error {
			if left := r.owned(r.n1); len(left) != 0 {
				return fmt.Errorf("still there: %s", left)
			}
			return nil
		})
		began := time.Now()
		r.ip(r.n1, "link set eth0 up", "addr add "+r.n1.Addr(cluster.IPv6).String()+"/64 dev eth0 nodad",
			"route add default via 10.240.0.1", "-6 route add default via fd00:240::1")
		r.measured("link down and up, since it went up, both families", m.repair(began), time.Second)
	}
	flows.works(podTCP, podTCP6, podUDP, otherTCP)
	flows.stop(nobody)
}

// Fault 22: somebody else's route has the destination of ours. It is never touched, and noted when it is in our place or
// ahead of ours; when it goes, ours is back.
func TestFault22ForeignRoute(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	m, flows := r.monitor(r.n1), r.traffic()
	conflict := note{"Node n3", cluster.ReasonRouteConflict, ""}
	for _, c := range []struct {
		what, add, del, shown string
		// takes is true when it takes our place, noted when it is in our way; a route behind ours is nobody's trouble.
		takes, noted bool
	}{
		{"same metric, IPv4", "route replace 10.200.3.0/24 via 10.240.0.13 dev eth0 proto static",
			"route del 10.200.3.0/24 proto static", "10.200.3.0/24 via 10.240.0.13 dev eth0 proto static", true, true},
		{"same metric, IPv6", "-6 route replace fd00:200:0:3::/64 via fd00:240::13 dev eth0 proto static metric 1024",
			"-6 route del fd00:200:0:3::/64 proto static", "fd00:200:0:3::/64 via fd00:240::13 dev eth0 proto static metric 1024", true, true},
		{"lower metric, IPv6", "-6 route add fd00:200:0:3::/64 via fd00:240::13 dev eth0 proto bird metric 32",
			"-6 route del fd00:200:0:3::/64 proto bird metric 32", "fd00:200:0:3::/64 via fd00:240::13 dev eth0 proto bird metric 32", false, true},
		{"higher metric, IPv4", "route add 10.200.3.0/24 via 10.240.0.13 dev eth0 proto static metric 100",
			"route del 10.200.3.0/24 proto static metric 100", "10.200.3.0/24 via 10.240.0.13 dev eth0 proto static metric 100", false, false},
	} {
		ours := r.owned(r.n1)
		before := r.logged(r.n1)
		r.ip(r.n1, c.add)
		if c.noted {
			conflict.detail = strings.Fields(c.shown)[0]
			r.eventually(eventBound, func() error { return r.said(r.n1, before, conflict) })
		}
		r.looks(r.n1)
		if !strings.Contains(r.table(r.n1), c.shown) {
			t.Errorf("%s: the other's route is gone:\n%s", c.what, r.table(r.n1))
		}
		if left := len(r.owned(r.n1)); c.takes != (left == len(ours)-1) {
			t.Errorf("%s: %d of %d routes of ours are left", c.what, left, len(ours))
		}
		if !c.noted && r.quiet(r.n1, conflict.reason) != nil {
			t.Errorf("%s: there is a note, although ours takes precedence", c.what)
		}
		for _, e := range m.events() {
			if e.deleted() && !e.ours() {
				t.Errorf("%s: deleted: %s", c.what, e.text)
			}
		}
		began := time.Now()
		r.ip(r.n1, c.del)
		took := m.repair(began)
		if c.takes {
			r.measured(c.what+", gone again", took, time.Second)
		}
		r.eventually(eventBound, func() error { return r.quiet(r.n1, conflict.reason) })
		m = r.monitor(r.n1) // without the deletion that was ours to make
	}
	// Where another's route took our place, n3 has none for the milliseconds until ours is back.
	flows.stop(podTCP, podTCP6, podUDP, serviceTCP, serviceUDP)
}

// Fault 22, at the start: the other's route was there first.
func TestFault22ForeignRouteBeforeTheAgent(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	options := r.agents["n1"].Options
	r.ok(r.agents["n1"].Stop(startBound))
	r.ip(r.n1, "route replace 10.200.3.0/24 via 10.240.0.13 dev eth0 proto static")
	m, flows := r.monitor(r.n1), r.traffic()
	routes := r.table(r.n1)
	r.start(r.n1, options)
	r.ready(r.n1)
	r.eventually(eventBound, func() error {
		return r.said(r.n1, 0, note{"Node n3", cluster.ReasonRouteConflict, " proto 4 "})
	})
	r.looks(r.n1)
	r.same("routes", routes, r.table(r.n1))
	m.unchanged()
	began := time.Now()
	r.ip(r.n1, "route del 10.200.3.0/24 proto static")
	r.measured("gone again", m.repair(began), time.Second)
	flows.stop(podTCP, podTCP6, podUDP, serviceTCP, serviceUDP)
}

// A storm: for seconds, routes are deleted at random while nodes come, go and move. In the end all is as it should be.
func TestStorm(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	for i := range 100 {
		r.setNode(nodeSpec(fmt.Sprintf("far%d", i), 100+i))
	}
	r.write()
	r.eventually(startBound, func() error { return r.exact(r.n1) })
	m, flows := r.monitor(r.n1), r.traffic()
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		deleted := 0
		defer func() { done <- deleted }()
		for i := 0; deleted < 200 || !closed(stop); i++ {
			p := nodeSpec("", 100+i%130).PodCIDRs[i%2]
			if _, err := r.n1.Run("ip", "route", "del", p.String(), "proto", "102"); err == nil {
				deleted++
			}
		}
	}()
	for round := range 10 {
		for i := range 5 {
			r.removeNode(fmt.Sprintf("far%d", 5*round+i))
			r.setNode(nodeSpec(fmt.Sprintf("new%d", 5*round+i), 300+5*round+i))
			moved := r.nodes[fmt.Sprintf("far%d", 50+5*round+i)]
			moved.Addrs = nodeSpec("", 400+5*round+i).Addrs
			r.setNode(moved)
		}
		r.write()
		time.Sleep(200 * time.Millisecond)
	}
	close(stop)
	deleted := <-done
	r.measured(fmt.Sprintf("%d routes deleted while 150 nodes changed, since the last", deleted), m.repair(time.Now()), 2*time.Second)
	for _, n := range []*lab.Node{r.n2, r.n3} {
		r.eventually(eventBound, func() error { return r.exact(n) })
	}
	flows.stop()
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
