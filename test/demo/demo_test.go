package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// runBound ends a program that hangs; a run takes some seconds.
const runBound = 2 * time.Minute

// program builds the demo and returns a function that makes a command of it, which has the state file and the agent as
// flags already.
func program(t *testing.T) func(args ...string) *exec.Cmd {
	t.Helper()
	lab.Require(t)
	dir := t.TempDir()
	exe := filepath.Join(dir, "demo")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	agent, err := lab.AgentBinary()
	if err != nil {
		t.Fatal(err)
	}
	return func(args ...string) *exec.Cmd {
		return exec.Command(exe, append([]string{"-state=" + filepath.Join(dir, "state"), "-agent=" + agent}, args...)...)
	}
}

// finish runs a command to its end and returns its output and status.
func finish(t *testing.T, c *exec.Cmd) (string, int) {
	t.Helper()
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	status := wait(t, c, &out)
	return out.String(), status
}

// wait waits for a command to end and returns its status.
func wait(t *testing.T, c *exec.Cmd, out fmt.Stringer) int {
	t.Helper()
	timer := time.AfterFunc(runBound, func() { _ = c.Process.Signal(unix.SIGTERM) })
	err := c.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if !timer.Stop() {
		t.Fatalf("%v did not end:\n%s", c.Args, out)
	}
	return c.ProcessState.ExitCode()
}

// nothingLeft fails the test when a namespace, a file or a process of a demo is left.
func nothingLeft(t *testing.T, pid int) {
	t.Helper()
	if left := leftovers(pid); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left := processes(t, pid); len(left) > 0 {
		t.Errorf("left processes: %v", left)
	}
}

// processes lists the processes that have a folder of a demo in their arguments: its agents and BIRD.
func processes(t *testing.T, pid int) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err == nil && bytes.Contains(line, fmt.Appendf(nil, "/fw%d-", pid)) {
			out = append(out, f+": "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return out
}

func TestDemo(t *testing.T) {
	demo := program(t)()
	out, status := finish(t, demo)
	if status != 0 {
		t.Errorf("status %d", status)
	}
	for i, s := range steps {
		if want := fmt.Sprintf("\n%d  %s\n", i+1, s.title); !strings.Contains(out, want) {
			t.Errorf("there is no step %q", want)
		}
	}
	if !strings.Contains(out, "Taken down: 12 namespaces, 3 agents, all files. Nothing is left.\n") {
		t.Error("it does not say that nothing is left")
	}
	if strings.Contains(out, "\x1b") {
		t.Error("colours, and no terminal")
	}
	nothingLeft(t, demo.Process.Pid)
	if t.Failed() {
		t.Log(out)
	}
}

// TestInterrupted ends demos in the middle of a step, as Ctrl-C and others do.
func TestInterrupted(t *testing.T) {
	program := program(t)
	for _, c := range []struct {
		name   string
		at     string
		end    func(p *os.Process, output io.Closer) error
		status int
		says   bool
	}{
		{"SIGINT", "4  ", func(p *os.Process, _ io.Closer) error { return p.Signal(unix.SIGINT) }, statusInterrupted, true},
		{"SIGTERM", "1  ", func(p *os.Process, _ io.Closer) error { return p.Signal(unix.SIGTERM) }, statusInterrupted, true},
		{"SIGHUP twice", "   A cluster", func(p *os.Process, _ io.Closer) error {
			return errors.Join(p.Signal(unix.SIGHUP), p.Signal(unix.SIGHUP))
		}, statusInterrupted, true},
		{"nobody reads", "2  ", func(_ *os.Process, output io.Closer) error { return output.Close() }, statusFailed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			demo := program()
			stdout, err := demo.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := demo.Start(); err != nil {
				t.Fatal(err)
			}
			var seen bytes.Buffer
			reader := bufio.NewScanner(io.TeeReader(stdout, &seen))
			for reader.Scan() && !strings.HasPrefix(reader.Text(), c.at) {
			}
			if err := c.end(demo.Process, stdout); err != nil {
				t.Error(err)
			}
			for reader.Scan() {
			}
			if status := wait(t, demo, &seen); status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			if says := strings.Contains(seen.String(), "Interrupted. Taken down: 12 namespaces"); says != c.says {
				t.Errorf("it said %q", seen.String())
			}
			nothingLeft(t, demo.Process.Pid)
		})
	}
}

var heldBy = regexp.MustCompile(`It stays up, held by process ([0-9]+)\.`)

// kept is how many processes a kept demo has: three agents, and the router's BIRD.
const kept = 4

func TestKeep(t *testing.T) {
	program := program(t)
	t.Cleanup(func() { finish(t, program("-down")) })
	out, status := finish(t, program("-keep"))
	held := heldBy.FindStringSubmatch(out)
	if status != 0 || held == nil {
		t.Fatalf("status %d:\n%s", status, out)
	}
	var pid int
	if _, err := fmt.Sscan(held[1], &pid); err != nil {
		t.Fatal(err)
	}
	if n := len(processes(t, pid)); n != kept {
		t.Errorf("%d processes run, want %d", n, kept)
	}
	if session, err := unix.Getsid(pid); err != nil || session != pid {
		t.Errorf("process %d is of session %d, %v", pid, session, err)
	}
	// The commands that it names do what they should.
	for _, command := range commandsOf(out) {
		got, err := exec.Command("bash", "-c", command).CombinedOutput()
		if err != nil || len(got) == 0 {
			t.Errorf("%s: %v: %q", command, err, got)
		}
	}
	runPage(t, "../../docs/inside.md", pid)
	if out, status := finish(t, program("-keep")); status != statusFailed || !strings.Contains(out, errKept.Error()) {
		t.Errorf("a second one: status %d:\n%s", status, out)
	}
	if n := len(processes(t, pid)); n != kept {
		t.Errorf("%d processes run after a second demo was refused, want %d", n, kept)
	}
	if out, status := finish(t, program("-down")); status != 0 || !strings.Contains(out, "is gone, with its namespaces") {
		t.Errorf("down: status %d:\n%s", status, out)
	}
	nothingLeft(t, pid)
	if out, status := finish(t, program("-down")); status != 0 || !strings.Contains(out, "no demo") {
		t.Errorf("down again: status %d:\n%s", status, out)
	}
}

