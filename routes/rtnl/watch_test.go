package rtnl

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/routes"
)

// repair syncs upon every event until ip shows the wanted routes, and returns how long that took.
func repair(ns *namespace, c *Conn, events <-chan Event, want *routes.Table) time.Duration {
	ns.t.Helper()
	begin := time.Now()
	for time.Since(begin) < patience {
		await(ns.t, events, RoutesChanged)
		if report := synced(ns.t, c, want); report.Installed == len(want.Routes) && len(report.Added)+len(report.Replaced) > 0 {
			took := time.Since(begin)
			ns.expect("proto 102", linesByFamily(want))
			return took
		}
	}
	ns.t.Fatalf("not repaired within %s", patience)
	return 0
}

func TestWatchTellsAndSyncRepairs(t *testing.T) {
	for _, fault := range []struct{ name, do string }{
		{"IPv4 route deleted", "route del 10.200.2.0/24"},
		{"IPv6 route deleted", "-6 route del fd00:200:2::/64"},
		{"all flushed", "route flush proto 102"},
		{"IPv4 route changed", "route change 10.200.2.0/24 via 10.240.0.99 proto 102"},
		{"IPv6 route given a second next hop", "-6 route append fd00:200:2::/64 via fd00:240::99 proto 102"},
		{"IPv4 address gone and back", "addr del 10.240.0.11/16 dev eth0; addr add 10.240.0.11/16 dev eth0"},
		{"link down and up", "link set eth0 down; link set eth0 up; addr replace fd00:240::11/64 dev eth0 nodad"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			ns := newNamespace(t).network()
			c, _ := ns.open()
			want := table(t, c, "10.200.2.0/24 10.240.0.12", "fd00:200:2::/64 fd00:240::12")
			synced(t, c, want)
			events := ns.watch(c, watchBuffer)
			for _, command := range strings.Split(fault.do, ";") {
				ns.ip(command)
			}
			t.Logf("repaired %s after the fault", repair(ns, c, events, want))
		})
	}
}

// TestWatchTellsOfAForeignRouteThatTookOurPlace and of its end, when ours can come.
func TestWatchTellsOfAForeignRouteThatTookOurPlace(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	want := table(t, c, "10.200.2.0/24 10.240.0.12")
	synced(t, c, want)
	events := ns.watch(c, watchBuffer)
	ns.ip("route replace 10.200.2.0/24 via 10.240.0.99 proto static")
	await(t, events, RoutesChanged)
	if report := synced(t, c, want); len(report.Notes) != 1 || report.Installed != 0 {
		t.Errorf("replaced by another's: report %+v", report)
	}
	ns.ip("route del 10.200.2.0/24 proto static")
	await(t, events, RoutesChanged)
	if report := synced(t, c, want); len(report.Notes) != 0 || report.Installed != 1 {
		t.Errorf("the other's is gone: report %+v", report)
	}
}

