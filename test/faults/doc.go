// Package faults holds tests of what goes wrong on a node: a killed or replaced agent, routes that somebody deletes,
// flushes or covers with others, a link that bounces, nodes that come back as somebody else, Node objects that are
// wrong, and a router that ends, restarts, loses packets or sends nonsense over BGP. Real agents run on the three nodes of a laboratory cluster, and connections and datagrams go on all the while.
//
// Every test says what a fault cost: failed attempts, the longest gap, and the time until the kernel was as it should be,
// taken from the kernel's own notifications. What should be is computed here from the Node objects, by a few lines
// that share nothing with the agent. Times are printed, and asserted only with a bound of 15 seconds: a
// loaded machine keeps it, and an agent that found out by its audit, every half minute, would not.
//
// What needs an API server (an outage of it, a stream that breaks) is in test/e2e. What restarts cost with several kinds of routers is in
// test/bgp.
package faults
