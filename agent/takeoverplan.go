package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source/file"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// TakeoverFormats are the forms in which a TakeoverPlan can be written.
var TakeoverFormats = [...]string{"text", "json"}

// A TakeoverPlan tells what starting the agent on this node, and then Takeover, would change.
type TakeoverPlan struct {
	// IPTables is the backend that the agent would use, Why what decided that.
	IPTables string `json:"iptables"`
	Why      string `json:"why"`
	// KubeProxies are those that run on this node.
	KubeProxies []Process `json:"kubeProxies"`
	// Changes are what the agent would do to each table.
	Changes []PlannedChange `json:"changes"`
	// Routes counts the routes that the agent would keep.
	Routes int `json:"routes"`
	// Leftovers are what Takeover would remove afterwards, in this order.
	Leftovers []string `json:"leftovers"`
	// Notes are what of the cluster is refused, Remarks what else there is to know.
	Notes   []printedNote `json:"notes"`
	Remarks []string      `json:"remarks"`
}

// A PlannedChange is what the agent would do to one table of a family.
type PlannedChange struct {
	Family       string   `json:"family"`
	Table        string   `json:"table"`
	Added        []string `json:"added"`
	Replaced     []string `json:"replaced"`
	Removed      []string `json:"removed"`
	JumpsAdded   []string `json:"jumpsAdded"`
	JumpsRemoved []string `json:"jumpsRemoved"`
}

// summary counts what changes.
func (c PlannedChange) summary() string {
	if len(c.Added)+len(c.Replaced)+len(c.Removed)+len(c.JumpsAdded)+len(c.JumpsRemoved) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%d chains added, %d replaced, %d removed; %d jumps added, %d removed",
		len(c.Added), len(c.Replaced), len(c.Removed), len(c.JumpsAdded), len(c.JumpsRemoved))
}

// PlanTakeover looks at the node and at the cluster, and changes nothing. The cluster is read from files of manifests when there
// are some, else from where an agent with these Options reads it.
func PlanTakeover(ctx context.Context, o Options, files []string) (*TakeoverPlan, error) {
	n, err := findNeighbours("/proc")
	if err != nil {
		return nil, err
	}
	b, err := netfilter.Inspect(ctx, o.Config.IPTablesBackend)
	if err != nil {
		return nil, err
	}
	left, err := netfilter.FindLeftovers(ctx, b.Name)
	if err != nil {
		return nil, err
	}
	snapshot, err := o.snapshot(ctx, files)
	if err != nil {
		return nil, err
	}
	p := &TakeoverPlan{IPTables: b.Name, Why: b.Why, KubeProxies: present(n.kubeProxies), Leftovers: []string{}, Notes: []printedNote{}, Remarks: present(left.Remarks())}
	if n.partial {
		p.Remarks = append(p.Remarks, "this is not the host's PID namespace: a kube-proxy may run without being seen here")
	}
	for _, f := range cluster.Families {
		if b.Missing[f] != "" {
			p.Remarks = append(p.Remarks, fmt.Sprintf("%s is not served: %s", f, b.Missing[f]))
		}
	}
	for _, s := range left.Steps(true) {
		p.Leftovers = append(p.Leftovers, s.What)
	}
	if c := left.EstablishedIPVS(); c > 0 {
		p.Remarks = append(p.Remarks, fmt.Sprintf("%d connections go through IPVS, and end with it", c))
	}
	return p, p.compare(ctx, b, snapshot, o.Config)
}

// compare adds what the agent would change.
func (p *TakeoverPlan) compare(ctx context.Context, b *netfilter.Backend, s *cluster.Snapshot, c Config) error {
	facts, have, err := inspect(ctx, b)
	if err != nil {
		return err
	}
	plan := MakePlan(s, c, facts, nil)
	p.Routes = len(plan.Routes.Routes)
	for _, n := range plan.Notes {
		p.Notes = append(p.Notes, printedNote{n.Object.String(), n.Reason, n.Detail})
	}
	for i, f := range cluster.Families {
		if facts.Absent[i] {
			continue
		}
		for _, c := range iptables.Changes(have[i], plan.Services[i].Rules) {
			p.Changes = append(p.Changes, PlannedChange{f.String(), c.Table,
				present(c.Added), present(c.Replaced), present(c.Removed), present(c.JumpsAdded), present(c.JumpsRemoved)})
		}
	}
	return nil
}

// present makes an empty list of none, as JSON tells them apart.
func present[T any](list []T) []T { return append([]T{}, list...) }

