package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
)

// TestSyncWritesWhatChangedAndNothingElse walks through the life of a table, and counts requests.
func TestSyncWritesWhatChangedAndNothingElse(t *testing.T) {
	ns := newNamespace(t).network()
	ns.ip("route add 10.200.9.0/24 via 10.240.0.99 proto static")
	c, count := ns.open()
	for _, step := range []struct {
		name          string
		want          []string
		added, set    int
		deleted, kept int
	}{
		{"from nothing", []string{"10.200.2.0/24 10.240.0.12", "10.200.3.0/24 10.240.0.13", "fd00:200:2::/64 fd00:240::12"}, 3, 0, 0, 3},
		{"no change", []string{"10.200.2.0/24 10.240.0.12", "10.200.3.0/24 10.240.0.13", "fd00:200:2::/64 fd00:240::12"}, 0, 0, 0, 3},
		{"new gateways", []string{"10.200.2.0/24 10.240.0.22", "10.200.3.0/24 10.240.0.13", "fd00:200:2::/64 fd00:240::22"}, 0, 2, 0, 3},
		{"one gone, one new", []string{"10.200.2.0/24 10.240.0.22", "10.200.4.0/24 10.240.0.14", "fd00:200:2::/64 fd00:240::22"}, 1, 0, 1, 3},
		{"nothing wanted", nil, 0, 0, 3, 0},
		{"still nothing", nil, 0, 0, 0, 0},
	} {
		want := table(t, c, step.want...)
		*count = counter{}
		report := synced(t, c, want)
		if len(report.Added) != step.added || len(report.Replaced) != step.set || len(report.Deleted) != step.deleted ||
			report.Installed != step.kept || len(report.Notes) != 0 || len(report.Waiting) != 0 {
			t.Errorf("%s: report %+v", step.name, report)
		}
		if writes := step.added + step.set + step.deleted; count.writes != writes || count.dumps != 2 {
			t.Errorf("%s: %d writes and %d dumps, want %d and one for each family", step.name, count.writes, count.dumps, writes)
		}
		ns.expect("proto 102", want.Lines()) // so String is what ip prints
	}
	ns.expect("proto static", "10.200.9.0/24 via 10.240.0.99 dev eth0 proto static\n")
}

// TestReplaceLeavesNoGap has the kernel tell what happened to the routes while their gateways changed.
func TestReplaceLeavesNoGap(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	synced(t, c, table(t, c, "10.200.2.0/24 10.240.0.12", "fd00:200:2::/64 fd00:240::12"))
	monitor := ns.monitor(unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	synced(t, c, table(t, c, "10.200.2.0/24 10.240.0.22", "fd00:200:2::/64 fd00:240::22"))
	synced(t, c, table(t, c)) // ends the list
	var seen []string
	for len(seen) < 4 {
		messages, _, err := monitor.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			seen = append(seen, fmt.Sprintf("%d %x", m.Header.Type, m.Header.Flags&unix.NLM_F_REPLACE))
		}
	}
	want := fmt.Sprintf("[%[1]d %[2]x %[1]d %[2]x %[3]d 0 %[3]d 0]", unix.RTM_NEWROUTE, unix.NLM_F_REPLACE, unix.RTM_DELROUTE)
	if got := fmt.Sprint(seen); got != want {
		t.Errorf("the kernel told %s, want two replacements and two deletions: %s", got, want)
	}
}

