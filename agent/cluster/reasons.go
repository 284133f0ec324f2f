package cluster

// Reasons of Notes. They are the reasons of the Events and the "reason" label of fairway_notes, so they are
// part of what operators rely on.
const (
	// ReasonInvalidField: a field of the object could not be taken over (an address that does not parse, a port 0).
	ReasonInvalidField = "InvalidField"
	// ReasonEndpointRefused: an endpoint on loopback, link-local, multicast or 0.0.0.0/8, or of the wrong family.
	ReasonEndpointRefused = "EndpointRefused"
	// ReasonPodCIDRRefused: a podCIDR that must not be routed to another node.
	ReasonPodCIDRRefused = "PodCIDRRefused"
	// ReasonPodCIDRConflict: a podCIDR that overlaps an older node's.
	ReasonPodCIDRConflict = "PodCIDRConflict"
	// ReasonServiceCIDROnLink: the network of a link of this node overlaps a service range.
	ReasonServiceCIDROnLink = "ServiceCIDROnLink"
	// ReasonNextHopUnreachable: a node's InternalIP is on no link of ours.
	ReasonNextHopUnreachable = "NextHopUnreachable"
	// ReasonNodeIncomplete: a node has no podCIDR or no InternalIP of a family yet; or the agent's own does not exist yet.
	ReasonNodeIncomplete = "NodeIncomplete"
	// ReasonRouteConflict: somebody else's route has the destination and metric that ours would need.
	ReasonRouteConflict = "RouteConflict"
	// ReasonAddressConflict: an older Service holds the same address, port and protocol, or the same node port.
	ReasonAddressConflict = "AddressConflict"
	// ReasonAddressRefused: an external or load balancer IP that the configuration does not allow, or that is part of the
	// cluster.
	ReasonAddressRefused = "AddressRefused"
	// ReasonQuarantined: the kernel refused the Service's rules; all others are applied.
	ReasonQuarantined = "Quarantined"
	// ReasonHealthCheckFailed: a health check node port of the Service can't be listened at; kube-proxy's word.
	ReasonHealthCheckFailed = "FailedToStartServiceHealthcheck"
	// ReasonAffinityListFull: an endpoint of a Service with session affinity has as many clients as the kernel remembers.
	ReasonAffinityListFull = "AffinityListFull"
	// ReasonNodePortInUse: a program on the node waits at the number of a node port of the Service, which gets what comes for it.
	ReasonNodePortInUse = "NodePortInUse"
	// ReasonNodePortEphemeral: the node's own connections may take ports that are node ports of Services.
	ReasonNodePortEphemeral = "NodePortEphemeral"
	// ReasonFlowsNotEnded: UDP flows whose endpoint or Service is gone could not be removed from conntrack; it is tried again.
	ReasonFlowsNotEnded = "FlowsNotEnded"
	// ReasonForeignRuleBefore: a rule of somebody else stands before the jumps to ours in a built-in chain of iptables, and accepts,
	// refuses or translates packets that ours should see first.
	ReasonForeignRuleBefore = "ForeignRuleBeforeServices"
	// ReasonSysctlRefused: a sysctl that the configuration asks for could not be set, and has another value.
	ReasonSysctlRefused = "SysctlRefused"
	// ReasonSnapshotStale: the API has not answered since the agent started; what was last saved is in force.
	ReasonSnapshotStale = "SnapshotStale"
	// ReasonSnapshotRefused: what was saved can't be used: it is damaged, of another version or of another node.
	ReasonSnapshotRefused = "SnapshotRefused"
	// ReasonSnapshotNotSaved: what is programmed can't be saved: the disk is full, the directory read-only.
	ReasonSnapshotNotSaved = "SnapshotNotSaved"
	// ReasonListDoubted: a list would delete more than half of the cluster, and a second look has not confirmed it yet.
	ReasonListDoubted = "ListDoubted"
	// ReasonConfigRefused: a file of the configuration has changed and is wrong; what was read before stays in force.
	ReasonConfigRefused = "ConfigRefused"
	// ReasonConfigNeedsRestart: a file of the configuration has changed in fields that count when the agent is restarted.
	ReasonConfigNeedsRestart = "ConfigNeedsRestart"
	// ReasonSocketFailed: the control socket can't be served; fairway's other commands can't ask the agent.
	ReasonSocketFailed = "FailedToStartControlSocket"
	// ReasonNotSupported: the object asks for something that no rule can do, such as endpoints by host name.
	ReasonNotSupported = "NotSupported"
	// ReasonBGPPasswordMissing: the password of a BGP peer can't be read; there is no session with it.
	ReasonBGPPasswordMissing = "BGPPasswordMissing"
	// ReasonBGPSessionDown: there is no session with a BGP peer.
	ReasonBGPSessionDown = "BGPSessionDown"
	// ReasonBGPRouterIDChanged: the node's BGP identifier is one that its InternalIP is not any more.
	ReasonBGPRouterIDChanged = "BGPRouterIDChanged"
	// ReasonBGPDraining: the node announces no addresses of Services, because it is to have no traffic to them.
	ReasonBGPDraining = "BGPDraining"
	// ReasonBGPLeft: the node has left its BGP peers, as somebody had asked for (fairway leave).
	ReasonBGPLeft = "BGPLeft"
	// ReasonBGPNoGracefulRestart: a BGP peer will not keep this node's routes while the agent is restarted.
	ReasonBGPNoGracefulRestart = "BGPNoGracefulRestart"
	// ReasonBGPTooManyPrefixes: a BGP peer sent more prefixes than its maxPrefixes; its session is ended for a minute.
	ReasonBGPTooManyPrefixes = "BGPTooManyPrefixes"
	// ReasonImportRefused: a prefix that a BGP peer announces, inside the ranges to be imported, gets no route or not all of its
	// next hops: it is a default route or part of the cluster's own networks, or the next hop is on no link of the node.
	ReasonImportRefused = "ImportRefused"
	// ReasonBGPMeshIncomplete: some of the BGP sessions between nodes that the configuration asks for can't be, or what is announced is
	// not passed on.
	ReasonBGPMeshIncomplete = "BGPMeshIncomplete"
	// ReasonBGPMeshLarge: so many nodes have a BGP session each with each that route reflectors would be right.
	ReasonBGPMeshLarge = "BGPMeshLarge"
	// ReasonBGPHeldBack: the BGP process has crashed repeatedly, and is begun again after a pause.
	ReasonBGPHeldBack = "BGPHeldBack"
)
