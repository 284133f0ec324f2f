package agent

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A mountedConfig is a configuration file as a kubelet mounts it from a ConfigMap: a link to a link, of which the inner one is
// replaced as a whole.
type mountedConfig struct {
	*testing.T
	dir string
	n   int
}

func newMountedConfig(t *testing.T, text string) *mountedConfig {
	t.Helper()
	m := &mountedConfig{T: t, dir: t.TempDir()}
	m.write(text)
	if err := os.Symlink(filepath.Join("..data", "agent.yaml"), m.path()); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *mountedConfig) path() string { return filepath.Join(m.dir, "agent.yaml") }

func (m *mountedConfig) write(text string) {
	m.Helper()
	m.n++
	version := filepath.Join(m.dir, "..version"+strings.Repeat("i", m.n))
	link := filepath.Join(m.dir, "..tmp")
	for _, step := range []func() error{
		func() error { return os.Mkdir(version, 0o755) },
		func() error { return os.WriteFile(filepath.Join(version, "agent.yaml"), []byte(head+text), 0o600) },
		func() error { return os.Symlink(version, link) },
		func() error { return os.Rename(link, filepath.Join(m.dir, "..data")) },
	} {
		if err := step(); err != nil {
			m.Fatal(err)
		}
	}
}

// rereaderOf is a rereader of a file, with what it applied and told last.
func rereaderOf(t *testing.T, m *mountedConfig, flags func(*AgentConfiguration)) (r *rereader, applied *[]Config, told *[]cluster.Note) {
	t.Helper()
	o := Options{Files: Files{Agent: m.path()}, Flags: flags}
	var err error
	if o.Config, _, err = Configure(o.Files, o.Flags); err != nil {
		t.Fatal(err)
	}
	applied, told = &[]Config{}, &[]cluster.Note{}
	r = newRereader(o, func(c Config) { *applied = append(*applied, c) }, func(notes ...cluster.Note) { *told = notes })
	return r, applied, told
}

func noFlags(*AgentConfiguration) {}

