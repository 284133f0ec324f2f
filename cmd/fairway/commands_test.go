package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/fairway-net/fairway/agent"
)

const manifests = `apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
`

const configuration = `apiVersion: fairway.dev/v1alpha1
kind: AgentConfiguration
nodeName: n1
masqueradeBit: 3
`

const kubeProxyConfiguration = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
hostnameOverride: n1
iptables: {masqueradeBit: 4}
ipvs: {scheduler: rr}
featureGates: {AllowServiceExternalIPs: false}
`

// run runs the command line; FOLDER stands for a folder with cluster.yaml, agent.yaml and kube-proxy.yaml.
func run(t *testing.T, env string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"cluster.yaml": manifests, "agent.yaml": configuration, "kube-proxy.yaml": kubeProxyConfiguration} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "FOLDER", dir)
	}
	t.Setenv("NODE_NAME", env)
	c := newCommand()
	var out, complaints bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&complaints)
	err = c.ExecuteContext(t.Context())
	return out.String(), complaints.String(), err
}

func TestCommands(t *testing.T) {
	render := func(args ...string) []string { return append([]string{"render", "-f", "FOLDER/cluster.yaml"}, args...) }
	for _, c := range []struct {
		name, env string
		args      []string
		want      string // in what is printed, or in the error
		fails     bool
	}{
		{"the file counts", "", render("--config=FOLDER/agent.yaml", "-o=iptables"), "-j MARK --set-xmark 0x8/0x8\n", false},
		{"a flag wins over the file", "", render("--config=FOLDER/agent.yaml", "--masquerade-bit=0", "-o=iptables"), "-j MARK --set-xmark 0x1/0x1\n", false},
		{"a default does not", "", render("--node-name=n1", "-o=iptables"), "-j MARK --set-xmark 0x4000/0x4000\n", false},
		{"the node's name from a flag", "n3", render("--node-name=n2"), "# n1", false},
		{"from the environment", "n2", render(), "# n1", false},
		{"from the file before the environment", "n2", render("--config=FOLDER/agent.yaml"), "ROUTES  0", false},
		{"kube-proxy's file", "", render("--kube-proxy-config=FOLDER/kube-proxy.yaml", "-o=iptables"), "-j MARK --set-xmark 0x10/0x10\n", false},
		{"the file wins over kube-proxy's", "", render("--kube-proxy-config=FOLDER/kube-proxy.yaml", "--config=FOLDER/agent.yaml", "-o=iptables"), "-j MARK --set-xmark 0x8/0x8\n", false},
		{"a flag wins over kube-proxy's", "", render("--kube-proxy-config=FOLDER/kube-proxy.yaml", "--masquerade-bit=0", "-o=iptables"), "-j MARK --set-xmark 0x1/0x1\n", false},
		{"not kube-proxy's file", "n1", render("--kube-proxy-config=FOLDER/agent.yaml"), `expected kubeproxy.config.k8s.io/v1alpha1`, true},
		{"an unknown format", "n1", render("-o=xml"), `unknown format "xml", expected one of text, iptables, routes, bgp, json`, true},
		{"a bad flag", "n1", render("--cluster-cidrs=10.0.0.1/8"), "clusterCIDRs[0]: \"10.0.0.1/8\" has bits set", true},
		{"a broken file is named", "n1", render("--config=FOLDER/cluster.yaml"), "cluster.yaml: line 6: a second document", true},
		{"two sources", "n1", []string{"agent", "--kubeconfig=x", "--cluster-dir=y"}, "[kubeconfig cluster-dir]", true},
		{"nothing to render", "n1", []string{"render"}, `"filename" not set`, true},
		{"no such command", "n1", []string{"walk"}, `unknown command "walk"`, true},
		{"an argument too many", "n1", []string{"cleanup", "now"}, `unknown command "now"`, true},
		{"there and back", "n1", []string{"takeover", "--plan", "--back"}, "[back plan]", true},
		{"two clusters", "n1", []string{"takeover", "--plan", "--kubeconfig=x", "-f=y"}, "[filename kubeconfig]", true},
		{"an unknown backend", "n1", []string{"agent", "--iptables-backend=ebpf"}, "expected auto, legacy or nft", true},
		{"kube-router's flags", "n1", []string{"import-kube-router", "-f=FOLDER/cluster.yaml", "--", "--peer-router-ips=192.0.2.1", "--peer-router-asns=64500"}, "  - address: 192.0.2.1\n", false},
		{"no flags of kube-router's", "n1", []string{"import-kube-router", "-f=FOLDER/cluster.yaml"}, "kube-router's flags are not known", true},
		{"none, and said so", "n1", []string{"import-kube-router", "-f=FOLDER/cluster.yaml", "--"}, "kind: AgentConfiguration", false},
		{"flags in a wrong place", "n1", []string{"import-kube-router", "-f=FOLDER/cluster.yaml", "x", "--", "-v=2"}, "stand behind --", true},
		{"version", "", []string{"version"}, "fairway ", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, _, err := run(t, c.env, c.args...)
			if err != nil {
				out = err.Error()
			}
			if (err != nil) != c.fails || !strings.Contains(out, c.want) {
				t.Errorf("error %v; expected %q in\n%s", err, c.want, out)
			}
		})
	}
}

// TestNotesBesideRules: what is printed for a program holds no remarks; those go to standard error.
func TestNotesBesideRules(t *testing.T) {
	out, complaints, err := run(t, "nobody", "render", "-f=FOLDER/cluster.yaml", "-o=routes")
	if err != nil || strings.Contains(out, "#") || !strings.Contains(complaints, "# Node nobody: NodeIncomplete: ") {
		t.Errorf("error %v, printed\n%s\nand beside it\n%s", err, out, complaints)
	}
}

// TestRemarksBesideRules: what of kube-proxy's file does not count is said once, beside what is printed.
func TestRemarksBesideRules(t *testing.T) {
	out, complaints, err := run(t, "", "render", "-f=FOLDER/cluster.yaml", "-o=routes", "--kube-proxy-config=FOLDER/kube-proxy.yaml")
	want := "# kube-proxy's configuration: ipvs.scheduler: rr does not count: fairway serves the same Services by iptables rules\n"
	if err != nil || strings.Contains(out, "#") || complaints != want {
		t.Errorf("error %v, printed\n%s\nand beside it\n%s", err, out, complaints)
	}
}

// TestFlags: each flag sets its field.
func TestFlags(t *testing.T) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	s := newSettings(flags)
	connectionFlags(s)
	err := flags.Parse(strings.Fields(`--node-name=n1 --cluster-cidrs=10.244.0.0/16,fd00::/48 --service-cidrs=10.96.0.0/12
		--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=veth --external-ip-ranges=198.51.100.0/24
		--load-balancer-ip-ranges=203.0.113.0/24 --masquerade-all --masquerade-bit=1 --nodeport-addresses=192.0.2.0/24,2001:db8::/64
		--iptables-localhost-nodeports=false --keep-jumps-first=false --bind-address=192.0.2.1 --unknown-services=Forward --iptables-backend=nft
		--iptables-sync-period=1m --iptables-min-sync-period=0 --conntrack-max-per-core=1 --conntrack-min=2
		--conntrack-tcp-timeout-established=3s --conntrack-tcp-timeout-close-wait=4s --conntrack-tcp-be-liberal
		--conntrack-udp-timeout=5s --conntrack-udp-timeout-stream=6s --healthz-bind-address=none --metrics-bind-address=192.0.2.1:1
		--bind-address-hard-fail --profiling --oom-score-adj=7 --state-dir=/var/lib/fairway --kubeconfig=/k --kube-api-qps=8 --kube-api-burst=9
		--kube-api-content-type=application/json`))
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := s.configure()
	if err != nil {
		t.Fatal(err)
	}
	number := func(n int) *int { return &n }
	no := false
	fields := agent.AgentConfiguration{
		NodeName: "n1", ClusterCIDRs: []string{"10.244.0.0/16", "fd00::/48"}, ServiceCIDRs: []string{"10.96.0.0/12"},
		DetectLocal: agent.DetectLocal{Mode: "InterfaceNamePrefix", InterfaceNamePrefix: "veth"},
		ExternalIPs: agent.AddressRanges{Ranges: []string{"198.51.100.0/24"}}, LoadBalancerIPs: agent.AddressRanges{Ranges: []string{"203.0.113.0/24"}},
		MasqueradeAll: true, MasqueradeBit: number(1), NodePortAddresses: []string{"192.0.2.0/24", "2001:db8::/64"}, LocalhostNodePorts: &no, KeepJumpsFirst: &no,
		BindAddress: "192.0.2.1", UnknownServices: "Forward", IPTablesBackend: "nft", SyncPeriod: "1m", MinSyncPeriod: "0s",
		Conntrack: agent.ConntrackConfiguration{MaxPerCore: number(1), Min: number(2), TCPEstablishedTimeout: "3s", TCPCloseWaitTimeout: "4s",
			TCPBeLiberal: true, UDPTimeout: "5s", UDPStreamTimeout: "6s"},
		HealthzBindAddress: "none", MetricsBindAddress: "192.0.2.1:1", BindAddressHardFail: true, EnableProfiling: true, OOMScoreAdj: number(7), StateDir: "/var/lib/fairway",
		ClientConnection: agent.ClientConnection{Kubeconfig: "/k", QPS: 8, Burst: 9, ContentType: "application/json"},
	}
	want, err := fields.Config()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the flags mean %+v\nexpected %+v, %v", got, want, err)
	}
	set := []string{"config", "kube-proxy-config", "pod-bridge-interface", "allow-all-external-ips", "allow-all-load-balancer-ips"} // what contradicts the others
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Changed && !slices.Contains(set, f.Name) {
			t.Errorf("the flag --%s is not tried", f.Name)
		}
	})
}
