// Package speaker carries a [bgp.Table] to BGP neighbours, by a gobgp server in this process, which is one of its own (package process). It is
// the one place that knows gobgp: its version 3 gets no more releases, and version 4 has other types.
//
// It refuses to be anything but an end of the network, or a route reflector of its own cluster. Policies are set before there is a first peer,
// and reject by default: nothing that a router sends is taken into the table of routes, and nothing but what the Table has is sent, so a node
// never becomes transit between two gateways. A reflector takes from other nodes what its Table names, each prefix from its own node, and passes it
// on to nodes and iBGP routers with the next hop that it came with; to eBGP routers and other reflectors it does not. Routes of routers that are
// asked for ([Speaker.Received]) are read where gobgp keeps what it rejected. There is no API to talk to, and no listening socket unless the Table has a port.
//
// What gobgp 3 asks for:
//
//   - The order is policies, paths, peers. What comes after a session is up comes after its End-of-RIB marker, at which a
//     neighbour that kept routes over a restart (RFC 4724) drops those that it has not heard of again.
//   - Announcing is AddPath and DeletePath. Policies do not take back what they let through before.
//   - The forwarding bit of graceful restart is tied to the restart bit, so every new session says that it comes from a restart:
//     the kernel forwards, whatever becomes of this process. Then gobgp holds its updates back until the neighbour has sent
//     all of its own, or for the deferral time. Nothing of theirs is waited for here, so that is as short as can be.
//   - Having met one neighbour, it takes the restart bit from all. So they are met one after the other. The many clients of a reflector are not
//     asked to keep anything, and are met at once: HelperOnly has gobgp send the capability without families, which keeps what they announce.
//   - It takes it as well when a session is lost and comes again. So when one is lost without a word, gobgp is made to forget the peer and to get
//     to know it anew, as after a restart; what it forgets of the peer's own paths is kept meanwhile. Nodes
//     whose paths are passed on are not forgotten. A peer that has itself restarted must not hear that of this node; that it has is known from its
//     having ended the connection, of which gobgp does not tell, so a duplicate of the file is held.
//   - Of two connections at once between two speakers, each closes the one that it has accepted, and both are lost: RFC 4271, section 6.8, is not
//     there. So of two nodes, one leaves it to the other to connect.
//   - Conditions on neighbours are lists that are walked, prefixes are looked up first, and an empty set matches everything. Whom something is not
//     for is the shorter list, and a set always has an address that nobody has.
//   - A policy counts for what comes after it. What is known is judged again by a soft reset.
//   - UpdatePeer forgets which families the peer's OPEN said are kept over a restart of its own. Until the next session, what it
//     announced goes with the session.
//   - StopBgp is a Cease for everybody, upon which routes go at once. To be restarted, a process just ends.
//   - What it can't parse may end the process: it panics in goroutines of its own (docs/bgp.md, test/hostile). Package process
//     contains that. In Serve's goroutine, which is ours, two of its panics are recovered: that of ListPeer for a peer
//     whose host name or software version is not UTF-8, and that for a second OPEN in a session that is up.
//   - What comes in a session that began in the future, by the clock on the wall, it drops. Sessions are begun anew after somebody has set
//     the clock back so far, where something is imported or passed on.
//   - Serve never returns, and some settings are global: a process has one Speaker.
package speaker
