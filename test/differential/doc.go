// Package differential compares the agent with the real kube-proxy. Seeded random clusters and sequences of updates go
// through one API server; for each of several configurations, a running kube-proxy and a running agent program the
// same node, each in a network namespace of its own. Both rule sets are read back from the kernel, and one evaluator
// (proxy/trace) walks packets through them: from every kind of source to every address and port that there is, that there was,
// or that is next to one. Both must lead to the same endpoints with the same shares, reject and drop the same, and replace
// the same sources.
//
// What the agent does differently on purpose is a table (deliberate), each entry with its reason, a condition that is as
// narrow as it can be put, and a count in the test's log. Everything else that differs is a failure.
//
// The package judges rules, not packets: that the kernel does with real packets what the evaluator says is
// what the conformance tests show. It contains no other code than tests.
package differential
