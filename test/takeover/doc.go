// Package takeover holds the test that fairway takes a node over from kube-proxy and a pod-route agent, and gives it back,
// while connections go on. The rules of kube-proxy's layout are written here, as iptables-save shows them; no kube-proxy
// runs, and what one does when it starts is done by a few commands.
package takeover
