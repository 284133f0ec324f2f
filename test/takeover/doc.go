// Package takeover holds the tests that fairway takes a node over from kube-proxy, and gives it back, while connections go on.
//
// TestRunningKubeProxy has a real kube-proxy against a real API server, in iptables mode on both kinds of iptables and in nftables
// mode, with Services of all kinds in both families: one starts beside the other, under traffic, and the other stops. It runs what an
// operator would (fairway takeover, with --plan and --back), and compares the chains afterwards with those that fairway renders, or with those of
// a kube-proxy that was never disturbed.
//
// TestTakeover is the quick one, without an API server: the rules of kube-proxy's layout are written here, as iptables-save shows
// them, with a pod-route agent's route, and what a kube-proxy does when it starts is done by a few commands.
package takeover
