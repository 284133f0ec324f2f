package agent

import (
	"context"
	"errors"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// The names of the Parts. There is one of rules for each family: what stops one of them does not stop the other.
const (
	routesName  = "routes"
	rulesPrefix = "rules-"
)

// How rules are paced. Half a second gathers what a rolling update changes; and with the share, even rules that take
// long to write take no more than a quarter of one core, but for loads of seconds, which are rare.
const (
	rulesInterval = 500 * time.Millisecond
	rulesShare    = 4
	rulesMost     = 2 * time.Second
)

// routesPart keeps the routes to other nodes' pods, and that the node forwards at all.
type routesPart struct {
	conn     *rtnl.Conn
	nodeName string
}

func (*routesPart) Name() string { return routesName }

// Sync always reads: a dump of the routes costs less than knowing when it is not needed.
func (p *routesPart) Sync(ctx context.Context, plan *Plan, _ bool) (Report, error) {
	r, err := p.conn.Sync(ctx, plan.Routes)
	changes := len(r.Added) + len(r.Replaced) + len(r.Deleted)
	report := Report{Wrote: changes > 0, Drift: changes, Notes: r.Notes}
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
	flows    flowKeeper
	// quarantined counts the Services that the last Sync left out.
	quarantined int
}

func (p *rulesPart) Name() string { return rulesPrefix + cluster.Families[p.index].String() }

func (p *rulesPart) Sync(ctx context.Context, plan *Plan, reread bool) (Report, error) {
	if reread {
		p.rules.Invalidate()
	}
	s := plan.Services[p.index]
	done, err := p.rules.Sync(ctx, []netfilter.Desired{{Table: s.Table, Ruleset: s.Rules, Options: s.Options}})
	report := Report{Waited: errors.Is(err, netfilter.ErrLocked)}
	for _, r := range done {
		report.Wrote = report.Wrote || r.Written
		report.Notes = append(report.Notes, r.Quarantined...)
		report.Retry = r.Retry
		if r.Refused == 0 && len(r.Quarantined) == p.quarantined { // else it is a Service that was tried again
			report.Drift += r.Chains
		}
		p.quarantined = len(r.Quarantined)
	}
	if err == nil {
		repaired := report.Wrote && (reread || s.Table == p.flows.table)
		p.flows.sync(s.Table, plan.Snapshot, nodeRef(plan.Snapshot, p.nodeName), repaired, &report)
	}
	return report, err
}
