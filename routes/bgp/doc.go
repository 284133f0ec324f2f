// Package bgp decides what this node announces to its BGP neighbours, and who they are.
//
// [Plan] turns a snapshot of the cluster into a [Table]: the peers whose node selector takes this node, and the paths that
// they are told: the node's own podCIDRs, and addresses of Services, each with its communities and preferences. Whether this
// node can serve an address is not decided here: that is the service rules' business, and comes in as a list of [VIP]s, so
// that rules and announcements cannot disagree. [Diff] tells what leads from one Table to another, and which of it resets a
// session.
//
// [Select] is the way back: of what neighbours announce, it takes the best paths to the prefixes that are to be imported. They end
// in this node's kernel, by way of routes.PlanLearned; a Table never has them, so nothing of a router's is passed on.
//
// The package is pure: it opens no session, reads no file and no clock, and equal inputs in any order give equal Tables. Package
// speaker carries a Table to the neighbours.
package bgp
