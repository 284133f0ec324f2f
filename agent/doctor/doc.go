// Package doctor tells whether a node is all right, and for what is not, what to do. It is what `fairway doctor` prints.
//
// It judges, and reads nothing: [Facts] are plain values that somebody else has gathered from the running agent, the kernel and the
// host's files. [Examine] makes of them one or more [Finding]s for each check. A Finding says what was seen and where that comes from,
// and, unless all is well, one next action. An action is only named where it is known to help.
//
// The package refuses to guess. What could not be read is [Unknown], and never taken for well.
package doctor
