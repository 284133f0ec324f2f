// Package rtnl carries a [routes.Table] into the kernel of the network namespace it is in, reads that kernel's links
// and addresses, and tells when somebody changed either. It is the only package that speaks rtnetlink for routes.
//
// Everything is one step: read all, take the difference, write the difference, report. Nothing is remembered from one
// step to the next, so it does not matter who changed what in between. What is ours carries [routes.Protocol], or
// [routes.ProtocolLearned] for a Conn of learned routes, and is in the main table; a route without it is never changed and never deleted, not even when it stands where ours should: a
// new route is created with NLM_F_EXCL, and that somebody else's is in the way is reported as a note. (A replacement
// has no such guard in the kernel. If between our reading and our writing, microseconds apart, ours is deleted and
// another's is put in its place, ours takes its place back.)
//
// The package refuses to act on part of the truth: a dump that the kernel calls interrupted is read again, and nothing
// is deleted before every route has been read. It does not retry what failed, does not wait, and does not log: the
// caller has one place for that. It writes no rules, no neighbours and no links.
package rtnl
