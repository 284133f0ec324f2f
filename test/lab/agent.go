package lab

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// agentPackage is the command that is run as the agent.
	agentPackage = "github.com/fairway-net/fairway/cmd/fairway"
	// BinaryEnv is the environment variable that names a built agent to use.
	BinaryEnv = "FAIRWAY_BIN"
	// healthz is where an agent tells its health, inside its node.
	healthz = "http://127.0.0.1:10256"
)

// AgentBinary builds fairway, once per process, and returns the file; or the file that FAIRWAY_BIN names. The working
// directory must be in the module, as it is in a test.
func AgentBinary() (string, error) { return agentBinary() }

var agentBinary = sync.OnceValues(func() (string, error) {
	if file := os.Getenv(BinaryEnv); file != "" {
		return filepath.Abs(file)
	}
	if err := os.MkdirAll(binDir(), 0o755); err != nil {
		return "", err
	}
	file := filepath.Join(binDir(), "fairway")
	if out, err := exec.Command("go", "build", "-o", file, agentPackage).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", agentPackage, err, out)
	}
	return file, nil
})

// AgentOptions say how to run an agent.
type AgentOptions struct {
	// Cluster is what --cluster-dir names.
	Cluster *Cluster
	// Backend is the --iptables-backend; the agent finds out by itself when it is empty.
	Backend Backend
	// Flags are added. One that is named here ("--cluster-cidrs=…") replaces the Lab's own of that name.
	Flags []string
	// Without names flags of the Lab's own that the agent should not get ("--cluster-cidrs").
	Without []string
	// Env is added to the environment.
	Env []string
	// Binary is the agent to run; AgentBinary's when empty.
	Binary string
	// Under is a command that runs the agent, whose file and arguments are appended to it.
	Under []string
	// Log gets a copy of what the agent writes; nobody when nil.
	Log io.Writer
}

// An Agent is a running `fairway agent`, or one that has ended.
type Agent struct {
	*Process
	Node    *Node
	Options AgentOptions
}

// StartAgent starts an agent on the node. Its own flags are --node-name, --cluster-dir, --iptables-backend, --cluster-cidrs,
// --service-cidrs and --control-socket. To restart one, start it again with the same Options.
func (n *Node) StartAgent(o AgentOptions) (*Agent, error) {
	bin := o.Binary
	if bin == "" {
		var err error
		if bin, err = AgentBinary(); err != nil {
			return nil, err
		}
	}
	argv := slices.Concat(o.Under, []string{bin, "agent"}, n.flags(o))
	p, err := n.Start(Command{Path: argv[0], Args: argv[1:], Env: o.Env, Log: o.Log})
	if err != nil {
		return nil, err
	}
	a := &Agent{Process: p, Node: n, Options: o}
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	n.lab.agents = append(n.lab.agents, a)
	return a, nil
}

// ControlSocket is the --control-socket of the node's agents.
func (n *Node) ControlSocket() string { return filepath.Join(n.lab.Dir, n.Name+".sock") }

// flags are the agent's flags, without those that the options leave out or give themselves.
func (n *Node) flags(o AgentOptions) []string {
	own := [][2]string{
		{"--node-name", n.Name},
		{"--cluster-cidrs", joinPrefixes(n.lab.Topology.ClusterCIDRs)},
		{"--service-cidrs", joinPrefixes(n.lab.Topology.ServiceCIDRs)},
		{"--iptables-backend", string(o.Backend)},
		{"--control-socket", n.ControlSocket()},
	}
	if o.Cluster != nil {
		own = append(own, [2]string{"--cluster-dir", o.Cluster.Dir})
	}
	var out []string
	for _, f := range own {
		given := slices.ContainsFunc(o.Flags, func(s string) bool { return s == f[0] || strings.HasPrefix(s, f[0]+"=") })
		if f[1] != "" && !given && !slices.Contains(o.Without, f[0]) {
			out = append(out, f[0]+"="+f[1])
		}
	}
	return append(out, o.Flags...)
}

func joinPrefixes(list []netip.Prefix) string {
	var parts []string
	for _, p := range list {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

// WaitReady waits until the agent's /healthz and /readyz both answer 200: it is alive, and what it read last is programmed. An
// agent that has ended is an error at once, with what it wrote.
func (a *Agent) WaitReady(bound time.Duration) error {
	var ended error
	err := Eventually(bound, func() error {
		select {
		case <-a.Exited():
			ended = fmt.Errorf("agent on %s has ended (%s):\n%s", a.Node.Name, a.State(), a.Output())
			return nil
		default:
			return a.ready()
		}
	})
	if ended != nil {
		return ended
	}
	if err != nil {
		return fmt.Errorf("agent on %s is not ready: %w\n%s", a.Node.Name, err, a.Output())
	}
	return nil
}

func (a *Agent) ready() error {
	for _, path := range []string{"/healthz", "/readyz"} {
		status, body, err := a.Node.Get(healthz+path, time.Second)
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return fmt.Errorf("%s: %d %s", path, status, strings.TrimSpace(body))
		}
	}
	return nil
}
