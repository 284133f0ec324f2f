// Package process keeps a [speaker.Speaker] in a process of its own, so that nothing that a BGP neighbour sends can end the agent.
//
// gobgp 3 panics at some malformed messages, in goroutines of its own, where nobody can recover it (docs/bgp.md, test/hostile). Here
// that ends a child process which does nothing else: [Speaker] notices at once, tells why, and the next Sync begins another one and
// gives it everything. Routers with graceful restart keep the node's routes meanwhile, as they do when an agent is restarted. There
// is no child before there is a peer to speak with.
//
// The child is the program itself (/proc/self/exe, which is the file that runs even when another version was put in its place) with
// the argument [Command], and the two speak over a socket pair that it has inherited. So:
//
//   - Each end sees the other's end as the end of the file, however it came, SIGKILL included. The child ends then at once and without a
//     word to its neighbours, as an agent always did; there is no orphan. The parent-death signal is not what this needs: it follows
//     the thread that started the child, which may end before the process does.
//   - Signals for the process group (the terminal's, SIGTERM) the child ignores: it is the agent that decides how its sessions end.
//   - What is asked has a bound. A child that does not answer is killed, and begun anew.
//   - Both ends are of one build, so the encoding has no versions and no names. It is our own and works by reflection, because it has
//     to be exact without being told of a type's fields: encoding/gob drops pointers to 0, and encoding/json what does not write
//     itself; a password is a text that refuses both. A type that can't be carried exactly is a panic when it is first met, which a
//     test meets first. A time that was measured here is carried by the monotonic clock, which processes share, since that on the
//     wall may be set.
//   - Of a Table's paths only the difference to the last one is sent, as there may be ten thousand of which one has changed. What
//     Service a path is of is not sent: it is for people, and the agent knows.
//
// It refuses to be a supervisor: when a child is begun again after it has ended, and what that costs, is decided by who calls Sync.
// The child has no client of the API and writes nothing to the kernel. It may be ended before the agent when memory is short.
package process
