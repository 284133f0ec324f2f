package faults

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// stateFile is where an agent keeps its state, in the directory for it.
const stateFile = "snapshot.json.gz"

// withState are an agent's options with a directory for its state.
func withState(o lab.AgentOptions, dir string) lab.AgentOptions {
	o.Flags = append(append([]string{}, o.Flags...), "--state-dir="+dir)
	return o
}

// withoutAPI are an agent's options when all it has is an API server that does not answer.
func (r *rig) withoutAPI(o lab.AgentOptions) lab.AgentOptions {
	r.Helper()
	const nobody = `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
  clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}], users: [{name: u, user: {}}]}`
	file := filepath.Join(r.lab.Dir, "nobody.yaml")
	r.ok(os.WriteFile(file, []byte(nobody), 0o600))
	o.Cluster = nil
	o.Flags = append(append([]string{}, o.Flags...), "--kubeconfig="+file)
	return o
}

// saved waits until an agent has saved what it programmed.
func (r *rig) saved(dir string) {
	r.Helper()
	r.eventually(startBound, func() error { _, err := os.Stat(filepath.Join(dir, stateFile)); return err })
}

// vipsOf are the ClusterIPs of a Service of a number.
func vipsOf(n int) []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00:96::%x", n))}
}

// asking starts one flow, whether it has answers or not.
func (r *rig) asking(name string) *traffic {
	r.Helper()
	f := r.podFlows()[name]
	p, err := f.from.Probe(f.ProbeConfig)
	r.ok(err)
	return &traffic{r, r.podFlows(), map[string]*lab.Prober{name: p}}
}

// stale is nil when the agent of n1 says that it has programmed what was saved, and is not ready for that.
func (r *rig) stale() error {
	r.Helper()
	status, body, err := r.n1.Get("http://127.0.0.1:10256/readyz", time.Second)
	switch {
	case err != nil:
		return err
	case status != 503 || !strings.Contains(body, `"stale":true`):
		return fmt.Errorf("/readyz: %d %s", status, body)
	case r.metric(r.n1, "fairway_snapshot_stale") != 1:
		return errors.New("fairway_snapshot_stale is not 1")
	}
	for _, part := range []string{"routes", "rules-IPv4", "rules-IPv6"} {
		if r.metric(r.n1, fmt.Sprintf("fairway_programmed{part=%q}", part)) != 1 {
			return fmt.Errorf("%s is not programmed", part)
		}
	}
	return r.said(r.n1, 0, note{"Node n1", cluster.ReasonSnapshotStale, "nothing is taken away"})
}

// reboot takes away what a reboot does: rules, routes and what conntrack remembers.
func (r *rig) reboot() {
	r.Helper()
	for _, f := range cluster.Families {
		r.ok(r.n1.Restore(r.backend, f, "*filter\nCOMMIT\n*nat\nCOMMIT\n", false))
	}
	_, err := r.n1.Run("conntrack", "-F")
	r.ok(err)
	for _, family := range []string{"-4", "-6"} {
		_, err := r.n1.Run("ip", family, "route", "flush", "proto", "102")
		r.ok(err)
	}
}

// Fault 32: a node boots while the API server does not answer. What was last programmed is put in force, said to be stale, and replaced
// when the cluster answers.
func TestFault32BootWithoutAPI(t *testing.T) {
	for _, backend := range lab.Backends {
		t.Run(string(backend), func(t *testing.T) {
			r := newRig(t, backend, topology())
			dir := filepath.Join(r.lab.Dir, "state")
			good := withState(r.agents["n1"].Options, dir)
			r.ok(r.agents["n1"].Stop(startBound))
			r.start(r.n1, good)
			r.ready(r.n1)
			r.saved(dir)
			rules := map[cluster.Family]kept{}
			for _, f := range cluster.Families {
				rules[f] = r.holds(f)
			}
			r.agents["n1"].Kill()
			r.reboot()
			flows := r.asking(serviceTCP)
			began := time.Now()
			r.start(r.n1, withState(r.withoutAPI(r.agents["n1"].Options), dir))
			r.eventually(startBound, r.stale)
			r.eventually(eventBound, func() error { return r.exact(r.n1) })
			for _, f := range cluster.Families {
				if now := r.holds(f); !now.equal(rules[f]) {
					t.Errorf("%s: %s", f, difference(now, rules[f]))
				}
			}
			flows.works(podTCP, podTCP6, podUDP, serviceTCP, serviceUDP)
			report := flows.probers[serviceTCP].Stop()
			t.Logf("a connection to a service works %d ms after the agent's start", report.LastFailure.Sub(began).Milliseconds())

			// The rules of a Service that came later stand, and what is saved does not know of it: it stays, also when its neighbour is
			// gone from the saved state.
			r.agents["n1"].Kill()
			later := lab.Service("later", vipsOf(77), lab.TCPPort("tcp", webPort, targetPort))
			r.cluster.SetService(later)
			r.cluster.SetEndpoints(later, lab.Ready(r.p4))
			r.setNode(nodeSpec("later", 100))
			r.write()
			r.start(r.n1, r.agents["n2"].Options) // saves nothing
			r.ready(r.n1)
			r.agents["n1"].Kill()
			before, routes := r.rules(r.n1), r.table(r.n1)
			m := r.monitor(r.n1)
			r.start(r.n1, withState(r.withoutAPI(good), dir))
			r.eventually(startBound, r.stale)
			r.same("rules", before, r.rules(r.n1))
			r.same("routes", routes, r.table(r.n1))
			m.unchanged()
			r.agents["n1"].Kill()
			r.cluster.RemoveService(later)
			r.cluster.RemoveEndpoints(later)
			r.removeNode("later")
			r.write()
			r.start(r.n1, good)
			r.ready(r.n1)
			r.eventually(eventBound, func() error { return r.exact(r.n1) })
			for _, f := range cluster.Families {
				if now := r.holds(f); !now.equal(rules[f]) {
					t.Errorf("%s, with the API: %s", f, difference(now, rules[f]))
				}
			}
		})
	}
}

