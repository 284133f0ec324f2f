package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// A clock is that on the wall of n1's agent.
type clock struct {
	*testing.T
	file string
}

// newClock returns a clock, and the command that runs programs by it.
func newClock(t *testing.T) (c *clock, under []string) {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "wallclock")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/fairway-net/fairway/test/lab/wallclock").CombinedOutput(); err != nil {
		t.Fatalf("build wallclock: %v\n%s", err, out)
	}
	c = &clock{T: t, file: filepath.Join(dir, "ahead")}
	c.set(0)
	return c, []string{bin, c.file}
}

// set puts the clock ahead of the others, or behind.
func (c *clock) set(ahead time.Duration) {
	c.Helper()
	next := c.file + ".next"
	if err := errors.Join(os.WriteFile(next, fmt.Append(nil, int(ahead.Seconds())), 0o644), os.Rename(next, c.file)); err != nil {
		c.Fatal(err)
	}
}

// syncsWhile counts how often n1's agent compares something with what it should be.
func (r *bgpRig) syncsWhile(during func()) (n float64) {
	r.Helper()
	count := func() (n float64) {
		for _, part := range []string{"routes", "rules-IPv4", "rules-IPv6", "bgp"} {
			n += r.metric(r.n1, fmt.Sprintf("fairway_sync_duration_seconds_count{part=%q}", part))
		}
		return n
	}
	before := count()
	during()
	return count() - before
}

// routed is nil when the gateway sends a network to n1.
func (r *bgpRig) routed(prefix string) error {
	out, err := r.lab.Router().Run("ip", "-4", "route")
	if err == nil && !strings.Contains(out, prefix+" via 10.240.0.11") {
		err = fmt.Errorf("the gateway has no route to %s by n1:\n%s", prefix, out)
	}
	return err
}

// Fault 47: the clock on the wall of one node is set, an hour forth and back and back again. No session ends by that, no timer fires
// early, late or over and over, and all changes are followed as before.
func TestFault47ClockIsSet(t *testing.T) {
	t.Parallel()
	wall, under := newClock(t)
	r := newBGPRig(t, graceful, "", under...)
	r.settle()
	flows := r.flows()
	calm := r.syncsWhile(func() { time.Sleep(holdTime + 2*time.Second) })
	for i, ahead := range []time.Duration{time.Hour, 0, -time.Hour, 0} {
		wall.set(ahead)
		if n := r.syncsWhile(func() { time.Sleep(holdTime + 2*time.Second) }); n > 2*calm+5 {
			t.Errorf("the clock is %s ahead: the agent has compared %v times, before that %v times in the same time", ahead, n, calm)
		}
		r.ip(r.n1, "route del 10.200.3.0/24 proto 102")
		r.eventually(eventBound, func() error { return r.exact(r.n1) })
		r.put(service(fmt.Sprintf("new%d", i), 20+i, 0), lab.Ready(r.p2))
		r.write()
		r.eventually(eventBound, func() error { return r.serves(20+i, r.p2) })
		r.eventually(eventBound, func() error { return r.routed(vip(cluster.IPv4, 20+i).String()) })
	}
	flows.stop()
	if n := r.downs(gatewayIP); n != 0 {
		t.Errorf("the session with the gateway was lost %d times", n)
	}
}

// Fault 47 where networks are imported: gobgp drops all that comes in a session that began, by the clock, later than now. The agent begins such
// a session anew, and has what the router announces; the router keeps the node's routes meanwhile.
func TestFault47ClockIsSetBackWhileImporting(t *testing.T) {
	t.Parallel()
	wall, under := newClock(t)
	r := newBGPRig(t, graceful, "  import: [{prefixes: [172.16.0.0/12]}]\n", under...)
	imported := func(networks ...string) func() error {
		return func() error {
			out, err := r.n1.Run("ip", "-4", "route", "show", "proto", "103")
			for _, network := range []string{"172.16.1.0/24", "172.16.2.0/24", "172.16.3.0/24"} {
				if want := slices.Contains(networks, network); strings.Contains(out, network) != want {
					err = errors.Join(err, fmt.Errorf("n1 has a route to %s: %v, want %v", network, !want, want))
				}
			}
			return err
		}
	}
	r.announce("172.16.1.0/24")
	r.eventually(eventBound, imported("172.16.1.0/24"))
	r.settle()
	flows := r.flows()
	before := r.logged(r.n1)
	wall.set(-time.Hour)
	r.announce("172.16.1.0/24", "172.16.2.0/24")
	r.eventually(sessionBound, imported("172.16.1.0/24", "172.16.2.0/24"))
	if r.downs(gatewayIP) == 0 {
		t.Error("the session did not begin anew, so nothing is shown")
	}
	if log := strings.SplitN(r.agents["n1"].Output(), "\n", before+1)[before]; strings.Contains(log, "Removing learned route") {
		t.Errorf("what was imported did not stay meanwhile:\n%s", log)
	}
	r.settle() // before the router is configured again
	wall.set(0)
	r.announce("172.16.2.0/24", "172.16.3.0/24")
	r.eventually(sessionBound, imported("172.16.2.0/24", "172.16.3.0/24"))
	flows.stop()
}
