package netfilter

import (
	"context"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
)

const (
	canaries = "*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n*filter\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n*nat\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n"
	// ipvsRules are as a kube-proxy in IPVS mode has them, but without its ipsets.
	ipvsRules = `*filter
:KUBE-IPVS-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A KUBE-PROXY-FIREWALL -j KUBE-SOURCE-RANGES-FIREWALL
COMMIT
*nat
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-SERVICES -j KUBE-LOAD-BALANCER
COMMIT
`
	staleRules = `*nat
:HOUSE - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A HOUSE -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-AAAAAAAAAAAAAAAA
COMMIT
`
)

// whats returns what steps say.
func whats(steps []Step) (list []string) {
	for _, s := range steps {
		list = append(list, s.What)
	}
	return list
}

// TestLeftovers: what a kube-proxy of each mode has left is found without a change to the kernel, is named, and goes; what is
// others' or the agent's stays. A dummy interface is not to be had here, so a bridge has its name.
func TestLeftovers(t *testing.T) {
	inNamespace(t)
	ctx := context.Background()
	shell(t, canaries+ipvsRules, "iptables-nft-restore", "--noflush")
	shell(t, "*filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n", "ip6tables-nft-restore", "--noflush")
	shell(t, staleRules, "iptables-legacy-restore", "--noflush")
	shell(t, "table ip kube-proxy { set s { type ipv4_addr; }; chain services { ip daddr @s drop; }; chain nat { type nat hook prerouting priority -100; jump services; }; }\n"+
		"table ip6 kube-proxy { }\ntable inet kube-proxy { }\n", "nft", "-f", "-")
	for _, name := range []string{"KUBE-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-DST-OTHERS"} {
		if err := netlink.IpsetCreate(name, "hash:ip", netlink.IpsetCreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: ipvsLink}}); err != nil {
		t.Fatal(err)
	}
	before := everything(t)

	left, err := FindLeftovers(ctx, NFT)
	if err != nil {
		t.Fatal(err)
	}
	steps := left.Steps(true)
	want := []string{
		"remove the nftables table ip kube-proxy of kube-proxy in nftables mode",
		"remove the nftables table ip6 kube-proxy of kube-proxy in nftables mode",
		"remove 3 IPv4 chains of Services, beside those of the agent in iptables-nft, from iptables-legacy: nat KUBE-MARK-MASQ, nat KUBE-SERVICES, nat KUBE-SVC-AAAAAAAAAAAAAAAA",
		"remove 4 IPv4 chains of kube-proxy in IPVS mode from iptables-nft: filter KUBE-IPVS-FILTER, filter KUBE-NODE-PORT, filter KUBE-SOURCE-RANGES-FIREWALL, nat KUBE-LOAD-BALANCER",
		"remove the interface kube-ipvs0 with its 0 addresses",
		"destroy the ipsets KUBE-CLUSTER-IP, KUBE-6-LOAD-BALANCER-SOURCE-CID",
		"remove 3 IPv4 chains by which kube-proxy notices a flush from iptables-nft: mangle KUBE-PROXY-CANARY, filter KUBE-PROXY-CANARY, nat KUBE-PROXY-CANARY",
		"remove 1 IPv6 chains by which kube-proxy notices a flush from iptables-nft: filter KUBE-PROXY-CANARY",
	}
	if got := whats(steps); !sameTexts(got, want) {
		t.Errorf("the steps are\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	w, err := OtherModes()
	if err != nil || len(w) != 3 || !strings.Contains(w[0], "nftables table ip kube-proxy") || !strings.Contains(w[2], ipvsLink) || !reflect.DeepEqual(w, left.Remarks()) {
		t.Errorf("the warnings are %q (%v), the remarks %q", w, err, left.Remarks())
	}
	if after := everything(t); after != before {
		t.Errorf("looking has changed the kernel from\n%s\nto\n%s", before, after)
	}

	for _, s := range steps {
		if err := s.Do(ctx); err != nil {
			t.Errorf("%s: %v", s.What, err)
		}
	}
	for _, s := range steps {
		if err := s.Do(ctx); err != nil {
			t.Errorf("again, %s: %v", s.What, err)
		}
	}
	after := everything(t)
	for _, gone := range []string{"CANARY", "IPVS", "NODE-PORT", "LOAD-BALANCER", "SOURCE-RANGES", "-A KUBE-MARK-MASQ", "table ip kube-proxy", "table ip6 kube-proxy", "AAAAAAAAAAAAAAAA", "KUBE-CLUSTER-IP"} {
		if strings.Contains(after, gone) {
			t.Errorf("%s is still there:\n%s", gone, after)
		}
	}
	for _, stays := range []string{"table inet kube-proxy", ":HOUSE ", ":KUBE-SERVICES ", ":KUBE-MARK-MASQ ", ":KUBE-PROXY-FIREWALL ", ":KUBE-FIREWALL ", "-A HOUSE -j KUBE-MARK-MASQ", "KUBE-DST-OTHERS"} {
		if !strings.Contains(after, stays) {
			t.Errorf("%s has gone:\n%s", stays, after)
		}
	}
	if left, err = FindLeftovers(ctx, NFT); err != nil || len(left.Steps(true)) != 0 || len(left.Remarks()) != 0 {
		t.Errorf("afterwards there are still %q, %q (%v)", whats(left.Steps(true)), left.Remarks(), err)
	}
}

// everything is what of the kernel these tests are about.
func everything(t *testing.T) (text string) {
	t.Helper()
	for _, c := range []string{"iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"} {
		for line := range strings.Lines(shell(t, "", c)) {
			if line[0] != '#' {
				text += line
			}
		}
	}
	text += shell(t, "", "nft", "list", "ruleset") + shell(t, "", "ip", "-o", "link")
	sets, err := netlink.IpsetListAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sets {
		text += s.SetName + "\n"
	}
	return text
}

func sameTexts(a, b []string) bool { return reflect.DeepEqual(a, b) }

// TestInspect: looking at a host where nothing is makes nothing, whatever is asked of it.
func TestInspect(t *testing.T) {
	for _, name := range []string{Legacy, NFT, Auto} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			ctx := context.Background()
			b, err := Inspect(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range cluster.Families {
				if have, err := b.Look(ctx, f); err != nil || have.Serving() {
					t.Errorf("%s: %v, serving %t", f, err, have.Serving())
				}
			}
			if _, err := FindLeftovers(ctx, b.Name); err != nil {
				t.Error(err)
			}
			if tables, err := os.ReadFile("/proc/thread-self/net/ip_tables_names"); err == nil && len(tables) > 0 {
				t.Errorf("there are tables now: %s", tables)
			}
			if tables := shell(t, "", "nft", "list", "tables"); tables != "" {
				t.Errorf("there are tables now: %s", tables)
			}
		})
	}
}

