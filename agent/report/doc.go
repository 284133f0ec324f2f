// Package report writes the agent's Notes back to the cluster, as Events on the objects that they are about, so that
// "kubectl describe" of a Service tells why its address does not answer.
//
// A Note becomes one Warning when it appears and nothing while it persists. Where every node would say the same (a
// field that does not parse), the Event's name is made from what it says, so a cluster of a thousand agents writes it
// once: the first creates it, and for the others "already exists" is success. The name changes every ten minutes, so
// that a fault that comes back is told again.
//
// Reporting is never in the way: [Reporter.Report] does not block, the rate is bounded, and what the API does not take is
// dropped and counted. Events are no record; that is the metrics' and the log's business. The package reads nothing from
// the API and decides nothing.
package report
