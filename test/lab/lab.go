package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"net/netip"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Lab is a built Topology.
type Lab struct {
	// Topology is what was built.
	Topology Topology
	// Dir is a folder for files of this Lab, removed by Close.
	Dir string

	prefix  string
	spaces  map[string]*Namespace
	nodes   map[string]*Node
	pods    map[string]*Pod
	clients map[string]*Client

	mu     sync.Mutex             // guards the fields below
	open   map[io.Closer]struct{} // servers, connections, probers, captures
	procs  []*Process
	agents []*Agent
	closed bool
}

// Options are settings of a Lab that have nothing to do with its Topology.
type Options struct {
	// CloseOnSignal closes the Lab when this process gets SIGINT or SIGTERM, and ends the process then, after all
	// Labs with this option are closed. A program that handles signals itself leaves it off.
	CloseOnSignal bool
}

// A Node is a node of a Lab.
type Node struct {
	*Namespace
	NodeSpec
}

// Addr returns the node's first address of a family, its InternalIP.
func (n *Node) Addr(f cluster.Family) netip.Addr { return first(n.Addrs, f) }

// A Pod is a pod of a Lab.
type Pod struct {
	*Namespace
	PodSpec
	// Node is the node that it is on.
	Node *Node
}

// Addr returns the pod's address of a family.
func (p *Pod) Addr(f cluster.Family) netip.Addr { return first(p.Addrs, f) }

// A Client is a machine of a Lab that is no node.
type Client struct {
	*Namespace
	ClientSpec
}

// Addr returns the client's first address of a family.
func (c *Client) Addr(f cluster.Family) netip.Addr { return first(c.Addrs, f) }

// New builds a Topology. Before that it removes what dead runs left. It needs root. When it fails, nothing of the
// Lab is left.
func New(t Topology, o Options) (*Lab, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	if err := shareNetnsDir(); err != nil {
		return nil, err
	}
	if err := Sweep(); err != nil {
		return nil, err
	}
	l := &Lab{
		Topology: t,
		spaces:   map[string]*Namespace{}, nodes: map[string]*Node{}, pods: map[string]*Pod{}, clients: map[string]*Client{},
		open: map[io.Closer]struct{}{},
	}
	if o.CloseOnSignal {
		signals.add(l)
	}
	if err := l.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

// Node returns the node with the given name. It panics when the Topology has none: that is a mistake in the caller.
func (l *Lab) Node(name string) *Node { return must(l.nodes, "node", name) }

// Pod returns the pod with the given name. It panics when the Topology has none.
func (l *Lab) Pod(name string) *Pod { return must(l.pods, "pod", name) }

// Client returns the client with the given name. It panics when the Topology has none.
func (l *Lab) Client(name string) *Client { return must(l.clients, "client", name) }

// Router returns the router.
func (l *Lab) Router() *Namespace { return must(l.spaces, "router", l.Topology.Router) }

// Switch returns the namespace that holds the bridges of the networks.
func (l *Lab) Switch() *Namespace { return must(l.spaces, "switch", switchName) }

func must[T any](m map[string]T, kind, name string) T {
	v, ok := m[name]
	if !ok {
		panic(fmt.Sprintf("lab: there is no %s %q", kind, name))
	}
	return v
}

// Agents returns all agents that were started in the Lab, in order.
func (l *Lab) Agents() []*Agent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Agent(nil), l.agents...)
}

// Close ends all processes of the Lab, closes its sockets, and removes its namespaces and files. A second Close
// does nothing.
func (l *Lab) Close() error {
	defer signals.remove(l)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	procs, open := l.procs, l.open
	l.open = nil
	l.mu.Unlock()

	var wg sync.WaitGroup
	for _, p := range procs {
		wg.Go(func() { p.Stop(closeGrace) })
	}
	wg.Wait()
	for c := range open {
		c.Close()
	}
	var errs []error
	for _, ns := range l.spaces {
		errs = append(errs, ns.close())
	}
	if l.Dir != "" {
		errs = append(errs, os.RemoveAll(l.Dir))
	}
	return errors.Join(errs...)
}

// track remembers something that Close has to close.
func (l *Lab) track(c io.Closer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.open[c] = struct{}{}
	return nil
}

func (l *Lab) untrack(c io.Closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
}

// reserve finds a name prefix that no other Lab has, by making its folder.
func (l *Lab) reserve() error {
	for i := 1; ; i++ {
		prefix := fmt.Sprintf("fw%d-%d", os.Getpid(), i)
		dir := filepath.Join(os.TempDir(), prefix)
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		l.prefix, l.Dir = prefix, dir
		return nil
	}
}

// ours is the form of the names of namespaces and folders of this package: the process's id and the rest.
var ours = regexp.MustCompile(`^fw([0-9]+)-([0-9]+(-[a-z0-9-]+)?|bin)$`)

// Sweep removes the namespaces and folders of runs whose process is gone.
func Sweep() error {
	var errs []error
	for _, name := range deadNames(netnsDir) {
		errs = append(errs, removeNamed(name))
	}
	for _, name := range deadNames(os.TempDir()) {
		errs = append(errs, os.RemoveAll(filepath.Join(os.TempDir(), name)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep the leftovers of dead runs: %w", err)
	}
	return nil
}

// deadNames lists the entries of a folder that are ours by name and whose process is gone.
func deadNames(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // there is no such folder, so there are no leftovers in it
	}
	var out []string
	for _, e := range entries {
		m := ours.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		if pid, err := strconv.Atoi(m[1]); err == nil && dead(pid) {
			out = append(out, e.Name())
		}
	}
	return out
}

// dead tells whether there is no such process, or one that has ended and that its parent has not looked after yet.
func dead(pid int) bool {
	if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return true
	}
	// pid (comm) state …, see proc_pid_stat(5); comm may contain anything.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	state := bytes.TrimSpace(stat[bytes.LastIndexByte(stat, ')')+1:])
	return len(state) > 0 && (state[0] == 'Z' || state[0] == 'X')
}
