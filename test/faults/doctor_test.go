package faults

import (
	"encoding/json"
	"errors"
	"fmt"
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

// well is an error unless the doctor finds nothing wrong.
func (e examined) well() error {
	if e.code != 0 {
		return fmt.Errorf("exit code %d:\n%s", e.code, e.text)
	}
	return nil
}

// state is all that fairway doctor must not change: rules, routes, links and sysctls of a node.
func (r *rig) state(n *lab.Node) string {
	r.Helper()
	out, err := n.Run("sh", "-c", `nft -s list ruleset; (iptables-legacy-save; ip6tables-legacy-save) | grep -v -e '^#' -e '^:'
cat /proc/net/ip_tables_names /proc/net/ip6_tables_names
ip -o link; ip -o addr; ip route show table all; ip -6 route show table all; ip rule
sysctl -a 2>/dev/null | grep -e '^net' | grep -v -e nf_conntrack_count -e net.netfilter.nf_log`)
	r.ok(err)
	return out
}

// TestDoctor: on a node that is all right, the doctor says so, and changes nothing.
func TestDoctor(t *testing.T) {
	onBackends(t, func(r *rig) {
		before := r.state(r.n1)
		e := r.doctor(r.n1)
		r.same("the node's state", before, r.state(r.n1))
		r.ok(e.well())
		for _, f := range e.Findings {
			if f.Level != doctor.OK {
				r.Errorf("%+v", f)
			}
		}
		if e.Node != "n1" {
			r.Errorf("node %q", e.Node)
		}
		t.Log(e.text)
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
