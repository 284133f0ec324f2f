// Package conformance holds the agent to the behaviour of Services, with real packets: real agents on the nodes of a
// lab, on iptables-legacy and iptables-nft, over IPv4 and IPv6. A test is named after the case that it is, so
// TestCase10Hairpin/nft/IPv6 is found by its number.
//
// Every case has a lab of its own per backend, so none sees what another has done, and a failing one can be run alone. It
// looks at what clients and servers see, and at rules only where packets cannot tell. It tests neither the agent's inner
// workings nor how soon something happens: what takes time is waited for with a generous bound, and the time is logged.
//
// The tests need root, and skip without; with FAIRWAY_LAB=require they fail instead.
package conformance
