package faults

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// flowsOf are a pod of n1 at a Service's ClusterIPs and the client at its node port on n1, over one protocol and both
// families; datagrams come from one port. The client sends nothing when the node port is 0.
func (r *rig) flowsOf(proto lab.Proto, n int, nodePort uint16) map[string]flow {
	flows := map[string]flow{}
	for i, f := range cluster.Families {
		flows["ClusterIP, "+f.String()] = flowTo(r.p1.Namespace, proto, vip(f, n), webPort, uint16(5030+i), serviceRate)
		if nodePort != 0 {
			flows["node port, "+f.String()] = flowTo(r.c.Namespace, proto, r.n1.Addr(f), nodePort, uint16(5030+i), serviceRate)
		}
	}
	return flows
}

// leaves waits until a pod has not answered any flow for half a second of attempts, and returns for how long after a time
// it still did.
func (t *traffic) leaves(pod *lab.Pod, since time.Time) time.Duration {
	t.Helper()
	last := func() (at time.Time) {
		for _, p := range t.probers {
			if l := p.Report().Last[pod.Name]; l.After(at) {
				at = l
			}
		}
		return at
	}
	t.eventually(lookBound, func() error {
		if quiet := time.Since(last()); quiet < 500*time.Millisecond {
			return fmt.Errorf("%s has answered %v ago", pod.Name, quiet)
		}
		return nil
	})
	return max(0, last().Sub(since))
}

// Fault 33: a UDP client that never changes its port. Its datagrams leave an endpoint that goes, are refused when the last one
// goes and when the Service does, and go to the next one.
func TestFault33SamePort(t *testing.T) {
	onBackends(t, func(r *rig) {
		steady := r.flow(r.serviceFlows())
		udp := service("udp", 20, 30090)
		r.put(udp, lab.Ready(r.p2))
		r.write()
		r.eventually(eventBound, func() error { return r.serves(20, r.p2) })
		flows := r.flow(r.flowsOf(lab.UDP, 20, 30090))
		for _, c := range []struct {
			what   string
			change func()
			gone   *lab.Pod
			now    []*lab.Pod
		}{
			{"endpoint removed", func() { r.put(udp, lab.Ready(r.p3)) }, r.p2, []*lab.Pod{r.p3}},
			{"last endpoint removed", func() { r.put(udp) }, r.p3, nil},
			{"endpoint back", func() { r.put(udp, lab.Ready(r.p2)) }, nil, []*lab.Pod{r.p2}},
			{"Service deleted", func() { r.cluster.RemoveService(udp); r.cluster.RemoveEndpoints(udp) }, r.p2, nil},
		} {
			began := time.Now()
			c.change()
			r.write()
			r.eventually(eventBound, func() error { return r.serves(20, c.now...) })
			if c.gone != nil {
				r.measured(c.what+", "+c.gone.Name+" gets nothing more", flows.leaves(c.gone, began), time.Second)
			}
			for _, p := range c.now {
				r.eventually(eventBound, func() error {
					for name, prober := range flows.probers {
						if !prober.Report().Last[p.Name].After(began) {
							return fmt.Errorf("%s: %s has not answered since", name, p.Name)
						}
					}
					return nil
				})
			}
		}
		for name, prober := range flows.probers {
			r.Logf("%s: %s", name, prober.Stop())
		}
		steady.stop()
	})
}

