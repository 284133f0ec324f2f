package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fairway-net/fairway/test/lab"
)

// The exit statuses: 1 when a step fails, 2 for flags that make no sense, and what a shell says of a program that
// SIGINT ended.
const (
	statusFailed      = 1
	statusUsage       = 2
	statusInterrupted = 130
)

// options are the command line.
type options struct {
	agent  string // the agent's binary; it is built when empty
	state  string // the state file of a kept demo
	keep   bool
	down   bool
	holder bool // this is the process that holds a kept demo
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.StringVar(&o.agent, "agent", os.Getenv(lab.BinaryEnv), "`file` of the agent to run; it is built when this is empty")
	flags.BoolVar(&o.keep, "keep", false, "leave everything up, and say how to look inside")
	flags.BoolVar(&o.down, "down", false, "take down what -keep left up")
	flags.StringVar(&o.state, "state", "/run/fairway-demo", "`file` that names the process of a kept demo")
	flags.BoolVar(&o.holder, "holder", false, "used by -keep itself: run as the process that stays")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return statusUsage
	}
	// Debian keeps ip and iptables where the PATH of an ordinary user does not look.
	err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	if err == nil {
		err = lab.Check()
	}
	if err != nil {
		return report(err)
	}
	// A reader that has gone makes a write fail, and the failure ends the demo in good order.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	switch {
	case o.down:
		return report(takeDown(ctx, o.state, os.Stdout))
	case o.holder:
		return hold(ctx, o)
	case o.keep:
		return launch(ctx, o)
	}
	return demonstrate(ctx, o, nil)
}

func report(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	return statusFailed
}

// demonstrate runs the demo and takes everything down again. When all steps are done it calls keep, if there is one; what keep
// returns is then the error of the demo.
func demonstrate(ctx context.Context, o options, keep func(*demo) error) int {
	out := newPrinter(os.Stdout)
	forget, err := useAgent(o.agent)
	if err != nil {
		return report(err)
	}
	defer forget()
	d, err := newDemo(out)
	if err != nil {
		return report(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.play() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		out.mute()
	}
	if err == nil && ctx.Err() == nil && keep != nil {
		err = keep(d)
	}
	return d.end(err, ctx.Err() != nil)
}

// useAgent makes the lab run the given agent, or builds one. The returned function removes what was built.
func useAgent(file string) (forget func(), err error) {
	if file != "" {
		if file, err = filepath.Abs(file); err == nil {
			err = os.Setenv(lab.BinaryEnv, file)
		}
		return func() {}, err
	}
	built, err := lab.AgentBinary()
	if err != nil {
		return nil, err
	}
	// What is left in the folder of temporary files is the next run's to sweep.
	return func() { _ = os.RemoveAll(filepath.Dir(built)) }, nil
}

// leftovers lists what exists in the name of a process: namespaces and folders.
func leftovers(pid int) []string {
	var out []string
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // no folder, nothing in it
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), fmt.Sprintf("fw%d-", pid)) && !strings.HasSuffix(e.Name(), "-bin") {
				out = append(out, filepath.Join(dir, e.Name()))
			}
		}
	}
	return out
}
