package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/doctor"
	"github.com/fairway-net/fairway/test/lab"
)

// examined is what fairway doctor says on a node, and its exit code.
type examined struct {
	doctor.Report
	code int
	text string
}

// doctor runs fairway doctor on a node as an operator would, once for people and once for programs.
func (r *rig) doctor(n *lab.Node) examined {
	r.Helper()
	binary, err := lab.AgentBinary()
	r.ok(err)
	run := func(format string) (string, int) {
		out, err := n.Run("sh", "-c", fmt.Sprintf("%s doctor -o %s --control-socket=%s 2>/dev/null", binary, format, n.ControlSocket()))
		code := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code, err = exit.ExitCode(), nil
		}
		r.ok(err)
		return out, code
	}
	var e examined
	e.text, _ = run("text")
	var out string
	out, e.code = run("json")
	if err := json.Unmarshal([]byte(out), &e.Report); err != nil {
		r.Fatalf("%v in %s", err, out)
	}
	return e
}

// found is an error unless the doctor has a finding of a check and level that says all of the words.
func (e examined) found(l doctor.Level, name string, words ...string) error {
	if slices.ContainsFunc(e.Findings, func(f doctor.Finding) bool {
		return f.Level == l && f.Name == name && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(f.Saw+"\n"+f.Do, w) })
	}) {
		return nil
	}
	return fmt.Errorf("no finding %s %s with %q:\n%s", l, name, words, e.text)
}

// getsWell waits until the doctor finds nothing wrong on a node: what the agent has just done, it may not have reported yet.
func (r *rig) getsWell(n *lab.Node) {
	r.Helper()
	r.eventually(lookBound, func() error {
		if e := r.doctor(n); e.code != 0 {
			return fmt.Errorf("exit code %d:\n%s", e.code, e.text)
		}
		return nil
	})
}

// state is all that fairway doctor must not change: rules, routes, links and sysctls of a node. What ip complains of is another lab that has
// just gone.
func (r *rig) state(n *lab.Node) string {
	r.Helper()
	out, err := n.Run("sh", "-c", `nft -s list ruleset; (iptables-legacy-save; ip6tables-legacy-save) | grep -v -e '^#' -e '^:'
cat /proc/net/ip_tables_names /proc/net/ip6_tables_names
ip -o link 2>/dev/null; ip -o addr 2>/dev/null; ip route show table all; ip -6 route show table all; ip rule
sysctl -a 2>/dev/null | grep -e '^net' | grep -v -e nf_conntrack_count -e net.netfilter.nf_log`)
	r.ok(err)
	return out
}

// TestDoctor: on a node that is all right, the doctor says so, and changes nothing.
func TestDoctor(t *testing.T) {
	onBackends(t, func(r *rig) {
		before := r.state(r.n1)
		var e examined
		r.eventually(lookBound, func() error {
			if e = r.doctor(r.n1); e.code != 0 || slices.ContainsFunc(e.Findings, func(f doctor.Finding) bool { return f.Level != doctor.OK }) {
				return fmt.Errorf("exit code %d:\n%s", e.code, e.text)
			}
			return nil
		})
		r.same("the node's state", before, r.state(r.n1))
		if e.Node != "n1" || !strings.HasSuffix(e.text, "\nall right\n") {
			r.Errorf("node %q:\n%s", e.Node, e.text)
		}
	})
}

// TestDoctorWithoutAgent: an agent that has stopped, or hangs, leaves the doctor unsure.
func TestDoctorWithoutAgent(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	r.ok(r.agents["n1"].Signal(unix.SIGSTOP))
	e := r.doctor(r.n1)
	r.ok(e.found(doctor.Unknown, "agent", "has not answered within"))
	r.ok(r.agents["n1"].Signal(unix.SIGCONT))
	r.ok(r.agents["n1"].Stop(startBound))
	e = r.doctor(r.n1)
	r.ok(e.found(doctor.Unknown, "agent", "no agent answers"))
	if e.code != 2 {
		t.Errorf("exit code %d:\n%s", e.code, e.text)
	}
	r.iptables(cluster.IPv4, "-I", "FORWARD", "-p", "udp", "--sport", "5995", "-j", "REJECT")
	if e = r.doctor(r.n1); e.code != 1 {
		t.Errorf("with a foreign rule: exit code %d:\n%s", e.code, e.text)
	}
	r.ok(e.found(doctor.Fail, "foreign-rules", "--sport 5995"))
}

// sysctl sets one on a node.
func (r *rig) sysctl(n *lab.Node, setting string) {
	r.Helper()
	_, err := n.Run("sysctl", "-q", "-w", setting)
	r.ok(err)
}

