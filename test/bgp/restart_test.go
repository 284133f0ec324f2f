package bgp

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// TestRestart: an agent is killed, or stopped, and started again; or its BGP process is, which the agent does itself, the second time after a
// pause. With graceful restart, whoever comes through the gateway
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
			goesOn   bool
		}{
			{"killed", func(a *lab.Agent) error { a.Kill(); return nil }, true, false},
			{"stopped", func(a *lab.Agent) error { return a.Stop(startBound) }, true, false},
			{"killed without graceful restart", func(a *lab.Agent) error { a.Kill(); return nil }, false, false},
			{"stopped without graceful restart", func(a *lab.Agent) error { return a.Stop(startBound) }, false, false},
			{"without its BGP process", (*lab.Agent).KillBGP, true, true},
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
				probes := r.reaching()
				for range 2 {
					r.ok(c.stop(r.agents[r.n1]))
					time.Sleep(2 * time.Second)
					if !c.goesOn {
						r.restart(r.n1)
					}
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
				if said := strings.Contains(g.procs[0].Output(), gw.ceased); gw.ceased != "" && said != (!c.graceful && strings.HasPrefix(c.name, "stopped")) {
					t.Errorf("the gateway was told goodbye: %v", said)
				}
			})
		}
	}
}

// TestRestartWithTwoGateways: an agent with two gateways is killed and started again; neither drops a route meanwhile.
func TestRestartWithTwoGateways(t *testing.T) {
	r := newRig(t)
	config := `
log stderr all;
router id %s;
protocol device { }
protocol kernel { ipv4 { export all; }; }
protocol bgp node1 { local as 64500; neighbor 192.0.2.11 as 64512; ipv4 { import all; export none; }; }
`
	gw2 := r.lab.Client("gw2")
	startBIRD(t, r.lab.Router(), strings.Replace(config, "%s", "192.0.2.1", 1))
	startBIRD(t, gw2.Namespace, strings.Replace(config, "%s", "192.0.2.2", 1))
	r.start("bgp: {asn: 64512, peers: [{address: 192.0.2.1, asn: 64500}, {address: 192.0.2.2, asn: 64500}]}", r.n1)
	r.eventually(sessionBound, func() error { return r.up(r.n1, 2) })
	monitors := map[string]*lab.Process{}
	gateways := map[string]*lab.Namespace{"the first gateway": r.lab.Router(), "the second gateway": gw2.Namespace}
	for name, ns := range gateways {
		r.eventually(sessionBound, func() error { return kernelHas(ns, cluster.IPv4, "10.244.1.0/24 via 192.0.2.11") })
		m, err := ns.Start(lab.Command{Path: "ip", Args: []string{"monitor", "route"}})
		r.ok(err)
		monitors[name] = m
	}
	for range 3 {
		r.agents[r.n1].Kill()
		time.Sleep(time.Second)
		r.restart(r.n1)
		r.eventually(sessionBound, func() error { return r.up(r.n1, 2) })
		time.Sleep(2 * time.Second) // past the time for which updates are held back
	}
	for name, m := range monitors {
		if out := m.Output(); strings.Contains(out, "Deleted") {
			t.Errorf("%s dropped a route:\n%s", name, out)
		}
		_, err := gateways[name].Run("ip", "route", "del", "10.244.1.0/24") // which the monitor must see
		r.ok(err)
		r.eventually(startBound, func() error {
			if !strings.Contains(m.Output(), "Deleted 10.244.1.0/24") {
				return fmt.Errorf("%s: ip monitor saw nothing: %s", name, m.Output())
			}
			return nil
		})
	}
}
