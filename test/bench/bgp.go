package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/synth"
)

// announcing is what announcing many addresses costs.
type announcing struct {
	announce, withdraw timing // until the router has it, deciding included
	// planner is the resident memory of the process that makes Plans, speaker that of the process with the sessions.
	planner, speaker resident
	// storm is how long after the last change the router had the last state, and the processor time from the first change on.
	storm timing
	// changes are those of one storm, plans how many Plans were told meanwhile, and updates how many prefixes the router was
	// told of; the fewest of all rounds.
	changes, plans, updates int
}

// resident is memory with nothing announced, with all, and at most; file is the part of it that is the program. In KiB.
type resident struct{ before, after, peak, file int }

// routerConfig is BIRD's. The router only learns, so that nothing but BGP is measured.
const routerConfig = `log stderr { fatal, error };
router id 10.0.255.1;
protocol device { }
protocol bgp node { local as %d; neighbor %s as %d; ipv4 { import all; export none; }; }
`

const (
	// learnBound is how long the router may take to learn something.
	learnBound = 2 * time.Minute
	// learnLook is how often it is asked.
	learnLook = 10 * time.Millisecond
	// afterwards is waited before processor time is read, for what is done after the router has what it should.
	afterwards = 300 * time.Millisecond
)

// measureBGP announces addresses to a router and withdraws them, and changes what is announced all the time.
func measureBGP(ctx context.Context, o options) (a announcing, err error) {
	for i := range o.full {
		progress("announcing %d addresses, %d of %d", o.vips, i+1, o.full)
		if err := a.round(ctx, o); err != nil {
			return a, err
		}
	}
	return a, nil
}

// A bird is a router's BIRD.
type bird struct {
	ns     *lab.Namespace
	socket string
}

func startBIRD(l *lab.Lab) (b bird, err error) {
	b = bird{ns: l.Router(), socket: filepath.Join(l.Dir, "bird.ctl")}
	file := filepath.Join(l.Dir, "bird.conf")
	text := fmt.Sprintf(routerConfig, routerASN, synth.Node(0).InternalIPs[0], nodesASN)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return b, err
	}
	_, err = b.ns.Start(lab.Command{Path: "bird", Args: []string{"-f", "-c", file, "-s", b.socket, "-P", filepath.Join(l.Dir, "bird.pid")}})
	return b, err
}

func (b bird) ask(question ...string) (string, error) {
	return b.ns.Run("birdc", append([]string{"-s", b.socket}, question...)...)
}

var routeCount = regexp.MustCompile(`(?m)^(\d+) of \d+ routes`)

// has is nil when the router knows so many prefixes.
func (b bird) has(n int) error {
	out, err := b.ask("show", "route", "count")
	if err != nil {
		return err
	}
	if found := routeCount.FindStringSubmatch(out); found == nil || found[1] != strconv.Itoa(n) {
		return fmt.Errorf("the router has other than %d routes: %s", n, out)
	}
	return nil
}

// hasAll is nil when the router knows these prefixes and no other.
func (b bird) hasAll(want map[netip.Prefix]bool) error {
	if err := b.has(len(want)); err != nil {
		return err
	}
	out, err := b.ask("show", "route")
	if err != nil {
		return err
	}
	found := 0
	for line := range strings.Lines(out) {
		first, _, _ := strings.Cut(line, " ")
		if p, err := netip.ParsePrefix(first); err == nil && want[p] {
			found++
		}
	}
	if found != len(want) {
		return fmt.Errorf("the router has %d prefixes, of which %d are right", len(want), found)
	}
	return nil
}

var updateCount = regexp.MustCompile(`Import (?:updates|withdraws): +(\d+)`)

// updates counts the prefixes that the router was told of so far, announced or withdrawn.
func (b bird) updates() (sum int, err error) {
	out, err := b.ask("show", "protocols", "all", "node")
	for _, found := range updateCount.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(found[1])
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, err
}

// A session is an announcer and its router.
type session struct {
	ctx    context.Context
	router bird
	tell   io.Writer
	child  *lab.Process
	watch  *watch
	done   int // how many commands it has answered
}

