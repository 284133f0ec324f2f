package agent

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/bgp"
)

const head = "apiVersion: fairway.dev/v1alpha1\nkind: AgentConfiguration\n"

func configure(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfiguration(path)
	if err != nil {
		return Config{}, err
	}
	return c.Config()
}

func TestConfiguration(t *testing.T) {
	t.Setenv("NODE_NAME", " Worker-1 ")
	got, err := configure(t, head+`
clusterCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]
serviceCIDRs: [10.96.0.0/12]
externalIPs: {ranges: [198.51.100.0/24]}
loadBalancerIPs: {allowAll: true}
detectLocal: {mode: InterfaceNamePrefix, interfaceNamePrefix: veth}
masqueradeAll: true
masqueradeBit: 0
nodePortAddresses: [192.0.2.0/24, "::/0"]
localhostNodePorts: false
keepJumpsFirst: false
bindAddress: 2001:db8::10
unknownServices: Forward
iptablesBackend: nft
syncPeriod: 1m
minSyncPeriod: 2s
conntrack: {maxPerCore: 0, min: 1, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 1m, tcpBeLiberal: true, udpTimeout: 30s, udpStreamTimeout: 2m}
healthzBindAddress: none
metricsBindAddress: 192.0.2.10
controlSocket: none
bindAddressHardFail: true
enableProfiling: true
oomScoreAdj: 0
clientConnection: {kubeconfig: /etc/k, qps: -1, burst: 7, contentType: application/json}
`)
	want := Config{
		NodeName:     "worker-1",
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
		Addresses: &proxy.AddressPolicy{ExternalIPs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, AllLoadBalancerIPs: true,
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}},
		Detect:          proxy.DetectInterfaceNamePrefix,
		DetectInterface: "veth",
		MasqueradeAll:   true,
		MasqueradeBit:   0,
		NodePorts:       &proxy.NodePortPolicy{CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("::/0")}},
		NodeIPs:         [2]netip.Addr{1: netip.MustParseAddr("2001:db8::10")},
		ForwardUnknown:  true,
		IPTablesBackend: "nft",
		SyncPeriod:      time.Minute,
		MinSyncPeriod:   2 * time.Second,
		Conntrack: netfilter.ConntrackSettings{Min: 1, TCPCloseWaitTimeout: time.Minute, TCPBeLiberal: true, UDPTimeout: 30 * time.Second,
			UDPStreamTimeout: 2 * time.Minute},
		MetricsBindAddress:  "192.0.2.10:10249",
		BindAddressHardFail: true,
		EnableProfiling:     true,
		ClientConnection:    ClientConnection{Kubeconfig: "/etc/k", QPS: -1, Burst: 7, ContentType: "application/json", AcceptContentTypes: "application/json"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nexpected %+v", got, err, want)
	}
}

// TestDefaults: they are kube-proxy's, but for the pacing and for what is safer.
func TestDefaults(t *testing.T) {
	want := Config{
		NodeName:           "a",
		Addresses:          &proxy.AddressPolicy{},
		Detect:             proxy.DetectClusterCIDR,
		MasqueradeBit:      14,
		NodePorts:          &proxy.NodePortPolicy{Localhost: true},
		KeepJumpsFirst:     true,
		IPTablesBackend:    "auto",
		SyncPeriod:         30 * time.Second,
		MinSyncPeriod:      100 * time.Millisecond,
		Conntrack:          netfilter.ConntrackSettings{MaxPerCore: 32768, Min: 131072, TCPEstablishedTimeout: 24 * time.Hour, TCPCloseWaitTimeout: time.Hour},
		HealthzBindAddress: "0.0.0.0:10256",
		MetricsBindAddress: "127.0.0.1:10249", ControlSocket: DefaultControlSocket,
		OOMScoreAdj: -999,
		ClientConnection: ClientConnection{QPS: 5, Burst: 10, ContentType: "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json"},
	}
	got, err := (&AgentConfiguration{NodeName: "a"}).Config()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nexpected %+v", got, err, want)
	}
	got, err = (&AgentConfiguration{NodeName: "a", BindAddress: "::"}).Config()
	want.HealthzBindAddress, want.MetricsBindAddress = "[::]:10256", "[::1]:10249"
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with an IPv6 bindAddress: got %+v, %v\nexpected %+v", got, err, want)
	}
	got, err = (&AgentConfiguration{NodeName: "a", SyncPeriod: "100ms", NodePortAddresses: []string{"primary"}, BindAddress: "192.0.2.10"}).Config()
	if err != nil || got.MinSyncPeriod != 100*time.Millisecond || !got.NodePorts.Primary || got.NodeIPs != [2]netip.Addr{netip.MustParseAddr("192.0.2.10")} {
		t.Errorf("with a short syncPeriod, primary and a bindAddress: got %+v, %v", got, err)
	}
}

