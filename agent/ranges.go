package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// plausibleRanges returns the Snapshot without the service ranges that overlap the pods' network of the configuration, and a
// Note for each of these: one object must not have the pods' traffic rejected and the routes to them withdrawn. It is the
// Snapshot itself when there are none.
func plausibleRanges(s *cluster.Snapshot, c Config) (*cluster.Snapshot, []cluster.Note) {
	var notes []cluster.Note
	overlaps := func(r netip.Prefix) bool {
		i := slices.IndexFunc(c.ClusterCIDRs, r.Overlaps)
		if i < 0 {
			return false
		}
		notes = append(notes, cluster.Note{Object: cluster.Ref{Kind: "ServiceCIDR", Name: r.String()}, Reason: cluster.ReasonInvalidField,
			Detail: fmt.Sprintf("The service range %s overlaps the pods' network %s (clusterCIDRs), and is not taken as one; right would be separate networks.",
				r, c.ClusterCIDRs[i])})
		return true
	}
	plausible := slices.DeleteFunc(slices.Clone(s.ServiceCIDRs), overlaps)
	if notes == nil {
		return s, nil
	}
	rest := *s
	rest.ServiceCIDRs = plausible
	return &rest, notes
}

// linkNotes tells of links of this machine whose network overlaps a service range: the machine looks for ClusterIPs there when it picks
// the source address of its own connections, and whoever is on that link can't be reached at addresses that are a Service's. A
// link may have ClusterIPs themselves, as node-local DNS caches do.
func linkNotes(s *cluster.Snapshot, c Config) (notes []cluster.Note) {
	if s.Host == nil {
		return nil
	}
	for _, link := range s.Host.Links {
		for _, a := range link.Addrs {
			for _, r := range slices.Concat(c.ServiceCIDRs, s.ServiceCIDRs) {
				if a.IsSingleIP() || !r.Overlaps(a) {
					continue
				}
				notes = append(notes, cluster.Note{Object: nodeRef(s, c.NodeName), Reason: cluster.ReasonServiceCIDROnLink,
					Detail: fmt.Sprintf("The link %s has the network %s, which overlaps the service range %s; right would be a network of its own.", link.Name, a.Masked(), r)})
			}
		}
	}
	return notes
}
