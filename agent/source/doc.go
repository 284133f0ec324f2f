// Package source turns a cluster, wherever it is described, into Snapshots of the vocabulary.
//
// It is the door at which everything is parsed: past it there are no address strings, no unchecked names, no nil that
// means a default and no Kubernetes type. [Convert] takes one API object and returns an [Object]; the [Assembler]
// joins Objects into [cluster.Snapshot] values, in which an unchanged object keeps its pointer. Where the objects come
// from is the business of the packages below: source/kube watches the Kubernetes API, source/file a folder.
//
// What of an object does not parse is left out and said in a Note; the rest of the object is taken over. Only two
// things cost more than the field itself: an object under a name that Kubernetes could not have given is left out
// whole, and a Service whose source ranges are all unreadable admits nobody, as the opposite would be everybody.
//
// IPv4-mapped IPv6 addresses (::ffff:10.0.0.1) are unmapped wherever an address stands alone, because the API server
// and kube-proxy treat such a spelling as the IPv4 address, and the checks for loopback and the like must see that
// address. In a prefix they are refused: ::ffff:10.0.0.0/104 and ::ffff:10.0.0.0/8 are both found in the wild, and a
// guess at what the length counts would be a guess at whom to admit.
//
// The package decides nothing about routes or rules. It does not compare objects with each other, so a podCIDR
// claimed twice or an address that two Services want passes through. It does no I/O.
package source