func TestConfigurationRefused(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown field", head + "masquerade: true\n", `line 3: unknown field "masquerade"; the fields are apiVersion, kind, nodeName,`},
		{"unknown field within", head + "detectLocal:\n  brigde: x\n", `line 4: unknown field "detectLocal.brigde"; the fields are`},
		{"unknown field in one line", head + "# brigde: x\ndetectLocal: {mode: NodeCIDR, brigde: x}\n", `line 4: unknown field "detectLocal.brigde"`},
		{"other case", head + "nodename: a\n", `line 3: unknown field "nodename"`},
		{"no boolean", head + "masqueradeAll: perhaps\n", "line 3: masqueradeAll is of type string; expected true or false"},
		{"no list", head + "clusterCIDRs: 10.0.0.0/8\n", "line 3: clusterCIDRs is of type string; expected a list, as in [a, b]"},
		{"no whole number", head + "masqueradeBit: 1.5\n", "line 3: masqueradeBit is of type number 1.5; expected a whole number"},
		{"no text", head + "detectLocal:\n  mode: 7\n", "line 4: detectLocal.mode is of type number; expected text"},
		{"no section", head + "detectLocal: NodeCIDR\n", "line 3: detectLocal is of type string; expected fields of its own"},
		{"no fields", "- a\n", `it has no fields; expected lines such as "kind: AgentConfiguration"`},
		{"no YAML", head + "a: [\n", "line 3"},
		{"given twice", head + "nodeName: a\nnodeName: b\n", `line 4: key "nodeName" already set`},
		{"second document", "---\n" + head + "---\nnodeName: a\n", "line 4: a second document begins; expected one"},
		{"node", head + "nodeName: worker_1\n", `nodeName: "worker_1" (given) can't be the name of a Node: expected`},
		{"kind", "apiVersion: v1\nkind: ConfigMap\n", "expected fairway.dev/v1alpha1 and AgentConfiguration"},
		{"bad CIDR", head + "clusterCIDRs: [10.244.0.0/16, 10.244.0]\n", `clusterCIDRs[1]: "10.244.0" is no CIDR, expected for example 10.244.0.0/16`},
		{"unmasked", head + "clusterCIDRs: [10.244.1.0/16]\n", "did you mean 10.244.0.0/16?"},
		{"everything", head + "clusterCIDRs: [0.0.0.0/0]\n", "clusterCIDRs[0]"},
		{"mapped", head + "serviceCIDRs: ['::ffff:10.0.0.0/104']\n", "write it as IPv4"},
		{"two of a family", head + "clusterCIDRs: [10.0.0.0/16, 10.1.0.0/16]\n", "expected one per family"},
		{"overlap", head + "clusterCIDRs: [10.0.0.0/8]\nserviceCIDRs: [10.96.0.0/12]\n", "serviceCIDRs: 10.96.0.0/12 overlaps the pods' network 10.0.0.0/8"},
		{"bad range", head + "externalIPs: {ranges: [x]}\n", `externalIPs.ranges[0]: "x" is no CIDR`},
		{"range and all", head + "loadBalancerIPs: {ranges: [10.0.0.0/8], allowAll: true}\n", "loadBalancerIPs: allowAll and ranges contradict each other"},
		{"mode", head + "detectLocal: {mode: Magic}\n", `detectLocal.mode: "Magic" is unknown, expected ClusterCIDR,`},
		{"missing bridge", head + "detectLocal: {mode: BridgeInterface}\n", "detectLocal.bridgeInterface: is not given"},
		{"contradiction", head + "detectLocal: {mode: NodeCIDR, bridgeInterface: cni0}\n", `"cni0" has no meaning with mode NodeCIDR`},
		{"no interface", head + "detectLocal: {mode: BridgeInterface, bridgeInterface: 'a\" -j DROP'}\n", "can't be the name of an interface"},
		{"long interface", head + "detectLocal: {mode: BridgeInterface, bridgeInterface: abcdefghijklmnop}\n", "can't be the name of an interface"},
		{"bit", head + "masqueradeBit: 32\n", "masqueradeBit: 32 is out of range, expected 0 to 31"},
		{"backend", head + "iptablesBackend: ebpf\n", "expected auto, legacy or nft"},
		{"address", head + "metricsBindAddress: localhost\n", `metricsBindAddress: "localhost" is no address and port`},
		{"primary and more", head + "nodePortAddresses: [primary, 10.0.0.0/8]\n", "nodePortAddresses: [\"primary\" \"10.0.0.0/8\"] are both primary and something else; expected [primary] alone"},
		{"no node port network", head + "nodePortAddresses: [10.0.0.1]\n", `nodePortAddresses[0]: "10.0.0.1" is no CIDR`},
		{"bind address", head + "bindAddress: node1\n", `bindAddress: "node1" is no address, expected for example 192.0.2.10`},
		{"unknown services", head + "unknownServices: Drop\n", `unknownServices: "Drop" is unknown, expected Reject or Forward`},
		{"no duration", head + "syncPeriod: 30\n", "line 3: syncPeriod is of type number; expected a duration, as in 30s or 1h30m"},
		{"odd duration", head + "syncPeriod: 30 seconds\n", `syncPeriod: "30 seconds" is no duration, expected for example 30s`},
		{"no period", head + "syncPeriod: 0s\n", `syncPeriod: "0s" is no period, expected more than 0s`},
		{"minimum above the period", head + "syncPeriod: 1s\nminSyncPeriod: 2s\n", `minSyncPeriod: "2s" is longer than the syncPeriod of 1s`},
		{"negative duration", head + "conntrack: {udpTimeout: -1s}\n", `conntrack.udpTimeout: "-1s" is negative`},
		{"negative count", head + "conntrack: {maxPerCore: -1}\n", "conntrack.maxPerCore: -1 is negative, expected 0 or more"},
		{"relative socket", head + "controlSocket: agent.sock\n", `controlSocket: "agent.sock" depends on where the agent is started; expected an absolute path`},
		{"relative state directory", head + "stateDir: state\n", `stateDir: "state" depends on where the agent is started; expected an absolute path`},
		{"out of memory score", head + "oomScoreAdj: -1001\n", "oomScoreAdj: -1001 is out of range, expected -1000 to 1000"},
		{"burst", head + "clientConnection: {burst: -1}\n", "clientConnection.burst: -1 is negative"},
		{"no number", head + "clientConnection: {qps: many}\n", "line 3: clientConnection.qps is of type string; expected a number"},
		{"content type", head + "clientConnection: {contentType: text/html}\n", `clientConnection.contentType: "text/html" is unknown, expected application/vnd.kubernetes.protobuf or application/json`},
		{"several", head + "masqueradeBit: -1\niptablesBackend: x\n", "iptablesBackend"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := configure(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v\nexpected it to contain %s", err, c.want)
			}
		})
	}
}

