package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/healthd"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// The names of the Parts. There is one of rules and one of health checks for each family: what stops one of them does not
// stop the other.
const (
	routesName         = "routes"
	rulesPrefix        = "rules-"
	healthChecksPrefix = "health-checks-"
)

// How rules are paced. A tenth of a second, unless minSyncPeriod says otherwise, gathers what a rolling update changes, and
// keeps what a small cluster's restless endpoints cost to some percent of one core. What takes longer rests as long as it
// took: so it takes half of one core while changes keep coming, and a change is in the kernel after two such syncs on
// average. Only after single loads of seconds, which are rare, is the rest shorter.
const (
	rulesInterval = 100 * time.Millisecond
	rulesShare    = 2
	rulesMost     = time.Second
)

// routesPart keeps the routes to other nodes' pods, and that the node forwards at all.
type routesPart struct {
	conn     *rtnl.Conn
	nodeName string
}

func (*routesPart) Name() string { return routesName }

// Sync always reads: a dump of the routes costs less than knowing when it is not needed.
func (p *routesPart) Sync(ctx context.Context, plan *Plan, _ bool) (Report, error) {
	apply := p.conn.Sync
	if plan.Stale() {
		apply = p.conn.Add
	}
	r, err := apply(ctx, plan.Routes)
	changes := len(r.Added) + len(r.Replaced) + len(r.Deleted)
	report := Report{Wrote: changes > 0, Drift: changes, Full: true, Notes: r.Notes}
	return report, errors.Join(err, rtnl.EnsureForwarding(forwarded(plan.Snapshot, p.nodeName)...))
}

// forwarded returns the families that the node forwards: those that its pods have, or IPv4 while that is unknown.
func forwarded(s *cluster.Snapshot, nodeName string) (families []cluster.Family) {
	if n := s.Node(nodeName); n != nil {
		for _, f := range cluster.Families {
			if n.PodCIDR(f).IsValid() {
				families = append(families, f)
			}
		}
	}
	if families == nil {
		families = []cluster.Family{cluster.IPv4}
	}
	return families
}

// rulesPart keeps the service rules of one family, and ends the UDP flows that they would not make any more.
type rulesPart struct {
	index    int // in cluster.Families
	nodeName string
	rules    *netfilter.Rules
	clients  clientWatch
	ports    portWatch
	flows    flowKeeper
	// suspects is what the watch on the rules tells; nil where there is none to be, and the kernel is trusted between audits.
	suspects *suspicions
	// found is what others did, until it is repaired.
	found finding
	// quarantined counts the Services whose new values the last Sync left out.
	quarantined int
	// failed tells that the last Sync did. It may have written all the same.
	failed bool
}

func (p *rulesPart) Name() string { return rulesPrefix + cluster.Families[p.index].String() }

func (p *rulesPart) Sync(ctx context.Context, plan *Plan, reread bool) (Report, error) {
	p.suspect(reread)
	s := plan.Services[p.index]
	done, err := p.rules.Sync(ctx, []netfilter.Desired{{Table: s.Table, Ruleset: s.Rules, Options: s.Options, Add: plan.Stale()}})
	report := Report{Waited: errors.Is(err, netfilter.ErrLocked)}
	admitted := false
	for _, r := range done {
		report.Wrote = report.Wrote || r.Written
		report.Full, report.Refused = r.Full, r.Refused
		report.WroteFilter, report.WroteNAT = r.WroteFilter, r.WroteNAT
		report.Quarantined = r.Quarantined
		for _, q := range r.Quarantined {
			report.Notes = append(report.Notes, q.Note)
		}
		report.Retry = r.Retry
		if r.Refused == 0 && len(r.Quarantined) == p.quarantined { // else it is a Service that was tried again
			report.Drift += r.Chains
		}
		admitted = admitted || len(r.Quarantined) < p.quarantined
		p.quarantined = len(r.Quarantined)
		p.found.Drifts = append(p.found.Drifts, r.Drifts...)
		report.Notes = append(report.Notes, notesAbove(r.Family, nodeRef(plan.Snapshot, p.nodeName), r.Above)...)
	}
	if err == nil {
		report.Found, p.found = p.found, finding{}
		if p.suspects != nil {
			p.suspects.settle()
		}
	}
	report.Notes = append(report.Notes, p.clients.look(s.Table, time.Now())...)
	report.Notes = append(report.Notes, p.ports.look(s.Table, nodeRef(plan.Snapshot, p.nodeName), time.Now())...)
	// Which flows are stale, a saved Snapshot can't tell.
	if err == nil && !plan.Stale() {
		repaired := admitted || p.repaired(report, s.Table, reread)
		p.flows.sync(s.Table, plan.Snapshot, nodeRef(plan.Snapshot, p.nodeName), repaired, &report)
	}
	p.failed = err != nil
	if err == nil && s.Table.NodePorts.Localhost {
		report.Notes = append(report.Notes, p.openLocalhost(plan.Snapshot)...)
	}
	return report, err
}

// repaired reports whether the rules were not what they should be for a while: by what was found, also together with a new Table;
// as the same Table, or all that is there, had to be written again; or as a Sync failed, which may have mended them.
func (p *rulesPart) repaired(r Report, t *proxy.Table, reread bool) bool {
	return p.failed || len(r.Found.Drifts) > 0 || r.Wrote && (reread || t == p.flows.table)
}

// suspect has the rules read back where somebody else may have changed them.
func (p *rulesPart) suspect(reread bool) {
	var changes []netfilter.Change
	watching := true
	if p.suspects != nil {
		changes, watching = p.suspects.take()
	}
	if reread || !watching {
		p.rules.Invalidate()
	}
	for _, c := range changes {
		p.rules.Doubt(c)
	}
	p.found.add(changes, time.Now())
}

// standing tells until when the rules are known to be untouched.
func (p *rulesPart) standing() (quiet time.Time, doubt bool) {
	if p.suspects == nil {
		return time.Time{}, false
	}
	return p.suspects.standing()
}

// openLocalhost lets node ports at 127.0.0.1 work, now that the rules are there which keep neighbours away from it.
func (p *rulesPart) openLocalhost(s *cluster.Snapshot) []cluster.Note {
	err := netfilter.EnableRouteLocalnet()
	if err == nil {
		return nil
	}
	return []cluster.Note{{Object: nodeRef(s, p.nodeName), Reason: cluster.ReasonSysctlRefused,
		Detail: fmt.Sprintf("node ports do not work at 127.0.0.1: %v; right would be net.ipv4.conf.all.route_localnet=1 set by who prepares the node, or localhostNodePorts: false in the agent's configuration", err)}}
}

// healthChecksPart serves the health check node ports of one family. It follows the rules, so that a load balancer which is
// told of endpoints here finds them in the kernel. A port that can't be had is a Note, and no failure: neither would a
// restart mend it, nor should it take the node out of all load balancers.
type healthChecksPart struct {
	index   int // in cluster.Families
	servers *healthd.Servers
}

func (p *healthChecksPart) Name() string {
	return healthChecksPrefix + cluster.Families[p.index].String()
}

func (p *healthChecksPart) follows() string { return rulesPrefix + cluster.Families[p.index].String() }

func (p *healthChecksPart) Sync(_ context.Context, plan *Plan, _ bool) (Report, error) {
	t := plan.Services[p.index].Table
	checks := t.HealthChecks
	if plan.Stale() { // no load balancer is told of endpoints that may be gone
		checks = nil
	}
	r := p.servers.Sync(checks, t.NodePorts)
	return Report{Notes: r.Notes, Retry: r.Retry}, nil
}
