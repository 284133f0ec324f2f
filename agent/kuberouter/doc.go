// Package kuberouter turns what a cluster says to kube-router (v2: its flags, and its annotations on Nodes and Services) into an
// AgentConfiguration, and into a list of what has no equivalent or has to be done elsewhere.
//
// It prints no password, and changes nothing: what to do with the Services is said as commands. Its output is a configuration that
// the agent loads; what of the cluster can't be said in one configuration for all nodes is left to the annotations, with
// bgp.kubeRouterAnnotations.
package kuberouter