// round starts an announcer and a router, and measures everything once.
func (a *announcing) round(ctx context.Context, o options) (err error) {
	l, err := lab.New(nodeTopology(), lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	m, err := newMeter()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	router, err := startBIRD(l)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	stdin, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	defer tell.Close()
	child, err := l.Node(synth.NodeName).Start(lab.Command{Path: exe, Args: []string{"-announcer", "-vips", strconv.Itoa(o.vips)}, Stdin: stdin, Cgroup: m.file})
	if err != nil {
		return err
	}
	s := &session{ctx: ctx, router: router, tell: tell, child: child, watch: watchProcess(m, child.PID())}
	defer s.watch.stop()
	return s.measure(a, o)
}

func (s *session) measure(a *announcing, o options) error {
	const own = 1 // the node's podCIDR
	if err := s.command("some 0", func() error { return s.router.has(own) }, &timing{}); err != nil {
		return err
	}
	if err := s.look(a, func(r *resident, u usage) { r.before, r.file = max(r.before, u.rss), u.file }); err != nil {
		return err
	}
	all := fmt.Sprintf("some %d", o.vips)
	if err := s.command(all, func() error { return s.router.has(own + o.vips) }, &a.announce); err != nil {
		return err
	}
	if err := s.look(a, func(r *resident, u usage) { r.after = max(r.after, u.rss) }); err != nil {
		return err
	}
	if err := s.command("some 0", func() error { return s.router.has(own) }, &a.withdraw); err != nil {
		return err
	}
	if err := s.command(all, func() error { return s.router.has(own + o.vips) }, &timing{}); err != nil {
		return err
	}
	if err := s.storm(a, o); err != nil {
		return err
	}
	return s.look(a, func(r *resident, u usage) { r.peak = max(r.peak, u.peak) })
}

// look passes on the memory of both processes.
func (s *session) look(a *announcing, note func(*resident, usage)) error {
	planner, err := s.watch.usage()
	if err != nil {
		return err
	}
	speaker, err := s.watch.companion()
	note(&a.planner, planner)
	note(&a.speaker, speaker)
	return err
}

// command gives the announcer a command, and adds the time until the router has what it should.
func (s *session) command(text string, learned func() error, t *timing) error {
	before, err := s.watch.cpu()
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := fmt.Fprintln(s.tell, text); err != nil {
		return err
	}
	if err := s.until(learned); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	t.wall.add(time.Since(start))
	if _, err := s.answer(); err != nil {
		return err
	}
	return s.spent(t, before)
}

// spent adds the processor time since before, that of a moment after this included.
func (s *session) spent(t *timing, before time.Duration) error {
	time.Sleep(afterwards)
	after, err := s.watch.cpu()
	t.cpu.add(after - before)
	return err
}

// until waits for a condition.
func (s *session) until(condition func() error) error {
	for start := time.Now(); ; time.Sleep(learnLook) {
		err := condition()
		if err == nil {
			return nil
		}
		if err := interrupted(s.ctx); err != nil {
			return err
		}
		select {
		case <-s.child.Exited():
			return fmt.Errorf("the announcer has ended (%s): %s", s.child.State(), s.child.Output())
		default:
		}
		if time.Since(start) > learnBound {
			return err
		}
	}
}

var doneLine = regexp.MustCompile(`(?m)^done (\d+)$`)

// answer waits for the announcer's answer to the last command, and returns the number in it.
func (s *session) answer() (n int, err error) {
	err = s.until(func() error {
		answers := doneLine.FindAllStringSubmatch(s.child.Output(), -1)
		if len(answers) <= s.done {
			return errors.New("the announcer does not answer")
		}
		n, err = strconv.Atoi(answers[s.done][1])
		return err
	})
	s.done++
	return n, err
}

// storm has the announcer change what it announces all the time, and waits until the router has what there is at the end.
func (s *session) storm(a *announcing, o options) error {
	a.changes = int(o.storm.Seconds() * stormRate)
	told, err := s.router.updates()
	if err != nil {
		return err
	}
	before, err := s.watch.cpu()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(s.tell, "storm", o.storm); err != nil {
		return err
	}
	time.Sleep(o.storm)
	last := time.Now()
	want := map[netip.Prefix]bool{synth.Node(0).PodCIDRs[0]: true}
	services := madeUp(o.vips, 1).Services
	for i, has := range afterStorm(o.vips, stormy(o.vips, a.changes)) {
		if has {
			want[netip.PrefixFrom(services[i].ClusterIPs[0], 32)] = true
		}
	}
	if err := s.until(func() error { return s.router.hasAll(want) }); err != nil {
		return err
	}
	a.storm.wall.add(time.Since(last))
	plans, err := s.answer()
	if err != nil {
		return err
	}
	if err := s.spent(&a.storm, before); err != nil {
		return err
	}
	now, err := s.router.updates()
	a.plans, a.updates = least(a.plans, plans), least(a.updates, now-told)
	return errors.Join(err, s.router.hasAll(want))
}

// least is the lesser of what was least so far, 0 for nothing yet, and n.
func least(so, n int) int {
	if so == 0 {
		return n
	}
	return min(so, n)
}
