package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// closeGrace is how long a process has between SIGTERM and SIGKILL when its Lab is closed.
	closeGrace = 2 * time.Second
	// runBound is how long a command of Run may take.
	runBound = 60 * time.Second
)

// A Command is a process to start in a namespace.
type Command struct {
	Path string
	Args []string
	// Env is added to the environment of this process.
	Env []string
	// Stdin is what the process reads; nothing when nil.
	Stdin io.Reader
	// Log gets a copy of what the process writes to both outputs; nobody when nil.
	Log io.Writer
	// Cgroup is the folder, opened, of a cgroup (v2) that the process starts in; that of this process when nil.
	Cgroup *os.File
}

// A Process runs in a namespace of a Lab, in a process group of its own. It does not outlive this process.
type Process struct {
	cmd    *exec.Cmd
	output buffer
	exited chan struct{}
	err    error // what Wait returned; set before exited is closed
}

// Start starts a process. XTABLES_LOCKFILE is set to a file of the namespace's own, which all its processes share:
// they are one host's.
func (ns *Namespace) Start(c Command) (*Process, error) {
	p := &Process{exited: make(chan struct{})}
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Env = append(append(os.Environ(), "XTABLES_LOCKFILE="+ns.LockFile()), c.Env...)
	var out io.Writer = &p.output
	if c.Log != nil {
		out = io.MultiWriter(&p.output, c.Log)
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = c.Stdin, out, out
	// The signal comes when the thread that started the process ends; the namespace's thread ends after its processes.
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if c.Cgroup != nil {
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(c.Cgroup.Fd())
	}
	// A grandchild that keeps the output open must not keep Wait from returning. It is an error all the same: an orphan.
	p.cmd.WaitDelay = 5 * time.Second
	if err := ns.startTracked(p); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", ns.name, c.Path, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		ns.lab.forget(p)
		close(p.exited)
	}()
	return p, nil
}

// startTracked starts the process under the Lab's lock, so that Close sees every process that was started.
func (ns *Namespace) startTracked(p *Process) error {
	l := ns.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if err := ns.Do(p.cmd.Start); err != nil {
		return err
	}
	l.procs = append(l.procs, p)
	return nil
}

// LockFile is the XTABLES_LOCKFILE of the namespace's processes.
func (ns *Namespace) LockFile() string { return filepath.Join(ns.lab.Dir, ns.name+".lock") }

// Run runs a command in the namespace and returns what it wrote to both outputs. A command that fails is an error that
// contains its output; errors.As finds the *exec.ExitError.
func (ns *Namespace) Run(path string, args ...string) (string, error) {
	return ns.RunInput("", path, args...)
}

// RunInput is Run with a standard input.
func (ns *Namespace) RunInput(stdin, path string, args ...string) (string, error) {
	p, err := ns.Start(Command{Path: path, Args: args, Stdin: strings.NewReader(stdin)})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), runBound)
	defer cancel()
	select {
	case <-p.exited:
	case <-ctx.Done():
		p.Kill()
	}
	out := p.Output()
	if p.err != nil {
		return out, fmt.Errorf("%s: %s %s: %w: %s", ns.name, path, strings.Join(args, " "), p.err, strings.TrimSpace(out))
	}
	return out, nil
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output returns what the process has written so far, to both outputs.
func (p *Process) Output() string { return p.output.String() }

// Exited is closed when the process has ended and its output is complete.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Err returns how the process ended: nil for status 0, else an *exec.ExitError. It is nil while the process runs.
func (p *Process) Err() error {
	select {
	case <-p.exited:
		return p.err
	default:
		return nil
	}
}

// State says in words whether the process runs or how it ended.
func (p *Process) State() string {
	select {
	case <-p.exited:
		return p.cmd.ProcessState.String()
	default:
		return "running"
	}
}

// Signal sends a signal to the process alone. A process that has ended is a success.
func (p *Process) Signal(sig unix.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Kill ends the process with SIGKILL, as a crash would, and waits until it is gone. Its children live on.
func (p *Process) Kill() {
	// The only error is that the process has ended.
	_ = p.Signal(unix.SIGKILL)
	<-p.exited
}

// Stop asks the process to end with SIGTERM, and ends it and its children with SIGKILL when it has not done so within
// the grace. It returns how the process ended, as Err does.
func (p *Process) Stop(grace time.Duration) error {
	_ = p.Signal(unix.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
		p.killGroup()
		<-p.exited
	}
	return p.err
}

// killGroup ends the process with all its children. The process has not been waited for while exited is open, so the id
// of its group cannot belong to somebody else.
func (p *Process) killGroup() { _ = unix.Kill(-p.PID(), unix.SIGKILL) }

func (l *Lab) forget(p *Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.procs {
		if q == p {
			l.procs = append(l.procs[:i:i], l.procs[i+1:]...)
			return
		}
	}
}

// A buffer collects output while it is read.
type buffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
