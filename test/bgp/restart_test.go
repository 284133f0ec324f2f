package bgp

import (
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/test/lab"
)

func contains(text, part string) bool { return strings.Contains(text, part) }

// TestRestart: an agent is killed, or stopped, and started again. With graceful restart, whoever comes through the gateway
// notices nothing. Without, there is an outage; and a stopped agent says goodbye.
func TestRestart(t *testing.T) {
	for _, gw := range []struct {
		name  string
		start func(*testing.T, *lab.Namespace, string) *gateway
		block string
		// ceased is in the daemon's log when a peer said goodbye.
		ceased string
	}{
		{"BIRD", startBIRD, "bird", "Received: Peer de-configured"},
		{"FRR", startFRR, "frr", ""},
	} {
		for _, c := range []struct {
			name     string
			stop     func(*lab.Agent) error
			graceful bool
		}{
			{"killed", func(a *lab.Agent) error { a.Kill(); return nil }, true},
			{"stopped", func(a *lab.Agent) error { return a.Stop(startBound) }, true},
			{"killed without graceful restart", func(a *lab.Agent) error { a.Kill(); return nil }, false},
			{"stopped without graceful restart", func(a *lab.Agent) error { return a.Stop(startBound) }, false},
		} {
			t.Run(gw.name+" "+c.name, func(t *testing.T) {
				r := newRig(t)
				g := gw.start(t, r.lab.Router(), example(t, gw.block))
				configuration := example(t, "yaml")
				if !c.graceful {
					configuration = strings.ReplaceAll(configuration, "    asn: 64500\n", "    asn: 64500\n    gracefulRestart: {enabled: false}\n")
				}
				r.start(configuration, r.n1)
				r.eventually(sessionBound, func() error { return r.up(r.n1, 2) })
				var probes []*lab.Prober
				for _, a := range []lab.Dial{tcp(r.p1.Addrs[0], targetPort), tcp(r.p1.Addrs[1], targetPort), tcp(localIP, webPort)} {
					r.eventually(sessionBound, func() error { return r.reaches(a.To.Addr(), a.To.Port(), "p1") })
					a.Timeout = time.Second
					p, err := r.outside.Probe(lab.ProbeConfig{Dial: a, Rate: 100})
					r.ok(err)
					probes = append(probes, p)
				}
				for range 2 {
					r.ok(c.stop(r.agents[r.n1]))
					time.Sleep(2 * time.Second)
					r.restart(r.n1)
					r.eventually(sessionBound, func() error { return r.up(r.n1, 2) })
					for _, a := range r.p1.Addrs {
						r.eventually(sessionBound, func() error { return r.reaches(a, targetPort, "p1") })
					}
					time.Sleep(3 * time.Second) // past the time for which updates are held back
				}
				for _, p := range probes {
					report := p.Stop()
					t.Log(report)
					if c.graceful != (report.Failed() == 0) {
						t.Errorf("graceful restart: %v, but %s", c.graceful, report)
					}
				}
				if said := contains(g.procs[0].Output(), gw.ceased); gw.ceased != "" && said != (!c.graceful && strings.HasPrefix(c.name, "stopped")) {
					t.Errorf("the gateway was told goodbye: %v", said)
				}
			})
		}
	}
}
