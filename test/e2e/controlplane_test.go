package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
)

// auditPolicy records who asked for what, without contents. RequestReceived is left out: the decision of the
// authorizer is known only afterwards.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// A controlPlane is the test's, whose audit log is read.
type controlPlane struct {
	*controlplane.ControlPlane
	starts []span // of the API server
}

// A span is the time from the start of something until it was ready.
type span struct{ from, to time.Time }

// starting tells whether the API server was not ready yet at a time. It answers then already, but refuses everybody
// until it has read the roles.
func (cp *controlPlane) starting(at time.Time) bool {
	return slices.ContainsFunc(cp.starts, func(s span) bool { return at.After(s.from) && at.Before(s.to) })
}

// startControlPlane builds and starts etcd and kube-apiserver on the machine "control"; it returns when the API is ready.
func startControlPlane(tb testing.TB, logs *logs, l *lab.Lab) *controlPlane {
	tb.Helper()
	binaries, err := controlplane.Build(controlplane.Kubectl)
	if err != nil {
		tb.Fatal(err)
	}
	dir, on := tb.TempDir(), l.Client("control")
	policy := filepath.Join(dir, "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		tb.Fatal(err)
	}
	cp := &controlPlane{}
	cp.timed(tb, func() (err error) {
		cp.ControlPlane, err = controlplane.Start(binaries, on, controlplane.Options{
			Dir: dir, ServiceCIDRs: l.Topology.ServiceCIDRs,
			APIServerFlags: []string{
				"--audit-policy-file=" + policy, "--audit-log-path=" + filepath.Join(dir, "audit.log"), "--audit-log-mode=blocking",
				// The DaemonSet's init container is privileged, as kubeadm's clusters allow.
				"--allow-privileged=true",
			},
			Start: func(name string, c lab.Command) (*lab.Process, error) { return logs.start(name, on.Namespace, c) },
		})
		return err
	})
	return cp
}

// startAPIServer starts kube-apiserver again and waits until it is ready.
func (cp *controlPlane) startAPIServer(tb testing.TB) {
	tb.Helper()
	cp.timed(tb, cp.StartAPIServer)
}

// timed remembers how long a start of the API server took.
func (cp *controlPlane) timed(tb testing.TB, start func() error) {
	tb.Helper()
	from := time.Now()
	if err := start(); err != nil {
		tb.Fatal(err)
	}
	cp.starts = append(cp.starts, span{from, time.Now()})
	tb.Logf("API server ready after %s", time.Since(from).Round(10*time.Millisecond))
}

// eventually waits until a condition holds and returns how long that took. The bound is generous: it only tells a
// hang from a slow machine.
func eventually(tb testing.TB, what string, condition func() error) time.Duration {
	tb.Helper()
	start := time.Now()
	if err := lab.Eventually(time.Minute, condition); err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
	return time.Since(start)
}
