package kuberouter

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source/file"
	"github.com/fairway-net/fairway/routes/bgp"
)

// load reads a cluster of Nodes n1, n2, … with these annotations, and Services.
func load(t *testing.T, nodes []string, more string) *cluster.Snapshot {
	t.Helper()
	var b strings.Builder
	for i, annotations := range nodes {
		fmt.Fprintf(&b, "apiVersion: v1\nkind: Node\nmetadata: {name: n%d, labels: {kubernetes.io/hostname: host%[1]d}, annotations: {%s}}\nspec: {podCIDRs: [10.244.%[1]d.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1%[1]d}]}\n---\n", i+1, annotations)
	}
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(path, []byte(b.String()+more), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := file.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// written writes an import, and loads it as the agent does.
func written(t *testing.T, i *Import, node string) (string, agent.Config) {
	t.Helper()
	var b strings.Builder
	if err := i.Write(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, err := agent.Configure(agent.Files{Agent: path}, func(c *agent.AgentConfiguration) { c.NodeName = node })
	if err != nil {
		t.Fatalf("the agent does not load it: %v\n%s", err, &b)
	}
	return b.String(), c
}

const peers = `kube-router.io/peers: "[{remoteip: 192.0.2.1, remoteasn: 64500, password: aHVudGVyMg==}]"`

func TestImport(t *testing.T) {
	const service = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, annotations: {kube-router.io/service.advertise.loadbalancerip: "false", kube-router.io/service.local: "true", kube-router.io/service.scheduler: mh}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}
`
	for _, c := range []struct {
		name  string
		args  []string
		nodes []string
		more  string
		// peers and announced are those of n1.
		peers, announced string
		says, not        []string
	}{
		{name: "the defaults, and no router", nodes: []string{""}, says: []string{"There is no section bgp", "fairway has no NetworkPolicy", "there is no overlay", "bridgeInterface: kube-bridge", "fairway does not replace the source of pods' traffic"}, not: []string{"bgp:\n"}},
		{name: "a router for all nodes", args: []string{"--peer-router-ips=192.0.2.1,192.0.2.2", "--peer-router-asns", "64500,64501", "--peer-router-ports=179,1790", "--peer-router-passwords=aHVudGVyMg==,", "--cluster-asn=64600",
			"--advertise-cluster-ip", "--advertise-external-ip=true", "--advertise-pod-cidr=false", "--peer-router-multihop-ttl=3", "--bgp-holdtime=1m30s", "--bgp-graceful-restart", "--bgp-graceful-restart-time=2m",
			"--service-cluster-ip-range=10.96.0.0/16", "--service-external-ip-range=198.51.100.0/24", "--service-external-ip-range=203.0.113.0/25", "--run-firewall=false", "--enable-overlay=false", "--masquerade-all"}, nodes: []string{"", ""},
			peers:     "peer 192.0.2.1:179 AS 64500 IPv4 multihop 3 password hold 1m30s keepalive 30s retry 5s graceful-restart 2m0s\npeer 192.0.2.2:1790 AS 64501 IPv4 multihop 3 hold 1m30s keepalive 30s retry 5s graceful-restart 2m0s\n",
			announced: "ClusterIPs ExternalIPs", says: []string{"passwordFile: /etc/fairway/bgp/192.0.2.1", "The password of 192.0.2.1 is not printed", "- 203.0.113.0/25", "- 10.96.0.0/16", "masqueradeAll: true", "iBGP mesh"},
			not: []string{"NetworkPolicy", "overlay"}},
		{name: "flags win over the peers of annotations", args: []string{"--peer-router-ips=192.0.2.9", "--peer-router-asns=64500"}, nodes: []string{peers}, peers: "peer 192.0.2.9:179 AS 64500 IPv4 hold 30s keepalive 10s retry 5s\n", announced: "PodCIDRs"},
		{name: "the same peers everywhere", nodes: []string{peers, peers}, peers: "peer 192.0.2.1:179 AS 64500 IPv4 password hold 30s keepalive 10s retry 5s\n", announced: "PodCIDRs", not: []string{"nodeSelector"}},
		{name: "peers of one node", args: []string{"--enable-ipv6"}, nodes: []string{peers, ""}, peers: "peer 192.0.2.1:179 AS 64500 IPv4 password hold 30s keepalive 10s retry 5s\n", announced: "PodCIDRs",
			says: []string{"kubernetes.io/hostname: host1", "passwordFile: /etc/fairway/bgp/n1_192.0.2.1", "- IPv6"}},
		{name: "what all nodes say", args: []string{"--nodes-full-mesh=false"}, nodes: []string{peers + `, kube-router.io/node.asn: "64700", kube-router.io/node.bgp.communities: no-export, kube-router.io/path-prepend.as: "65000", kube-router.io/path-prepend.repeat-n: "20"`},
			peers: "peer 192.0.2.1:179 AS 64500 IPv4 password hold 30s keepalive 10s retry 5s\n", announced: "PodCIDRs", says: []string{"asn: 64700", "- no-export", "asPathPrepend: 10", "path-prepend.as is 65000", "repeat-n is 20"}, not: []string{"kubeRouterAnnotations"}},
		{name: "what nodes say differently", args: []string{"--nodes-full-mesh=false"}, nodes: []string{peers + `, kube-router.io/node.asn: "64700"`, peers + `, kube-router.io/node.asn: "64701"`},
			peers: "peer 192.0.2.1:179 AS 64500 IPv4 from 192.0.2.11 password hold 30s keepalive 10s retry 5s graceful-restart 2m0s\n", announced: "PodCIDRs", says: []string{"kubeRouterAnnotations: true", "asn: 64700"}},
		{name: "an ASN that does not count", nodes: []string{peers + `, kube-router.io/node.asn: "64700"`}, peers: "peer 192.0.2.1:179 AS 64500 IPv4 password hold 30s keepalive 10s retry 5s\n", announced: "PodCIDRs", says: []string{"node.asn does not count", "asn: 64512"}},
		{name: "no longer path for iBGP", args: []string{"--peer-router-ips=192.0.2.9", "--peer-router-asns=64512", "--peer-router-multihop-ttl=2"}, nodes: []string{`kube-router.io/path-prepend.as: "64512", kube-router.io/path-prepend.repeat-n: "2"`},
			peers: "peer 192.0.2.9:179 AS 64512 IPv4 hold 30s keepalive 10s retry 5s\n", announced: "PodCIDRs", says: []string{"would refuse the path"}},
		{name: "Services", args: []string{"--advertise-cluster-ip", "--advertise-loadbalancer-ip"}, nodes: []string{peers}, more: service, peers: "peer 192.0.2.1:179 AS 64500 IPv4 password hold 30s keepalive 10s retry 5s\n", announced: "PodCIDRs ClusterIPs LoadBalancerIPs",
			says: []string{"# - kubectl -n default annotate service web fairway.dev/announce=ClusterIPs\n", `# - kubectl -n default patch service web -p '{"spec":{"externalTrafficPolicy":"Local"}}'`, "Service default/web: annotation kube-router.io/service.scheduler does not count"}},
		{name: "a full mesh that was asked for", args: []string{"--nodes-full-mesh=true", "--bgp-holdtime=60s"}, nodes: []string{"", ""},
			peers: "peer 192.0.2.12:179 AS 64512 IPv4 from 192.0.2.11 hold 1m0s keepalive 20s retry 5s passive # node n2\n", announced: "PodCIDRs", says: []string{"  mesh:\n    holdTime: 1m0s\n"}, not: []string{"is not needed"}},
		{name: "route reflectors", nodes: []string{`kube-router.io/rr.server: "42"`, `kube-router.io/rr.client: "42"`, ""},
			says:  []string{"# - kubectl label node n1 fairway.dev/reflector=true\n", "clusterID: 0.0.0.42", "fairway.dev/reflector: \"true\"", "all nodes but the reflectors are their clients"},
			peers: "", announced: "PodCIDRs", not: []string{"is not needed", "is not there"}},
		{name: "what is wrong", args: []string{"--peer-router-ips=192.0.2.1,192.0.2.2", "--peer-router-asns=64500", "--run-firewall=maybe", "start"}, nodes: []string{""},
			says: []string{"--peer-router-ips has 2 items, --peer-router-asns 1", `--run-firewall is "maybe", expected true or false`, `"start" is no flag`}},
		{name: "no router, no proxy", args: []string{"--run-router=false", "--run-service-proxy=false", "--enable-cni=false", "--enable-bfd"}, nodes: []string{peers}, says: []string{"--run-router=false: there is no section bgp", "if kube-proxy does now", "there is no BFD"}, not: []string{"bgp:\n", "kube-bridge\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := load(t, c.nodes, c.more)
			text, config := written(t, New(c.args, s, nil), "n1")
			for _, want := range c.says {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in\n%s", want, text)
				}
			}
			for _, not := range append(c.not, "hunter2", "aHVudGVy") {
				if strings.Contains(text, not) {
					t.Errorf("%q is in\n%s", not, text)
				}
			}
			plan := agent.MakePlan(s, config, agent.Offline, nil)
			got, announced := "", ""
			if plan.BGP != nil {
				for _, p := range plan.BGP.Peers {
					got += p.String() + "\n"
				}
				for _, k := range config.BGP.Announce[0].Kinds {
					announced += " " + k.String()
				}
			}
			if got != c.peers || strings.TrimSpace(announced) != c.announced {
				t.Errorf("the peers are\n%sexpected\n%sannounced is %q, expected %q", got, c.peers, announced, c.announced)
			}
		})
	}
}

