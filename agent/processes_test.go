package agent

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestFindNeighbours: of all processes, the kube-proxies and agents of this network namespace are found, with their modes.
func TestFindNeighbours(t *testing.T) {
	proc := t.TempDir()
	process := func(pid, net, pidns string, args ...string) string {
		dir := filepath.Join(proc, pid)
		for _, d := range []string{"ns", "root/var/lib/kube-proxy", "cwd"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmdline := ""
		for _, a := range args {
			cmdline += a + "\x00"
		}
		if err := os.WriteFile(filepath.Join(dir, "cmdline"), []byte(cmdline), 0o600); err != nil {
			t.Fatal(err)
		}
		for name, target := range map[string]string{"net": net, "pid": pidns} {
			if err := os.Symlink(target, filepath.Join(dir, "ns", name)); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	const own, pods = "net:[1]", "net:[2]"
	process("self", own, hostPIDs)
	process("10", own, hostPIDs, "/usr/local/bin/kube-proxy", "--proxy-mode=nftables", "--v=2")
	process("11", pods, hostPIDs, "kube-proxy")
	dir := process("12", own, hostPIDs, "kube-proxy", "--config", "/var/lib/kube-proxy/config.conf", "--proxy-mode=nftables")
	if err := os.WriteFile(filepath.Join(dir, "root/var/lib/kube-proxy/config.conf"), []byte("kind: KubeProxyConfiguration\nmode: ipvs\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	process("13", own, hostPIDs, "/hyperkube", "kube-proxy")
	process("14", own, hostPIDs, "kube-proxy", "--config=missing.conf")
	process("15", own, hostPIDs, "vi", "/etc/kube-proxy")
	process("16", own, hostPIDs, "/usr/bin/fairway", "agent")
	process("17", own, hostPIDs, "/usr/bin/fairway", "takeover")
	process("18", own, hostPIDs)

	n, err := findNeighbours(proc)
	if err != nil || n.partial {
		t.Fatalf("%v, partial %t", err, n.partial)
	}
	for i := range n.kubeProxies {
		n.kubeProxies[i].Why, _, _ = strings.Cut(n.kubeProxies[i].Why, ", which can't be read")
	}
	want := []Process{{10, "nftables", "by --proxy-mode"}, {12, "ipvs", "by /var/lib/kube-proxy/config.conf"},
		{13, "iptables", "no flag names a mode"}, {14, "", "its mode is in missing.conf"}}
	if !reflect.DeepEqual(n.kubeProxies, want) {
		t.Errorf("kube-proxies %+v, expected %+v", n.kubeProxies, want)
	}
	if !reflect.DeepEqual(n.agents, []Process{{PID: 16}}) {
		t.Errorf("agents %+v", n.agents)
	}
	if err := n.refuseKubeProxies(true); err == nil || !strings.Contains(err.Error(), "pid 10 in nftables mode (by --proxy-mode), pid 12 in ipvs mode") {
		t.Errorf("the refusal is %v", err)
	}
}

// TestUnseenKubeProxy: where not all processes are seen, somebody has to say that no kube-proxy runs.
func TestUnseenKubeProxy(t *testing.T) {
	unseen := neighbours{partial: true}
	if err := unseen.refuseKubeProxies(false); err == nil || !strings.Contains(err.Error(), "--kube-proxy-stopped") {
		t.Errorf("without a word: %v", err)
	}
	if err := unseen.refuseKubeProxies(true); err != nil {
		t.Errorf("with it: %v", err)
	}
	if err := (neighbours{}).refuseKubeProxies(false); err != nil {
		t.Errorf("where all are seen: %v", err)
	}
}
