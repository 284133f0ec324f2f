// Command bench measures what large rule sets cost: deciding and rendering them, loading them into the kernel through both
// kinds of iptables, and the memory and processor time of a real agent that reads its cluster from a real
// kube-apiserver. It prints a table in Markdown, with the machine that the figures are of.
//
// It needs root. Everything happens in network namespaces of its own, which it removes. It asserts nothing about
// speed: a figure depends on the machine. A figure is printed only when what was measured also had the right result.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fairway-net/fairway/test/lab"
)

// options are the extent of a run.
type options struct {
	sizes     []int // numbers of Services, ascending
	endpoints int   // per Service
	full      int   // loads into an empty kernel, for each size and backend
	changes   int   // changes after each of them, and latencies with the agent
	churn     int   // changes of an agent's cluster before its memory is read again
	rest      time.Duration
	agent     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, parseFlags())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags() options {
	var o options
	sizes := flag.String("services", "1000,10000", "numbers of Services, ascending")
	flag.IntVar(&o.endpoints, "endpoints", 5, "endpoints of each Service")
	flag.IntVar(&o.full, "full", 5, "loads into an empty kernel, for each size and backend")
	flag.IntVar(&o.changes, "changes", 11, "changes after each load, and changes timed with the agent")
	flag.IntVar(&o.churn, "churn", 200, "changes before the agent's memory is read again")
	flag.DurationVar(&o.rest, "rest", 35*time.Second, "time without changes before the agent's memory is read the last time; the default has an audit in it")
	flag.BoolVar(&o.agent, "agent", true, "run the agent against a kube-apiserver; the first time, building that takes minutes")
	flag.Parse()
	for s := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || flag.NArg() > 0 {
			flag.Usage()
			os.Exit(2)
		}
		o.sizes = append(o.sizes, n)
	}
	return o
}

// run measures one thing after the other, so that nothing is measured while the machine does something else, and
// prints the table at the end.
func run(ctx context.Context, o options) error {
	if err := lab.Check(); err != nil {
		return err
	}
	var r results
	for _, n := range o.sizes {
		progress("planning %d Services × %d endpoints", n, o.endpoints)
		p, err := measurePlanning(ctx, n, o.endpoints)
		if err != nil {
			return err
		}
		r.planning = append(r.planning, p)
	}
	for _, n := range o.sizes {
		k, err := measureKernel(ctx, n, o)
		if err != nil {
			return err
		}
		r.kernel = append(r.kernel, k)
	}
	if o.agent {
		a, err := measureAgents(ctx, o)
		if err != nil {
			return err
		}
		r.agents = a
	}
	return r.print(os.Stdout, o)
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