// inspect is learn without a change to the kernel; it also returns the rules that there are.
func inspect(ctx context.Context, b *netfilter.Backend) (facts Facts, have [2]*iptables.Ruleset, err error) {
	liberal, err := netfilter.TCPLiberal()
	if err != nil {
		return facts, have, err
	}
	_, uncounted := netfilter.ReadCounters()
	facts = Facts{RandomFully: b.RandomFully, DropInvalid: !liberal, Counters: uncounted == nil}
	for i, f := range cluster.Families {
		if facts.Absent[i] = b.Missing[f] != ""; facts.Absent[i] {
			continue
		}
		if have[i], err = b.Look(ctx, f); err != nil {
			return facts, have, err
		}
		facts.Large[i] = have[i].Large
	}
	return facts, have, nil
}

// snapshotPatience is how long the cluster may take until it has been read.
const snapshotPatience = time.Minute

// snapshot reads the cluster and the own machine once.
func (o Options) snapshot(ctx context.Context, files []string) (*cluster.Snapshot, error) {
	s, err := ReadCluster(ctx, o, files)
	if err != nil {
		return nil, err
	}
	conn, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	complete := *s
	if complete.Host, err = conn.Host(ctx); err != nil {
		return nil, err
	}
	return &complete, nil
}

// ReadCluster reads the cluster once: from files of manifests when there are some, else from where an agent with these Options reads
// it. An error is that of a file, or of an API that does not answer.
func ReadCluster(ctx context.Context, o Options, files []string) (*cluster.Snapshot, error) {
	if len(files) > 0 {
		return file.Load(files...)
	}
	w, err := o.open()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotPatience)
	defer cancel()
	var first *cluster.Snapshot
	err = w.source.Run(ctx, func(s *cluster.Snapshot) {
		if first == nil {
			first = s
			cancel()
		}
	})
	switch {
	case first != nil:
		return first, nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("the cluster could not be read within %s", snapshotPatience)
}

// Write writes the plan in one of TakeoverFormats.
func (p *TakeoverPlan) Write(w io.Writer, format string) error {
	switch format {
	case "text":
		_, err := io.WriteString(w, p.text())
		return err
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(p)
	}
	return fmt.Errorf("unknown format %q, expected one of %s", format, strings.Join(TakeoverFormats[:], ", "))
}

// text is the plan as numbered steps.
func (p *TakeoverPlan) text() string {
	var b strings.Builder
	number := 0
	step := func(format string, args ...any) {
		number++
		fmt.Fprintf(&b, "%d. %s\n", number, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "This is what would happen; nothing has been changed.\n\nfairway uses iptables-%s: %s.\n", p.IPTables, p.Why)
	if len(p.KubeProxies) == 0 {
		b.WriteString("No kube-proxy runs here.\n")
	}
	for _, k := range p.KubeProxies {
		fmt.Fprintf(&b, "kube-proxy runs: %s.\n", k)
	}
	b.WriteString("\n")
	step("Start fairway's agent. It keeps %d routes to other nodes' pods (fairway render -o routes), and in iptables-%s it changes", p.Routes, p.IPTables)
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "     %s %s: %s\n", c.Family, c.Table, c.summary())
		for _, list := range []struct {
			verb  string
			lines []string
		}{{"add", c.Added}, {"replace", c.Replaced}, {"remove", c.Removed}, {"add", c.JumpsAdded}, {"remove", c.JumpsRemoved}} {
			writeFew(&b, list.verb, list.lines)
		}
	}
	if len(p.KubeProxies) > 0 {
		step("Stop kube-proxy (pid %s). When it is gone, http://127.0.0.1:10256/readyz is the agent's and tells when its rules are in the kernel", pids(p.KubeProxies))
	} else {
		step("Wait until the agent's /readyz says that its rules are in the kernel")
	}
	for _, l := range p.Leftovers {
		step("fairway takeover: %s", l)
	}
	if len(p.Leftovers) == 0 {
		step("There is nothing left for fairway takeover to remove")
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "# %s: %s: %s\n", n.Object, n.Reason, n.Detail)
	}
	for _, r := range p.Remarks {
		fmt.Fprintln(&b, "#", r)
	}
	return b.String()
}

// writeFew writes the first lines of a list, and how many more there are.
func writeFew(b *strings.Builder, verb string, lines []string) {
	const few = 8
	for i, line := range lines {
		if i == few {
			fmt.Fprintf(b, "       %s %d more (-o json names them)\n", verb, len(lines)-few)
			return
		}
		fmt.Fprintf(b, "       %s %s\n", verb, line)
	}
}