// A file that is damaged, or another node's, is told and used for nothing; the agent waits for the cluster, and touches nothing.
func TestFault32UnusableFile(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	dir := filepath.Join(r.lab.Dir, "state")
	good := withState(r.agents["n2"].Options, dir)
	r.ok(r.agents["n2"].Stop(startBound))
	r.start(r.n2, good)
	r.ready(r.n2)
	r.saved(dir)
	r.ok(r.agents["n1"].Stop(startBound))
	rules, routes := r.rules(r.n1), r.table(r.n1)
	options := withState(r.withoutAPI(r.agents["n1"].Options), dir)
	for _, c := range []struct {
		what, says string
		spoil      func(file string) error
	}{
		{"another node's", "it is of node", func(string) error { return nil }},
		{"cut off", "unexpected EOF", func(file string) error { return os.Truncate(file, 100) }},
		{"empty", "EOF", func(file string) error { return os.Truncate(file, 0) }},
		{"no file", "is a directory", func(file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o755)) }},
	} {
		r.ok(c.spoil(filepath.Join(dir, stateFile)))
		r.start(r.n1, options)
		r.eventually(startBound, func() error { _, _, err := r.n1.Get("http://127.0.0.1:10249/healthz", time.Second); return err })
		r.eventually(startBound, func() error { return r.said(r.n1, 0, note{"Node n1", cluster.ReasonSnapshotRefused, c.says}) })
		time.Sleep(4 * time.Second) // longer than a saved state is waited with
		if err := r.unready(r.n1); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		r.same(c.what+": rules", rules, r.rules(r.n1))
		r.same(c.what+": routes", routes, r.table(r.n1))
		r.agents["n1"].Kill()
	}
}

// Fault 45: the disk is full, or may not be written to. Routes and rules follow the cluster all the same, and the agent says what it
// can't do.
func TestFault45DiskFull(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	options := r.agents["n1"].Options
	full, readonly := filepath.Join(r.lab.Dir, "full"), filepath.Join(r.lab.Dir, "readonly")
	for dir, flags := range map[string]uintptr{full: 0, readonly: unix.MS_RDONLY} {
		r.ok(os.Mkdir(dir, 0o755))
		r.ok(unix.Mount("tmpfs", dir, "tmpfs", flags, "size=4k"))
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	r.ok(os.WriteFile(filepath.Join(full, "others"), make([]byte, 4096), 0o600))
	for i, c := range []struct{ dir, says string }{{full, "no space left on device"}, {readonly, "read-only file system"}} {
		r.ok(r.agents["n1"].Stop(startBound))
		flows := r.traffic()
		r.start(r.n1, withState(options, c.dir))
		r.ready(r.n1)
		r.eventually(startBound, func() error { return r.said(r.n1, 0, note{"Node n1", cluster.ReasonSnapshotNotSaved, c.says}) })
		if r.metric(r.n1, "fairway_snapshot_save_errors_total") == 0 {
			t.Errorf("%s: no error is counted", c.dir)
		}
		svc := lab.Service(fmt.Sprintf("after-%d", i), vipsOf(80+i), lab.TCPPort("tcp", webPort, targetPort))
		r.cluster.SetService(svc)
		r.cluster.SetEndpoints(svc, lab.Ready(r.p3))
		r.write()
		r.eventually(eventBound, func() error {
			return r.p1.Ask(lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(vipsOf(80 + i)[0], webPort), Timeout: attemptTimeout}).Expect(lab.OK)
		})
		r.ready(r.n1)
		flows.stop()
	}
}
