package agent

import (
	"fmt"
	"net/netip"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// How soon it is tried again to end stale flows when that failed. The delay doubles: what a kernel can't do at all should not
// be asked of it all the time.
const (
	flowsRetryMin = time.Second
	flowsRetryMax = time.Minute
)

// A flowKeeper ends stale UDP flows of one family when rules have changed.
type flowKeeper struct {
	// clean is netfilter.CleanFlows, or a test's.
	clean func(cluster.Family, func(proxy.Flow) bool) (netfilter.FlowsReport, error)
	// found are the places at which rules stood when the agent started.
	found []netip.AddrPort
	// table is the Table whose rules are in force, and review what it needs; nil before the first.
	table  *proxy.Table
	review *proxy.FlowReview
	delay  time.Duration
}

// sync ends the flows that are stale now that a Table's rules are in force: only then, or the old rules would make the same
// flows again. repaired tells that the rules were not what they should be for a while. A failure is no error, as the rules are
// right: it becomes a Note on the node, and the flows are looked for again by the next Sync, which is asked for.
func (k *flowKeeper) sync(t *proxy.Table, s *cluster.Snapshot, node cluster.Ref, repaired bool, report *Report) {
	next := proxy.ReviewFlows(k.review, t, s.Host)
	if k.review == nil {
		next = next.Found(k.found)
	}
	if repaired {
		next = next.Again()
	}
	k.table, k.review = t, next
	if !next.Owed() {
		return
	}
	done, err := k.clean(t.Family, next.Judge())
	report.Flows = done
	if done.Deleted > 0 {
		klog.V(2).InfoS("Ended UDP flows whose endpoint or service is gone", "family", t.Family, "flows", done.Deleted, "took", done.Duration)
	}
	if err == nil && done.Offloaded > 0 {
		err = fmt.Errorf("%d are in a flow table, out of which the kernel does not delete them", done.Offloaded)
	}
	if err == nil {
		k.review, k.delay = next.Done(), 0
		return
	}
	k.delay = min(max(2*k.delay, flowsRetryMin), flowsRetryMax)
	report.Retry = sooner(report.Retry, k.delay)
	report.Notes = append(report.Notes, cluster.Note{Object: node, Reason: cluster.ReasonFlowsNotEnded,
		Detail: fmt.Sprintf("%s UDP flows to endpoints and services that are gone may go on: %v", t.Family, err)})
}

// sooner returns the shorter of two delays of which 0 is never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// nodeRef names a Node, which the cluster may not have.
func nodeRef(s *cluster.Snapshot, name string) cluster.Ref {
	if n := s.Node(name); n != nil {
		return n.Ref()
	}
	return cluster.Ref{Kind: "Node", Name: name}
}