// TestOthersRoutesStay has routes of others where ours should be.
func TestOthersRoutesStay(t *testing.T) {
	for _, c := range []struct {
		name, foreign, wanted, note string
		installed                   int
	}{
		{"same destination and metric", "route add 10.200.2.0/24 via 10.240.0.99 proto static", "10.200.2.0/24 10.240.0.12",
			"Node node-10.240.0.12: RouteConflict: The route 10.200.2.0/24 via 10.240.0.99 proto 4 metric 0 of another owner " +
				"stands where ours, via 10.240.0.12, should be; right would be none for 10.200.2.0/24.", 0},
		{"the very same but for the owner", "route add 10.200.2.0/24 via 10.240.0.12 proto bird", "10.200.2.0/24 10.240.0.12",
			"Node node-10.240.0.12: RouteConflict: The route 10.200.2.0/24 via 10.240.0.12 proto 12 metric 0 of another owner " +
				"stands where ours, via 10.240.0.12, should be; right would be none for 10.200.2.0/24.", 0},
		{"a blackhole", "route add blackhole 10.200.2.0/24 proto bird", "10.200.2.0/24 10.240.0.12",
			"Node node-10.240.0.12: RouteConflict: The route blackhole 10.200.2.0/24 proto 12 metric 0 of another owner " +
				"stands where ours, via 10.240.0.12, should be; right would be none for 10.200.2.0/24.", 0},
		{"IPv6", "-6 route add fd00:200:2::/64 via fd00:240::99 proto static", "fd00:200:2::/64 fd00:240::12",
			"Node node-fd00:240::12: RouteConflict: The route fd00:200:2::/64 via fd00:240::99 proto 4 metric 1024 of another owner " +
				"stands where ours, via fd00:240::12, should be; right would be none for fd00:200:2::/64.", 0},
		{"IPv6, without a gateway", "-6 route add fd00:200:2::/64 dev eth0 proto static", "fd00:200:2::/64 fd00:240::12",
			"Node node-fd00:240::12: RouteConflict: The route fd00:200:2::/64 proto 4 metric 1024 of another owner " +
				"stands where ours, via fd00:240::12, should be; right would be none for fd00:200:2::/64.", 0},
		{"preferred by metric", "-6 route add fd00:200:2::/64 via fd00:240::99 proto static metric 512", "fd00:200:2::/64 fd00:240::12",
			"Node node-fd00:240::12: RouteConflict: The route fd00:200:2::/64 via fd00:240::99 proto 4 metric 512 of another owner " +
				"takes precedence over ours, via fd00:240::12; right would be none for fd00:200:2::/64.", 1},
		{"a worse metric", "route add 10.200.2.0/24 via 10.240.0.99 proto static metric 100", "10.200.2.0/24 10.240.0.12", "", 1},
		{"another table", "route add 10.200.2.0/24 via 10.240.0.99 proto 102 table 77", "10.200.2.0/24 10.240.0.12", "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := newNamespace(t).network()
			ns.ip(c.foreign)
			before := ns.shown("all", "200") // the kernel's own routes come and go with its address detection
			conn, count := ns.open()
			want := table(t, conn, c.wanted)
			report := synced(t, conn, want)
			if got := notes(report); got != c.note {
				t.Errorf("notes:\n%s\nwant:\n%s", got, c.note)
			}
			if report.Installed != c.installed || len(report.Added) != c.installed {
				t.Errorf("report %+v", report)
			}
			count.writes = 0
			if again := synced(t, conn, want); notes(again) != c.note || count.writes != 0 {
				t.Errorf("second time: %d writes, notes %q", count.writes, notes(again))
			}
			if removed, err := conn.Cleanup(context.Background()); err != nil || removed != c.installed {
				t.Errorf("cleanup: removed %d, %v", removed, err)
			}
			if after := ns.shown("all", "200"); after != before {
				t.Errorf("routes of others were:\n%sand are:\n%s", before, after)
			}
		})
	}
}

func notes(r Report) string {
	var lines []string
	for _, n := range r.Notes {
		lines = append(lines, n.String())
	}
	return strings.Join(lines, "\n")
}

// TestAnotherRouteInFrontOfOurs has somebody put theirs before ours: then a replacement would hit theirs.
func TestAnotherRouteInFrontOfOurs(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	want := table(t, c, "10.200.2.0/24 10.240.0.12")
	synced(t, c, want)
	ns.ip("route prepend 10.200.2.0/24 via 10.240.0.99 proto static")
	if report := synced(t, c, want); report.Installed != 1 || len(report.Notes) != 1 {
		t.Errorf("ours as wanted, behind another's: %+v", report)
	}
	report := synced(t, c, table(t, c, "10.200.2.0/24 10.240.0.13"))
	if report.Installed != 0 || len(report.Deleted) != 1 || len(report.Notes) != 1 {
		t.Errorf("ours not as wanted, behind another's: %+v", report)
	}
	ns.expect("10.200.2.0/24", "10.200.2.0/24 via 10.240.0.99 dev eth0 proto static\n")
}

