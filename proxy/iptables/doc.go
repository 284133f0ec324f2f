// Package iptables turns a proxy.Table into the rules of iptables' filter and nat tables, and back: it renders rules
// exactly as iptables-save prints them, parses what iptables-save printed, and writes the difference between two
// rule sets as the input of iptables-restore.
//
// Because rendered and printed text are the same, comparing what should be with what is means comparing strings
// chain by chain. Rules left by an earlier process are adopted, not replaced, and a restart with nothing changed
// leads to an empty difference.
//
// # Layout
//
// Names and comments are kube-proxy's, so that what operators know still works:
//
//	nat     KUBE-SERVICES  -d VIP --dport PORT ─► KUBE-SVC-x ─► DNAT (an endpoint elsewhere)
//	             │                                     └──────► KUBE-SEP-y ─► DNAT (an endpoint on this node)
//	             ├ external IP ──────────────────► KUBE-EXT-x ─► KUBE-MARK-MASQ, KUBE-SVC-x; or KUBE-SVL-x
//	             ├ load balancer IP ─► KUBE-FW-x ─►    ″         (KUBE-SVL: endpoints here, for policy Local)
//	             └ dst LOCAL ─► KUBE-NODEPORTS ──►    ″
//	filter  KUBE-SERVICES, KUBE-EXTERNAL-SERVICES: REJECT or DROP for what has no endpoints to use
//	        KUBE-PROXY-FIREWALL: DROP for what KUBE-FW-x did not let pass
//	        KUBE-NODEPORTS: ACCEPT for health check node ports
//	        KUBE-FIREWALL: shared with kubelet, DROP for neighbours' packets to 127.0.0.0/8
//
// It differs from kube-proxy's where that costs nothing in familiarity: an endpoint on another node has no chain of
// its own, because only on its own node can a pod reach itself through a Service; and a dispatching chain that would
// have more than a handful of rules becomes a tree of address prefixes or port ranges (KUBE-SVC-10.96.16.0/20), so
// that a packet passes tens of rules, not thousands; and a Service with more than 64 endpoints chooses a group of them
// first (KUBE-SVC-x-0b). The names of all chains that kube-proxy does not have begin like
// ones that it sweeps, so that it can clean up after us.
//
// # What is written
//
// A difference is one commit per table, but for what keeps filter and nat in step, see [Restore], and for [DiffInStages]. One
// commit is right for iptables-legacy, which replaces a whole table with each. iptables-nft looks every chain that a rule names up in
// a sorted list of all chains that the commit names, so that 12,244 new chains with 87,000 lines (10,000 Services) cost 5.5 s of processor
// time in one commit, most of it strcmp's, and 1.9 s in commits of 400 chains. Chains to which nothing leads can be written at any
// time, so that costs neither a gap nor a step that packets could meet. In a commit of that size the order of the chains makes no difference.
//
// The package is pure: it runs no program and reads no file. It decides nothing about services.
package iptables
