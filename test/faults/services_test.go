package faults

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/measured"
)

const (
	webNodePort = 30080
	// serviceRate is the rate of each of the flows of tests of services; there are eight.
	serviceRate = 50
	// lookBound is how long it may take at most until the agent has looked at everything again.
	lookBound = time.Minute
)

// onBackends runs a test with each kind of iptables, each on a rig of its own.
func onBackends(t *testing.T, run func(*rig)) {
	t.Helper()
	t.Parallel()
	for _, b := range lab.Backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			run(newServices(t, b))
		})
	}
}

// newServices builds the cluster as newRig does, without an agent on n3, which has nothing to do with the services.
func newServices(t *testing.T, b lab.Backend) *rig {
	t.Helper()
	r := newCluster(t, b, topology())
	r.start(r.n1, lab.AgentOptions{Cluster: r.cluster, Backend: b})
	r.start(r.n2, lab.AgentOptions{Cluster: r.cluster, Backend: b})
	r.ready(r.n1, r.n2)
	return r
}

// again starts the agent of n1 with other options, in place of the one that runs.
func (r *rig) again(change func(*lab.AgentOptions)) *lab.Agent {
	r.Helper()
	o := r.agents["n1"].Options
	r.ok(r.agents["n1"].Stop(startBound))
	change(&o)
	r.start(r.n1, o)
	r.ready(r.n1)
	return r.agents["n1"]
}

// vip is the address of a Service in a family, by a number; web's is 10.
func vip(f cluster.Family, n int) netip.Addr {
	if f == cluster.IPv6 {
		return netip.MustParseAddr(fmt.Sprint("fd00:96::", n))
	}
	return netip.MustParseAddr(fmt.Sprint("10.96.0.", n))
}

// service is a dual-stack Service, TCP and UDP, with the address of a number, and with a node port when that is not 0.
func service(name string, n int, nodePort int32) *corev1.Service {
	s := lab.Service(name, []netip.Addr{vip(cluster.IPv4, n), vip(cluster.IPv6, n)},
		lab.TCPPort("tcp", webPort, targetPort), lab.UDPPort("udp", webPort, targetPort))
	if nodePort != 0 {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = nodePort, nodePort
	}
	return s
}

// put sets a Service and its endpoints; write follows.
func (r *rig) put(s *corev1.Service, endpoints ...lab.Endpoint) {
	r.cluster.SetService(s)
	r.cluster.SetEndpoints(s, endpoints...)
}

// serviceFlows are a pod of n1 at web's ClusterIP and the client at its node port on n1, over TCP and UDP and both families.
func (r *rig) serviceFlows() map[string]flow {
	flows := map[string]flow{}
	for i, f := range cluster.Families {
		for j, proto := range []lab.Proto{lab.TCP, lab.UDP} {
			kind := strings.ToUpper(proto.String()) + ", " + f.String()
			port := uint16(5010 + 2*i + j)
			flows["ClusterIP, "+kind] = flowTo(r.p1.Namespace, proto, webIPs[i], webPort, port, serviceRate)
			flows["node port, "+kind] = flowTo(r.c.Namespace, proto, r.n1.Addr(f), webNodePort, port, serviceRate)
		}
	}
	return flows
}

// names of the flows of one family.
func inFamily(flows map[string]flow, f cluster.Family) (names []string) {
	for name := range flows {
		if strings.HasSuffix(name, f.String()) {
			names = append(names, name)
		}
	}
	return names
}

// to is one attempt; that it is lost is told soon.
func to(proto lab.Proto, a netip.Addr, port uint16) lab.Dial {
	return lab.Dial{Proto: proto, To: netip.AddrPortFrom(a, port), Timeout: time.Second}
}

// answers is nil when exactly these pods answer, each of them, within some dozens of attempts.
func answers(from *lab.Namespace, d lab.Dial, pods ...*lab.Pod) error {
	seen := map[string]bool{}
	for range 1 + 31*(len(pods)-1) { // two pods with equal shares: one is missed once in 2·10^9 looks
		r := from.Ask(d)
		if r.Outcome != lab.OK {
			return fmt.Errorf("%s %s: %s", d.Proto, d.To, r)
		}
		seen[r.Name] = true
	}
	var want []string
	for _, p := range pods {
		want = append(want, p.Name)
	}
	slices.Sort(want)
	if have := slices.Sorted(maps.Keys(seen)); !slices.Equal(have, want) {
		return fmt.Errorf("%s %s: %v answer, want %v", d.Proto, d.To, have, want)
	}
	return nil
}

// serves is nil when a Service, by its number, is answered by exactly these pods at its ClusterIPs, over TCP and UDP; without
// any when it is refused.
func (r *rig) serves(n int, pods ...*lab.Pod) error {
	for _, f := range cluster.Families {
		for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
			d := to(proto, vip(f, n), webPort)
			var err error
			if len(pods) == 0 {
				err = r.p1.Ask(d).Expect(lab.Refused)
			} else {
				err = answers(r.p1.Namespace, d, pods...)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// still is nil when a Service is served as it was before. On a busy machine one look may come to nothing.
func (r *rig) still(n int, pods ...*lab.Pod) error {
	return lab.Eventually(eventBound, func() error { return r.serves(n, pods...) })
}

// comes waits until a condition holds, and reports how long after the time since that was. It is no more precise
// than some milliseconds. Unlike what measured does, the bound does not tell an event from an audit.
func (r *rig) comes(what string, since time.Time, target time.Duration, condition func() error) {
	r.Helper()
	r.eventually(lookBound, condition)
	took := time.Since(since)
	r.Logf("%s: after %d ms (target %s)", what, took.Milliseconds(), target)
	measured.Repair(r.T, took)
}

// exactly fails the test unless n1's rules are what an agent would write that knows nothing but the cluster and the kernel.
func (r *rig) exactly() {
	r.Helper()
	r.again(func(*lab.AgentOptions) {})
	r.wroteNothing(r.n1)
}

// readyz is what the agent of a node says of itself.
func (r *rig) readyz(n *lab.Node) string {
	_, body, err := n.Get("http://127.0.0.1:10256/readyz", eventBound)
	if err != nil {
		return err.Error()
	}
	return body
}

// cpu is what a process and its children that ended have had of the processor.
func (r *rig) cpu(p *lab.Process) time.Duration {
	r.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	r.ok(err)
	// pid (comm) state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime, proc_pid_stat(5).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:15] {
		var n int64
		_, err := fmt.Sscan(f, &n)
		r.ok(err)
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 for programs on every architecture that there is
}
