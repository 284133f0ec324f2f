package test

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source/file"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/test/textkernel"
)

// A world is what the kernel holds, routes and rules per family, and what routers were told.
type world struct {
	routes []routes.Route
	rules  [2]*iptables.Ruleset
	bgp    *bgp.Table
}

// move brings the world to a plan, as the agent would.
func (w *world) move(t *testing.T, p *agent.Plan) {
	t.Helper()
	changes := routes.Diff(w.routes, p.Routes)
	w.routes = applyRoutes(w.routes, changes)
	if d := routes.Diff(w.routes, p.Routes); !d.Empty() {
		t.Fatalf("the routes are not as planned, there is left: %+v", d)
	}
	w.tell(t, p.BGP)
	for i, s := range p.Services {
		after, err := textkernel.Apply(w.rules[i], iptables.Diff(w.rules[i], s.Rules), nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := iptables.Diff(after, s.Rules); !d.Empty() {
			t.Fatalf("the rules are not as planned, there is left:\n%s", d)
		}
		w.rules[i] = after
	}
}

// tell brings the routers to a plan.
func (w *world) tell(t *testing.T, want *bgp.Table) {
	t.Helper()
	told := map[netip.Prefix]bool{}
	if w.bgp != nil {
		for _, p := range w.bgp.Paths {
			told[p.Prefix] = true
		}
	}
	c := bgp.Diff(w.bgp, want)
	for _, p := range c.Withdraw {
		delete(told, p)
	}
	for _, p := range c.Announce {
		told[p.Prefix] = true
	}
	w.bgp = want
	n := 0
	if want != nil {
		n = len(want.Paths)
		for _, p := range want.Paths {
			if !told[p.Prefix] {
				t.Fatalf("routers were not told of %s", p)
			}
		}
	}
	if len(told) != n {
		t.Fatalf("routers know %d prefixes, expected %d", len(told), n)
	}
}

func applyRoutes(have []routes.Route, c routes.Changes) (after []routes.Route) {
	for _, r := range have {
		gone := false
		for _, d := range c.Delete {
			gone = gone || r.Same(d)
		}
		for _, s := range c.Set {
			gone = gone || r.Key() == s.Key()
		}
		if !gone {
			after = append(after, r)
		}
	}
	return append(after, c.Set...)
}

// TestAnyStateToAnyOther visits the scenarios in random order: whatever the kernel holds of one, the difference leads to
// the next, and the memo of the one does not show in the plan of the other.
func TestAnyStateToAnyOther(t *testing.T) {
	all := scenarios(t)
	type input struct {
		snapshot *cluster.Snapshot
		config   agent.Config
	}
	var inputs []input
	for _, s := range all {
		snapshot, config := s.load(t)
		inputs = append(inputs, input{snapshot, config})
	}
	r := rand.New(rand.NewPCG(1, 2))
	w := world{rules: [2]*iptables.Ruleset{{Family: cluster.IPv4}, {Family: cluster.IPv6}}}
	var prev *agent.Plan
	for range 300 {
		i := r.IntN(len(all))
		in := inputs[i]
		plan := agent.MakePlan(in.snapshot, in.config, agent.Offline, prev)
		compareFiles(t, expectations(plan), expectations(agent.MakePlan(in.snapshot, in.config, agent.Offline, nil)))
		if t.Failed() {
			t.Fatalf("with a memo, scenario %s differs", all[i].name)
		}
		w.move(t, plan)
		prev = plan
	}
}

// TestOrderDoesNotMatter: the documents of a scenario in another order lead to the same plan.
func TestOrderDoesNotMatter(t *testing.T) {
	for _, s := range scenarios(t) {
		t.Run(s.name, func(t *testing.T) {
			snapshot, config := s.load(t)
			want := expectations(agent.MakePlan(snapshot, config, agent.Offline, nil))
			docs := strings.Split(s.file("cluster.yaml"), "\n---\n")
			r := rand.New(rand.NewPCG(3, 4))
			for range 5 {
				r.Shuffle(len(docs), func(i, j int) { docs[i], docs[j] = docs[j], docs[i] })
				path := filepath.Join(t.TempDir(), "cluster.yaml")
				if err := os.WriteFile(path, []byte(strings.Join(docs, "\n---\n")), 0o600); err != nil {
					t.Fatal(err)
				}
				shuffled, err := file.Load(path)
				if err != nil {
					t.Fatal(err)
				}
				compareFiles(t, expectations(agent.MakePlan(shuffled, config, agent.Offline, nil)), want)
			}
		})
	}
}
