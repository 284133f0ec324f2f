package agent

import (
	"errors"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// tables plans for one UDP Service after another, each with one endpoint or none.
func tables(endpoints ...string) (list []*proxy.Table) {
	var prev *proxy.Table
	for _, e := range endpoints {
		svc := &cluster.Service{Namespace: "default", Name: "dns", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			Ports: []cluster.ServicePort{{Protocol: cluster.UDP, Port: 53}}}
		if e != "" {
			svc.Slices = []*cluster.EndpointSlice{{Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Protocol: cluster.UDP, Port: 53}},
				Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr(e), Ready: true, Serving: true}}}}
		}
		prev, _ = proxy.Plan(&cluster.Snapshot{Services: []*cluster.Service{svc}}, cluster.IPv4, proxy.Config{}, prev)
		list = append(list, prev)
	}
	return list
}

// Flows are looked at when they need to be, and a failure is told, tried again less and less often, and not lost.
func TestFlowKeeper(t *testing.T) {
	const a, b = "10.0.0.1", "10.0.0.2"
	table := tables(a, a, b, b, "")
	flow := func(endpoint string) proxy.Flow {
		return proxy.Flow{Dst: netip.MustParseAddrPort("10.96.0.1:53"), Answers: netip.AddrPortFrom(netip.MustParseAddr(endpoint), 53)}
	}
	var looks int
	var fails error
	var offloaded int
	stale := map[string]bool{}
	k := flowKeeper{clean: func(f cluster.Family, judge func(proxy.Flow) bool) (netfilter.FlowsReport, error) {
		looks++
		for _, e := range []string{a, b} {
			stale[e] = judge(flow(e))
		}
		return netfilter.FlowsReport{Seen: 2, Deleted: 1, Offloaded: offloaded, Duration: time.Millisecond}, fails
	}}
	node := cluster.Ref{Kind: "Node", Name: "n"}
	for i, step := range []struct {
		table    *proxy.Table
		repaired bool
		fails    error
		offload  int
		looks    int
		retry    time.Duration
		stale    string
		note     string
	}{
		{table[0], false, nil, 0, 1, 0, b, ""},         // the agent's start
		{table[1], false, nil, 0, 0, 0, "", ""},        // nothing of UDP has changed
		{table[1], true, nil, 0, 1, 0, b, ""},          // somebody else's change was undone
		{table[2], false, errOdd, 0, 1, 1, a, "10.96"}, // never mind what the kernel says
		{table[2], false, fs.ErrPermission, 0, 1, 2, a, "permission denied"},
		{table[3], false, fs.ErrPermission, 0, 1, 4, a, "permission denied"},
		{table[3], false, nil, 3, 1, 8, a, "3 are in a flow table"},
		{table[3], false, nil, 0, 1, 0, a, ""},
		{table[3], false, nil, 0, 0, 0, "", ""},
		{table[4], false, fs.ErrPermission, 0, 1, 1, b, "permission denied"}, // begins anew
	} {
		before := looks
		fails, offloaded = step.fails, step.offload
		report := Report{Retry: 10 * time.Minute} // for another reason
		k.sync(step.table, &cluster.Snapshot{}, node, step.repaired, &report)
		want := step.retry * time.Second
		if want == 0 {
			want = 10 * time.Minute
		}
		if looks-before != step.looks || report.Retry != want || (report.Flows.Duration > 0) != (step.looks > 0) {
			t.Errorf("step %d: %d looks, report %+v, want %d and a retry in %v", i, looks-before, report, step.looks, want)
		}
		if step.stale != "" && !stale[step.stale] {
			t.Errorf("step %d: flows to %s are not stale", i, step.stale)
		}
		if step.note == "" && len(report.Notes) > 0 || step.note != "" && (len(report.Notes) != 1 || report.Notes[0].Object != node ||
			!strings.Contains(report.Notes[0].Detail, step.note)) {
			t.Errorf("step %d: notes %v, want %q", i, report.Notes, step.note)
		}
	}
	for range 10 {
		k.sync(table[4], &cluster.Snapshot{}, node, false, &Report{})
	}
	if k.delay != flowsRetryMax {
		t.Errorf("after many failures it is tried again in %v, want %v", k.delay, flowsRetryMax)
	}
}

var errOdd = errors.New("10.96 is not the kernel's favourite number")

// A sysctl that could not be set is a Note on the node.
func TestRefusedSysctls(t *testing.T) {
	node := &cluster.Node{Name: "n", UID: "1"}
	refused := &netfilter.SysctlError{File: "/proc/sys/net/netfilter/nf_conntrack_max", Want: "131072", Have: "65536", Err: fs.ErrPermission}
	p := MakePlan(&cluster.Snapshot{Nodes: []*cluster.Node{node}}, Config{NodeName: "n"}, Facts{Refused: []error{refused}}, nil)
	want := cluster.Note{Object: node.Ref(), Reason: cluster.ReasonSysctlRefused,
		Detail: "/proc/sys/net/netfilter/nf_conntrack_max is 65536, right would be 131072 (permission denied)"}
	for _, n := range p.Notes {
		if n == want {
			return
		}
	}
	t.Errorf("notes %v, want %v", p.Notes, want)
}

// TestRepaired: flows are looked at again when rules were not what they should be, also when a new Table came in the same moment.
func TestRepaired(t *testing.T) {
	before, now := &proxy.Table{}, &proxy.Table{}
	drifts := finding{Drifts: []iptables.Drift{{}}}
	for _, c := range []struct {
		name   string
		failed bool
		report Report
		table  *proxy.Table
		reread bool
		want   bool
	}{
		{"nothing", false, Report{}, before, false, false},
		{"a new Table", false, Report{Wrote: true}, now, false, false},
		{"the same Table, written again", false, Report{Wrote: true}, before, false, true},
		{"read back, and nothing was wrong", false, Report{}, before, true, false},
		{"read back, and something was", false, Report{Wrote: true}, now, true, true},
		{"changed by others, and a new Table", false, Report{Wrote: true, Found: drifts}, now, false, true},
		{"after a failure", true, Report{Wrote: true}, now, false, true},
	} {
		p := &rulesPart{failed: c.failed, flows: flowKeeper{table: before}}
		if got := p.repaired(c.report, c.table, c.reread); got != c.want {
			t.Errorf("%s: repaired %v, expected %v", c.name, got, c.want)
		}
	}
}
