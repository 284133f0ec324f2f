package iptables_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// Where a protocol is served is read from rules, kube-proxy's included.
func TestServed(t *testing.T) {
	const save = `*nat
:PREROUTING ACCEPT [0:0]
:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-EXT-udp-30080-30095 - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-10.96.16.0/20 - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SVL-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-EXT-udp-30080-30095 -p udp -m comment --comment "kube-system/dns:dns" -m udp --dport 30081 -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-NODEPORTS -p udp -m udp --dport 30080:30095 -j KUBE-EXT-udp-30080-30095
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web" -m tcp --dport 30080 -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment "kube-system/dns:dns cluster IP" -m udp --dport 53 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "kube-system/dns:tcp cluster IP" -m tcp --dport 53 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -d 203.0.113.1/32 -p udp -m comment --comment "a -j KUBE-SVC-X comment" -m udp --dport 54 -j KUBE-FW-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -d 10.96.16.0/20 -j KUBE-SVC-10.96.16.0/20
-A KUBE-SVC-10.96.16.0/20 -d 10.96.16.3/32 -p udp -m comment --comment "default/local cluster IP" -m udp --dport 55 -j KUBE-SVL-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA ! -s 10.200.0.0/16 -d 10.96.0.10/32 -p udp -m comment --comment "kube-system/dns:dns cluster IP" -m udp --dport 53 -j KUBE-MARK-MASQ
-A KUBE-SVC-AAAAAAAAAAAAAAAA -p udp -m comment --comment "kube-system/dns:dns -> 10.200.1.2:53" -j DNAT --to-destination 10.200.1.2:53
COMMIT
`
	r, err := iptables.Parse(cluster.IPv4, save)
	if err != nil {
		t.Fatal(err)
	}
	places := r.Served(cluster.UDP)
	slices.SortFunc(places, netip.AddrPort.Compare)
	var got []string
	for _, p := range places {
		got = append(got, fmt.Sprint(p.Addr(), " ", p.Port()))
	}
	if want := "invalid IP 30081, 10.96.0.10 53, 10.96.16.3 55, 203.0.113.1 54"; strings.Join(got, ", ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, ", "), want)
	}
	r, err = iptables.Parse(cluster.IPv6, "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n"+
		"-A KUBE-SERVICES -d fd00:96::a/128 -p udp -m comment --comment dns -m udp --dport 53 -j KUBE-SVC-A\nCOMMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(r.Served(cluster.UDP)); got != "[[fd00:96::a]:53]" {
		t.Errorf("IPv6: %s", got)
	}
}
