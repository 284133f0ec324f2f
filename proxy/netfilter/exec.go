package netfilter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// commandTimeout ends a command that hangs. The slowest honest one, iptables-nft-save of some 100,000 lines, takes seconds.
	commandTimeout = 2 * time.Minute
	// inputTimeout does so for a command with input, plus timeoutPerMiB. A restore of 80,000 lines (10 MiB) through iptables-nft takes
	// 3 s; the wait for the lock is 5 s. While one hangs, its family's changes wait.
	inputTimeout  = 30 * time.Second
	timeoutPerMiB = 10 * time.Second
	// maxOutput bounds what a command may print. The rules of 10,000 Services take about 15 MiB.
	maxOutput = 256 << 20
	// maxErrors bounds what is kept of a command's complaints.
	maxErrors = 64 << 10
)

// A command is one run of a program.
type command struct {
	path  string
	args  []string
	stdin string
	// stdout is where to write what the program prints, instead of returning it. Its error ends the program.
	stdout io.Writer
}

func (c command) String() string { return strings.Join(append([]string{c.path}, c.args...), " ") }

// timeout is how long the command may take.
func (c command) timeout() time.Duration {
	if c.stdin == "" {
		return commandTimeout
	}
	return inputTimeout + time.Duration(len(c.stdin))*timeoutPerMiB>>20
}

// A runner runs a command and returns what it printed. It is the seam at which tests replace the binaries. When the
// program ran and failed, the error is an *exitError; when the context ended it, errors.Is finds the context's error.
type runner func(context.Context, command) (stdout string, err error)

// An exitError is the failure that a program reported.
type exitError struct {
	code   int
	stderr string
}

func (e *exitError) Error() string {
	if e.stderr == "" {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return fmt.Sprintf("exit status %d: %s", e.code, summary(e.stderr))
}

// run is the runner for real binaries that does not remember its children.
func run(ctx context.Context, c command) (string, error) { return new(children).run(ctx, c) }

// run is the runner for real binaries. The child has a process group of its own, which is killed as a whole when the
// context ends: some distributions wrap the binaries in scripts. And it dies with the agent: an iptables-restore that outlived it
// could write after the next agent has read the kernel, which then would not know of it. That signal comes when the thread ends
// that started the child, so it must not end before.
func (own *children) run(ctx context.Context, c command) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	stdout := &limited{limit: maxOutput, full: errOutput, to: c.stdout}
	stderr := &limited{limit: maxErrors}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.stdin), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := own.start(cmd)
	if err == nil {
		err = cmd.Wait()
		own.ended(cmd.Process.Pid)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout.text.String(), nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s: killed: %w", c, ctx.Err())
	case stdout.overrun:
		return "", fmt.Errorf("%s: %w", c, errOutput)
	case stdout.failed != nil:
		return "", fmt.Errorf("%s: %w", c, stdout.failed)
	case errors.As(err, &exit):
		said := stderr.text.String()
		if !exit.Exited() { // a signal, which the code -1 does not tell
			said = exit.String() + "\n" + said
		}
		return "", fmt.Errorf("%s: %w", c, &exitError{code: exit.ExitCode(), stderr: strings.TrimSpace(said)})
	}
	return "", fmt.Errorf("%s: %w", c, err)
}

var errOutput = fmt.Errorf("it printed more than %d MiB", maxOutput>>20)

// limited keeps the first limit bytes of what is written, or passes them on. Beyond them it drops the rest or, when full
// is set, fails with it, which ends the program by SIGPIPE.
type limited struct {
	text    strings.Builder
	to      io.Writer // nil to keep the text
	failed  error     // to's error
	size    int
	limit   int
	full    error
	overrun bool
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.limit-l.size)
	l.size += n
	if l.to == nil {
		l.text.Write(p[:n])
	} else if _, l.failed = l.to.Write(p[:n]); l.failed != nil {
		return 0, l.failed
	}
	if n < len(p) {
		l.overrun = true
		return len(p), l.full
	}
	return n, nil
}

// summary makes one line of what a program complained about, without its advice on usage and
// the heading of iptables-nft's lists.
func summary(stderr string) string {
	var parts []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "Try `") || strings.HasSuffix(line, "(nf_tables):") {
			continue
		}
		parts = append(parts, line)
	}
	const most = 512
	s := strings.Join(parts, "; ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + " …"
	}
	return s
}

// about is the summary without what was said about other lines of the input.
func about(stderr string, line int) string {
	var kept strings.Builder
	for s := range strings.Lines(stderr) {
		if m := lineNumber.FindStringSubmatch(s); m == nil || m[1] == strconv.Itoa(line) {
			kept.WriteString(s)
		}
	}
	return summary(kept.String())
}