// Fault 34: the agent is restarted while UDP flows run. It deletes none of them from conntrack.
func TestFault34RestartWithFlows(t *testing.T) {
	onBackends(t, func(r *rig) {
		flows := r.flow(r.serviceFlows())
		watch, err := r.n1.Start(lab.Command{Path: "conntrack", Args: []string{"-E", "-e", "DESTROY", "-p", "udp", "-o", "timestamp"}})
		r.ok(err)
		// That deletions are seen is shown by one: of an entry of a flow that nobody needs any more.
		r.ok(r.p1.Ask(lab.Dial{Proto: lab.UDP, To: netip.AddrPortFrom(webIPs[0], webPort), From: netip.AddrPortFrom(netip.Addr{}, 5999)}).Expect(lab.OK))
		r.eventually(startBound, func() error {
			_, err := r.n1.Run("conntrack", "-D", "-p", "udp", "--orig-port-src", "5999")
			if strings.Contains(watch.Output(), "sport=5999") {
				return nil
			}
			if err == nil {
				err = errors.New("conntrack -E tells nothing")
			}
			r.p1.Ask(lab.Dial{Proto: lab.UDP, To: netip.AddrPortFrom(webIPs[0], webPort), From: netip.AddrPortFrom(netip.Addr{}, 5999)})
			return err
		})
		for range 3 {
			r.again(func(*lab.AgentOptions) {})
			r.wroteNothing(r.n1)
			for _, f := range cluster.Families {
				series := fmt.Sprintf(`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=%q}`, f)
				if n := r.metric(r.n1, series); n != 0 {
					r.Errorf("%s: %v entries deleted", f, n)
				}
			}
			flows.more(10)
		}
		r.ok(watch.Stop(startBound))
		for name, f := range flows.flows {
			if port := f.Dial.From.Port(); port != 0 && strings.Contains(watch.Output(), fmt.Sprintf("sport=%d ", port)) {
				r.Errorf("%s: its entry was deleted:\n%s", name, watch.Output())
			}
		}
		flows.stop()
	})
}

// Fault 35: an endpoint comes and goes a hundred times a second. The agent follows in batches, its share of the processor stays
// bounded, and in the end everything is exact.
func TestFault35EndpointFlaps(t *testing.T) {
	onBackends(t, func(r *rig) {
		flapping := service("flaps", 20, 30090)
		r.put(flapping, lab.Ready(r.p2))
		r.write()
		r.eventually(eventBound, func() error { return r.serves(20, r.p2) })
		flows := r.flow(r.serviceFlows())
		one := r.flow(r.flowsOf(lab.TCP, 20, 30090))
		agent := r.agents["n1"]
		spent, wrote, began := r.cpu(agent.Process), r.writes(), time.Now()
		flaps := 0
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for d := lasts(10*time.Minute, 8*time.Second); time.Since(began) < d; flaps++ {
			endpoints := []lab.Endpoint{lab.Ready(r.p2), lab.Ready(r.p3)}
			r.put(flapping, endpoints[:1+flaps%2]...)
			r.write()
			<-tick.C
		}
		took, wrote, spent := time.Since(began), r.writes()-wrote, r.cpu(agent.Process)-spent
		ended := time.Now()
		r.put(flapping, lab.Ready(r.p3))
		r.write()
		r.comes("since the last change", ended, time.Second, func() error { return r.serves(20, r.p3) })
		r.Logf("%d changes in %.1f s: %v writes of either family, %.2f CPU s, %.0f %% of a core", flaps, took.Seconds(), wrote, spent.Seconds(),
			100*spent.Seconds()/took.Seconds())
		if most := float64(flaps) / 2; wrote > most {
			r.Errorf("%v writes for %d changes, want batches", wrote, flaps)
		}
		one.stop() // p2 and p3 are there all the time, whoever is named
		flows.stop()
		r.exactly()
	})
}

// writes counts how often n1's agent has written rules, of either family.
func (r *rig) writes() (n float64) {
	r.Helper()
	for _, f := range cluster.Families {
		n += r.metric(r.n1, fmt.Sprintf(`fairway_sync_writes_total{part="rules-%s"}`, f))
	}
	return n
}

