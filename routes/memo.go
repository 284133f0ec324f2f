package routes

import (
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// SameInput reports whether Plan would return the same for both Snapshots and one Config, at a small part of its cost
// when most objects have kept their pointers. Endpoints change all the time, nodes rarely: with 5,000 nodes of both
// families, a caller that keeps the last Table and asks this first saves milliseconds for every changed endpoint. It
// may report false although the plans would be the same.
func SameInput(a, b *cluster.Snapshot) bool {
	return slices.Equal(a.Nodes, b.Nodes) && slices.Equal(a.ServiceCIDRs, b.ServiceCIDRs) && sameHost(a.Host, b.Host) && slices.EqualFunc(a.Services, b.Services, sameAddresses)
}

// sameAddresses reports whether two versions of a Service cover the same addresses, and would be named alike.
func sameAddresses(a, b *cluster.Service) bool {
	return a == b || (a.Ref() == b.Ref() && slices.Equal(a.ClusterIPs, b.ClusterIPs))
}

func sameHost(a, b *cluster.Host) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a == b || slices.EqualFunc(a.Links, b.Links, func(a, b cluster.Link) bool {
		return a.Index == b.Index && a.Name == b.Name && a.Up == b.Up && a.Loopback == b.Loopback &&
			slices.Equal(a.Addrs, b.Addrs)
	})
}
