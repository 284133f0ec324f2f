// Package netfilter keeps the service rules in this node's kernel, through the iptables binaries. It finds out which
// of the two backends (iptables-legacy or iptables-nft) the host uses and says why, reads a family's tables, applies
// the difference to what is wanted, and quarantines a Service whose rules the kernel refuses, so that one Service
// cannot hold up the others.
//
// A node's rules are kept by [Rules]: it remembers what it wrote, writes nothing when nothing changed, and reads the
// kernel again after every failure, and after [Rules.Invalidate], to find what others changed.
//
// What others do to the rules is told by a [Watch]: by the kernel's notifications with iptables-nft, by a hash of the rules with
// iptables-legacy. The next Sync reads back what they touched, says what kind of change it was, and repairs it.
//
// Besides rules it is the way to the rest of netfilter, over nfnetlink: [CleanFlows] deletes conntrack entries of UDP flows that
// package proxy calls stale, one by one, and no other; [EnsureCounters] and [ReadCounters] keep the counters that rules may add to;
// [ApplyConntrack] sets conntrack's sysctls.
//
// [FindLeftovers] finds what a kube-proxy in any mode left that the agent does not remove by itself: nftables tables, chains in the other
// backend, IPVS, and its canaries; and how to remove each. That is the operator's command, not the agent's, which can't see whether
// a kube-proxy still runs. [FindHandover] is the way back. [Inspect], [Backend.Look] and the two change nothing, not even by looking.
//
// The package decides nothing about services and writes no rule text: package proxy and package proxy/iptables do.
// It never touches a chain that iptables.Owned does not name, but for the rules of iptables.Shared, which it adds to
// KUBE-FIREWALL where kubelet has not, and what an operator has it remove of kube-proxy's; and it looks at a backend that is not in use only in ways that create no table there. It does not log, and it starts no goroutine that outlives a call.
package netfilter