// TestAnotherRouteAfterReading has a foreign route appear between our dump and our write.
func TestAnotherRouteAfterReading(t *testing.T) {
	for _, c := range []struct{ name, foreign, wanted string }{
		{"IPv4", "10.200.2.0/24 via 10.240.0.99 dev eth0 proto static", "10.200.2.0/24 10.240.0.12"},
		{"IPv6", "fd00:200:2::/64 via fd00:240::99 dev eth0 proto static metric 1024 pref medium", "fd00:200:2::/64 fd00:240::12"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := newNamespace(t).network()
			conn, count := ns.open()
			count.before = func(req *nl.NetlinkRequest) {
				if req.Type == unix.RTM_NEWROUTE {
					count.before = nil
					ns.ip("route add " + c.foreign)
				}
			}
			report := synced(t, conn, table(t, conn, c.wanted))
			if report.Installed != 0 || len(report.Notes) != 1 || report.Notes[0].Reason != cluster.ReasonRouteConflict {
				t.Errorf("report %+v", report)
			}
			ns.expect(strings.Fields(c.foreign)[0], c.foreign+"\n")
		})
	}
}

// TestGoneAfterReading has our route vanish between our dump and our write.
func TestGoneAfterReading(t *testing.T) {
	ns := newNamespace(t).network()
	c, count := ns.open()
	synced(t, c, table(t, c, "10.200.2.0/24 10.240.0.12", "fd00:200:2::/64 fd00:240::12", "10.200.3.0/24 10.240.0.13"))
	want := table(t, c, "10.200.2.0/24 10.240.0.22", "fd00:200:2::/64 fd00:240::22")
	count.before = func(req *nl.NetlinkRequest) {
		if req.Type == unix.RTM_NEWROUTE {
			count.before = nil
			ns.ip("-4 route flush proto 102")
			ns.ip("-6 route flush proto 102")
		}
	}
	report := synced(t, c, want)
	if len(report.Added) != 2 || len(report.Replaced) != 0 || len(report.Deleted) != 0 || report.Installed != 2 {
		t.Errorf("report %+v", report)
	}
	ns.expect("proto 102", want.Lines())
}

// TestOursInStrangeShapes has routes with our protocol that we never write.
func TestOursInStrangeShapes(t *testing.T) {
	ns := newNamespace(t).network()
	ns.ip("route add 10.200.2.0/24 proto 102 nexthop via 10.240.0.12 nexthop via 10.240.0.13")
	ns.ip("route add 10.200.3.0/24 via 10.240.0.13 proto 102 src 10.240.0.11")
	ns.ip("route add blackhole 10.200.4.0/24 proto 102")
	ns.ip("route add 10.200.5.0/24 via 10.240.0.15 proto 102 tos 0x10")
	ns.ip("route add 10.200.6.0/24 via 10.240.0.16 proto 102")
	ns.ip("route append 10.200.6.0/24 via 10.240.0.66 proto 102")
	ns.ip("route add 10.200.7.0/24 via 10.240.0.17 proto 102 metric 7")
	ns.ip("-6 route add fd00:200:2::/64 proto 102 nexthop via fd00:240::12 nexthop via fd00:240::13")
	ns.ip("-6 route add fd00:200:3::/64 via fd00:240::13 proto 102")
	ns.ip("-6 route append fd00:200:3::/64 via fd00:240::33 proto 102")
	ns.ip("-6 route add unreachable fd00:200:4::/64 proto 102")
	c, count := ns.open()
	want := table(t, c, "10.200.2.0/24 10.240.0.12", "10.200.3.0/24 10.240.0.13", "10.200.4.0/24 10.240.0.14",
		"10.200.5.0/24 10.240.0.15", "10.200.6.0/24 10.240.0.66", "10.200.7.0/24 10.240.0.17",
		"fd00:200:2::/64 fd00:240::12", "fd00:200:3::/64 fd00:240::13", "fd00:200:4::/64 fd00:240::14")
	synced(t, c, want)
	ns.expect("proto 102", want.Lines())
	count.writes = 0
	if synced(t, c, want); count.writes != 0 {
		t.Errorf("%d writes although nothing changed", count.writes)
	}
	ns.ip("-6 route append fd00:200:3::/64 via fd00:240::33 proto 102")
	if report := synced(t, c, want); len(report.Replaced) != 1 {
		t.Errorf("a second next hop: report %+v", report)
	}
	ns.expect("proto 102", want.Lines())
}

