package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

const proxyHead = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

func fileOf(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func testdata(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// configureProxy returns what a KubeProxyConfiguration alone means, and the remarks without the one on external IPs, which nearly
// every file gets.
func configureProxy(t *testing.T, text string) (Config, []string, error) {
	t.Helper()
	c, remarks, err := Configure(Files{KubeProxy: fileOf(t, text)}, func(*AgentConfiguration) {})
	var list []string
	for _, r := range remarks {
		if !strings.Contains(r.Detail, "externalIPs.ranges") {
			list = append(list, r.String())
		}
	}
	return c, list, err
}

// TestKubeProxyDefaults: the file that kube-proxy --write-config-to writes, an empty one, and what kubeadm keeps mean fairway's
// own defaults, and nothing in them is worth a word.
func TestKubeProxyDefaults(t *testing.T) {
	t.Setenv("NODE_NAME", "a")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	defaults, err := (&AgentConfiguration{}).Config()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		differ     func(*Config)
	}{
		{"nothing", proxyHead, func(*Config) {}},
		{"kube-proxy's own", testdata(t, "kube-proxy-defaults.yaml"), func(c *Config) { c.MinSyncPeriod = time.Second }},
		{"kubeadm's", testdata(t, "kubeadm-configmap.yaml"), func(c *Config) {
			c.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
			c.ClientConnection.Kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf"
		}},
	} {
		want := defaults
		c.differ(&want)
		got, remarks, err := configureProxy(t, c.text)
		if err != nil || len(remarks) > 0 {
			t.Errorf("%s: %v, remarks %q", c.name, err, remarks)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v\nexpected %+v", c.name, got, want)
		}
	}
}

// TestKubeProxyFields: the file that kube-proxy writes has every field that is known here, but for those that it omits, and
// the manual explains each.
func TestKubeProxyFields(t *testing.T) {
	var written map[string]any
	if err := yaml.Unmarshal([]byte(testdata(t, "kube-proxy-defaults.yaml")), &written); err != nil {
		t.Fatal(err)
	}
	manual, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(manual), "| KubeProxyConfiguration |")
	omitted := []string{"featureGates", "windowsRunAsService", "logging.vmodule"}
	var visit func(reflect.Type, map[string]any, string)
	visit = func(known reflect.Type, have map[string]any, above string) {
		for f := range known.Fields() {
			path := above + jsonName(f)
			value, ok := have[jsonName(f)]
			if !ok && !slices.Contains(omitted, path) {
				t.Errorf("kube-proxy does not write the field %s", path)
			}
			if f.Type.Kind() == reflect.Struct {
				inner, _ := value.(map[string]any)
				visit(f.Type, inner, path+".")
				continue
			}
			section, name, nested := strings.Cut(path, ".")
			row := "`" + path + "`"
			if nested { // a section with no meaning has one row
				row += "|`" + section + `\.\*` + "`|`" + section + `\.\{[^}]*\b` + name + `\b[^}]*\}` + "`"
			}
			if !regexp.MustCompile(row).MatchString(table) && path != "apiVersion" && path != "kind" {
				t.Errorf("docs/configuration.md does not say what %s means here", path)
			}
		}
	}
	visit(reflect.TypeFor[kubeProxyConfiguration](), written, "")
}

func TestKubeProxyConfiguration(t *testing.T) {
	t.Setenv("NODE_NAME", "elsewhere")
	got, remarks, err := configureProxy(t, proxyHead+`
hostnameOverride: Worker-1
clusterCIDR: 10.244.1.7/16,fd00:10:244::1/48
detectLocalMode: InterfaceNamePrefix
detectLocal: {interfaceNamePrefix: veth}
bindAddress: 192.0.2.10
healthzBindAddress: 192.0.2.10
metricsBindAddress: "::1"
bindAddressHardFail: true
enableProfiling: true
mode: iptables
iptables: {masqueradeBit: 15, masqueradeAll: true, localhostNodePorts: false, syncPeriod: 1m, minSyncPeriod: 5s}
nodePortAddresses: [192.0.2.1/24, 0.0.0.0/0]
oomScoreAdj: -500
conntrack: {maxPerCore: 1, min: 2, tcpEstablishedTimeout: 3h, tcpCloseWaitTimeout: 0s, tcpBeLiberal: true, udpTimeout: 5s, udpStreamTimeout: 6s}
clientConnection: {kubeconfig: k.conf, qps: 50, burst: 100, contentType: application/json, acceptContentTypes: "application/json;q=1"}
`)
	want := Config{
		NodeName:        "worker-1",
		ClusterCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Addresses:       &proxy.AddressPolicy{},
		Detect:          proxy.DetectInterfaceNamePrefix,
		DetectInterface: "veth",
		MasqueradeAll:   true,
		MasqueradeBit:   15,
		NodePorts:       &proxy.NodePortPolicy{CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("0.0.0.0/0")}},
		NodeIPs:         [2]netip.Addr{netip.MustParseAddr("192.0.2.10")},
		KeepJumpsFirst:  true,
		IPTablesBackend: "auto",
		SyncPeriod:      time.Minute,
		MinSyncPeriod:   5 * time.Second,
		Conntrack: netfilter.ConntrackSettings{MaxPerCore: 1, Min: 2, TCPEstablishedTimeout: 3 * time.Hour, TCPBeLiberal: true, UDPTimeout: 5 * time.Second,
			UDPStreamTimeout: 6 * time.Second},
		HealthzBindAddress:  "192.0.2.10:10256",
		MetricsBindAddress:  "[::1]:10249",
		ControlSocket:       DefaultControlSocket,
		BindAddressHardFail: true,
		EnableProfiling:     true,
		OOMScoreAdj:         -500,
		ClientConnection:    ClientConnection{Kubeconfig: "k.conf", QPS: 50, Burst: 100, ContentType: "application/json", AcceptContentTypes: "application/json;q=1"},
	}
	if err != nil || len(remarks) > 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, remarks %q\nexpected %+v", got, err, remarks, want)
	}
}

