package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// inPod runs fairway in the container of a node's agent, as kubectl exec does: with its files and the privileges that it has.
func (w *world) inPod(t *testing.T, node string, args ...string) (out string, code int) {
	t.Helper()
	c := w.daemonSet.Spec.Template.Spec.Containers[0]
	command := append([]string{"-t", strconv.Itoa(w.agents[node].PID()), "--mount", "--root", "--wd", "/usr/bin/env", "XTABLES_LOCKFILE=" + lockPath, "setpriv"},
		setprivArgs(t, c.SecurityContext)...)
	out, err := w.lab.Node(node).Run("nsenter", append(append(command, "--", entrypoint), args...)...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return out, exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out, 0
}

// doctor runs fairway doctor in the pods, first as the base's manifests have it and then with the host's files of systemd-networkd.
func (w *world) doctor(t *testing.T) {
	for node := range w.agents {
		out, code := w.inPod(t, node, "doctor")
		if code != 0 || !strings.Contains(out, "all right") || !strings.Contains(out, "ready; revision") || !strings.Contains(out, "it answers (agent)") {
			t.Errorf("%s: exit code %d:\n%s", node, code, out)
		}
		// That node ports at 127.0.0.1 take a sysctl which the pod can't set, is so.
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "[") && !strings.HasPrefix(line, "[ok]") && !strings.Contains(line, "SysctlRefused") {
				t.Errorf("%s: %s", node, line)
			}
		}
	}
	const node = "node-a"
	hosts := "/proc/" + strconv.Itoa(w.agents[node].PID()) + "/root/host"
	out, code := w.inPod(t, node, "doctor", "--host-root=/host")
	if code != 0 || !strings.Contains(out, "systemd-networkd does not run") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	// Where the pod can't write, the host's systemd-networkd does.
	mounts, err := os.ReadFile("/proc/" + strconv.Itoa(w.agents[node].PID()) + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	state := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasSuffix(f[4], "/host/run/systemd/netif") {
			state = f[3]
		}
	}
	if state == "" {
		t.Fatalf("%s is not mounted:\n%s", hosts, mounts)
	}
	if _, err := os.Stat(filepath.Join(hosts, "etc/systemd")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(state, "state"), []byte("OPER_STATE=routable\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, code = w.inPod(t, node, "doctor", "--host-root=/host")
	if code != 0 || !strings.Contains(out, "ManageForeignRoutes=yes (its default)") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}