// commandsOf returns the commands that the text of a kept demo names, except for shells and what follows a file.
func commandsOf(out string) []string {
	var list []string
	_, text, _ := strings.Cut(out, "look inside")
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "ip netns exec") && !strings.HasSuffix(line, " bash") {
			list = append(list, line)
		}
	}
	return list
}

// TestKeepKilled holds that a kept demo whose process was killed is taken down all the same.
func TestKeepKilled(t *testing.T) {
	program := program(t)
	t.Cleanup(func() { finish(t, program("-down")) })
	out, status := finish(t, program("-keep"))
	held := heldBy.FindStringSubmatch(out)
	if status != 0 || held == nil {
		t.Fatalf("status %d:\n%s", status, out)
	}
	var pid int
	if _, err := fmt.Sscan(held[1], &pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := lab.Eventually(runBound, func() error {
		if out, status := finish(t, program("-down")); status != 0 {
			return fmt.Errorf("down: status %d:\n%s", status, out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	nothingLeft(t, pid)
}

var shellBlock = regexp.MustCompile("(?s)\n```sh\n(.*?)```\n")

// runPage runs the commands of a page on node1 of a kept demo, in the demo's folder. What is for a real cluster, or changes
// /etc, is left out, and what needs curl where there is none.
func runPage(t *testing.T, page string, pid int) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := lab.AgentBinary()
	if err != nil {
		t.Fatal(err)
	}
	_, noCurl := exec.LookPath("curl")
	ran := 0
	for _, block := range shellBlock.FindAllSubmatch(text, -1) {
		commands := string(block[1])
		if strings.Contains(commands, "kubectl") || strings.Contains(commands, "/etc/") ||
			noCurl != nil && strings.Contains(commands, "curl") {
			continue
		}
		run := func() error {
			c := exec.Command("ip", "netns", "exec", fmt.Sprintf("fw%d-1-node1", pid), "bash", "-ec", commands)
			c.Dir = filepath.Join(os.TempDir(), fmt.Sprintf("fw%d-1", pid))
			c.Env = append(os.Environ(), "PATH="+filepath.Dir(agent)+":"+os.Getenv("PATH"))
			out, err := c.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w:\n%s", err, out)
			}
			return err
		}
		err := run()
		if err != nil && strings.Contains(commands, "fairway doctor") { // the agent may just be hearing of what the demo did last
			err = lab.Eventually(runBound, run)
		}
		if err != nil {
			t.Errorf("%s says\n%s%v", page, commands, err)
		}
		ran++
	}
	if ran < 5 {
		t.Errorf("%s: %d blocks of commands were run, want 5 or more", page, ran)
	}
}

// TestKeepInterrupted holds that a signal to the one who waits for a kept demo ends all of it.
func TestKeepInterrupted(t *testing.T) {
	program := program(t)
	demo := program("-keep")
	stdout, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	reader := bufio.NewScanner(io.TeeReader(stdout, &seen))
	for reader.Scan() && !strings.HasPrefix(reader.Text(), "2  ") {
	}
	if err := demo.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	for reader.Scan() {
	}
	if status := wait(t, demo, &seen); status != statusInterrupted {
		t.Errorf("status %d, want %d", status, statusInterrupted)
	}
	holder := regexp.MustCompile(`ip netns exec fw([0-9]+)-`).FindStringSubmatch(seen.String())
	if holder == nil {
		t.Fatalf("no namespaces in %q", seen.String())
	}
	var pid int
	if _, err := fmt.Sscan(holder[1], &pid); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, pid)
}

// TestSabotage holds that a demo of agents that do not work, or not as they should, fails.
func TestSabotage(t *testing.T) {
	program := program(t)
	agent, err := lab.AgentBinary()
	if err != nil {
		t.Fatal(err)
	}
	// Agents with this range refuse all podCIDRs of the demo.
	wrong := filepath.Join(t.TempDir(), "agent")
	script := fmt.Sprintf(`#!/bin/sh
for a; do
  shift
  case $a in --cluster-cidrs=*) a=--cluster-cidrs=10.99.0.0/16 ;; esac
  set -- "$@" "$a"
done
exec %s "$@"
`, agent)
	if err := os.WriteFile(wrong, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for want, file := range map[string]string{
		"demo: start: agent on ":      "/bin/false",
		"demo: step 1: routes are []": wrong,
		"no such file":                "/nonexistent",
	} {
		demo := program("-agent=" + file)
		out, status := finish(t, demo)
		if status != statusFailed || !strings.Contains(out, want) {
			t.Errorf("%s: status %d, want %d and %q:\n%s", file, status, statusFailed, want, out)
		}
		nothingLeft(t, demo.Process.Pid)
	}
	if out, status := finish(t, program("-no-such-flag")); status != statusUsage {
		t.Errorf("status %d:\n%s", status, out)
	}
}