// TestDoctorForward: what keeps pods' packets from being forwarded is named, in the backend of the agent and in the other; and what the
// doctor says to do helps.
func TestDoctorForward(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	pods := to(lab.TCP, r.p3.Addr(cluster.IPv4), targetPort)
	for _, backend := range lab.Backends {
		tool := lab.Tool(backend, cluster.IPv4, "")
		run := func(args ...string) {
			_, err := r.n1.Run(tool, append([]string{"-w", "5"}, args...)...)
			r.ok(err)
		}
		run("-P", "FORWARD", "DROP")
		r.ok(r.p1.Ask(pods).Expect(lab.Timeout))
		e := r.doctor(r.n1)
		r.ok(e.found(doctor.Fail, "forward", "IPv4 filter FORWARD of iptables-"+string(backend), "policy is DROP", tool+" -A FORWARD -s 10.200.0.0/13 -j ACCEPT"))
		if e.code != 1 {
			t.Errorf("exit code %d", e.code)
		}
		run("-A", "FORWARD", "-s", "10.200.0.0/13", "-j", "ACCEPT")
		run("-A", "FORWARD", "-d", "10.200.0.0/13", "-j", "ACCEPT")
		r.ok(r.p1.Ask(pods).Expect(lab.OK))
		r.ok(r.doctor(r.n1).found(doctor.OK, "forward", "has the policy DROP", "are accepted"))
		r.getsWell(r.n1)

		run("-I", "FORWARD", "-s", "10.200.1.0/24", "-j", "DROP")
		r.ok(r.p1.Ask(pods).Expect(lab.Timeout))
		e = r.doctor(r.n1)
		r.ok(e.found(doctor.Fail, "forward", `"-A FORWARD -s 10.200.1.0/24 -j DROP" drops or rejects`, tool+" -t filter -D FORWARD -s 10.200.1.0/24 -j DROP"))
		run("-D", "FORWARD", "-s", "10.200.1.0/24", "-j", "DROP")
		run("-P", "FORWARD", "ACCEPT")
	}
	// A rule that the doctor doesn't understand is no reason to guess.
	r.iptables(cluster.IPv4, "-I", "FORWARD", "-m", "limit", "--limit", "5/sec", "-j", "DROP")
	r.iptables(cluster.IPv4, "-P", "FORWARD", "DROP")
	r.ok(r.doctor(r.n1).found(doctor.Warn, "forward", "can't be told", "--limit"))
}

// TestDoctorOtherProxies: what another proxy has left is named.
func TestDoctorOtherProxies(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	_, err := r.n1.Run("iptables-legacy", "-t", "nat", "-N", "KUBE-SERVICES")
	r.ok(err)
	_, err = r.n1.Run("nft", "add", "table", "ip6", "kube-proxy")
	r.ok(err)
	e := r.doctor(r.n1)
	r.ok(e.found(doctor.Warn, "other-backend", "1 IPv4 chains of Services in iptables-legacy", "nat KUBE-SERVICES", "fairway takeover --plan"))
	r.ok(e.found(doctor.Warn, "other-backend", "the nftables table ip6 kube-proxy"))
	r.getsWell(r.n1)
}

// TestDoctorSysctls: settings are only named where they hurt, and then they do.
func TestDoctorSysctls(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	r.put(service("near", 30, 0), lab.Ready(r.p2))
	r.write()
	r.eventually(eventBound, func() error { return r.serves(30, r.p2) })
	near := func(f cluster.Family) lab.Dial { return to(lab.TCP, vip(f, 30), webPort) }
	for f, setting := range map[cluster.Family]string{cluster.IPv4: "net.bridge.bridge-nf-call-iptables", cluster.IPv6: "net.bridge.bridge-nf-call-ip6tables"} {
		r.ok(r.p1.Ask(near(f)).Expect(lab.OK))
		r.sysctl(r.n1, setting+"=0")
		if err := r.p1.Ask(near(f)).Expect(lab.OK); err == nil {
			t.Errorf("%s=0 does not hurt", setting)
		}
		e := r.doctor(r.n1)
		r.ok(e.found(doctor.Fail, "sysctls", strings.ReplaceAll(setting, ".", "/")+" is 0", "cni0", "sysctl -w "+setting+"=1"))
		r.sysctl(r.n1, setting+"=1")
		r.ok(r.p1.Ask(near(f)).Expect(lab.OK))
		r.getsWell(r.n1)
	}

	// A strict filter alone is none of the doctor's business; what it drops is: what comes in by the node's link from
	// where answers would go by another.
	r.sysctl(r.n1, "net.ipv4.conf.eth0.rp_filter=1")
	r.ok(r.doctor(r.n1).found(doctor.OK, "sysctls"))
	r.ip(r.n1, "route add 10.99.0.0/24 dev cni0")
	r.ip(r.n2, "addr add 10.99.0.77/32 dev lo")
	// Its ARP request would not be answered either.
	mac, err := r.n1.Run("sh", "-c", "ip -o link show dev eth0 | sed 's/.*link.ether \\([^ ]*\\).*/\\1/'")
	r.ok(err)
	r.ip(r.n2, "neigh replace 10.240.0.11 dev eth0 lladdr "+strings.TrimSpace(mac))
	spoofed := to(lab.UDP, r.p1.Addr(cluster.IPv4), targetPort)
	spoofed.From = netip.MustParseAddrPort("10.99.0.77:0")
	if err := r.n2.Ask(spoofed).Expect(lab.Timeout); err != nil {
		t.Error(err)
	}
	r.ok(r.doctor(r.n1).found(doctor.Warn, "sysctls", "reverse path filter has dropped", "eth0"))
}

// TestDoctorRepairs: what others did and the agent put right is told with its kind and, where the kernel tells, with who did it.
func TestDoctorRepairs(t *testing.T) {
	onBackends(t, func(r *rig) {
		r.iptables(cluster.IPv4, append([]string{"-t", "nat", "-D"}, r.firstRule(cluster.IPv4, "nat", "PREROUTING ")...)...)
		r.ip(r.n1, "route del 10.200.2.0/24 proto 102")
		rules := []string{"rules-IPv4, jump-missing: 1 change put right, once"}
		if r.backend == lab.NFT {
			rules = append(rules, "changed by pid", "find what runs pid")
		}
		r.eventually(lookBound, func() error {
			e := r.doctor(r.n1)
			return errors.Join(e.found(doctor.Warn, "repairs", rules...), e.found(doctor.Warn, "repairs", "routes, routes: 1 change put right, once", "ip monitor route"))
		})
		r.getsWell(r.n1)
	})
}
