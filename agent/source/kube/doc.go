// Package kube follows a cluster through the Kubernetes API: it is the [source.Source] of an agent in production.
//
// It watches Nodes, the Services that a service proxy looks after and the EndpointSlices of Services that are not
// headless, with client-go's reflectors: as protobuf, and streamed (watch-list, which client-go v0.37 does by itself
// where the server can, and else lists). The reflectors write into an own store instead of an informer's: an object is
// converted as it comes off the wire and dropped, so the vocabulary is the only copy in memory, there is no second
// cache and no queue of differences, and an object that was deleted while the watch was broken is simply not in the
// next complete list.
//
// While the API cannot be reached, the last Snapshot stays as it is, and nothing is deleted. That is logged when it
// begins and when it ends, not at every attempt.
//
// [Client] has its own scheme with the three API groups that the agent speaks to. The generated clientset would bring
// the types of all groups, for nothing.
package kube
