package faults

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// The flows that run through every test, all from the pod p1 on n1. The UDP ones come from one port each.
const (
	podTCP     = "pod on n2, TCP"
	podTCP6    = "pod on n2, TCP over IPv6"
	podUDP     = "pod on n2, UDP"
	serviceTCP = "service, TCP"
	serviceUDP = "service, UDP"
	otherTCP   = "pod on n3, TCP"

	// nobody stands for no flow at all.
	nobody = ""
)

// attemptTimeout is shorter than TCP's first retransmission, after one second: a lost packet is a failed attempt.
const attemptTimeout = 900 * time.Millisecond

// flows are what is asked, with the rate of each.
func (r *rig) flows() map[string]lab.ProbeConfig {
	flow := func(proto lab.Proto, to netip.Addr, toPort, from uint16, rate int) lab.ProbeConfig {
		d := lab.Dial{Proto: proto, To: netip.AddrPortFrom(to, toPort), Timeout: attemptTimeout}
		if from != 0 {
			d.From = netip.AddrPortFrom(netip.Addr{}, from)
		}
		return lab.ProbeConfig{Dial: d, Rate: rate}
	}
	return map[string]lab.ProbeConfig{
		podTCP:     flow(lab.TCP, r.p3.Addr(cluster.IPv4), targetPort, 0, 200),
		podTCP6:    flow(lab.TCP, r.p3.Addr(cluster.IPv6), targetPort, 0, 100),
		podUDP:     flow(lab.UDP, r.p3.Addr(cluster.IPv4), targetPort, 5001, 200),
		serviceTCP: flow(lab.TCP, webIPs[0], webPort, 0, 200),
		serviceUDP: flow(lab.UDP, webIPs[0], webPort, 5002, 200),
		otherTCP:   flow(lab.TCP, r.p4.Addr(cluster.IPv4), targetPort, 0, 100),
	}
}

// A traffic is the running flows.
type traffic struct {
	*rig
	probers map[string]*lab.Prober
}

// traffic starts all flows, when each has had its first answer.
func (r *rig) traffic() *traffic {
	r.Helper()
	t := &traffic{r, map[string]*lab.Prober{}}
	for name, config := range r.flows() {
		first := config.Dial
		first.From = netip.AddrPort{}
		r.eventually(startBound, func() error { return r.p1.Ask(first).Expect(lab.OK) })
		p, err := r.p1.Probe(config)
		r.ok(err)
		t.probers[name] = p
	}
	t.more(1)
	return t
}

// more waits until every flow has had another number of attempts.
func (t *traffic) more(attempts int) {
	t.Helper()
	want := map[string]int{}
	for name, p := range t.probers {
		want[name] = p.Report().Attempts + attempts
	}
	for name, p := range t.probers {
		t.eventually(startBound, func() error {
			if have := p.Report().Attempts; have < want[name] {
				return fmt.Errorf("%s: %d attempts, expected %d by now", name, have, want[name])
			}
			return nil
		})
	}
}

// stop ends the flows, not without a hundred attempts after what was done last, prints what each saw, and fails the test
// when one of the named ones had a failed attempt; any of them when none is named.
func (t *traffic) stop(unharmed ...string) {
	t.Helper()
	t.more(100)
	names := []string{podTCP, podTCP6, podUDP, serviceTCP, serviceUDP, otherTCP}
	if len(unharmed) == 0 {
		unharmed = names
	}
	for _, name := range names {
		report := t.probers[name].Stop()
		t.Logf("%-24s %s", name+":", report)
		if report.Failed() > 0 && slices.Contains(unharmed, name) {
			t.Errorf("%s: %d of %d attempts failed, want none", name, report.Failed(), report.Attempts)
		}
		if report.Attempts == report.Failed() {
			t.Errorf("%s: no attempt of %d had an answer", name, report.Attempts)
		}
	}
}

// works fails the test when a flow does not work (any more).
func (t *traffic) works(names ...string) {
	t.Helper()
	for _, name := range names {
		d := t.flows()[name].Dial
		d.From = netip.AddrPort{}
		t.eventually(eventBound, func() error { return t.p1.Ask(d).Expect(lab.OK) })
	}
}
