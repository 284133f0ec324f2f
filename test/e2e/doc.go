// Package e2e runs the agent against a real kube-apiserver and etcd.
//
// Both are built from their Go modules, which have a go.mod of their own in the folder controlplane, and run in a
// network namespace on the network of a few namespace nodes from package lab. The manifests are applied with
// kubectl, as a person would apply them. What a kubelet would do for the DaemonSet's pods is done here from the pod
// template that the API server has stored: the agent of each node runs with the image's paths, the mounted
// ConfigMap, its ServiceAccount's token, a read-only root and exactly the capabilities of the manifest. So a
// missing permission or capability breaks a test here, and one that nobody uses is found in the audit log.
//
// Connections are real ones, between namespaces. The package refuses to stand in for the controllers of a cluster:
// the tests themselves write Nodes and EndpointSlices. It holds tests only.
package e2e
