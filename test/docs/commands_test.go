package docs

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

func all(t *testing.T) []Command {
	t.Helper()
	commands, err := Commands("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(commands) < 10 {
		t.Fatalf("only %d commands were found in the documents", len(commands))
	}
	return commands
}

// TestMakeTargets: what the documents say to make can be made.
func TestMakeTargets(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`\bmake ([a-z-]+)`)
	for _, c := range all(t) {
		if m := word.FindStringSubmatch(c.Text); m != nil && !regexp.MustCompile(`(?m)^`+m[1]+`:`).Match(makefile) {
			t.Errorf("%s: %q: the Makefile has no target %s", c.File, c.Text, m[1])
		}
	}
}

// elsewhere tells that a command is run by another test: those of make and kubectl, the page about looking inside,
// which is about the demo's cluster, the guides that test/migrate follows, and the way back to a running kube-proxy, which is in test/takeover.
func elsewhere(c Command) bool {
	if c.File == "inside.md" || strings.HasPrefix(c.File, "migrate-") || c.Text == "fairway takeover --back" {
		return true
	}
	first := strings.Fields(c.Text)
	for len(first) > 0 && strings.Contains(first[0], "=") {
		first = first[1:]
	}
	return len(first) > 0 && (first[0] == "make" || first[0] == "kubectl" || first[0] == "go")
}

// TestCommands types the commands on a node, as an operator would.
func TestCommands(t *testing.T) {
	l := lab.ForTest(t, lab.Conformance())
	cluster, err := l.Cluster()
	if err != nil {
		t.Fatal(err)
	}
	svc := lab.Service("db-service", []netip.Addr{netip.MustParseAddr("10.103.132.104")}, lab.TCPPort("", 3306, 3306))
	cluster.SetService(svc)
	cluster.SetEndpoints(svc, lab.Ready(l.Pod("p1")), lab.Ready(l.Pod("p3")))
	if err := cluster.Write(); err != nil {
		t.Fatal(err)
	}
	node := l.Node("n1")
	agent, err := node.StartAgent(lab.AgentOptions{Cluster: cluster, Backend: lab.NFT})
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.WaitReady(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	binary, err := lab.AgentBinary()
	if err != nil {
		t.Fatal(err)
	}
	// A folder as the reader has it: fairway in the PATH, and what kubectl wrote.
	folder := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(folder, "fairway")); err != nil {
		t.Fatal(err)
	}
	copyManifests(t, cluster.Dir, filepath.Join(folder, "cluster.yaml"))
	copyFile(t, "../../agent/testdata/kubeadm-configmap.yaml", filepath.Join(folder, "kube-proxy.yaml"))
	ran := 0
	for _, c := range all(t) {
		if elsewhere(c) {
			continue
		}
		ran++
		t.Run(c.File+"/"+c.Text, func(t *testing.T) {
			command := strings.ReplaceAll(c.Text, "worker-1", "n1")
			out, err := node.Run("bash", "-c", "set -o pipefail; cd "+folder+"; PATH="+folder+":$PATH; "+command)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if strings.TrimSpace(out) == "" && !strings.Contains(c.Text, "flush") && !strings.Contains(c.Text, " del ") {
				t.Errorf("it prints nothing")
			}
		})
	}
	if ran < 5 {
		t.Errorf("only %d commands were run on a node", ran)
	}
	t.Run("a name for the protocol", func(t *testing.T) { nameProtocol(t, node) })
}

// nameProtocol types the commands that write below /etc, on a copy that only they see.
func nameProtocol(t *testing.T, node *lab.Node) {
	var commands []string
	for _, c := range all(t) {
		if c.File == "inside.md" && (strings.Contains(c.Text, "rt_protos") || strings.Contains(c.Text, "proto fairway")) {
			commands = append(commands, c.Text)
		}
	}
	if len(commands) < 3 {
		t.Fatalf("docs/inside.md has only %q", commands)
	}
	folder := t.TempDir()
	mine := "cp -r /etc/iproute2/. " + folder + " && mount --bind " + folder + " /etc/iproute2"
	out, err := node.Run("unshare", "-m", "bash", "-ec", mine+"\n"+strings.Join(commands, "\n"))
	if err != nil || !strings.Contains(out, "via") {
		t.Errorf("%q: %v\n%s", commands, err, out)
	}
}

func copyManifests(t *testing.T, dir, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the cluster's folder has %v (%v), expected one file", files, err)
	}
	copyFile(t, files[0], to)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