// TestKubeProxyRemarks: what does not count is named, each field once.
func TestKubeProxyRemarks(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"mode", "mode: ipvs\nipvs: {scheduler: rr, strictARP: true, syncPeriod: 30s, minSyncPeriod: 1s, excludeCIDRs: [10.0.0.0/8]}\n", []string{
			`mode: "ipvs" does not count: fairway serves the same Services by iptables rules`, "ipvs.excludeCIDRs: [10.0.0.0/8] does not count:",
			"ipvs.minSyncPeriod: 1s does not count:", "ipvs.scheduler: rr does not count:", "ipvs.strictARP: true does not count:"}},
		{"nftables", "mode: nftables\nnftables: {masqueradeBit: 14, masqueradeAll: true, minSyncPeriod: 1s, syncPeriod: 60s}\n", []string{
			"mode: ", "nftables.masqueradeAll: true does not count: fairway makes iptables rules", "nftables.syncPeriod: 60s does not count"}},
		{"others", "configSyncPeriod: 1m\nportRange: 1-2\nshowHiddenMetricsForVersion: '1.35'\nwindowsRunAsService: true\nwinkernel: {enableDSR: true, sourceVip: 10.0.0.1}\n", []string{
			"configSyncPeriod: 1m does not count: the API is watched", "portRange: 1-2 does not count", "showHiddenMetricsForVersion: 1.35 does not count",
			"windowsRunAsService: true does not count", "winkernel.enableDSR: true does not count", "winkernel.sourceVip: 10.0.0.1 does not count"}},
		{"logging", "logging: {format: json, flushFrequency: 10s, verbosity: 4, vmodule: [{filePattern: a, verbosity: 2}], options: {json: {splitStream: true}}}\n", []string{
			"logging.flushFrequency: 10s does not count", "logging.format: json does not count", "logging.options.json.splitStream: true does not count",
			"logging.verbosity: 4 does not count: the log is text, and its verbosity is the flag -v", "logging.vmodule: "}},
		{"logging at its defaults", "logging: {format: text, flushFrequency: 5000000000, verbosity: 0, options: {text: {infoBufferSize: '0'}}}\n", nil},
		{"feature gates", "featureGates: {AllowServiceExternalIPs: false, Contextual: false, Other: true}\n", []string{
			"featureGates.Contextual: false does not count: fairway has no feature gates", "featureGates.Other: true does not count"}},
		{"no feature gates", "featureGates:\n", nil},
		{"an interface for another mode", "detectLocalMode: NodeCIDR\ndetectLocal: {bridgeInterface: cni0}\n", []string{
			`detectLocal.bridgeInterface: "cni0" does not count, because detectLocalMode is "NodeCIDR"`}},
		{"unknown", "udpIdleTimeout: 250ms\nConntrack: {min: 7}\niptables:\n  masqueradebit: 3\n", []string{
			"Conntrack: line 4: there is no such field in kubeproxy.config.k8s.io/v1alpha1; it does not count",
			"iptables.masqueradebit: line 6: there is no such field", "udpIdleTimeout: line 3: there is no such field"}},
		{"given twice", "hostnameOverride: a\nhostnameOverride: b\n", []string{`the file: `}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("NODE_NAME", "a")
			config, got, err := configureProxy(t, proxyHead+c.text)
			same := len(got) == len(c.want)
			for i := range min(len(got), len(c.want)) {
				same = same && strings.HasPrefix(got[i], c.want[i])
			}
			if err != nil || !same {
				t.Errorf("%v, remarks\n%s\nexpected\n%s", err, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			if config.MasqueradeBit != 14 || config.Conntrack.Min != netfilter.DefaultConntrackSettings.Min {
				t.Errorf("a field in other case counts: %+v", config)
			}
			if c.name == "given twice" && (config.NodeName != "b" || !strings.Contains(got[0], `"hostnameOverride" already set`)) {
				t.Errorf("the name is %s, and the remark %s", config.NodeName, got)
			}
		})
	}
}