// TestNodeName: a flag or the file, else the environment, else the host's name.
func TestNodeName(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ given, env, want string }{
		{"worker-1", "worker-2", "worker-1"},
		{" Worker-1.Example ", "", "worker-1.example"},
		{"", "worker-2", "worker-2"},
		{"", " ", strings.ToLower(host)},
	} {
		t.Setenv("NODE_NAME", c.env)
		got, err := (&AgentConfiguration{NodeName: c.given}).Config()
		if nodeNames.MatchString(c.want) && (err != nil || got.NodeName != c.want) {
			t.Errorf("given %q, NODE_NAME %q: %q, %v; expected %q", c.given, c.env, got.NodeName, err, c.want)
		}
	}
}

// TestBGPExamples: the blocks of docs/bgp.md are good, the second as a part of the first, the third by itself.
func TestBGPExamples(t *testing.T) {
	t.Setenv("NODE_NAME", "n1")
	text, err := os.ReadFile("../docs/bgp.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")
	if len(blocks) != 4 {
		t.Fatalf("docs/bgp.md has %d blocks of YAML, expected 3", len(blocks)-1)
	}
	mesh, _, _ := strings.Cut(blocks[3], "```")
	if c, err := configure(t, mesh); err != nil || c.BGP.ListenPort != 179 || !slices.Equal(c.BGP.Mesh.ReflectorSelector, []string{"fairway.dev/reflector=true"}) ||
		len(c.BGP.Mesh.ServiceRanges[bgp.LoadBalancerIPs]) != 1 || c.BGP.Mesh.Session.RestartTime != 2*time.Minute {
		t.Errorf("%+v, %v", c.BGP, err)
	}
	whole := ""
	for _, b := range blocks[1:3] {
		block, _, _ := strings.Cut(b, "```")
		whole += block
	}
	if c, err := configure(t, whole); err != nil || len(c.BGP.Import) != 3 {
		t.Errorf("%+v, %v", c.BGP, err)
	}
}