// TestOnly: the peers are those of nodes with a label, also those of one node.
func TestOnly(t *testing.T) {
	s := load(t, []string{peers, ""}, "")
	text, _ := written(t, New([]string{"--nodes-full-mesh"}, s, map[string]string{"fairway.dev/router": "fairway"}), "n1")
	if want := "  listenPort: 1790\n  mesh:\n    nodeSelector:\n      fairway.dev/router: fairway\n"; !strings.Contains(text, want) {
		t.Errorf("%q is not in\n%s", want, text)
	}
	if !strings.Contains(text, "    nodeSelector:\n      fairway.dev/router: fairway\n      kubernetes.io/hostname: host1\n") {
		t.Errorf("the selectors are missing in\n%s", text)
	}
}

// TestSameAnnouncements: with the configuration that is printed, after the commands, a node announces what it did with the
// annotations.
func TestSameAnnouncements(t *testing.T) {
	const services = `
apiVersion: v1
kind: Service
metadata: {name: told, namespace: default, annotations: {%s}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: told-1, namespace: default, labels: {kubernetes.io/service-name: told}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.2], nodeName: n1}]
`
	nodes := []string{peers + `, kube-router.io/node.bgp.communities: "64512:7"`}
	before := load(t, nodes, fmt.Sprintf(services, `kube-router.io/service.advertise.clusterip: "true"`))
	imported := New([]string{"--advertise-loadbalancer-ip"}, before, nil)
	if want := "kubectl -n default annotate service told fairway.dev/announce=ClusterIPs,LoadBalancerIPs"; !slices.Contains(imported.Commands, want) {
		t.Fatalf("the commands are %q", imported.Commands)
	}
	_, config := written(t, imported, "n1")
	after := agent.MakePlan(load(t, []string{""}, fmt.Sprintf(services, `fairway.dev/announce: "ClusterIPs,LoadBalancerIPs"`)), config, agent.Offline, nil)

	annotations := config
	counted := *config.BGP
	counted.KubeRouter, counted.Peers = &bgp.Peer{Port: 179}, nil
	counted.Announce = []bgp.Announcement{{Kinds: []bgp.Kind{bgp.PodCIDRs, bgp.LoadBalancerIPs}, Attributes: bgp.Attributes{LocalPref: bgp.DefaultLocalPref}}}
	annotations.BGP = &counted
	with := agent.MakePlan(before, annotations, agent.Offline, nil)
	paths := func(p *agent.Plan) (text string) {
		for _, path := range p.BGP.Paths {
			text += path.Prefix.String() + path.Attributes.String() + "\n"
		}
		return text
	}
	// What only a Service asks for has the Node's communities in kube-router, and with fairway's annotation none.
	want := strings.Replace(paths(with), "10.96.0.1/32 communities 64512:7", "10.96.0.1/32", 1)
	if got := paths(after); got != want || strings.Count(got, "\n") != 3 {
		t.Errorf("with the configuration\n%s\nwith the annotations\n%s", got, want)
	}
}