// TestOneRefusedRouteDoesNotStopTheOthers has the kernel refuse a gateway that is a broadcast address.
func TestOneRefusedRouteDoesNotStopTheOthers(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	report, err := c.Sync(context.Background(), table(t, c,
		"10.200.2.0/24 10.240.0.12", "10.200.3.0/24 10.240.255.255", "10.200.4.0/24 10.240.0.14"))
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "add route 10.200.3.0/24 via 10.240.255.255 dev eth0 proto 102") {
		t.Errorf("error %v", err)
	}
	if report.Installed != 2 {
		t.Errorf("report %+v", report)
	}
}

// TestRoutesWaitForTheirLink has routes over links that are down, gone, or without the gateway's network.
func TestRoutesWaitForTheirLink(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	want := table(t, c, "10.200.2.0/24 10.240.0.12", "fd00:200:2::/64 fd00:240::12")
	gone := table(t, c, "10.200.2.0/24 10.240.0.12")
	gone.Routes[0].LinkIndex = 9999
	far := table(t, c, "10.200.2.0/24 192.168.77.1")
	for _, table := range []*routes.Table{gone, far} {
		report := synced(t, c, table)
		if len(report.Waiting) != 1 || len(report.Notes) != 1 || report.Notes[0].Reason != cluster.ReasonNextHopUnreachable {
			t.Errorf("%s: report %+v", table.Lines(), report)
		}
	}
	ns.ip("link set eth0 down")
	if report := synced(t, c, want); len(report.Waiting) != 2 || report.Installed != 0 {
		t.Errorf("link down: report %+v", report)
	}
	ns.ip("link set eth0 up")
	ns.ip("addr replace fd00:240::11/64 dev eth0 nodad") // IPv6 addresses go with the link
	if report := synced(t, c, want); report.Installed != 2 {
		t.Errorf("link up: report %+v", report)
	}
	ns.expect("proto 102", want.Lines())
}

// TestInterruptedDump has the kernel call dumps interrupted after a part of them.
func TestInterruptedDump(t *testing.T) {
	ns := newNamespace(t).network()
	c, count := ns.open()
	want := manyRoutes(t, c, 50)
	synced(t, c, want)
	interruptions := 0
	send := c.execute
	c.execute = func(req *nl.NetlinkRequest, each func([]byte)) error {
		if req.Type != unix.RTM_GETROUTE || interruptions == 0 {
			return send(req, each)
		}
		interruptions--
		seen := 0
		err := send(req, func(payload []byte) {
			if seen++; seen%2 == 0 { // half of the truth
				each(payload)
			}
		})
		return errors.Join(err, nl.ErrDumpInterrupted)
	}
	interruptions, count.writes = 5, 0
	if report := synced(t, c, want); report.Installed != 50 || count.writes != 0 {
		t.Errorf("after interruptions: %d writes, report %+v", count.writes, report)
	}
	interruptions = 1 << 20
	for _, want := range []*routes.Table{want, {}} {
		if report, err := c.Sync(context.Background(), want); !errors.Is(err, nl.ErrDumpInterrupted) || report.Installed != 0 {
			t.Errorf("interrupted for ever: report %+v, error %v", report, err)
		}
	}
	if count.writes != 0 {
		t.Errorf("%d writes from half a dump", count.writes)
	}
	ns.expect("proto 102", linesByFamily(want))
}