func TestBGPConfiguration(t *testing.T) {
	t.Setenv("NODE_NAME", "n1")
	c, err := configure(t, head+`
serviceCIDRs: [10.96.0.0/12]
bgp:
  asn: 64512
  routerID: 192.0.2.99
  listenPort: 1790
  announceFromExcludedNodes: true
  drainOnTaints: ["maintenance=disk:NoExecute", other]
  leave: {noticeTime: 30s}
  peers:
  - address: 192.0.2.1
    asn: 4200000000
  - address: 2001:db8::1
    asn: 64501
    port: 1179
    families: [IPv6, IPv4]
    ttlSecurity: 1
    localAddress: 2001:db8::11
    passwordFile: /etc/fairway/password
    holdTime: 9s
    keepaliveTime: 2s
    connectRetryTime: 1s
    maxPrefixes: 100
    gracefulRestart: {enabled: false}
    nodeSelector: {zone: a, rack: r1}
  announce:
  - addresses: [PodCIDRs]
  - addresses: [ServiceCIDRs, LoadBalancerIPs]
    communities: [no-export, "64512:1"]
    localPref: 0
    med: 3
    asPathPrepend: 2
  import:
  - {prefixes: [172.16.0.0/12, "2001:db8:a::/48"]}
  - {prefixes: [0.0.0.0/0], ge: 8, le: 24}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := &bgp.Config{
		NodeName: "n1", ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.99"), ListenPort: 1790, FromExcluded: true, ServiceCIDRs: c.ServiceCIDRs,
		DrainTaints: []bgp.TaintMatch{{Key: "maintenance", Value: "disk", Effect: "NoExecute"}, {Key: "other"}}, NoticeTime: 30 * time.Second, QuietTime: 2 * time.Second,
		Peers: []bgp.PeerConfig{{Peer: bgp.Peer{Address: netip.MustParseAddr("192.0.2.1"), Port: 179, ASN: 4200000000, Families: [2]bool{true, false},
			HoldTime: 30 * time.Second, KeepaliveTime: 10 * time.Second, ConnectRetryTime: 5 * time.Second, RestartTime: 2 * time.Minute, MaxPrefixes: 20000},
		}, {Peer: bgp.Peer{Address: netip.MustParseAddr("2001:db8::1"), Port: 1179, ASN: 64501, Families: [2]bool{true, true}, TTLSecurity: 1,
			LocalAddress: netip.MustParseAddr("2001:db8::11"), PasswordFile: "/etc/fairway/password",
			HoldTime: 9 * time.Second, KeepaliveTime: 2 * time.Second, ConnectRetryTime: time.Second, MaxPrefixes: 100}, NodeSelector: []string{"rack=r1", "zone=a"}}},
		Announce: []bgp.Announcement{{Kinds: []bgp.Kind{bgp.PodCIDRs}, Attributes: bgp.Attributes{LocalPref: 100}}, {Kinds: []bgp.Kind{bgp.ServiceCIDRs, bgp.LoadBalancerIPs},
			Attributes: bgp.Attributes{Communities: []bgp.Community{0xffffff01, 64512<<16 | 1}, MED: 3, Prepend: 2}}},
		Import: []bgp.ImportRange{{Prefix: netip.MustParsePrefix("172.16.0.0/12"), Least: 12, Most: 32}, {Prefix: netip.MustParsePrefix("2001:db8:a::/48"), Least: 48, Most: 128},
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Least: 8, Most: 24}},
	}
	if !reflect.DeepEqual(c.BGP, want) {
		t.Errorf("got %+v\nexpected %+v", c.BGP, want)
	}
	shown, err := json.Marshal(configz(c))
	if err != nil || !strings.Contains(string(shown), `"kinds":["ServiceCIDRs","LoadBalancerIPs"]`) || !strings.Contains(string(shown), `"communities":["no-export","64512:1"]`) {
		t.Errorf("/configz shows %s, %v", shown, err)
	}
	if c, err = configure(t, head+"bgp: {asn: 64512, peers: [{address: 192.0.2.1, asn: 64500}]}"); err != nil || len(c.BGP.Announce) != 1 || c.BGP.Announce[0].Kinds[0] != bgp.PodCIDRs {
		t.Errorf("without announce: %+v, %v", c.BGP, err)
	}
	if c, err = configure(t, head); err != nil || c.BGP != nil {
		t.Errorf("without bgp: %+v, %v", c.BGP, err)
	}
	if c, err = configure(t, head+"bgp: {asn: 64512, kubeRouterAnnotations: true}"); err != nil || c.BGP.KubeRouter == nil || c.BGP.KubeRouter.HoldTime != 30*time.Second || c.BGP.KubeRouter.Port != 179 {
		t.Errorf("with peers in annotations: %+v, %v", c.BGP, err)
	}
}

// TestBGPRefused: what is wrong is named, with what would be right.
func TestBGPRefused(t *testing.T) {
	const peer = "peers: [{address: 192.0.2.1, asn: 64500}]"
	for bgp, want := range map[string]string{
		"asn: 64512":               "bgp.peers: are none, expected the routers",
		peer:                       "bgp.asn: is not given, expected the number of an autonomous system",
		"asn: 4294967295, " + peer: "bgp.asn: 4294967295 is no autonomous system's",
		"asn: 64512, routerID: \"2001:db8::1\", " + peer:                                                                             "bgp.routerID: \"2001:db8::1\" is no BGP identifier, expected an IPv4 address",
		"asn: 64512, listenPort: 65536, " + peer:                                                                                     "bgp.listenPort: 65536 is out of range, expected 0 to 65535",
		"asn: 64512, peers: [{asn: 64500}]":                                                                                          "bgp.peers[0].address: is not given",
		"asn: 64512, peers: [{address: router, asn: 64500}]":                                                                         "bgp.peers[0].address: \"router\" is no address",
		"asn: 64512, peers: [{address: \"fe80::1%eth0\", asn: 64500}]":                                                               "bgp.peers[0].address: fe80::1%eth0 is no address to have a session with",
		"asn: 64512, peers: [{address: 192.0.2.1}]":                                                                                  "bgp.peers[0].asn: is not given",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, port: -1}]":                                                            "bgp.peers[0].port: -1 is out of range",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, families: [v4]}]":                                                      "bgp.peers[0].families[0]: \"v4\" is unknown, expected IPv4 or IPv6",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, multihop: 2, ttlSecurity: 1}]":                                         "bgp.peers[0].ttlSecurity: contradicts multihop",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64512, multihop: 2}]":                                                         "bgp.peers[0].multihop: has no meaning for an iBGP peer",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, localAddress: \"2001:db8::1\"}]":                                       "bgp.peers[0].localAddress: 2001:db8::1 can't reach",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, holdTime: 2s}]":                                                        "bgp.peers[0].holdTime: 2s is out of range, expected whole seconds from 3s",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, holdTime: 3500ms}]":                                                    "bgp.peers[0].holdTime: 3.5s is out of range, expected whole seconds",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, keepaliveTime: 30s}]":                                                  "bgp.peers[0].keepaliveTime: 30s is not shorter than the holdTime of 30s",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, connectRetryTime: 0s}]":                                                "bgp.peers[0].connectRetryTime: 0s is out of range",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, gracefulRestart: {restartTime: 2h}}]":                                  "bgp.peers[0].gracefulRestart.restartTime: 2h0m0s is out of range",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, gracefulRestart: {enabled: false, restartTime: 2m}}]":                  "bgp.peers[0].gracefulRestart.restartTime: has no meaning with enabled: false",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, nodeSelector: {\"a=b\": c}}]":                                          "bgp.peers[0].nodeSelector: \"a=b\" is no key",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, holdtime: 3s}]":                                                        "line 3: unknown field \"bgp.peers[0].holdtime\"",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: x}]":                                                                          "is of type string; expected a whole number",
		"asn: 64512, " + peer + ", drainOnTaints: [a, \"node.kubernetes.io/unschedulable:NoSchedule\"]":                              "bgp.drainOnTaints[1]: node.kubernetes.io/unschedulable is what a cordon sets",
		"asn: 64512, " + peer + ", leave: {noticeTime: 1h}":                                                                          "bgp.leave.noticeTime: 1h0m0s is out of range, expected at most 10m0s",
		"asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, maxPrefixes: 0}]":                                                      "bgp.peers[0].maxPrefixes: 0 is out of range, expected 1 to",
		"asn: 64512, " + peer + ", import: [{}]":                                                                                     "bgp.import[0].prefixes: are none, expected networks such as",
		"asn: 64512, " + peer + ", import: [{prefixes: [172.16.0.1]}]":                                                               "bgp.import[0].prefixes[0]: \"172.16.0.1\" is no",
		"asn: 64512, " + peer + ", import: [{prefixes: [172.16.0.0/12], ge: 8}]":                                                     "bgp.import[0].ge: 8 is out of range, expected 12 to 32",
		"asn: 64512, " + peer + ", import: [{prefixes: [172.16.0.0/12], le: 33}]":                                                    "bgp.import[0].le: 33 is out of range, expected 12 to 32",
		"asn: 64512, " + peer + ", import: [{prefixes: [172.16.0.0/12], ge: 24, le: 16}]":                                            "bgp.import[0].le: 16 is less than ge, which is 24",
		"asn: 64512, mesh: {clusterID: 10.0.0.1}":                                                                                    "bgp.mesh.clusterID: has no meaning without reflectors",
		"asn: 64512, mesh: {reflectorSelector: {a: b}, clusterID: \"::1\"}":                                                          "bgp.mesh.clusterID: \"::1\" is no cluster ID, expected an IPv4 address",
		"asn: 64512, mesh: {reflectorSelector: {\"\": b}}":                                                                           "bgp.mesh.reflectorSelector: \"\" is no key",
		"asn: 64512, mesh: {holdTime: 2s}":                                                                                           "bgp.mesh.holdTime: 2s is out of range",
		"asn: 64512, mesh: {maxPrefixes: 0}":                                                                                         "bgp.mesh.maxPrefixes: 0 is out of range",
		"asn: 64512, mesh: {port: 1}":                                                                                                "unknown field \"bgp.mesh.port\"",
		"asn: 64512, mesh: {}, announce: [{addresses: [PodCIDRs], asPathPrepend: 1}]":                                                "bgp.announce[0].asPathPrepend: can't be told to other nodes",
		"asn: 64512, " + peer + ", announce: [{}]":                                                                                   "bgp.announce[0].addresses: are none, expected some of PodCIDRs,",
		"asn: 64512, " + peer + ", announce: [{addresses: [pods]}]":                                                                  "bgp.announce[0].addresses[0]: \"pods\" is unknown, expected one of PodCIDRs,",
		"asn: 64512, " + peer + ", announce: [{addresses: [PodCIDRs]}, {addresses: [ClusterIPs, PodCIDRs]}]":                         "bgp.announce[1].addresses[1]: PodCIDRs is there twice",
		"asn: 64512, " + peer + ", announce: [{addresses: [PodCIDRs], communities: [\"1\"]}]":                                        "bgp.announce[0].communities[0]: \"1\" is no community",
		"asn: 64512, " + peer + ", announce: [{addresses: [PodCIDRs], med: -1}]":                                                     "bgp.announce[0].med: -1 is out of range",
		"asn: 64512, " + peer + ", announce: [{addresses: [PodCIDRs], localPref: -1}]":                                               "bgp.announce[0].localPref: -1 is out of range",
		"asn: 64500, " + peer + ", announce: [{addresses: [PodCIDRs], asPathPrepend: 1}]":                                            "bgp.announce[0].asPathPrepend: can't be told to the iBGP peer bgp.peers[0]",
		"asn: 64512, " + peer + ", announce: [{addresses: [ServiceCIDRs]}]}\nunknownServices: Forward\ndetectLocal: {mode: NodeCIDR": "bgp.announce[0].addresses: ServiceCIDRs lead traffic here",
	} {
		if _, err := configure(t, head+"bgp: {"+bgp+"}"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v, expected %s", bgp, err, want)
		}
	}
}