func TestFlagsIn(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	list := write("list.yaml", `apiVersion: v1
kind: List
items:
- {kind: DaemonSet, spec: {template: {spec: {containers: [{name: other, image: other:v1, args: ["--no"]}]}}}}
- {kind: DaemonSet, spec: {template: {spec: {containers: [{name: router, image: "docker.io/cloudnativelabs/kube-router:v2.11.0", args: ["--run-router=true", "-v=2"]}]}}}}
`)
	command := write("command.yaml", "kind: Pod\nspec: {containers: [{name: x, image: own, command: [/usr/local/bin/kube-router], args: [--cluster-asn=1]}]}\n")
	shell := write("several.yaml", "kind: ConfigMap\ndata: {a: b}\n---\nkind: DaemonSet\nspec: {template: {spec: {containers: [{name: kube-router, image: own}]}}}\n")
	for _, c := range []struct {
		path, want string
		found      bool
	}{{list, "--run-router=true -v=2", true}, {command, "--cluster-asn=1", true}, {shell, "", true}, {write("none.yaml", "kind: Pod\n"), "", false}, {write("broken.yaml", "{"), "", false}} {
		args, found, err := FlagsIn(c.path)
		if err != nil || found != c.found || strings.Join(args, " ") != c.want {
			t.Errorf("%s: %q, %v, %v", c.path, args, found, err)
		}
	}
	if _, found, err := FlagsIn(dir); err != nil || !found {
		t.Errorf("in a folder: %v, %v", found, err)
	}
	if _, _, err := FlagsIn(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a path that is not there is no error")
	}
}
