// Package agent is the loop in the middle: it takes Snapshots from a source and Hosts from the kernel, makes a Plan
// of them, and has each Part bring its corner of the kernel in line with the Plan.
//
//	source ──► Snapshot ─┐                    ┌──► routes part ──► routes/rtnl
//	                     ├─► MakePlan ─► Plan ─┤
//	rtnetlink ─► Host ───┘                    └──► rules part ───► proxy/netfilter
//	                         │                         └──► health checks part ──► proxy/healthd
//	                         └──► bgp part ─────► routes/bgp/speaker
//
// [MakePlan] is a pure function. Everything that shows what the agent means to do (the parts, fairway render, the
// metrics, the tests) shows that one value. A Part is level-triggered: it reads, takes the difference, applies it and
// reports; a change by somebody else, a timer and a failure all run the same step again, and a step that finds nothing
// to do writes nothing. Parts run independently, so that a held xtables lock does not delay a route; only the health checks
// follow the rules, so that no load balancer is told of endpoints to which there are no rules yet, and the announcements observe
// them: a router learns of an address when its rules are in the kernel, and of its end as soon as a Plan says so.
//
// The configuration's files are read again when they change; of an edit, the section bgp is applied as a whole, which is one more
// Plan, and all else is told. fairway's other commands ask a running agent at its control socket.
//
// The package refuses to know rule syntax, netlink or Kubernetes types; those belong to the packages at the edges.
package agent
