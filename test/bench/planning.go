package main

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
)

const (
	// nodes is the number of nodes of the made-up clusters.
	nodes = 100
	// planRuns and changeRuns are how often planning is timed.
	planRuns   = 15
	changeRuns = 300
)

// planning is what a Plan costs: routes and rules, both families, decided and rendered.
type planning struct {
	services             int
	nothing, change      sample
	diff                 sample // from one change's rules to the next one's
	lines                int    // of the IPv4 rules
	allocated, perChange uint64 // bytes
}

// config is the agent's in all measurements.
func config() agent.Config {
	return agent.Config{NodeName: synth.NodeName, Detect: proxy.DetectClusterCIDR, MasqueradeBit: 14,
		ClusterCIDRs: []netip.Prefix{clusterCIDR}, ServiceCIDRs: []netip.Prefix{serviceCIDR}}
}

// madeUp returns a cluster as its first node sees it. Those with more Services contain those with fewer.
func madeUp(services, endpoints int) *cluster.Snapshot {
	s := synth.Even(nodes, services, endpoints)
	ofStage(s)
	link := cluster.Link{Index: 2, Name: "eth0", Up: true}
	for i, a := range s.Nodes[0].InternalIPs {
		link.Addrs = append(link.Addrs, netip.PrefixFrom(a, infrastructure[i].Bits()))
	}
	s.Host = &cluster.Host{Links: []cluster.Link{link}}
	return s
}

// rulesOf returns a Plan's IPv4 rules. The made-up clusters have no other Services.
func rulesOf(p *agent.Plan) *iptables.Ruleset { return p.Services[0].Rules }

func measurePlanning(ctx context.Context, services, endpoints int) (planning, error) {
	p := planning{services: services}
	s := madeUp(services, endpoints)
	var plan *agent.Plan
	before := allocated()
	for range planRuns {
		runtime.GC() // not the last run's garbage
		p.nothing.time(func() { plan = agent.MakePlan(s, config(), agent.Offline, nil) })
	}
	p.allocated = (allocated() - before) / planRuns
	p.lines = rulesOf(plan).Lines()
	snapshots := make([]*cluster.Snapshot, changeRuns)
	for i := range snapshots {
		s = synth.Changed(s, (i*37)%services, 200+i%50)
		snapshots[i] = s
	}
	before = allocated()
	for _, s := range snapshots {
		last := plan
		p.change.time(func() { plan = agent.MakePlan(s, config(), agent.Offline, last) })
		empty := false
		p.diff.time(func() { empty = iptables.Diff(rulesOf(last), rulesOf(plan)).Empty() })
		if empty {
			return p, fmt.Errorf("a changed endpoint led to no change of the rules")
		}
	}
	p.perChange = (allocated() - before) / changeRuns
	if want := agent.MakePlan(s, config(), agent.Offline, nil); rulesOf(want).String() != rulesOf(plan).String() {
		return p, fmt.Errorf("%d changes led to other rules than planning their result from nothing", changeRuns)
	}
	return p, interrupted(ctx)
}

// allocated returns the bytes that this process has ever allocated.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// A sample is how long something took, several times.
type sample []time.Duration

// time runs f and adds how long it took.
func (s *sample) time(f func()) {
	start := time.Now()
	f()
	s.add(time.Since(start))
}

func (s *sample) add(d time.Duration) { *s = append(*s, d) }

func (s sample) sum() (sum time.Duration) {
	for _, d := range s {
		sum += d
	}
	return sum
}

// quantile returns the value below which a part of the sample is; 0.5 is the median. The sample is not empty.
func (s sample) quantile(part float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}
