// Package controlplane builds and runs a real Kubernetes control plane for tests: etcd and kube-apiserver on one machine
// of a lab, with an administrator's client that dials from inside of its network namespace. kubectl and kube-proxy are built
// beside them for the tests that want them.
//
// The commands come from their Go modules, at the versions of the go.mod in the folder commands, which is a module of its own so
// that none of this is a dependency of the agent. They are built into the user's cache folder: the first time that takes
// minutes, later the go command finds them up to date.
//
// There is no controller manager and no scheduler: who uses the package writes Nodes, EndpointSlices and
// everything else that controllers would write. It asserts nothing.
package controlplane
