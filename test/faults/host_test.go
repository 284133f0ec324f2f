package faults

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// other is the other kind of iptables.
func other(b lab.Backend) lab.Backend {
	if b == lab.NFT {
		return lab.Legacy
	}
	return lab.NFT
}

// Fault 12: the same chains are in the other kind of iptables. Services work, the operator is told and has the command that
// removes them, and it harms nobody.
func TestFault12OtherBackend(t *testing.T) {
	onBackends(t, func(r *rig) {
		r.again(func(o *lab.AgentOptions) { o.Backend = other(r.backend) })
		left := r.agents["n1"]
		r.ok(left.Stop(startBound))
		flows := r.flow(r.serviceFlows())
		o := left.Options
		o.Backend = r.backend
		r.start(r.n1, o)
		r.ready(r.n1)
		warning := fmt.Sprintf("iptables-%s holds ", other(r.backend))
		if said := r.agents["n1"].Output(); !strings.Contains(said, warning) || !strings.Contains(said, "remove them by fairway takeover") {
			r.Errorf("the agent does not warn of the rules in iptables-%s", other(r.backend))
		}
		began := time.Now()
		r.put(service("new", 20, 0), lab.Ready(r.p2))
		r.write()
		r.measured("a new Service beside them", r.took(began, func() error { return r.serves(20, r.p2) }), time.Second)
		r.ready(r.n1)
		bin, err := lab.AgentBinary()
		r.ok(err)
		_, err = r.n1.Run(bin, "takeover", "--iptables-backend", string(r.backend))
		r.ok(err)
		for _, f := range cluster.Families {
			text, err := r.n1.Save(other(r.backend), f, "")
			r.ok(err)
			if strings.Contains(text, "KUBE-SVC") {
				r.Errorf("takeover has left:\n%s", text)
			}
		}
		flows.stop()
		r.exactly()
	})
}

// took waits until a condition holds and returns how long after a time that was.
func (r *rig) took(since time.Time, condition func() error) time.Duration {
	r.Helper()
	r.eventually(lookBound, condition)
	return time.Since(since)
}

// Fault 15: the node's IPv6 is turned off (disable_ipv6) when the agent starts. IPv4 has everything, and the agent is ready. When IPv6
// comes back with its addresses, it has everything as well.
func TestFault15WithoutIPv6(t *testing.T) {
	onBackends(t, func(r *rig) {
		agent := r.agents["n1"]
		r.ok(agent.Stop(startBound))
		bin, err := lab.AgentBinary()
		r.ok(err)
		_, err = r.n1.Run(bin, "cleanup")
		r.ok(err)
		addrs, err := exec.Command("ip", "-n", r.n1.NetNS(), "-o", "-6", "addr", "show", "scope", "global").Output()
		r.ok(err)
		routes, err := exec.Command("ip", "-n", r.n1.NetNS(), "-6", "route", "show", "default").Output()
		r.ok(err)
		r.ok(r.n1.Sysctl("net.ipv6.conf.all.disable_ipv6", "1"))
		r.start(r.n1, agent.Options)
		r.ready(r.n1)
		all := r.serviceFlows()
		flows := map[string]flow{}
		for _, name := range inFamily(all, cluster.IPv4) {
			flows[name] = all[name]
		}
		v4 := r.flow(flows)
		r.eventually(eventBound, func() error {
			return r.said(r.n1, 0, note{"Node n2", cluster.ReasonNextHopUnreachable, "fd00:240::12"})
		})
		v4.more(50)
		if n := r.failures() + r.metric(r.n1, `fairway_sync_errors_total{part="routes"}`); n != 0 {
			r.Errorf("%v Syncs failed: there is nothing wrong with a node without IPv6", n)
		}

		began := time.Now()
		r.ok(r.n1.Sysctl("net.ipv6.conf.all.disable_ipv6", "0"))
		// Whoever set the addresses has to set them again: "2: eth0    inet6 fd00:240::11/64 scope global …".
		for line := range strings.Lines(string(addrs)) {
			f := strings.Fields(line)
			r.ip(r.n1, fmt.Sprintf("addr add %s dev %s nodad", f[3], f[1]))
		}
		for line := range strings.Lines(string(routes)) {
			f := strings.Fields(line)
			r.ip(r.n1, fmt.Sprintf("-6 route replace default via %s", f[2]))
		}
		r.measured("IPv6 is back", r.took(began, func() error {
			return errors.Join(
				answers(r.p1.Namespace, to(lab.TCP, webIPs[1], webPort), r.p2, r.p3),
				answers(r.c.Namespace, to(lab.TCP, r.n1.Addr(cluster.IPv6), webNodePort), r.p2, r.p3))
		}), 2*time.Second)
		v4.stop()
		r.exactly()
	})
}

// Fault 37: a node port is also the port of a program on the node, or one that the node's own connections may get. Both are told, the
// Service has the port, and the node's own connections work. What was wrong is taken back when it is mended.
func TestFault37NodePortCollides(t *testing.T) {
	onBackends(t, func(r *rig) {
		const listened, ephemeral = 30095, 40000
		program, err := r.n1.Serve(lab.Server{Name: "program", Proto: lab.TCP, Port: listened})
		r.ok(err)
		r.again(func(o *lab.AgentOptions) { o.Flags = append(o.Flags, "--iptables-sync-period=2s") })
		flows := r.flow(r.serviceFlows())
		r.put(service("listened", 20, listened), lab.Ready(r.p2))
		r.put(service("ephemeral", 21, ephemeral), lab.Ready(r.p3))
		began := time.Now()
		r.write()
		listens := note{"Service default/listened", cluster.ReasonNodePortInUse, "30095/tcp"}
		taken := note{"Node n1", cluster.ReasonNodePortEphemeral, "40000/tcp (default/ephemeral:tcp), 40000/udp (default/ephemeral:udp)"}
		r.eventually(eventBound, func() error { return errors.Join(r.said(r.n1, 0, listens), r.said(r.n1, 0, taken)) })
		r.Logf("told after %d ms", time.Since(began).Milliseconds())
		for _, f := range cluster.Families {
			r.ok(answers(r.c.Namespace, to(lab.TCP, r.n1.Addr(f), listened), r.p2))
			// A connection of the node's own from the node port's number, and one from the node to it.
			own := to(lab.TCP, r.p4.Addr(f), targetPort)
			own.From = netip.AddrPortFrom(netip.Addr{}, ephemeral)
			r.ok(answers(r.n1.Namespace, own, r.p4))
			r.ok(answers(r.n1.Namespace, to(lab.TCP, r.n1.Addr(f), ephemeral), r.p3))
		}
		r.ok(program.Close())
		r.ok(r.n1.Sysctl("net.ipv4.ip_local_reserved_ports", fmt.Sprint(ephemeral)))
		r.eventually(lookBound, func() error { return errors.Join(r.quiet(r.n1, listens.reason), r.quiet(r.n1, taken.reason)) })
		flows.stop()
	})
}
