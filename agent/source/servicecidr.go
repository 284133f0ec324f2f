package source

import (
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/fairway-net/fairway/agent/cluster"
)

// convertServiceCIDR reads the networks that ClusterIPs are from (KEP-1880). One that is being deleted counts for as long
// as it exists: Services may have addresses of it until then, and the API server keeps it for them.
func convertServiceCIDR(s *networkingv1.ServiceCIDR) *Object {
	o := &Object{ID: ID{Kind: KindServiceCIDR, Name: s.Name}}
	r := &remarks{}
	o.remarks = r
	r.about = cluster.Ref{Kind: string(KindServiceCIDR), Name: plain(s.Name)}
	r.about.UID = r.uid(string(s.UID))
	for i, text := range s.Spec.CIDRs {
		field := fmt.Sprintf("spec.cidrs[%d]", i)
		p, ok := r.prefix(field, text)
		if ok && p.Bits() == 0 {
			r.invalid("%s is %s, every address there is; the network that ClusterIPs are from is wanted", field, p)
			continue
		}
		if ok {
			o.serviceCIDRs = append(o.serviceCIDRs, p)
		}
	}
	return o
}
