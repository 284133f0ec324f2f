package conformance_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// A Service that gains and loses its endpoints all the time is answered or refused, at a thousand connections a second over each family: nothing follows n1's
// default route, in no step from one state of filter and nat to the next. (With unknownServices: Reject, nothing in the service range would
// anyway.)
func TestNoGapBetweenFilterAndNAT(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := web(10)
		s.put(svc, lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: forwarding})
		astray, err := s.Router().Capture("eth0", func(p lab.Packet) bool {
			return p.Dst.Addr() == vip(cluster.IPv4, 10) || p.Dst.Addr() == vip(cluster.IPv6, 10)
		})
		ok(t, err)
		defer astray.Close()
		probers := map[cluster.Family]*lab.Prober{}
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p3"))
			d := tcp(vip(f, 10), 80)
			d.Timeout = 10 * time.Second
			p, err := s.p2.Probe(lab.ProbeConfig{Dial: d, Rate: 1000})
			ok(t, err)
			probers[f] = p
		})
		before := s.writes(t)
		for i := range 40 {
			if i%2 == 0 {
				s.put(svc, lab.NotReady(s.p3)) // an empty list would be looked at once more first
			} else {
				s.put(svc, lab.Ready(s.p3))
			}
			s.write(t)
			time.Sleep(100*time.Millisecond + rand.N(200*time.Millisecond))
		}
		ok(t, s.agent.WaitReady(soon))
		after := s.writes(t)
		for f, p := range probers {
			r := p.Stop()
			writes := after[part(f)] - before[part(f)]
			t.Logf("%s: %v writes, %v", f, writes, r)
			if writes < 10 || r.Names["p3"] == 0 || r.Failures[lab.Refused] == 0 || r.Names["p3"]+r.Failures[lab.Refused] != r.Attempts {
				t.Errorf("%s: %v writes, %d answers; %v; want many writes, and answers and refusals alone", f, writes, r.Names["p3"], r)
			}
		}
		if n := astray.Count(); n > 0 {
			t.Errorf("%d packets to the Service went to the router: %v", n, astray.Packets()[:min(n, 10)])
		}
	})
}
