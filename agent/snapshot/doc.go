// Package snapshot keeps what the agent last programmed in a file, so that a node whose rules are gone, after a reboot, can
// serve again before the Kubernetes API answers.
//
// The file is gzip, whose checksum covers all of it, around lines of JSON: what it is, a line for each Node and Service, and a last
// one that tells how many those were. So neither writing nor reading needs the whole of it in memory. It has a version, and
// the name of the node that it is for; any other is refused, as is a file that is damaged or cut off.
//
// [Encode] and [Decode] are pure, [Save] and [Load] their edge to a directory. The Host is not in it: that is this machine as it is now.
// What a saved Snapshot may be used for is decided by package agent.
package snapshot
