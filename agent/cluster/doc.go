// Package cluster is fairway's vocabulary: what the agent knows of a cluster, as immutable values.
//
// A [Snapshot] is one consistent view of all Nodes and Services with their endpoints, and of the host that the
// agent runs on. Everything that the agent decides is a pure function of a Snapshot and its configuration, so a
// Snapshot is also what a bug report needs to contain.
//
// Values are immutable once published. An object that did not change keeps its pointer from one Snapshot to the
// next; the planner relies on that to recompute only what changed, and on nothing else: two Snapshots with equal
// contents lead to the same plan whatever their pointers.
//
// The package imports the standard library only. It knows neither Kubernetes types nor the kernel, does no I/O,
// and makes no decisions: what a field means for routes or rules is decided where it is used.
package cluster