// TestIPVSText reads what the kernel shows of IPVS (net/netfilter/ipvs/ip_vs_ctl.c and ip_vs_conn.c); the kernel of the tests has none.
func TestIPVSText(t *testing.T) {
	proc := t.TempDir()
	for name, text := range map[string]string{
		"ip_vs": "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n" +
			"TCP  0A60000A:0050 rr \n  -> 0AF40102:1F90      Masq    1      1          0         \n" +
			"UDP  [fd00:0010:0096:0000:0000:0000:0000:000b]:0035 rr \n  -> [fd00:0010:0244:0001:0000:0000:0000:0002]:1F75      Masq    1      0          0         \n" +
			"SCTP C0A80002:7530 rr persistent 10800 FFFFFFFF\nFWM  00000001 rr \n",
		"ip_vs_conn": "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n" +
			"TCP C0A80064 8C3A 0A60000A 0050 0AF40102 1F90 ESTABLISHED     899\n" +
			"TCP C0A80064 8C3B 0A60000A 0050 0AF40102 1F90 TIME_WAIT       100\n" +
			"UDP C0A80064 8C3C 0A60000B 0035 0AF40102 1F75 UDP             290\n",
	} {
		if err := os.WriteFile(filepath.Join(proc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := readLines(filepath.Join(proc, "ip_vs"), parseVirtualService)
	want := []virtualService{{unix.IPPROTO_TCP, netip.MustParseAddrPort("10.96.0.10:80")},
		{unix.IPPROTO_UDP, netip.MustParseAddrPort("[fd00:10:96::b]:53")}, {unix.IPPROTO_SCTP, netip.MustParseAddrPort("192.168.0.2:30000")}}
	if err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("virtual services %v (%v), expected %v", list, err, want)
	}
	if s := want[1].String(); s != "[fd00:10:96::b]:53/udp" {
		t.Errorf("a virtual service is %q", s)
	}
	s, err := readIPVS(proc)
	if err != nil || s.established != 1 || s.others != 3 || len(s.services) != 0 {
		t.Errorf("without the interface: %+v (%v)", s, err)
	}
}

// TestVirtualServiceMessage: the attributes are those of linux/ip_vs.h.
func TestVirtualServiceMessage(t *testing.T) {
	got := hex.EncodeToString(virtualService{unix.IPPROTO_TCP, netip.MustParseAddrPort("10.96.0.10:80")}.encode())
	const want = "30000180" + "0600010002000000" + "0600020006000000" + "140003000a60000a000000000000000000000000" + "0600040000500000"
	if got != want {
		t.Errorf("the message is %s, expected %s", got, want)
	}
}

// TestIPVSSetNames: only kube-proxy's ipsets are its own.
func TestIPVSSetNames(t *testing.T) {
	for name, own := range map[string]bool{"KUBE-LOOP-BACK": true, "KUBE-6-LOOP-BACK": true, "KUBE-NODE-PORT-LOCAL-SCTP-HASH": true,
		"KUBE-6-NODE-PORT-LOCAL-SCTP-HAS": true, "KUBE-SRC-2FAAKQ": false, "KUBE-": false, "kube-bridge": false} {
		if isIPVSSet(name) != own {
			t.Errorf("%s: own is %t", name, !own)
		}
	}
}
