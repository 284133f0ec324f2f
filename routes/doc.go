// Package routes decides which routes to other nodes' pods this node should have.
//
// [Plan] turns a snapshot of the cluster into a [Table]: one direct route per pod range of every other node whose
// address is in a network that this node is attached to. What must not be routed is left out with a note that says
// why: a range that covers the nodes themselves, the services or a network of this host would take traffic away
// from its owner, and Node objects are written by kubelets, any of which may be mistaken or compromised. [Diff]
// tells what to change in a kernel that has other routes than the Table.
//
// [PlanLearned] does the same for networks that routers announced over BGP: who is believed about what, and by which next hops. Package
// bgp says which of their paths are the best.
//
// The package is pure: it reads no kernel, no clock and no file, it holds no state, and equal inputs in any order
// give equal plans. It makes no tunnels and looks for no way around a node that is not on a link: that is a note.
// It knows nothing of service rules. Package rtnl carries a Table into the kernel.
package routes
