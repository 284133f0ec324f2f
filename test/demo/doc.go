// Command demo shows fairway at work: a cluster of three nodes in network namespaces, a router with BIRD and a client outside, one
// agent per node, and the things that a person would try first. `make demo` runs it.
//
// Every line behind a prompt is a command that was run as it stands, by bash, in the namespace that the prompt names
// ("anywhere" is none, and needs no root), and what follows is what it printed. Every step checks what it shows; the
// first one that is wrong ends the program with status 1. It measures what it can, and judges only what is promised.
//
// The program takes down what it made however it ends: also on SIGINT, SIGTERM and SIGHUP, and when nobody reads
// its output any more. With -keep it hands everything to a process of a session of its own, which stays until
// -down. A state file says which process that is; the process holds a lock on it for as long as it lives, so a number that
// the kernel gave to somebody else meanwhile is never signalled.
//
// It is no test of every case (that is what the rest of test/ is for), and touches neither rules nor routes outside its
// namespaces. What stays is what `ip netns add` leaves as well: the folder /run/netns.
package main