// TestReread: an edit of the section bgp is applied as a whole; one of anything else is told; one that is wrong keeps what was good
// and says why; and when the file is as before, nothing is told.
func TestReread(t *testing.T) {
	const good = "nodeName: n1\nserviceCIDRs: [10.96.0.0/16]\nbgp: {asn: 64512, peers: [{address: 192.0.2.1, asn: 64500}]}\n"
	m := newMountedConfig(t, good)
	r, applied, told := rereaderOf(t, m, noFlags)
	for _, c := range []struct {
		name, text string
		// peers are those in force then; changed tells that this is new.
		peers   string
		changed bool
		// note is how the only Note begins, after the Node; contains is in it.
		note, contains string
	}{
		{"as it was", good, "192.0.2.1", false, "", ""},
		{"a default is spelled out", good + "syncPeriod: 30s\nmasqueradeBit: 14\n", "192.0.2.1", false, "", ""},
		{"another peer", strings.Replace(good, "192.0.2.1", "192.0.2.2", 1), "192.0.2.2", true, "", ""},
		{"a mistake", strings.Replace(good, "asn: 64500", "ASN: 64500", 1), "192.0.2.2", false, cluster.ReasonConfigRefused,
			`agent.yaml: line 5: unknown field "bgp.peers[0].ASN"`},
		{"two mistakes", strings.Replace(good, "asn: 64512", "asn: -1, listenPort: -2", 1), "192.0.2.2", false, cluster.ReasonConfigRefused,
			"bgp.asn: -1 is no autonomous system's, expected 1 to 4294967294 but for 23456; bgp.listenPort: -2 is out of range, expected 0 to 65535; what was read before stays in force"},
		{"another field", good + "syncPeriod: 7s\n", "192.0.2.1", true, cluster.ReasonConfigNeedsRestart, "changed in syncPeriod, which count when the agent is restarted"},
		{"both", strings.Replace(good, "192.0.2.1", "192.0.2.3", 1) + "syncPeriod: 7s\n", "192.0.2.3", true, cluster.ReasonConfigNeedsRestart, "the section bgp is applied"},
		{"another ASN", strings.Replace(good, "asn: 64512", "asn: 64513", 1), "192.0.2.1", true, "", ""},
		{"another identity", strings.Replace(good, "asn: 64512", "asn: 64512, routerID: 192.0.2.9, listenPort: 179", 1), "192.0.2.1", true, "", ""},
		{"no bgp any more", "nodeName: n1\nserviceCIDRs: [10.96.0.0/16]\n", "", true, "", ""},
		{"again, with another ASN", strings.Replace(good, "asn: 64512", "asn: 64513", 1), "192.0.2.1", true, "", ""},
		{"again, as it was", good, "192.0.2.1", true, "", ""},
		{"it contradicts what waits", strings.Replace(good, "asn: 64512", "asn: 64512, announce: [{addresses: [ServiceCIDRs]}]", 1) + "unknownServices: Forward\n",
			"192.0.2.1", false, cluster.ReasonConfigRefused, "ServiceCIDRs lead traffic here for which there is no Service"},
		{"other ranges", strings.Replace(good, "10.96.0.0/16", "10.97.0.0/16", 1), "192.0.2.1", false, cluster.ReasonConfigNeedsRestart, "changed in serviceCIDRs, which"},
		{"back", good, "192.0.2.1", false, "", ""},
	} {
		*applied, *told = nil, nil
		m.write(c.text)
		r.reread()
		var peers []string
		if r.inForce.BGP != nil {
			for _, p := range r.inForce.BGP.Peers {
				peers = append(peers, p.Address.String())
			}
		}
		if got := strings.Join(peers, " "); got != c.peers || len(*applied) > 0 != c.changed {
			t.Errorf("%s: in force are the peers %q, applied %d times; expected %q, %v", c.name, got, len(*applied), c.peers, c.changed)
		}
		if r.inForce.SyncPeriod != defaultSyncPeriod || len(r.inForce.ServiceCIDRs) != 1 || r.inForce.ServiceCIDRs[0].String() != "10.96.0.0/16" {
			t.Errorf("%s: half of it is in force: %+v", c.name, r.inForce)
		}
		if b := r.inForce.BGP; b != nil && b.ServiceCIDRs[0] != r.inForce.ServiceCIDRs[0] {
			t.Errorf("%s: BGP announces %v", c.name, b.ServiceCIDRs)
		}
		text := ""
		for _, n := range *told {
			text += n.String()
		}
		if !strings.HasPrefix(text, "Node n1: "+c.note) && c.note != "" || c.note == "" && text != "" || !strings.Contains(text, c.contains) {
			t.Errorf("%s: told %q\nexpected %s: %s", c.name, text, c.note, c.contains)
		}
		if r.stale.Load() != (c.note != "") {
			t.Errorf("%s: fairway_config_stale is %v", c.name, r.stale.Load())
		}
	}
}

// TestRereadContradiction: a section that is good with the file, but not with what is in force, waits with it.
func TestRereadContradiction(t *testing.T) {
	m := newMountedConfig(t, "nodeName: n1\nunknownServices: Forward\nserviceCIDRs: [10.96.0.0/16]\n")
	r, applied, told := rereaderOf(t, m, noFlags)
	m.write("nodeName: n1\nserviceCIDRs: [10.96.0.0/16]\nbgp: {asn: 64512, peers: [{address: 192.0.2.1, asn: 64500}], announce: [{addresses: [ServiceCIDRs]}]}\n")
	r.reread()
	if len(*applied) > 0 || len(*told) != 1 || !strings.Contains((*told)[0].Detail, "bgp.announce[0].addresses, unknownServices, which count when the agent is restarted") {
		t.Errorf("applied %d times, told %v", len(*applied), *told)
	}
}

