// Package trace walks packets through rules, as the kernel would: given what iptables-save prints and what the packet
// is, it tells what becomes of a new connection, with which probability, by which rules.
//
// It judges rules by what they do, whoever wrote them and however they are laid out. So it can compare two rule sets
// that look different, and it can show a person the way of one packet.
//
// It knows the matches and targets that service rules are made of, in the tables nat and filter, for the first packet of
// a connection. A rule with anything else is an error, not a guess; but only when a packet gets as far as that rule. The
// package is pure.
package trace
