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