// linesByFamily is the order in which ip shows routes.
func linesByFamily(t *routes.Table) string {
	var v4, v6 strings.Builder
	for _, r := range t.Routes {
		b := &v4
		if r.Family() == cluster.IPv6 {
			b = &v6
		}
		b.WriteString(r.String() + "\n")
	}
	return v4.String() + v6.String()
}

// TestDumpsUnderChurn reads while others change the table: the kernel then interrupts dumps by itself, or not.
func TestDumpsUnderChurn(t *testing.T) {
	ns := newNamespace(t).network()
	c, count := ns.open()
	want := manyRoutes(t, c, 400)
	synced(t, c, want)
	churn := make([]string, 0, 2000)
	for i := range 1000 {
		churn = append(churn, fmt.Sprintf("route add 172.16.%d.0/24 via 10.240.0.99 proto static", i%256),
			fmt.Sprintf("route del 172.16.%d.0/24 via 10.240.0.99 proto static", i%256))
	}
	count.writes = 0
	done := make(chan struct{})
	cmd := ns.startBatch(churn)
	go func() { defer close(done); _ = cmd.Wait() }()
	for syncs := 0; ; syncs++ {
		report, err := c.Sync(context.Background(), want)
		if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
			t.Fatal(err)
		}
		if len(report.Deleted)+len(report.Added)+len(report.Replaced) != 0 {
			t.Fatalf("wrote from a partial view: %+v", report)
		}
		select {
		case <-done:
			t.Logf("%d syncs of %d routes in %d dumps beside 2,000 foreign changes, %d writes", syncs+1, len(want.Routes), count.dumps, count.writes)
			return
		default:
		}
	}
}

func TestCleanup(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	synced(t, c, table(t, c, "10.200.2.0/24 10.240.0.12", "fd00:200:2::/64 fd00:240::12"))
	ns.ip("route add 10.200.3.0/24 via 10.240.0.99 proto static")
	for _, want := range []int{2, 0} {
		if removed, err := c.Cleanup(context.Background()); err != nil || removed != want {
			t.Errorf("removed %d, error %v, want %d", removed, err, want)
		}
	}
	ns.expect("proto 102", "")
	ns.expect("proto static", "10.200.3.0/24 via 10.240.0.99 dev eth0 proto static\n")
}

func TestSyncWithoutTable(t *testing.T) {
	ns := newNamespace(t).network()
	c, count := ns.open()
	if _, err := c.Sync(context.Background(), nil); err == nil || count.dumps != 0 {
		t.Errorf("error %v after %d dumps", err, count.dumps)
	}
	offline := &routes.Table{Routes: []routes.Route{{Dst: netip.MustParsePrefix("10.200.2.0/24"), Gateway: netip.MustParseAddr("10.240.0.12")}}}
	if _, err := c.Sync(context.Background(), offline); err == nil || count.writes != 0 {
		t.Errorf("a route without a link: error %v, %d writes", err, count.writes)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Sync(cancelled, offline); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
}

// BenchmarkProgram5000 creates 5,000 routes of both families from nothing.
func BenchmarkProgram5000(b *testing.B) {
	ns := newNamespace(b).network()
	c, _ := ns.open()
	want := manyRoutes(b, c, 5000)
	for b.Loop() {
		if report := synced(b, c, want); len(report.Added) != 5000 {
			b.Fatalf("added %d", len(report.Added))
		}
		b.StopTimer()
		synced(b, c, &routes.Table{})
		b.StartTimer()
	}
}

// BenchmarkUnchanged5000 finds 5,000 routes as they should be.
func BenchmarkUnchanged5000(b *testing.B) {
	ns := newNamespace(b).network()
	c, count := ns.open()
	want := manyRoutes(b, c, 5000)
	synced(b, c, want)
	count.writes = 0
	for b.Loop() {
		synced(b, c, want)
	}
	if count.writes != 0 {
		b.Fatalf("%d writes", count.writes)
	}
}
