package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// render feeds what kubectl prints to fairway render, with the flags of the DaemonSet, and expects for each node what
// its kernel has.
func (w *world) render(t *testing.T) {
	objects := w.mustKubectl(t, "get", "nodes,svc,endpointslices", "-A", "-o", "yaml")
	for node := range w.agents {
		dir := t.TempDir()
		// Which of its addresses a node has on which link is the one thing that the API does not know.
		file := filepath.Join(dir, "cluster.yaml")
		if err := os.WriteFile(file, []byte(objects+"---\n"+w.host(t, node)), 0o600); err != nil {
			t.Fatal(err)
		}
		compare(t, "rules of "+node, chains(w.runRender(t, node, file, "iptables")), chains(w.rules(t, node)))

		ours := slices.DeleteFunc(lines(w.routes(t, node)), func(l string) bool { return !strings.Contains(l, " proto 102") })
		compare(t, "routes of "+node, lines(w.runRender(t, node, file, "routes")), ours)
	}
}

// runRender runs fairway render with the flags of the DaemonSet and its configuration.
func (w *world) runRender(t *testing.T, node, file, format string) string {
	t.Helper()
	args := []string{"render", "-f", file, "--node-name", node, "-o", format}
	for _, arg := range w.daemonSet.Spec.Template.Spec.Containers[0].Args[1:] {
		if strings.HasPrefix(arg, "--config=") {
			arg = "--config=" + manifests(t, "base", "agent-configuration.yaml")
		}
		args = append(args, arg)
	}
	out, err := exec.Command(w.fairway, args...).Output()
	if err != nil {
		t.Fatalf("fairway %s: %v: %s", strings.Join(args, " "), err, stderr(err))
	}
	return string(out)
}

func stderr(err error) []byte {
	if e, ok := err.(*exec.ExitError); ok {
		return e.Stderr
	}
	return nil
}

// host describes a node's links to fairway render, from what ip says of them.
func (w *world) host(t *testing.T, node string) string {
	t.Helper()
	text, err := w.lab.Node(node).Run("ip", "-json", "addr")
	if err != nil {
		t.Fatal(err)
	}
	var links []struct {
		Index    int    `json:"ifindex"`
		Name     string `json:"ifname"`
		Flags    []string
		AddrInfo []struct {
			Local     string
			PrefixLen int
		} `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(text), &links); err != nil {
		t.Fatal(err)
	}
	type link struct {
		Name      string   `json:"name"`
		Index     int      `json:"index"`
		Up        bool     `json:"up"`
		Loopback  bool     `json:"loopback,omitempty"`
		Addresses []string `json:"addresses,omitempty"`
	}
	host := struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Links      []link `json:"links"`
	}{APIVersion: "fairway.dev/v1alpha1", Kind: "Host"}
	for _, l := range links {
		out := link{Name: l.Name, Index: l.Index, Up: slices.Contains(l.Flags, "UP"), Loopback: slices.Contains(l.Flags, "LOOPBACK")}
		for _, a := range l.AddrInfo {
			out.Addresses = append(out.Addresses, fmt.Sprintf("%s/%d", a.Local, a.PrefixLen))
		}
		host.Links = append(host.Links, out)
	}
	doc, err := yaml.Marshal(host)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// lines returns the lines of a text, sorted and without spaces at their ends, which ip leaves.
func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		out = append(out, strings.TrimSpace(line))
	}
	slices.Sort(out)
	return out
}

// chains returns the lines of what iptables-save prints for both families that are about our chains. Each line begins
// with its family's number, table and chain; sorted by these, they keep their order within a chain. Of the built-in
// chains the jumps to ours are left, and the kubelet's hint is not ours.
func chains(text string) []string {
	var out []string
	var table string
	seen := map[string]int{} // how often a table came; a second time is the other family
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "*") {
			seen[line]++
			table = fmt.Sprintf("%d%s", seen[line], line)
		}
		if !strings.Contains(line, "KUBE-") || strings.Contains(line, "KUBE-IPTABLES-HINT") {
			continue
		}
		chain := strings.Fields(strings.TrimPrefix(strings.TrimPrefix(line, ":"), "-A "))[0]
		out = append(out, table+" "+chain+" "+line)
	}
	slices.SortStableFunc(out, func(a, b string) int { return slices.Compare(strings.Fields(a)[:2], strings.Fields(b)[:2]) })
	return out
}

// compare expects two lists of lines to be equal and shows what only one of them has.
func compare(t *testing.T, what string, rendered, installed []string) {
	t.Helper()
	if len(rendered) == 0 {
		t.Errorf("%s: nothing is rendered", what)
	}
	if slices.Equal(rendered, installed) {
		t.Logf("%s: %d lines, rendered as installed", what, len(rendered))
		return
	}
	for _, l := range rendered {
		if !slices.Contains(installed, l) {
			t.Errorf("%s: rendered, not installed: %s", what, l)
		}
	}
	for _, l := range installed {
		if !slices.Contains(rendered, l) {
			t.Errorf("%s: installed, not rendered: %s", what, l)
		}
	}
	if !t.Failed() {
		t.Errorf("%s: the same lines in another order or number:\n%s\ninstalled:\n%s", what, strings.Join(rendered, "\n"), strings.Join(installed, "\n"))
	}
}