// TestWatchIsQuietAboutOurWritesAndOthersRoutes classifies the messages themselves, up to that of a link made last.
func TestWatchIsQuietAboutOurWritesAndOthersRoutes(t *testing.T) {
	ns := newNamespace(t).network()
	c, count := ns.open()
	monitor := ns.monitor(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	synced(t, c, manyRoutes(t, c, 20))
	synced(t, c, table(t, c, "10.200.2.0/24 10.240.0.12"))
	ns.ip("route add 172.16.1.0/24 via 10.240.0.99 proto static")
	ns.ip("route add 10.200.2.0/24 via 10.240.0.99 table 77")
	ns.ip("route del 172.16.1.0/24")
	ns.ip("link add marker type bridge")
	told := 0
	for {
		messages, _, err := monitor.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range messages {
			if m.Header.Type == unix.RTM_NEWLINK {
				link, err := decodeLink(m.Data)
				if err != nil {
					t.Fatal(err)
				}
				if link.Name == "marker" {
					if told < count.writes+3 {
						t.Errorf("only %d messages for %d writes of ours and 3 of others", told, count.writes)
					}
					return
				}
				continue
			}
			told++
			if e, _ := c.classify(messages[i : i+1]); e != 0 {
				r, _ := decode(m.Data)
				t.Errorf("told %s of what does not concern us: %s", e, r)
			}
		}
	}
}

// TestWatchSurvivesAnOverrun lets a storm of changes overrun a tiny buffer while the reader is busy.
func TestWatchSurvivesAnOverrun(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	want := manyRoutes(t, c, 400)
	synced(t, c, want)
	// A Watch whose callback blocks: the buffer fills for certain, however fast the machine is.
	blocked, release := make(chan struct{}), make(chan struct{})
	first := true
	events := ns.watchFunc(c, 2048, func(e Event) {
		if e&Overrun == 0 && first {
			first = false
			close(blocked)
			<-release
		}
	})
	ns.ip("route del " + want.Routes[0].Dst.String())
	<-blocked
	ns.ip("-4 route flush proto 102")
	ns.ip("-6 route flush proto 102")
	close(release)
	if e := await(t, events, Overrun); e != everything {
		t.Errorf("overrun tells %s", e)
	}
	if report := synced(t, c, want); report.Installed != 400 {
		t.Errorf("report %+v", report)
	}
	ns.expect("proto 102", linesByFamily(want))
	// And the same watch still tells.
	for drained := false; !drained; {
		select {
		case <-events:
		default:
			drained = true
		}
	}
	ns.ip("route del " + want.Routes[0].Dst.String())
	repair(ns, c, events, want)
}

// TestFlushOfAThousandRoutes logs how long it takes until all are back.
func TestFlushOfAThousandRoutes(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	want := manyRoutes(t, c, 1000)
	synced(t, c, want)
	events := ns.watch(c, watchBuffer)
	begin := time.Now()
	ns.ip("-4 route flush proto 102")
	ns.ip("-6 route flush proto 102")
	flushed := time.Since(begin)
	syncs := 0
	for {
		await(t, events, RoutesChanged)
		syncs++
		if synced(t, c, want); ns.shown("main", "proto 102") == linesByFamily(want) {
			break
		}
		if time.Since(begin) > patience {
			t.Fatalf("not back within %s", patience)
		}
	}
	t.Logf("flush of 1,000 routes took %s, all were back %s after it, by %d syncs", flushed, time.Since(begin)-flushed, syncs)
}

// TestWatchTellsAgain: a deleted route is told again, for a Sync that was so fast that it still found it.
func TestWatchTellsAgain(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	synced(t, c, table(t, c, "10.200.2.0/24 10.240.0.12"))
	events := ns.watch(c, watchBuffer)
	ns.ip("route del 10.200.2.0/24")
	for range 1 + len(toldAgain) {
		await(t, events, RoutesChanged)
	}
}

func TestWatchEnds(t *testing.T) {
	ns := newNamespace(t)
	c, _ := ns.open()
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.Watch(ctx, func(Event) { cancel() }); err != nil {
		t.Errorf("cancelled within: %v", err)
	}
	if err := c.Watch(ctx, func(Event) {}); err != nil {
		t.Errorf("cancelled before: %v", err)
	}
}

func TestHost(t *testing.T) {
	ns := newNamespace(t)
	c, _ := ns.open()
	ns.ip("link add eth0 type veth peer name far0")
	ns.ip("addr add 10.240.0.12/24 dev eth0")
	ns.ip("addr add 10.240.0.11/24 dev eth0")
	ns.ip("addr add 10.9.9.1 peer 10.9.9.2/30 dev eth0")
	ns.ip("addr add fd00:240::11/64 dev eth0 nodad")
	host, err := c.Host(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, l := range host.Links {
		if strings.HasPrefix(l.Name, "ifb") { // some kernels give these to every namespace
			continue
		}
		fmt.Fprintf(&got, "%s up=%t loopback=%t %v\n", l.Name, l.Up, l.Loopback, l.Addrs)
	}
	const want = `lo up=true loopback=true [127.0.0.1/8 ::1/128]
far0 up=false loopback=false []
eth0 up=false loopback=false [10.9.9.1/32 10.240.0.11/24 10.240.0.12/24 fd00:240::11/64]
`
	if got.String() != want {
		t.Errorf("got:\n%swant:\n%s", got.String(), want)
	}
	again, err := c.Host(context.Background())
	if err != nil || !reflect.DeepEqual(host, again) {
		t.Errorf("second time: %v, error %v", again, err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Host(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
}

// TestHostAndDuplicateAddresses: an address counts while it is tentative, and no longer when the link has it twice.
func TestHostAndDuplicateAddresses(t *testing.T) {
	ns := newNamespace(t)
	c, _ := ns.open()
	ns.ip("link add eth0 type veth peer name far0")
	ns.ip("link set far0 up")
	ns.ip("link set eth0 up")
	ns.ip("addr add fd00:240::11/64 dev far0 nodad")
	events := ns.watch(c, watchBuffer)
	ns.ip("addr add fd00:240::11/64 dev eth0")
	has := func() bool {
		h, err := c.Host(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range h.Links {
			if l.Name == "eth0" {
				return strings.Contains(fmt.Sprint(l.Addrs), "fd00:240::11/64")
			}
		}
		return false
	}
	if strings.Contains(ns.ip("-6 addr show dev eth0"), "tentative") && !has() {
		t.Error("the tentative address does not count")
	}
	deadline := time.Now().Add(patience)
	for has() && time.Now().Before(deadline) {
		await(t, events, HostChanged)
	}
	if shown := ns.ip("-6 addr show dev eth0"); has() || !strings.Contains(shown, "dadfailed") {
		t.Errorf("the address that failed counts: %t, ip says:\n%s", has(), shown)
	}
}
