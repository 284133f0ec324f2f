package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// auditLate is after how long without an audit of the rules a node is warned about: they are due every syncPeriod, 30 s by default, and
// wait for up to ten times as long while the cluster changes.
const auditLate = time.Hour

// programLate is after how long something that waits to be programmed is a failure. A change of 10,000 Services takes a few seconds.
const programLate = 10 * time.Second

// checkAgent judges whether the agent runs, and has all that it knows in the kernel.
func checkAgent(f *Facts) []Finding {
	const name = "agent"
	a := f.Agent
	if a == nil {
		return []Finding{{Unknown, name, "no answer: " + f.NoAgent, FromAgent,
			"see whether it runs and what it said last: kubectl -n kube-system get pods -o wide | grep fairway, kubectl -n kube-system logs POD --previous; " +
				"routes and rules stay as it left them meanwhile"}}
	}
	var list []Finding
	var waiting []string // for no longer than is usual
	add := func(l Level, do, format string, args ...any) {
		list = append(list, Finding{l, name, fmt.Sprintf(format, args...), FromAgent, do})
	}
	for _, p := range a.Parts {
		switch {
		case p.Error != "":
			add(Fail, "mend what it names; the agent tries again by itself", "%s: %s", p.Name, p.Error)
		case p.Programmed != a.Revision && f.Now.Sub(p.Pending) > programLate:
			add(Fail, "the agent's log says what it waits for (-v=2)", "%s has revision %d of the cluster in the kernel, the latest is %d; it has waited for %s", p.Name, p.Programmed, a.Revision, span(f.Now, p.Pending))
		case p.Programmed != a.Revision:
			waiting = append(waiting, p.Name)
		case p.InDoubt:
			add(Warn, "ask again in some seconds; the agent is looking at it", "%s: somebody has just changed what may be the agent's", p.Name)
		case !p.Audited.IsZero() && f.Now.Sub(p.Audited) > auditLate:
			add(Warn, "see fairway_sync_duration_seconds: an audit takes no more than a hundredth of a core, and waits for a cluster that changes", "%s was last read back and compared %s", p.Name, ago(f.Now, p.Audited))
		}
	}
	ipv4, ipv6 := f.podFamilies()
	for _, absent := range a.Absent {
		if absent.Family == "IPv4" && ipv4 || absent.Family == "IPv6" && ipv6 {
			add(Fail, "give the host what is missing, and restart the agent", "%s is not served, which this node's pods have: %s", absent.Family, absent.Why)
		}
	}
	switch {
	case a.Revision == 0:
		add(Fail, "see the finding api, and the agent's log", "it has run for %s, and has not seen the cluster yet", span(f.Now, a.Started))
	case a.Stale:
		add(Warn, "find out why the API server does not answer; until then the node goes on with what was saved", "the cluster has not answered since the agent's start, %s; what is in force was saved before", ago(f.Now, a.Started))
	}
	if len(list) > 0 {
		return list
	}
	if !a.Ready && len(waiting) == 0 {
		add(Fail, "curl -s http://127.0.0.1:10256/readyz shows each part", "it is not ready")
		return list
	}
	saw := fmt.Sprintf("ready; revision %d is in the kernel", a.Revision)
	if len(waiting) > 0 {
		saw = fmt.Sprintf("ready; revision %d has just come, and is on its way into the kernel (%s)", a.Revision, few(waiting))
	}
	if verified, audited := oldest(a.Parts, func(p Part) time.Time { return p.Verified }), oldest(a.Parts, func(p Part) time.Time { return p.Audited }); !verified.IsZero() {
		saw += ", verified " + ago(f.Now, verified)
		if !audited.IsZero() {
			saw += ", read back " + ago(f.Now, audited)
		}
	}
	add(OK, "", "%s", saw)
	return list
}

