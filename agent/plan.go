package agent

import (
	"reflect"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp"
)

// Facts are what a Plan depends on besides the cluster and the configuration: properties of the machine's iptables and
// kernel.
type Facts struct {
	// RandomFully: this iptables knows MASQUERADE --random-fully.
	RandomFully bool
	// DropInvalid: conntrack is strict about TCP windows (nf_conntrack_tcp_be_liberal is 0), so what it calls INVALID
	// must not be forwarded.
	DropInvalid bool
	// Large tells, per family in the order of cluster.Families, whether the rules so far are those of a large cluster,
	// see iptables.LargeCluster.
	Large [2]bool
	// Absent tells, in the same order, which families have no iptables here: no Service is served in them.
	Absent [2]bool
	// Counters: the kernel's packet counters exist, which rules may name; see netfilter.EnsureCounters.
	Counters bool
	// Refused are the sysctls that could not be set when the agent started.
	Refused []error
}

// Offline are the Facts of a machine as it should be, for plans that are only looked at.
var Offline = Facts{RandomFully: true, DropInvalid: true, Counters: true}

// A Plan is what should be true on this node, as values.
type Plan struct {
	// Snapshot is what the Plan was made of.
	Snapshot *cluster.Snapshot
	// Routes are the routes to the other nodes' pods, both families.
	Routes *routes.Table
	// Services are the services per family, in the order of cluster.Families.
	Services [2]Services
	// BGP is what is announced to whom; nil without BGP.
	BGP *bgp.Table
	// Notes tell what was refused, and why; in order, without duplicates.
	Notes []cluster.Note

	// What follows is the memo of the next Plan: for the routes, and for what kube-router's annotations change.
	config     Config
	routeNotes []cluster.Note
	annotated  annotated
}

// Services is one family's part of a Plan.
type Services struct {
	Family  cluster.Family
	Table   *proxy.Table
	Options iptables.Options
	Rules   *iptables.Ruleset
}

// Stale tells that the Plan was made of a saved Snapshot: it may add what is missing, and takes nothing away.
func (p *Plan) Stale() bool { return !p.Snapshot.Saved.IsZero() }

// without returns the Plan for those that follow the rules, when some Services have none in the kernel: no load balancer is told
// that this node has endpoints of theirs.
func (p *Plan) without(unserved []cluster.Ref) *Plan {
	if len(unserved) == 0 {
		return p
	}
	next := *p
	for i := range next.Services {
		t := *next.Services[i].Table
		t.HealthChecks = slices.Clone(t.HealthChecks)
		for j, h := range t.HealthChecks {
			if slices.Contains(unserved, h.Service.Ref()) {
				t.HealthChecks[j].LocalEndpoints = 0
			}
		}
		next.Services[i].Table = &t
	}
	return &next
}

// MakePlan decides everything. It is pure; prev is a memo and nothing else, so that one changed endpoint costs one
// service's rendering.
func MakePlan(s *cluster.Snapshot, c Config, facts Facts, prev *Plan) *Plan {
	s, rangeNotes := plausibleRanges(s, c)
	p := &Plan{config: c}
	if c.BGP != nil && c.BGP.KubeRouter != nil {
		s, p.annotated = annotate(s, prev)
	}
	p.Snapshot = s
	if prev != nil && reflect.DeepEqual(prev.config, c) && routes.SameInput(prev.Snapshot, s) {
		p.Routes, p.routeNotes = prev.Routes, prev.routeNotes
	} else {
		p.Routes, p.routeNotes = routes.Plan(s, c.routes())
	}
	p.Notes = append(p.Notes, s.Notes...)
	p.Notes = append(p.Notes, p.annotated.notes...)
	p.Notes = append(p.Notes, rangeNotes...)
	p.Notes = append(p.Notes, linkNotes(s, c)...)
	p.Notes = append(p.Notes, p.routeNotes...)
	if s.Node(c.NodeName) == nil {
		p.Notes = append(p.Notes, cluster.Note{Object: cluster.Ref{Kind: "Node", Name: c.NodeName}, Reason: cluster.ReasonNodeIncomplete,
			Detail: "The cluster has no Node of this name, which is this agent's; right would be the name of this machine's Node (--node-name)."})
	}
	if p.Stale() {
		p.Notes = append(p.Notes, staleNote(nodeRef(s, c.NodeName), s.Saved))
	}
	p.Notes = append(p.Notes, sysctlNotes(nodeRef(s, c.NodeName), facts.Refused)...)
	for i, f := range cluster.Families {
		var memo Services
		if prev != nil {
			memo = prev.Services[i]
		}
		served := s
		if facts.Absent[i] {
			served = &cluster.Snapshot{Nodes: s.Nodes}
		}
		t, notes := proxy.Plan(served, f, c.proxy(), memo.Table)
		o := c.rules(facts, iptables.LargeCluster(t.Endpoints, facts.Large[i]))
		p.Services[i] = Services{Family: f, Table: t, Options: o, Rules: iptables.Render(t, o, memo.Rules)}
		p.Notes = append(p.Notes, notes...)
	}
	announced, notes := announcements(s, c, p.Routes, p.Services)
	p.BGP, p.Notes = announced, append(p.Notes, notes...)
	p.Notes = cluster.SortNotes(p.Notes)
	return p
}
