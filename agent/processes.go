package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// A Process is a running kube-proxy, or another agent, in this network namespace.
type Process struct {
	PID int `json:"pid"`
	// Mode is kube-proxy's mode: iptables, nftables or ipvs; "" when it can't be told. Why says from what it was told, or why not.
	Mode string `json:"mode,omitempty"`
	Why  string `json:"why,omitempty"`
}

// String returns "pid 4711 in iptables mode (--proxy-mode)".
func (p Process) String() string {
	mode := ""
	if p.Mode != "" {
		mode = " in " + p.Mode + " mode"
	}
	if p.Why != "" {
		mode += " (" + p.Why + ")"
	}
	return fmt.Sprintf("pid %d%s", p.PID, mode)
}

// hostPIDs is the PID namespace that a machine starts with (PID_NS_INIT_INO of linux/nsfs.h).
const hostPIDs = "pid:[4026531836]"

// neighbours are the processes that keep rules of Services in this network namespace.
type neighbours struct {
	kubeProxies, agents []Process
	// partial tells that this is a PID namespace other than the machine's, in which not all of its processes are seen.
	partial bool
}

// findNeighbours looks through /proc, or what is mounted like it. A process whose network namespace can't be told is taken for
// one of this.
func findNeighbours(proc string) (n neighbours, err error) {
	own, err := os.Readlink(filepath.Join(proc, "self/ns/net"))
	if err != nil {
		return n, fmt.Errorf("look for kube-proxy: %w", err)
	}
	pids, err := os.Readlink(filepath.Join(proc, "self/ns/pid"))
	if err != nil {
		return n, fmt.Errorf("look for kube-proxy: %w", err)
	}
	n.partial = pids != hostPIDs
	err = eachProcess(proc, own, func(dir string, pid int, args []string) {
		switch {
		case len(args) > 1 && filepath.Base(args[0]) == "fairway" && args[1] == "agent":
			n.agents = append(n.agents, Process{PID: pid})
		case isKubeProxy(args):
			p := Process{PID: pid}
			p.Mode, p.Why = kubeProxyMode(dir, args)
			n.kubeProxies = append(n.kubeProxies, p)
		}
	})
	if err != nil {
		return n, fmt.Errorf("look for kube-proxy: %w", err)
	}
	return n, nil
}

// eachProcess calls visit for the other processes of a network namespace, or of one that can't be told; with their folders and
// arguments.
func eachProcess(proc, namespace string, visit func(dir string, pid int, args []string)) error {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		args := commandLine(dir)
		if len(args) == 0 {
			continue
		}
		ns, err := os.Readlink(filepath.Join(dir, "ns/net"))
		if errors.Is(err, fs.ErrNotExist) || err == nil && ns != namespace {
			continue
		}
		visit(dir, pid, args)
	}
	return nil
}

// commandLine returns the arguments of a process; none of one that has ended, or of the kernel's own.
func commandLine(dir string) []string {
	text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// isKubeProxy tells whether a command is kube-proxy, alone or as part of hyperkube.
func isKubeProxy(args []string) bool {
	return len(args) > 0 && filepath.Base(args[0]) == "kube-proxy" || len(args) > 1 && args[1] == "kube-proxy"
}

// kubeProxyMode tells the mode of a kube-proxy by its flags and its file. With a file, the flag does not count.
func kubeProxyMode(dir string, args []string) (mode, why string) {
	const unset = "iptables" // what kube-proxy takes when nobody says
	if file := flagValue(args, "config"); file != "" {
		root := "root"
		if !filepath.IsAbs(file) {
			root = "cwd"
		}
		var c struct{ Mode string }
		text, err := os.ReadFile(filepath.Join(dir, root, file))
		if err == nil {
			err = yaml.Unmarshal(text, &c)
		}
		switch {
		case err != nil:
			return "", fmt.Sprintf("its mode is in %s, which can't be read: %v", file, err)
		case c.Mode == "":
			return unset, file + " names no mode"
		}
		return c.Mode, "by " + file
	}
	if mode := flagValue(args, "proxy-mode"); mode != "" {
		return mode, "by --proxy-mode"
	}
	return unset, "no flag names a mode"
}

// flagValue returns the value of a flag, given as --flag=value or --flag value; "" without it.
func flagValue(args []string, name string) string {
	for i, a := range args {
		if value, given := strings.CutPrefix(a, "--"+name+"="); given {
			return value
		}
		if a == "--"+name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// refuseKubeProxies is an error while a kube-proxy runs, or while one might without being seen.
func (n neighbours) refuseKubeProxies(saidStopped bool) error {
	if len(n.kubeProxies) > 0 {
		var who []string
		for _, p := range n.kubeProxies {
			who = append(who, p.String())
		}
		return fmt.Errorf("kube-proxy still runs: %s; stop it first: what it made is of use to it, and it would make it again", strings.Join(who, ", "))
	}
	if n.partial && !saidStopped {
		return errors.New("this is not the host's PID namespace, so a kube-proxy may run without being seen here: run this on the host, or in a pod with hostPID, or add --kube-proxy-stopped when you know")
	}
	return nil
}

// pids lists processes for a message.
func pids(list []Process) string {
	var all []string
	for _, p := range list {
		all = append(all, strconv.Itoa(p.PID))
	}
	return strings.Join(all, ", ")
}
