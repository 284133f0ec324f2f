package proxy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// TestAddressesInServiceRanges: an address of a service range is nobody's to claim, be the range the configuration's or the cluster's; and a
// range that comes or goes counts at once, for Services that did not change.
func TestAddressesInServiceRanges(t *testing.T) {
	claimer := service("claimer", slice(8080, "10.0.2.1 ready"))
	claimer.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("10.97.0.1"), netip.MustParseAddr("10.98.0.1")}
	for _, policy := range []*proxy.AddressPolicy{nil, {ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")}}} {
		config := proxy.Config{NodeName: "here", Addresses: policy}
		var prev *proxy.Table
		for _, ranges := range []string{"", "10.98.0.0/16", "10.97.0.0/16 10.98.0.0/16", ""} {
			s := &cluster.Snapshot{Services: []*cluster.Service{claimer}, Nodes: []*cluster.Node{{Name: "here"}}}
			refused := map[string]bool{"10.97.0.1": policy != nil}
			for _, r := range strings.Fields(ranges) {
				s.ServiceCIDRs = append(s.ServiceCIDRs, netip.MustParsePrefix(r))
				refused[strings.Replace(r, ".0/16", ".1", 1)] = true
			}
			table, notes := proxy.Plan(s, cluster.IPv4, config, prev)
			served := 2
			for address, no := range refused {
				if no {
					served--
				}
				told := false
				for _, n := range notes {
					told = told || n.Reason == cluster.ReasonAddressRefused && strings.Contains(n.Detail, address+" is in the service range")
				}
				if told != no {
					t.Errorf("with ranges %q and policy %+v, %s is refused: %t; notes %v", ranges, policy, address, told, notes)
				}
			}
			if got := table.Ports[0].LoadBalancerIPs; len(got) != served {
				t.Errorf("with ranges %q and policy %+v, served are %v, expected %d", ranges, policy, got, served)
			}
			prev = table
		}
	}
}
