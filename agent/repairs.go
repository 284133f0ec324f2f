package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/doctor"
)

// A repairLog remembers what others changed since the agent started: a few numbers for each Part and kind of change.
type repairLog []doctor.Repair

// add records what a Sync repaired.
func (l *repairLog) add(o outcome) {
	if !strings.HasPrefix(o.part, rulesPrefix) {
		if o.report.Drift > 0 {
			l.count(o.part, doctor.KindRoutes, o.report.Drift, "", o.end)
		}
		return
	}
	kinds := map[string]int{}
	for _, d := range o.report.Found.repaired() {
		kinds[string(d.Kind)]++
	}
	for kind, n := range kinds {
		l.count(o.part, kind, n, o.report.Found.By, o.end)
	}
}

// lost records that routes went because the host lost the way to them, although the nodes are the same: with a link that went down, or
// with its addresses.
func (l *repairLog) lost(before, after *Plan, at time.Time) {
	if before == nil || before.Snapshot.Host == after.Snapshot.Host || !slices.Equal(before.Snapshot.Nodes, after.Snapshot.Nodes) {
		return
	}
	left := map[netip.Prefix]bool{}
	for _, r := range after.Routes.Routes {
		left[r.Dst] = true
	}
	n := 0
	for _, r := range before.Routes.Routes {
		if !left[r.Dst] {
			n++
		}
	}
	if n > 0 {
		l.count(routesName, doctor.KindLost, n, "", at)
	}
}

func (l *repairLog) count(part, kind string, changes int, by string, at time.Time) {
	i := slices.IndexFunc(*l, func(r doctor.Repair) bool { return r.Part == part && r.Kind == kind })
	if i < 0 {
		i = len(*l)
		*l = append(*l, doctor.Repair{Part: part, Kind: kind})
	}
	r := &(*l)[i]
	r.Changes += changes
	r.Occasions++
	r.By = by
	r.Times = append(r.Times, at)
	r.Times = slices.Clone(r.Times[max(0, len(r.Times)-doctor.MaxTimes):])
}

// list returns them in order. The Times are shared, and never written to again.
func (l repairLog) list() []doctor.Repair {
	all := append([]doctor.Repair{}, l...)
	slices.SortFunc(all, func(a, b doctor.Repair) int { return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(a.Kind, b.Kind)) })
	return all
}
