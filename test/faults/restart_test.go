package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/test/lab"
)

// wroteNothing fails the test when an agent wrote to the kernel since it was started.
func (r *rig) wroteNothing(n *lab.Node) {
	r.Helper()
	for _, part := range []string{"routes", "rules-IPv4", "rules-IPv6"} {
		if v := r.metric(n, fmt.Sprintf("fairway_sync_writes_total{part=%q}", part)); v != 0 {
			r.Errorf("%s wrote %v times after a restart with nothing changed", part, v)
		}
	}
}

// Fault 1: the agent is killed and started again. Nobody notices, and the kernel is not written to.
func TestFault01KilledAgent(t *testing.T) {
	for _, backend := range lab.Backends {
		t.Run(string(backend), func(t *testing.T) {
			r := newRig(t, backend, topology())
			routes, rules := r.table(r.n1), r.rules(r.n1)
			m, flows := r.monitor(r.n1), r.traffic()
			for range 3 {
				old := r.agents["n1"]
				old.Kill()
				flows.more(30)
				r.same("rules, without an agent,", rules, r.rules(r.n1))
				began := time.Now()
				r.start(r.n1, old.Options)
				r.ready(r.n1)
				t.Logf("ready again %d ms after its start", time.Since(began).Milliseconds())
				r.same("rules", rules, r.rules(r.n1))
				r.wroteNothing(r.n1)
			}
			flows.stop()
			m.unchanged()
			r.same("routes", routes, r.table(r.n1))
		})
	}
}

// Fault 2: the agent is stopped with SIGTERM, and another version takes its place. As fault 1; and without an agent, with what
// the first one left, traffic goes on.
func TestFault02Upgrade(t *testing.T) {
	const version = "v9.9.9-next"
	for _, backend := range lab.Backends {
		t.Run(string(backend), func(t *testing.T) {
			r := newRig(t, backend, topology())
			next := filepath.Join(t.TempDir(), "fairway")
			build := exec.Command("go", "build", "-ldflags", "-X main.version="+version, "-o", next, "github.com/fairway-net/fairway/cmd/fairway")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build the next version: %v\n%s", err, out)
			}
			routes, rules := r.table(r.n1), r.rules(r.n1)
			m, flows := r.monitor(r.n1), r.traffic()
			old := r.agents["n1"]
			r.ok(old.Stop(startBound))
			r.same("routes, without an agent,", routes, r.table(r.n1))
			r.same("rules, without an agent,", rules, r.rules(r.n1))
			flows.more(100)
			o := old.Options
			o.Binary = next
			r.start(r.n1, o)
			r.ready(r.n1)
			r.wroteNothing(r.n1)
			if r.metric(r.n1, fmt.Sprintf("fairway_build_info{version=%q}", version)) != 1 {
				t.Error("it is not the next version that runs")
			}
			flows.stop()
			m.unchanged()
			r.same("routes", routes, r.table(r.n1))
			r.same("rules", rules, r.rules(r.n1))
		})
	}
}

// Fault 23: a node is deleted while the agent is down. Its route goes after the restart, and not before the agent
// knows the whole cluster: a folder that is broken, absent or empty takes nothing away.
func TestFault23StaleRoutes(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	m, flows := r.monitor(r.n1), r.traffic()
	options := r.agents["n1"].Options
	for i, c := range []struct {
		what string
		// dir is the folder that the agent is started with, spoil what is wrong with it, mend how it gets well.
		dir         string
		spoil, mend func(dir string) error
	}{{
		what: "broken",
		dir:  r.cluster.Dir,
		spoil: func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "broken.yaml"), []byte("apiVersion: v1\nkind: Node\n\tmetadata: {}\n"), 0o644)
		},
		mend: func(dir string) error { return os.Remove(filepath.Join(dir, "broken.yaml")) },
	}, {
		what:  "absent",
		dir:   filepath.Join(r.lab.Dir, "absent"),
		spoil: func(string) error { return nil },
		mend:  func(dir string) error { return os.Symlink(r.cluster.Dir, dir) },
	}, {
		what:  "empty",
		dir:   filepath.Join(r.lab.Dir, "empty"),
		spoil: func(dir string) error { return os.Mkdir(dir, 0o755) },
		mend: func(dir string) error {
			content, err := os.ReadFile(filepath.Join(r.cluster.Dir, "cluster.yaml"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "cluster.yaml"), content, 0o644)
		},
	}} {
		name := fmt.Sprintf("gone%d", i)
		r.setNode(nodeSpec(name, 100+i))
		stale := r.nodes[name].PodCIDRs[0].String()
		r.write()
		if i > 0 { // the agent of the case before reads another folder
			r.ok(r.agents["n1"].Stop(startBound))
			r.start(r.n1, options)
			r.ready(r.n1) // its routes may be as they should without it; and before it listens to signals, SIGTERM just ends it
		}
		r.eventually(startBound, func() error { return r.exact(r.n1) })
		r.ok(r.agents["n1"].Stop(startBound))
		r.removeNode(name)
		r.write()
		r.ok(c.spoil(c.dir))
		o := options
		o.Flags = []string{"--cluster-dir=" + c.dir}
		r.start(r.n1, o)
		r.eventually(startBound, func() error {
			if !strings.Contains(r.agents["n1"].Output(), "can't be used") {
				return errors.New("the agent has not complained of its folder")
			}
			return r.unready(r.n1)
		})
		flows.more(100) // that much time it has for doing wrong
		mended := time.Now()
		r.ok(c.mend(c.dir))
		r.eventually(eventBound, func() error { return r.exact(r.n1) })
		went := m.first(mended.Add(-time.Hour), "Deleted "+stale)
		if went.Before(mended) {
			t.Errorf("%s folder: the stale route went %s before the cluster was known", c.what, mended.Sub(went))
		}
		r.measured(c.what+" folder: stale route removed", went.Sub(mended), 2*time.Second)
	}
	for _, e := range m.events() {
		if e.deleted() && !strings.Contains(e.text, " via 10.240.4.") && !strings.Contains(e.text, " via fd00:240::1:") {
			t.Errorf("deleted: %s", e.text)
		}
	}
	flows.stop()
}

// Forwarding that is off when the agent starts is turned on.
func TestForwardingOffAtStart(t *testing.T) {
	top := topology()
	top.Nodes[0].NoForwarding = true
	r := newRig(t, lab.NFT, top)
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if v, err := r.n1.ReadSysctl(name); err != nil || v != "1" {
			t.Errorf("%s is %q, %v; want 1", name, v, err)
		}
	}
	flows := r.traffic()
	flows.stop()
}

// Forwarding that somebody turns off comes back.
func TestForwardingTurnedOff(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	flows := r.traffic()
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		off := time.Now()
		r.ok(r.n1.Sysctl(name, "0"))
		r.eventually(eventBound, func() error {
			if v, err := r.n1.ReadSysctl(name); err != nil || v != "1" {
				return fmt.Errorf("%s is %q, %v", name, v, err)
			}
			return nil
		})
		r.measured(name, time.Since(off), time.Second)
	}
	flows.works(podTCP, podTCP6)
	flows.stop(nobody)
}
