// Package migrate walks through the guides docs/migrate-kube-router.md and docs/migrate-kubeadm-bgp.md in the laboratory: each command
// of theirs is typed in its order, on the machine that it is for, against a real API server, with a real kube-router or kube-proxy as
// what was there before, and BIRD and FRR as the gateway. What a DaemonSet's controller does, the test does.
//
// kube-router's service proxy is not tried: the kernel of the laboratory has no IPVS.
package migrate