// oldest is the earliest of the Parts' times that are.
func oldest(parts []Part, of func(Part) time.Time) (first time.Time) {
	for _, p := range parts {
		if t := of(p); !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// apiLate is after how long without the API a node's state is taken for old; a rolling update of API servers takes less.
const apiLate = 5 * time.Minute

// checkAPI judges since when the Kubernetes API has been lost.
func checkAPI(f *Facts) []Finding {
	const name = "api"
	if f.Agent == nil {
		return nil
	}
	api := f.Agent.API
	switch {
	case api == nil:
		return []Finding{{OK, name, "not used: the cluster is read from a folder", FromAgent, ""}}
	case api.Lost.IsZero():
		return []Finding{{OK, name, "it answers", FromAgent, ""}}
	}
	level := Warn
	if f.Now.Sub(api.Lost) > apiLate {
		level = Fail
	}
	saw := "lost " + ago(f.Now, api.Lost) + "; what was known then stays in force"
	if api.Error != "" {
		saw += ": " + api.Error
	}
	return []Finding{{level, name, saw, FromAgent,
		"see whether the API server runs, and whether this node reaches it at the address that the agent was given (KUBERNETES_SERVICE_HOST, or its kubeconfig)"}}
}

// A repair is worth a warning when it was within repairRecent, or when there were as many as repairOften within a day.
const (
	repairRecent = time.Hour
	repairOften  = 3
	day          = 24 * time.Hour
)

// checkRepairs judges what others changed of the agent's.
func checkRepairs(f *Facts) []Finding {
	const name = "repairs"
	if f.Agent == nil {
		return nil
	}
	if len(f.Agent.Repairs) == 0 {
		return []Finding{{OK, name, "nobody has changed routes or rules of the agent's since its start, " + ago(f.Now, f.Agent.Started), FromAgent, ""}}
	}
	var list []Finding
	for _, r := range f.Agent.Repairs {
		last := slices.MaxFunc(r.Times, time.Time.Compare)
		today := 0
		for _, t := range r.Times {
			if f.Now.Sub(t) <= day {
				today++
			}
		}
		saw := fmt.Sprintf("%s, %s: %s put right, %s, last %s", r.Part, r.Kind, plural(r.Changes, "change"), times(r.Occasions), ago(f.Now, last))
		if r.Kind == KindLost {
			saw = fmt.Sprintf("%s were lost when this machine's links or addresses changed, %s, last %s", plural(r.Changes, "route"), times(r.Occasions), ago(f.Now, last))
		}
		if r.By != "" {
			saw += ", changed by " + r.By
		}
		level, do := OK, ""
		if f.Now.Sub(last) <= repairRecent || today >= repairOften {
			level, do = Warn, r.cause(f)
		}
		list = append(list, Finding{level, name, saw, FromAgent, do})
	}
	return list
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// firewalldHelp is what keeps firewalld from flushing iptables. FlushAllOnReload=no does not: reload flushes all tables first in either
// case, and the setting is about which of its own it restores (firewalld's src/firewall/core/fw.py, its issue 863).
const firewalldHelp = "firewalld flushes iptables when it is reloaded, unless it has FirewallBackend=nftables (/etc/firewalld/firewalld.conf), no direct rules " +
	"(firewall-cmd --direct --get-all-rules), and the change for its issue 863, as 1.2.5 has; FlushAllOnReload=no is no remedy. Or stop it: systemctl disable --now firewalld"

// cause is what to do about a Repair.
func (r Repair) cause(f *Facts) string {
	switch {
	case r.ofRoutes() && f.Networkd.Runs && f.Networkd.ManageForeignRoutes:
		return "see the finding route-owner"
	case r.Kind == KindLost:
		return "see why the link went down: its carrier (ip -s link, the switch), or who set it or its addresses (the logs of what manages the links)"
	case r.Kind == KindRoutes:
		return "see who deletes them: ip monitor route while it happens, and the logs of what manages the links"
	case strings.Contains(r.By, "firewalld"), f.Firewalld && r.By == "":
		return firewalldHelp
	case r.By != "":
		return "find what runs " + r.By + " (a firewall script, another agent, a configuration tool), and keep it from these chains"
	}
	return "find who did it: iptables-legacy does not tell; look for what was run at that time (a firewall service, a script, a configuration tool)"
}

// The Kinds of Repairs of routes: KindRoutes that somebody deleted or changed, KindLost that went because the host lost the network that
// they lead through.
const (
	KindRoutes = "routes"
	KindLost   = "lost-with-link"
)

func (r Repair) ofRoutes() bool { return r.Kind == KindRoutes || r.Kind == KindLost }