// Fault 36: with externalTrafficPolicy Local, the last pod of the node terminates: it serves until it is gone. Then what comes
// from outside is dropped, and the health check says so to the load balancer, from the moment the pod terminates.
func TestFault36LastLocalPodTerminates(t *testing.T) {
	onBackends(t, func(r *rig) {
		const healthPort = 30999
		local := service("local", 20, 30090)
		local.Spec.Type = corev1.ServiceTypeLoadBalancer
		local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		local.Spec.HealthCheckNodePort = healthPort
		health := func(want int) func() error {
			return func() error {
				url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(r.n1.Addr(cluster.IPv4), healthPort))
				code, body, err := r.c.Get(url, time.Second)
				if err == nil && code != want {
					err = fmt.Errorf("health check: %d %s, want %d", code, body, want)
				}
				return err
			}
		}
		dial := to(lab.TCP, r.n1.Addr(cluster.IPv4), 30090)
		r.put(local, lab.Ready(r.p2), lab.Ready(r.p3))
		r.write()
		r.eventually(eventBound, func() error { return errors.Join(answers(r.c.Namespace, dial, r.p2), health(http.StatusOK)()) })
		flows := r.flow(r.serviceFlows())
		one := r.flow(r.flowsOf(lab.TCP, 20, 30090))

		began := time.Now()
		r.put(local, lab.Terminating(r.p2), lab.Ready(r.p3))
		r.write()
		r.comes("terminating: the health check says so", began, time.Second, health(http.StatusServiceUnavailable))
		one.more(50)
		if err := lab.Eventually(eventBound, func() error { return answers(r.c.Namespace, dial, r.p2) }); err != nil {
			r.Errorf("the terminating pod serves, and should have the node port: %v", err)
		}
		one.stop()

		began = time.Now()
		r.put(local, lab.Ready(r.p3))
		r.write()
		r.comes("gone: nothing is answered at the node port", began, time.Second, func() error { return r.c.Ask(dial).Expect(lab.Timeout) })
		r.eventually(eventBound, health(http.StatusServiceUnavailable))
		r.eventually(eventBound, func() error { return r.serves(20, r.p3) })
		flows.stop()
	})
}

// Fault 38: the endpoint that clients with affinity have becomes unready. Each one's next connection goes to another, and stays there.
func TestFault38AffinityEndpointUnready(t *testing.T) {
	onBackends(t, func(r *rig) {
		sticky := service("sticky", 20, 30090)
		sticky.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		r.put(sticky, lab.Ready(r.p2), lab.Ready(r.p3))
		r.write()
		dial := to(lab.TCP, vip(cluster.IPv4, 20), webPort)
		var had lab.Result
		r.eventually(eventBound, func() error {
			had = r.p1.Ask(dial)
			return had.Expect(lab.OK)
		})
		flows := r.flow(r.serviceFlows())
		one := r.flow(r.flowsOf(lab.TCP, 20, 30090))
		old, other := r.p2, r.p3
		if had.Name == r.p3.Name {
			old, other = other, old
		}
		one.more(20)
		for name, f := range map[string]flow{"ClusterIP, IPv4": one.flows["ClusterIP, IPv4"]} {
			if names := one.probers[name].Report().Names; len(names) != 1 {
				r.Errorf("%s to %s: %v have answered, want one of them", name, f.Dial.To, names)
			}
		}
		began := time.Now()
		r.put(sticky, lab.NotReady(old), lab.Ready(other))
		r.write()
		r.measured("the unready endpoint gets nothing more", one.leaves(old, began), time.Second)
		began = time.Now()
		r.put(sticky, lab.Ready(r.p2), lab.Ready(r.p3)) // both are ready again: who moved stays
		r.write()
		r.eventually(eventBound, func() error { return r.programmedSince(began) })
		one.more(20)
		if last := one.probers["ClusterIP, IPv4"].Report().Last[old.Name]; last.After(began) {
			r.Errorf("a client that moved to %s is back at %s", other.Name, old.Name)
		}
		one.stop()
		flows.stop()
	})
}

// programmedSince is nil when n1's agent has written rules of both families after a time.
func (r *rig) programmedSince(t time.Time) error {
	r.Helper()
	for _, f := range cluster.Families {
		at := r.metric(r.n1, fmt.Sprintf(`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=%q}`, f))
		if at <= float64(t.UnixNano())/1e9 {
			return fmt.Errorf("the %s rules were last written before", f)
		}
	}
	return nil
}