// TestChangedFields: an edit of each field is told by its name in the file.
func TestChangedFields(t *testing.T) {
	edits := map[string]string{
		"nodeName":                        "nodeName: n2",
		"clusterCIDRs":                    "clusterCIDRs: [10.1.0.0/16]",
		"serviceCIDRs":                    "serviceCIDRs: [10.97.0.0/16]",
		"detectLocal.mode":                "detectLocal: {mode: NodeCIDR}",
		"detectLocal, detectLocal.mode":   "detectLocal: {mode: BridgeInterface, bridgeInterface: cni0}",
		"externalIPs.ranges":              "externalIPs: {ranges: [192.0.2.0/24]}",
		"externalIPs.allowAll":            "externalIPs: {allowAll: true}",
		"loadBalancerIPs.ranges":          "loadBalancerIPs: {ranges: [192.0.2.0/24]}",
		"loadBalancerIPs.allowAll":        "loadBalancerIPs: {allowAll: true}",
		"masqueradeAll":                   "masqueradeAll: true",
		"masqueradeBit":                   "masqueradeBit: 1",
		"nodePortAddresses":               "nodePortAddresses: [primary]",
		"localhostNodePorts":              "localhostNodePorts: false",
		"bindAddress":                     "bindAddress: 192.0.2.1",
		"keepJumpsFirst":                  "keepJumpsFirst: false",
		"unknownServices":                 "unknownServices: Forward",
		"iptablesBackend":                 "iptablesBackend: nft",
		"syncPeriod":                      "syncPeriod: 1m",
		"minSyncPeriod":                   "minSyncPeriod: 1s",
		"conntrack.min":                   "conntrack: {min: 1}",
		"conntrack.tcpEstablishedTimeout": "conntrack: {tcpEstablishedTimeout: 1s}",
		"healthzBindAddress":              "healthzBindAddress: none",
		"metricsBindAddress":              "metricsBindAddress: none",
		"controlSocket":                   "controlSocket: none",
		"bindAddressHardFail":             "bindAddressHardFail: true",
		"enableProfiling":                 "enableProfiling: true",
		"oomScoreAdj":                     "oomScoreAdj: 1",
		"stateDir":                        "stateDir: /s",
		"clientConnection.kubeconfig":     "clientConnection: {kubeconfig: k}",
		"clientConnection.qps":            "clientConnection: {qps: 1}",
		"clientConnection.burst, clientConnection.qps": "clientConnection: {qps: 1, burst: 1}",
	}
	t.Setenv("NODE_NAME", "n1")
	before, err := configure(t, head)
	if err != nil {
		t.Fatal(err)
	}
	for want, edit := range edits {
		after, err := configure(t, head+edit)
		if err != nil {
			t.Fatal(err)
		}
		got := changedFields(before, after)
		slices.Sort(got)
		if text := strings.Join(slices.Compact(got), ", "); text != want {
			t.Errorf("%s: told as %q, expected %q", edit, text, want)
		}
	}
	names := strings.Join(slices.Collect(maps.Keys(edits)), " ")
	for _, field := range fieldNames(reflect.TypeFor[AgentConfiguration]()) {
		field, _, _ = strings.Cut(field, "{")
		if !strings.Contains(" "+names, " "+field) && !slices.Contains([]string{"apiVersion", "kind", "bgp"}, field) {
			t.Errorf("no edit of %s is tried", field)
		}
	}
}

// TestRereadFollows: a replaced ConfigMap is applied, flags win over it as at the start, and a file that is gone keeps what it said.
func TestRereadFollows(t *testing.T) {
	m := newMountedConfig(t, "nodeName: n1\n")
	r, _, _ := rereaderOf(t, m, func(a *AgentConfiguration) { a.NodeName = "from-a-flag" })
	configs, notes := make(chan Config, 10), make(chan []cluster.Note, 10)
	r.every, r.apply, r.tell = 10*time.Millisecond, func(c Config) { configs <- c }, func(n ...cluster.Note) { notes <- n }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.run(ctx) }()
	if n := <-notes; len(n) > 0 {
		t.Errorf("with an unchanged file: %v", n)
	}
	m.write("nodeName: n2\nbgp: {asn: 64512, peers: [{address: 192.0.2.1, asn: 64500}]}\n")
	if c := <-configs; c.NodeName != "from-a-flag" || c.BGP.ASN != 64512 || c.BGP.NodeName != "from-a-flag" {
		t.Errorf("applied %+v", c)
	}
	if n := <-notes; len(n) > 0 {
		t.Errorf("with a flag that wins over a changed field: %v", n)
	}
	if err := os.Remove(m.path()); err != nil {
		t.Fatal(err)
	}
	if n := <-notes; len(n) != 1 || n[0].Reason != cluster.ReasonConfigRefused || !strings.Contains(n[0].Detail, m.path()+": no such file") {
		t.Errorf("when the file is gone: %v", n)
	}
	cancel()
	if err := <-ended; err != nil || len(configs) > 0 {
		t.Errorf("%v; applied %d times more", err, len(configs))
	}
}
