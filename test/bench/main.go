// Command bench measures what large rule sets cost: deciding and rendering them, loading them into the kernel through both
// kinds of iptables, and what a real agent and a real kube-proxy, side by side, do with the cluster of one real
// kube-apiserver: processor time, memory, the time until a change has an effect on connections, and how many
// connections their rules let through. Besides, what the routes to very many nodes cost, beside ip -batch, and announcing very
// many addresses to a router, BIRD. It prints tables in Markdown, with the machine that the figures are of.
//
// It needs root. Everything happens in network namespaces and a cgroup of its own, which it removes. It asserts nothing about
// speed: a figure depends on the machine. A figure is printed only when what was measured also had the right result.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fairway-net/fairway/routes/bgp/process"
	"github.com/fairway-net/fairway/test/lab"
)

// options are the extent of a run.
type options struct {
	sizes      []int // numbers of Services, ascending
	endpoints  int   // per Service
	only       []string
	contenders []contender

	full    int           // loads into an empty kernel, for each size and backend
	rounds  int           // of all contenders, for each size
	limit   time.Duration // for programming everything
	changes int           // after each load, and in each round
	churn   int           // changes at 20 a second, in each round
	rest    time.Duration
	slices  int // short times of connections, for each target

	nodes int           // that there are routes to
	vips  int           // that are announced
	storm time.Duration // of changes of what is announced

	announcer bool // this process is the announcer of the part bgp
}

// The parts of a run.
const (
	partPlanning    = "planning"
	partKernel      = "kernel"
	partContenders  = "contenders"
	partConnections = "connections"
	partRoutes      = "routes"
	partBGP         = "bgp"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == process.Command {
		if err := process.Main(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the program at once, and leaves the rest to the next run
	o, err := parseFlags(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case err != nil:
		os.Exit(2) // package flag has said why
	}
	do := run
	if o.announcer {
		do = func(context.Context, options, io.Writer) error { return runAnnouncer(o.vips, os.Stdin, os.Stdout) }
	}
	if err := do(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	o.sizes = []int{1000, 10000}
	f.Func("services", "`numbers` of Services, ascending (default 1000,10000)", func(list string) (err error) {
		o.sizes, err = numbers(list)
		return err
	})
	o.only = []string{partPlanning, partKernel, partContenders, partConnections, partRoutes, partBGP}
	f.Func("only", "`parts` to run (default "+strings.Join(o.only, ",")+")", func(list string) (err error) {
		o.only, err = parts(list, o.only)
		return err
	})
	o.contenders = contenders
	f.Func("contenders", "`names` of who takes part (default "+allContenders()+")", func(list string) (err error) {
		o.contenders, err = chosen(list)
		return err
	})
	f.IntVar(&o.endpoints, "endpoints", 5, "endpoints of each Service")
	f.IntVar(&o.full, "full", 5, "loads into an empty kernel, for each size and backend, and rounds of "+partRoutes+" and "+partBGP)
	f.IntVar(&o.rounds, "rounds", 2, "rounds of all contenders, for each size")
	f.DurationVar(&o.limit, "limit", 2*time.Minute, "how long a contender may take to program everything; one that does not is not tried again")
	f.IntVar(&o.changes, "changes", 10, "changes after each load into the kernel, and single changes in each round")
	f.IntVar(&o.churn, "churn", 300, "changes at 20 a second, in each round")
	f.DurationVar(&o.rest, "rest", 35*time.Second, "time without changes in each round; the default has a full comparison of fairway's in it")
	f.IntVar(&o.slices, "slices", 15, "times of 0.2 s in which connections are opened to each target")
	f.IntVar(&o.nodes, "nodes", 5000, "nodes that there are routes to, in the part "+partRoutes)
	f.IntVar(&o.vips, "vips", 10000, "addresses of Services that are announced, in the part "+partBGP)
	f.DurationVar(&o.storm, "storm", 10*time.Second, "how long what is announced changes 1,000 times a second")
	f.BoolVar(&o.announcer, "announcer", false, "used by the part "+partBGP+" itself: announce what standard input says")
	if err = f.Parse(args); err == nil && f.NArg() > 0 {
		err = fmt.Errorf("unknown arguments: %q", f.Args())
		fmt.Fprintln(f.Output(), err)
	}
	return o, err
}

// numbers reads a list of ascending positive numbers.
func numbers(list string) (out []int, err error) {
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || len(out) > 0 && n <= out[len(out)-1] {
			return nil, errors.New("want ascending positive numbers")
		}
		out = append(out, n)
	}
	return out, nil
}

// parts reads a list of names of parts.
func parts(list string, all []string) ([]string, error) {
	out := strings.Split(list, ",")
	for _, name := range out {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("there is no part %q", name)
		}
	}
	return out, nil
}

func (o *options) does(part string) bool { return slices.Contains(o.only, part) }

// run measures one thing after the other, so that nothing is measured while the machine does something else, and
// prints the tables at the end; after an error or an interruption, of what was finished before.
func run(ctx context.Context, o options, w io.Writer) error {
	if err := lab.Check(); err != nil {
		return err
	}
	r := results{load: loadAverage()}
	err := r.measure(ctx, o)
	if ctx.Err() != nil {
		err = errInterrupted // and not what that did to whatever was going on
	}
	return errors.Join(err, r.print(w, o))
}

// measure runs the parts that were asked for.
func (r *results) measure(ctx context.Context, o options) error {
	if o.does(partPlanning) {
		for _, n := range o.sizes {
			progress("planning %d Services × %d endpoints", n, o.endpoints)
			p, err := measurePlanning(ctx, n, o.endpoints)
			if err != nil {
				return err
			}
			r.planning = append(r.planning, p)
		}
	}
	if o.does(partKernel) {
		for _, n := range o.sizes {
			k, err := measureKernel(ctx, n, o)
			if err != nil {
				return err
			}
			r.kernel = append(r.kernel, k)
		}
	}
	if o.does(partRoutes) {
		for families := 1; families <= 2; families++ {
			routing, err := measureRoutes(ctx, families, o)
			if err != nil {
				return fmt.Errorf("routes of %d nodes: %w", o.nodes, err)
			}
			r.routing = append(r.routing, routing)
		}
	}
	if o.does(partBGP) {
		a, err := measureBGP(ctx, o)
		if err != nil {
			return fmt.Errorf("announcing: %w", err)
		}
		r.announcing = &a
	}
	if o.does(partContenders) || o.does(partConnections) {
		return r.measureBeside(ctx, o)
	}
	return nil
}

// errInterrupted is the end of a run that a signal ended.
var errInterrupted = errors.New("interrupted")

// interrupted returns an error when the run should end.
func interrupted(ctx context.Context) error {
	if ctx.Err() != nil {
		return errInterrupted
	}
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "# "+format+"\n", args...)
}
