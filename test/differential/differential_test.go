package differential

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

var (
	firstSeed = flag.Uint64("seed", 1, "seed of the first cluster")
	clusters  = flag.Int("clusters", 30, "how many clusters, of consecutive seeds, are compared")
	only      = flag.String("configuration", "", "the one configuration to compare; all when empty")
)

// settleBound is how long the two sides may differ after both have programmed a step's last objects: the Node's changes
// come by a watch of their own.
const settleBound = 15 * time.Second

// mostPrinted is how many differences of a step are printed for each configuration and family.
const mostPrinted = 3

func TestMain(m *testing.M) {
	flag.Parse()
	if *only != "" {
		configurations = slices.DeleteFunc(configurations, func(c configuration) bool { return c.name != *only })
	}
	os.Exit(lab.Main(m))
}

// TestDifferential compares both sides after every step of every scene.
func TestDifferential(t *testing.T) {
	if len(configurations) == 0 {
		t.Fatalf("there is no configuration %q", *only)
	}
	w := newWorld(t)
	start, steps := time.Now(), 0
	failed := 0
	for i := range uint64(*clusters) {
		s := generate(*firstSeed + i)
		if !t.Run(fmt.Sprintf("seed=%d", s.seed), func(t *testing.T) { w.play(t, s) }) {
			if failed++; failed == 5 {
				t.Fatalf("%d clusters differ; the rest is not tried", failed)
			}
		}
		steps += len(s.steps)
	}
	w.report(t, steps, time.Since(start))
}

// play writes a scene, step by step, and compares.
func (w *world) play(t *testing.T, s scene) {
	ctx := context.Background()
	defer func() {
		if t.Failed() {
			t.Logf("to repeat: go test ./test/differential -run TestDifferential -seed %d -clusters 1", s.seed)
		}
	}()
	if err := w.writer.clear(ctx); err != nil {
		t.Fatal(err)
	}
	was := map[cluster.Family]map[place]bool{cluster.IPv4: {}, cluster.IPv6: {}}
	for i, step := range s.steps {
		err := w.writer.write(ctx, step)
		if err == nil {
			err = w.mark(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		o, err := w.writer.read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		r := round{world: w, step: i, seed: s.seed, objects: o, was: was}
		if problems := r.compareAll(); len(problems) > 0 {
			t.Errorf("seed %d, step %d:\n%s", s.seed, i, strings.Join(problems, "\n"))
			for j := range s.steps[:i+1] {
				t.Logf("step %d: %v", j, s.steps[j])
			}
			return
		}
		for _, f := range cluster.Families {
			for at := range o.view(f).claims {
				was[f][at] = true
			}
		}
	}
}

// A round is the comparison after one step.
type round struct {
	*world
	*objects
	seed uint64
	step int
	was  map[cluster.Family]map[place]bool // places of earlier steps
}

// compareAll compares all configurations, two at a time, and returns what is wrong.
func (r *round) compareAll() []string {
	var wg sync.WaitGroup
	problems := make([][]string, len(r.pairs))
	slots := make(chan struct{}, 2)
	for i, p := range r.pairs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			start := time.Now()
			if err := r.await(p); err != nil {
				problems[i] = []string{err.Error()}
				return
			}
			p.delay += time.Since(start)
			for _, f := range cluster.Families {
				problems[i] = append(problems[i], r.compare(p, f)...)
			}
			p.loading += time.Since(start)
		})
	}
	wg.Wait()
	return slices.Concat(problems...)
}

// compare compares a configuration's rules of a family until they agree, or the bound has passed.
func (r *round) compare(p *pair, f cluster.Family) (problems []string) {
	v := r.view(f)
	t := newTally()
	err := eventually(settleBound, func() error {
		problems, *t = nil, *newTally()
		list, err := r.differences(p, v, t)
		if err != nil {
			return err
		}
		for i, d := range list {
			if i == mostPrinted {
				problems = append(problems, fmt.Sprintf("configuration %s, %s: and %d more", p.name, f, len(list)-i))
				break
			}
			text := fmt.Sprintf("configuration %s, %s: %s", p.name, f, d)
			if i == 0 {
				text += d.objectsOf()
			}
			problems = append(problems, text)
		}
		if len(problems) > 0 {
			return fmt.Errorf("%d differences", len(list))
		}
		return nil
	})
	p.tally.add(t)
	if err != nil && problems == nil {
		problems = []string{fmt.Sprintf("configuration %s, %s: %v", p.name, f, err)}
	}
	return problems
}

// differences reads both rule sets and compares them once. What is random depends on the seed, step and family only.
func (r *round) differences(p *pair, v *view, t *tally) ([]*difference, error) {
	proxy, agent, err := p.rules(v.family)
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(r.seed, uint64(r.step)<<8|uint64(v.family)))
	rules, err := rulesToCompare(p.configuration, random, v.family, proxy, agent)
	if err != nil {
		return nil, err
	}
	list, err := rules.compare(v, v.probes(random, p.podIn, slices.Collect(maps.Keys(r.was[v.family])), proxy, agent), t)
	if other := otherTimeout(proxy, agent); err == nil && other != "" {
		err = errors.New(other)
	}
	return list, err
}

// report logs what was compared.
func (w *world) report(t *testing.T, steps int, took time.Duration) {
	sum := newTally()
	for _, p := range w.pairs {
		t.Logf("%-10s iptables-%s: %d probes; %s waiting, %s comparing", p.name, p.backend, p.tally.probes, p.delay.Round(time.Second), (p.loading - p.delay).Round(time.Second))
		sum.add(p.tally)
	}
	t.Logf("%d clusters, %d steps, %d objects written, %d probes in %s", *clusters, steps, w.writer.written, sum.probes, took.Round(time.Second))
	for _, e := range deliberate {
		t.Logf("deliberately different, %d times: %s (%s)", sum.deliberate[e.name], e.name, e.reason)
	}
	for _, line := range w.writer.summary() {
		t.Logf("refused by the API: %s", line)
	}
}