// TestKubeProxyExternalIPs: that fairway serves fewer external IPs is said unless somebody has said which.
func TestKubeProxyExternalIPs(t *testing.T) {
	t.Setenv("NODE_NAME", "a")
	for _, c := range []struct {
		name, file string
		flags      func(*AgentConfiguration)
		want       bool
	}{
		{"nothing said", proxyHead, func(*AgentConfiguration) {}, true},
		{"explicitly on", proxyHead + "featureGates: {AllowServiceExternalIPs: true}\n", func(*AgentConfiguration) {}, true},
		{"off", proxyHead + "featureGates: {AllowServiceExternalIPs: false}\n", func(*AgentConfiguration) {}, false},
		{"all", proxyHead, func(a *AgentConfiguration) { a.ExternalIPs.AllowAll = true }, false},
		{"some", proxyHead, func(a *AgentConfiguration) { a.ExternalIPs.Ranges = []string{"198.51.100.0/24"} }, false},
	} {
		_, remarks, err := Configure(Files{KubeProxy: fileOf(t, c.file)}, c.flags)
		said := slices.ContainsFunc(remarks, func(r Remark) bool {
			return strings.Contains(r.String(), "fairway only those in its own externalIPs.ranges")
		})
		if err != nil || said != c.want {
			t.Errorf("%s: %v, remarks %v", c.name, err, remarks)
		}
	}
}

