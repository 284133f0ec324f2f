package doctor

import (
	"fmt"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A judgement is what a Note of one reason means for the node.
type judgement struct {
	// level is Fail for what stops traffic that should flow, Warn for what only may, or was asked for.
	level Level
	do    string
	// told names the check that says the same better; empty for none.
	told string
	// routed: routers may bring the traffic where it belongs, so where BGP is spoken it is a warning.
	routed bool
}

// judgements has every reason of package cluster. What the actions say is what docs/inside.md says at length.
var judgements = map[string]judgement{
	cluster.ReasonInvalidField:         {level: Warn, do: "correct the field that the Note names"},
	cluster.ReasonEndpointRefused:      {level: Warn, do: "correct whoever writes the EndpointSlice; the other endpoints are served"},
	cluster.ReasonPodCIDRRefused:       {level: Fail, do: "give the Node a podCIDR out of the cluster's range; if it is right, correct clusterCIDRs or serviceCIDRs", told: "cidr-overlap"},
	cluster.ReasonPodCIDRConflict:      {level: Fail, do: "delete the Node object that is no longer true, or give one of the two another podCIDR"},
	cluster.ReasonServiceCIDROnLink:    {level: Warn, do: "give the link another network; if it is right, correct serviceCIDRs", told: "cidr-overlap"},
	cluster.ReasonNextHopUnreachable:   {level: Fail, do: "bring the link up, or put both nodes on one layer-2 network, or correct the InternalIP (the kubelet's --node-ip); where routers lead to the other node's pods, it is as it should be", routed: true},
	cluster.ReasonNodeIncomplete:       {level: Warn, do: "wait for the controller manager (--allocate-node-cidrs) and the kubelet; when it stays, see their logs"},
	cluster.ReasonRouteConflict:        {level: Warn, do: "find who made the route (ip route names its protocol), stop that, delete the route; the agent's follows at once"},
	cluster.ReasonAddressConflict:      {level: Warn, do: "change or delete one of the two Services"},
	cluster.ReasonAddressRefused:       {level: Warn, do: "if it should be served, allow it: externalIPs and loadBalancerIPs in the agent's configuration"},
	cluster.ReasonQuarantined:          {level: Fail, do: "mend what the kernel's words in the Note name, often a kernel module that this node lacks; it is tried again by itself"},
	cluster.ReasonHealthCheckFailed:    {level: Warn, do: "ss -ltnp shows which program has the port; keep it from the range of node ports"},
	cluster.ReasonAffinityListFull:     {level: Warn, do: "options xt_recent ip_list_tot=10000 in a file below /etc/modprobe.d, or a shorter timeout of the Service's session affinity"},
	cluster.ReasonNodePortInUse:        {level: Warn, do: "give the Service or the program another port"},
	cluster.ReasonNodePortEphemeral:    {level: Warn, do: "reserve the range of node ports: net.ipv4.ip_local_reserved_ports"},
	cluster.ReasonFlowsNotEnded:        {level: Warn, do: "load the module nf_conntrack_netlink, or give the agent NET_ADMIN; the Note has the kernel's words"},
	cluster.ReasonForeignRuleBefore:    {level: Warn, do: "see the finding foreign-rules", told: "foreign-rules"},
	cluster.ReasonSysctlRefused:        {level: Warn, do: "set it beforehand (fairway agent --init-only), make /proc/sys writable, or change the configuration"},
	cluster.ReasonSnapshotStale:        {level: Warn, do: "find out why the API server does not answer this node", told: "agent"},
	cluster.ReasonSnapshotRefused:      {level: Warn, do: "nothing: it is replaced within a minute after the cluster has answered"},
	cluster.ReasonSnapshotNotSaved:     {level: Warn, do: "give stateDir a writable directory with some MiB, or leave it empty"},
	cluster.ReasonListDoubted:          {level: Warn, do: "wait for the second look; when it stays, see the API server: its answers contradict each other"},
	cluster.ReasonConfigRefused:        {level: Warn, do: "correct the file and field that the Note names; an agent that is started with it would end"},
	cluster.ReasonConfigNeedsRestart:   {level: Warn, do: "kubectl -n kube-system rollout restart daemonset fairway, or take the edit back"},
	cluster.ReasonSocketFailed:         {level: Warn, do: "give controlSocket a folder that can be written to"},
	cluster.ReasonNotSupported:         {level: Warn, do: "give the Service endpoints with addresses"},
	cluster.ReasonBGPPasswordMissing:   {level: Warn, do: "put the password where the configuration says", told: "bgp"},
	cluster.ReasonBGPSessionDown:       {level: Warn, do: "see the finding bgp", told: "bgp"},
	cluster.ReasonBGPRouterIDChanged:   {level: Warn, do: "restart the agent when that suits, or set bgp.routerID"},
	cluster.ReasonBGPDraining:          {level: Warn, do: "nothing, while the node is meant to drain; else remove the annotation or taint that the Note names"},
	cluster.ReasonBGPLeft:              {level: Warn, do: "nothing, while the node is meant to be away; else fairway leave --undo"},
	cluster.ReasonBGPNoGracefulRestart: {level: Warn, do: "turn on graceful restart on the router", told: "bgp"},
	cluster.ReasonBGPTooManyPrefixes:   {level: Warn, do: "have the router send less, or raise the peer's maxPrefixes"},
	cluster.ReasonBGPMeshIncomplete:    {level: Warn, do: "see the Note: which sessions or addresses, and what would be right for them"},
	cluster.ReasonBGPMeshLarge:         {level: Warn, do: "make two or three nodes route reflectors (bgp.mesh.reflectorSelector)"},
	cluster.ReasonImportRefused:        {level: Warn, do: "see the Note: the prefix, and what would be right for it"},
	cluster.ReasonBGPHeldBack:          {level: Fail, do: "see the log for what crashed, and docs/bgp.md; BGP begins again by itself"},
}

// judge is the judgement of a reason; what is new in another version of the agent is a warning.
func judge(reason string) judgement {
	if j, ok := judgements[reason]; ok {
		return j
	}
	return judgement{level: Warn, do: "the agent is of another version, whose docs/inside.md says what to do"}
}

// checkNotes judges what the agent declines to do, by reason.
func checkNotes(f *Facts) []Finding {
	const name = "notes"
	if f.Agent == nil {
		return nil
	}
	list := f.notes(func(reason string) string {
		// What the rules themselves show is said by their own check, unless they could not be read.
		if told := judge(reason).told; told != "" && (told != "foreign-rules" || len(f.Kernel.Rules) > 0) {
			return ""
		}
		return name + "/" + reason
	})
	if list == nil {
		list = []Finding{{OK, name, "the agent declines nothing", FromAgent, ""}}
	}
	return list
}

// checkOverlap judges networks of this machine that are the cluster's, too.
func checkOverlap(f *Facts) []Finding {
	const name = "cidr-overlap"
	if f.Agent == nil {
		return nil
	}
	list := f.notes(func(reason string) string {
		if judge(reason).told == name {
			return name
		}
		return ""
	})
	if list == nil {
		list = []Finding{{OK, name, "no podCIDR is refused, and no network of this machine is a Service's", FromAgent, ""}}
	}
	return list
}

// notes makes a Finding for each reason for which named returns a name.
func (f *Facts) notes(named func(reason string) string) (list []Finding) {
	var reasons []string
	byReason := map[string][]Note{}
	for _, n := range f.Agent.Notes {
		if byReason[n.Reason] == nil {
			reasons = append(reasons, n.Reason)
		}
		byReason[n.Reason] = append(byReason[n.Reason], n)
	}
	slices.Sort(reasons)
	for _, reason := range reasons {
		name := named(reason)
		if name == "" {
			continue
		}
		notes := byReason[reason]
		saw := fmt.Sprintf("%s: %s: %s", reason, notes[0].Object, notes[0].Detail)
		if len(notes) > 1 {
			var others []string
			for _, n := range notes[1:] {
				if !slices.Contains(others, n.Object) {
					others = append(others, n.Object)
				}
			}
			saw += fmt.Sprintf(" — and %s: %s", plural(len(notes)-1, "other Note"), few(others))
		}
		j := judge(reason)
		if j.routed && f.Agent.BGP.Configured {
			j.level = Warn
		}
		list = append(list, Finding{j.level, name, saw, FromAgent, j.do})
	}
	return list
}
