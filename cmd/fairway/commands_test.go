package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

// run runs the command line; FOLDER stands for a folder with cluster.yaml and agent.yaml.
func run(t *testing.T, env string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"cluster.yaml": manifests, "agent.yaml": configuration} {
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
		{"an unknown format", "n1", render("-o=xml"), `unknown format "xml", expected one of text, iptables, routes, json`, true},
		{"a bad flag", "n1", render("--cluster-cidrs=10.0.0.1/8"), "clusterCIDRs[0]: \"10.0.0.1/8\" has bits set", true},
		{"a broken file is named", "n1", render("--config=FOLDER/cluster.yaml"), "cluster.yaml: line 6: a second document", true},
		{"two sources", "n1", []string{"agent", "--kubeconfig=x", "--cluster-dir=y"}, "[kubeconfig cluster-dir]", true},
		{"nothing to render", "n1", []string{"render"}, `"filename" not set`, true},
		{"no such command", "n1", []string{"walk"}, `unknown command "walk"`, true},
		{"an argument too many", "n1", []string{"cleanup", "now"}, `unknown command "now"`, true},
		{"an unknown backend", "n1", []string{"agent", "--iptables-backend=ebpf"}, "expected auto, legacy or nft", true},
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