func TestKubeProxyRefused(t *testing.T) {
	t.Setenv("NODE_NAME", "a")
	for _, c := range []struct{ name, text, want string }{
		{"kind", "apiVersion: v1\nkind: Pod\n", `it has apiVersion "v1" and kind "Pod", expected kubeproxy.config.k8s.io/v1alpha1 and KubeProxyConfiguration`},
		{"no YAML", proxyHead + "a: [\n", "line 3"},
		{"wrong type", proxyHead + "oomScoreAdj: low\n", "line 3: oomScoreAdj is of type string; expected a whole number"},
		{"wrong type within", proxyHead + "iptables:\n  masqueradeAll: often\n", "line 4: iptables.masqueradeAll is of type string; expected true or false"},
		{"number for a duration", proxyHead + "iptables: {syncPeriod: 30}\n", "line 3: iptables.syncPeriod is of type number; expected a duration, as in 30s"},
		{"duration", proxyHead + "iptables:\n  syncPeriod: soon\n", `line 4: iptables.syncPeriod: "soon" is no duration, expected for example 30s`},
		{"periods", proxyHead + "iptables:\n  syncPeriod: 1s\n  minSyncPeriod: 2s\n", `line 5: iptables.minSyncPeriod: "2s" is longer than the syncPeriod of 1s`},
		{"CIDR", proxyHead + "clusterCIDR: 10.244.0.0/16,pods\n", `line 3: clusterCIDR: "pods" is no CIDR, expected for example 10.244.0.0/16`},
		{"two of a family", proxyHead + "clusterCIDR: 10.244.0.0/16,10.245.0.0/16\n", "line 3: clusterCIDR: has two IPv4 networks, 10.244.0.0/16 and 10.245.0.0/16; expected one per family"},
		{"bit", proxyHead + "iptables:\n  masqueradeBit: 32\n", "line 4: iptables.masqueradeBit: 32 is out of range, expected 0 to 31"},
		{"mode", proxyHead + "mode: userspace\n", `line 3: mode: "userspace" is unknown, expected iptables, ipvs or nftables`},
		{"detect-local mode", proxyHead + "detectLocalMode: Magic\n", `line 3: detectLocalMode: "Magic" is unknown, expected ClusterCIDR,`},
		{"no bridge", proxyHead + "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: ''}\n", "line 4: detectLocal.bridgeInterface: is not given"},
		{"node port addresses", proxyHead + "nodePortAddresses: [10.0.0.0/8, here]\n", `line 3: nodePortAddresses[1]: "here" is no CIDR`},
		{"name", proxyHead + "hostnameOverride: worker_1\n", `line 3: hostnameOverride: "worker_1" (given) can't be the name of a Node`},
		{"address", proxyHead + "healthzBindAddress: localhost\n", `line 3: healthzBindAddress: "localhost" is no address and port`},
		{"several", proxyHead + "oomScoreAdj: 2000\nmode: x\n", "oomScoreAdj: 2000 is out of range, expected -1000 to 1000\nline 4: mode"},
		{"in a ConfigMap", "apiVersion: v1\nkind: ConfigMap\ndata:\n  config.conf: |\n    mode: x\n", `config.conf: it has apiVersion "" and kind ""`},
		{"a ConfigMap without", "apiVersion: v1\nkind: ConfigMap\ndata: {a: b}\n", `it has apiVersion "v1" and kind "ConfigMap"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := configureProxy(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "kube-proxy's configuration /") {
				t.Errorf("error is %v\nexpected it to contain %s", err, c.want)
			}
		})
	}
}

// TestPrecedence: a flag wins over the agent's file, and that over kube-proxy's, field by field.
func TestPrecedence(t *testing.T) {
	kubeProxy := fileOf(t, proxyHead+`hostnameOverride: a
clusterCIDR: 10.244.0.0/16
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: cni0}
oomScoreAdj: 1
conntrack: {min: 1, maxPerCore: 1}
iptables: {masqueradeBit: 1}
`)
	own := fileOf(t, head+"clusterCIDRs: []\ndetectLocal: {mode: NodeCIDR}\noomScoreAdj: 2\nconntrack: {min: 2}\nmasqueradeBit: null\n")
	score := 3
	c, remarks, err := Configure(Files{KubeProxy: kubeProxy, Agent: own}, func(a *AgentConfiguration) { a.OOMScoreAdj = &score })
	if err != nil || len(remarks) != 1 {
		t.Fatal(remarks, err)
	}
	if c.NodeName != "a" || len(c.ClusterCIDRs) != 0 || c.Detect != proxy.DetectNodeCIDR || c.OOMScoreAdj != 3 || c.Conntrack.Min != 2 ||
		c.Conntrack.MaxPerCore != 1 || c.MasqueradeBit != 14 {
		t.Errorf("together they mean %+v", c)
	}
	if _, _, err := Configure(Files{KubeProxy: kubeProxy, Agent: fileOf(t, head+"minSyncPeriod: 1m\n")}, func(*AgentConfiguration) {}); err == nil ||
		!strings.Contains(err.Error(), "file.yaml: minSyncPeriod") {
		t.Errorf("a contradiction: %v", err)
	}
	if _, _, err := Configure(Files{KubeProxy: kubeProxy + "-not"}, func(*AgentConfiguration) {}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestKubeProxyKubeconfig: in a pod without the file, the pod's own account is used; a path that somebody has given for fairway
// is not passed over.
func TestKubeProxyKubeconfig(t *testing.T) {
	t.Setenv("NODE_NAME", "a")
	there := fileOf(t, "")
	for _, c := range []struct {
		name, host, path, flag, want string
		remarks                      int
	}{
		{"in a pod", "10.96.0.1", there + "-not", "", "", 1},
		{"in a pod, with the file", "10.96.0.1", there, "", there, 0},
		{"on a host", "", there + "-not", "", there + "-not", 0},
		{"another one", "10.96.0.1", there + "-not", "/other", "/other", 0},
	} {
		t.Setenv("KUBERNETES_SERVICE_HOST", c.host)
		text := proxyHead + "featureGates: {AllowServiceExternalIPs: false}\nclientConnection: {kubeconfig: " + c.path + "}\n"
		got, remarks, err := Configure(Files{KubeProxy: fileOf(t, text)}, func(a *AgentConfiguration) {
			if c.flag != "" {
				a.ClientConnection.Kubeconfig = c.flag
			}
		})
		if err != nil || got.ClientConnection.Kubeconfig != c.want || len(remarks) != c.remarks {
			t.Errorf("%s: kubeconfig %q, %v, %v", c.name, got.ClientConnection.Kubeconfig, remarks, err)
		}
	}
}

// FuzzKubeProxyConfiguration: whatever a file holds, there is an error, or a configuration that holds. The YAML parser has so many
// branches that -fuzzminimizetime=1x is needed to get anywhere.
func FuzzKubeProxyConfiguration(f *testing.F) {
	f.Setenv("NODE_NAME", "a")
	for _, name := range []string{"kube-proxy-defaults.yaml", "kubeadm-configmap.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(proxyHead + "clusterCIDR: 10.0.0.1/8, ::/0\nnodePortAddresses: [primary]\nlogging: {verbosity: [1]}\nipvs: 7\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := convertKubeProxy([]byte(text))
		if err != nil {
			return
		}
		if _, err := file.configuration.Config(); err != nil {
			t.Errorf("what was taken over is refused: %v", err)
		}
	})
}
