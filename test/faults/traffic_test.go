package faults

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/measured"
)

// The flows that run through the tests of routes and restarts, all from the pod p1 on n1. The UDP ones come from one port each.
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

// lastAttempts is how often a flow is tried after what was done last.
const lastAttempts = 50

// attemptTimeout is when a datagram without an answer counts as lost. A lost packet of TCP is known from its being sent again: time
// alone would not tell it from a busy machine.
const attemptTimeout = 10 * time.Second

// A flow is what somebody asks all the time.
type flow struct {
	from *lab.Namespace
	lab.ProbeConfig
}

// flowTo is a flow at a rate; its datagrams come from one port.
func flowTo(from *lab.Namespace, proto lab.Proto, to netip.Addr, toPort, fromPort uint16, rate int) flow {
	d := lab.Dial{Proto: proto, To: netip.AddrPortFrom(to, toPort), Timeout: attemptTimeout}
	if proto == lab.UDP {
		d.From = netip.AddrPortFrom(netip.Addr{}, fromPort)
	}
	return flow{from, lab.ProbeConfig{Dial: d, Rate: rate, NoRepeats: true}}
}

// podFlows are the flows of the tests of routes and restarts.
func (r *rig) podFlows() map[string]flow {
	from := r.p1.Namespace
	return map[string]flow{
		podTCP:     flowTo(from, lab.TCP, r.p3.Addr(cluster.IPv4), targetPort, 0, 200),
		podTCP6:    flowTo(from, lab.TCP, r.p3.Addr(cluster.IPv6), targetPort, 0, 100),
		podUDP:     flowTo(from, lab.UDP, r.p3.Addr(cluster.IPv4), targetPort, 5001, 200),
		serviceTCP: flowTo(from, lab.TCP, webIPs[0], webPort, 0, 200),
		serviceUDP: flowTo(from, lab.UDP, webIPs[0], webPort, 5002, 200),
		otherTCP:   flowTo(from, lab.TCP, r.p4.Addr(cluster.IPv4), targetPort, 0, 100),
	}
}

// A traffic is the running flows.
type traffic struct {
	*rig
	flows   map[string]flow
	probers map[string]*lab.Prober
}

// traffic starts the flows of the tests of routes and restarts.
func (r *rig) traffic() *traffic {
	r.Helper()
	return r.flow(r.podFlows())
}

// flow starts flows, when each has had its first answer.
func (r *rig) flow(flows map[string]flow) *traffic {
	r.Helper()
	t := &traffic{r, flows, map[string]*lab.Prober{}}
	for name, f := range flows {
		first := f.Dial
		first.From = netip.AddrPort{}
		r.eventually(startBound, func() error { return f.from.Ask(first).Expect(lab.OK) })
		p, err := f.from.Probe(f.ProbeConfig)
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

// stop ends the flows, not without some attempts after what was done last, prints what each saw, and fails the test
// when one of the named ones had a failed attempt; any of them when none is named.
func (t *traffic) stop(unharmed ...string) map[string]lab.Report {
	t.Helper()
	t.more(lastAttempts)
	reports := map[string]lab.Report{}
	for _, name := range slices.Sorted(maps.Keys(t.probers)) {
		report := t.probers[name].Stop()
		reports[name] = report
		t.Logf("%-28s %s", name+":", report)
		if report.Failed() > 0 && (len(unharmed) == 0 || slices.Contains(unharmed, name)) {
			t.Errorf("%s: %d of %d attempts failed, want none", name, report.Failed(), report.Attempts)
		}
		if report.Attempts == report.Failed() {
			t.Errorf("%s: no attempt of %d had an answer", name, report.Attempts)
		}
		measured.Flow(t.T, report.Failed(), report.Attempts, report.LongestOutage)
	}
	return reports
}

// works fails the test when a flow does not work (any more).
func (t *traffic) works(names ...string) {
	t.Helper()
	for _, name := range names {
		f := t.flows[name]
		d := f.Dial
		d.From = netip.AddrPort{}
		t.eventually(eventBound, func() error { return f.from.Ask(d).Expect(lab.OK) })
	}
}
