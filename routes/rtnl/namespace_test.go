package rtnl

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/routes"
)

// patience bounds every wait of these tests. It is generous, because it only ends a test that fails.
const patience = 30 * time.Second

// A namespace is a network namespace of one test. It has no name: it lives as long as the test's thread and what the test
// opened, so nothing is left behind whatever happens.
type namespace struct {
	t  testing.TB
	fd int
}

// newNamespace moves the test into a network namespace of its own, with lo up. The thread is never given back.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		unavailable(t, "needs root, to make network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		unavailable(t, "needs the ip command (iproute2)")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		unavailable(t, fmt.Sprintf("cannot make a network namespace: %v", err))
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	ns := &namespace{t, fd}
	ns.ip("link set lo up")
	return ns
}

// unavailable skips the test, or fails it where the lab is required.
func unavailable(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("FAIRWAY_LAB") == "require" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// network makes eth0 with addresses of both families, and its other end. The addresses are usable at once.
func (ns *namespace) network() *namespace {
	ns.t.Helper()
	ns.ip("link add eth0 type veth peer name far0")
	ns.ip("link set far0 up")
	ns.ip("link set eth0 up")
	ns.ip("addr add 10.240.0.11/16 dev eth0")
	ns.ip("addr add fd00:240::11/64 dev eth0 nodad")
	return ns
}

// ip runs one ip command in the namespace and returns its output.
func (ns *namespace) ip(args string) string {
	ns.t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		ns.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return string(out)
}

// shown returns the routes of both families that ip shows in a table and whose line has a part, one a line, blanks
// normalised. (Asked for one protocol, ip would leave the protocol out of its answer.)
func (ns *namespace) shown(table, part string) string {
	ns.t.Helper()
	var lines []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(ns.ip(family + " route show table " + table)) {
			if line = strings.Join(strings.Fields(line), " ") + "\n"; strings.Contains(line, part) {
				lines = append(lines, line)
			}
		}
	}
	return strings.Join(lines, "")
}

// expect fails the test unless the main table has exactly these routes with a part in their line.
func (ns *namespace) expect(part, want string) {
	ns.t.Helper()
	if got := ns.shown("main", part); got != want {
		ns.t.Fatalf("routes with %s:\n%swant:\n%s", part, got, want)
	}
}

// A counter stands between a Conn and the kernel and counts requests.
type counter struct {
	dumps, writes int
	// before, when set, is called before each request is sent.
	before func(req *nl.NetlinkRequest)
}

// open opens a Conn and counts what it does.
func (ns *namespace) open() (*Conn, *counter) {
	ns.t.Helper()
	c, err := Open()
	if err != nil {
		ns.t.Fatal(err)
	}
	ns.t.Cleanup(c.Close)
	n := &counter{}
	send := c.execute
	c.execute = func(req *nl.NetlinkRequest, each func([]byte)) error {
		if n.before != nil {
			n.before(req)
		}
		switch req.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			n.writes++
		default:
			n.dumps++
		}
		return send(req, each)
	}
	sendAll := c.executeAll
	c.executeAll = func(requests []*nl.NetlinkRequest) (map[uint32]bool, error) {
		for _, req := range requests {
			if n.before != nil {
				n.before(req)
			}
		}
		refused, err := sendAll(requests)
		n.writes += len(requests) - len(refused) // those are asked for again
		return refused, err
	}
	return c, n
}

// watch starts a Watch in the namespace and returns its events. The first event has been received.
func (ns *namespace) watch(c *Conn, buffer int) <-chan Event {
	ns.t.Helper()
	return ns.watchFunc(c, buffer, func(Event) {})
}

// watchFunc is watch with a function that is called after each event was passed on.
func (ns *namespace) watchFunc(c *Conn, buffer int, also func(Event)) <-chan Event {
	ns.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan Event, 100000)
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			ended <- err
			return
		}
		ended <- c.watchWith(ctx, buffer, func(e Event) { events <- e; also(e) })
	}()
	ns.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			ns.t.Errorf("watch: %v", err)
		}
	})
	if e := await(ns.t, events, Overrun); e != everything {
		ns.t.Fatalf("first event is %s", e)
	}
	return events
}

// await returns the first event that has the wanted bits.
func await(t testing.TB, events <-chan Event, wanted Event) Event {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case e := <-events:
			if e&wanted == wanted {
				return e
			}
		case <-deadline:
			t.Fatalf("no event %s within %s", wanted, patience)
		}
	}
}

// synced calls Sync, which must succeed.
func synced(t testing.TB, c *Conn, want *routes.Table) Report {
	t.Helper()
	report, err := c.Sync(context.Background(), want)
	if err != nil {
		t.Fatalf("sync: %v", err)
	}
	return report
}

// table makes a Table over the link eth0, of lines "destination gateway".
func table(t testing.TB, c *Conn, lines ...string) *routes.Table {
	t.Helper()
	link := linkIndex(t, c, "eth0")
	var tab routes.Table
	for _, line := range lines {
		words := strings.Fields(line)
		r := routes.Route{Dst: netip.MustParsePrefix(words[0]), Gateway: netip.MustParseAddr(words[1]),
			Link: "eth0", LinkIndex: link, Node: "node-" + words[1]}
		if r.Dst.Addr().Is6() {
			r.Metric = routes.MetricIPv6
		}
		tab.Routes = append(tab.Routes, r)
	}
	return &tab
}

func linkIndex(t testing.TB, c *Conn, name string) int {
	t.Helper()
	h, err := c.Host(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range h.Links {
		if l.Name == name {
			return l.Index
		}
	}
	t.Fatalf("no link %s", name)
	return 0
}

// manyRoutes are n routes via as many gateways, every other one IPv6.
func manyRoutes(t testing.TB, c *Conn, n int) *routes.Table {
	t.Helper()
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf("10.%d.%d.0/24 10.240.%d.%d", 100+i/256, i%256, 1+i/250, 1+i%250)
		if i%2 == 1 {
			lines[i] = fmt.Sprintf("fd00:200:%x::/64 fd00:240::%x", i, 0x1000+i)
		}
	}
	return table(t, c, lines...)
}

// startBatch starts many ip commands and does not wait for them.
func (ns *namespace) startBatch(commands []string) *exec.Cmd {
	ns.t.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if err := cmd.Start(); err != nil {
		ns.t.Fatal(err)
	}
	return cmd
}

// monitor returns a socket that receives what the kernel tells of these groups.
func (ns *namespace) monitor(groups ...uint) *nl.NetlinkSocket {
	ns.t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		ns.t.Fatal(err)
	}
	ns.t.Cleanup(s.Close)
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	if err := s.SetReceiveTimeout(&limit); err != nil {
		ns.t.Fatal(err)
	}
	return s
}
