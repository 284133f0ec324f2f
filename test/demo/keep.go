package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/test/lab"
)

// readyFD is the descriptor on which a holder says that everything is up: the first one behind the standard three.
const readyFD = 3

// downBound is how long a holder may take to end.
const downBound = 30 * time.Second

// errKept is the error of a second demo that should stay.
var errKept = errors.New("a demo is up already; take it down with: make demo-down")

// launch runs the demo in a process of a session of its own and returns when everything is up, or when it failed.
func launch(ctx context.Context, o options) int {
	exe, err := os.Executable()
	if err != nil {
		return report(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return report(err)
	}
	defer r.Close()
	holder := exec.Command(exe, "-holder", "-agent="+o.agent, "-state="+o.state)
	holder.Stdout, holder.Stderr, holder.ExtraFiles = os.Stdout, os.Stderr, []*os.File{w}
	holder.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = holder.Start()
	w.Close()
	if err != nil {
		return report(err)
	}
	// The terminal's Ctrl-C does not reach another session.
	stop := context.AfterFunc(ctx, func() { _ = holder.Process.Signal(unix.SIGTERM) })
	defer stop()
	if said, _ := io.ReadAll(r); len(said) > 0 && ctx.Err() == nil {
		return 0
	}
	// How it ended is what its status says.
	_ = holder.Wait()
	if ctx.Err() != nil {
		return statusInterrupted
	}
	return max(holder.ProcessState.ExitCode(), statusFailed)
}

// hold runs the demo and stays until a signal comes.
func hold(ctx context.Context, o options) int {
	release, err := claim(o.state)
	if err != nil {
		return report(err)
	}
	defer release()
	unix.CloseOnExec(readyFD)
	return demonstrate(ctx, o, func(d *demo) error {
		d.inside()
		if err := d.out.failed(); err != nil {
			return err
		}
		if err := detach(); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
}

// detach lets go of the terminal and of whoever started this process.
func detach() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	ready := os.NewFile(readyFD, "ready")
	defer ready.Close()
	if _, err := ready.WriteString("up\n"); err != nil {
		return fmt.Errorf("nobody waits for the demo any more: %w", err)
	}
	return nil
}

// claim locks the state file for this process and writes the process's id into it. The returned function removes it.
func claim(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errKept
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() {
		// A file that stays is unlocked, which says that nobody is there.
		_ = os.Remove(path)
		f.Close()
	}, nil
}

// takeDown ends the process that holds a kept demo, and waits until nothing is left. Nothing to take down is a success.
func takeDown(ctx context.Context, path string, w io.Writer) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(w, "There is no demo to take down.")
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil || pid < 2 {
		return fmt.Errorf("%s does not contain the id of a process: %q", path, content)
	}
	if err := endHolder(ctx, f, pid); err != nil {
		return err
	}
	// The holder has removed its file and everything else; what is left was a killed holder's.
	if err := lab.Sweep(); err != nil {
		return err
	}
	if left := leftovers(pid); len(left) > 0 {
		return fmt.Errorf("still there: %s", strings.Join(left, ", "))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fmt.Fprintf(w, "The demo of process %d is gone, with its namespaces, agents and files.\n", pid)
	return nil
}

// endHolder asks the holder to end and returns when it has: when its lock is free and the process is gone.
func endHolder(ctx context.Context, f *os.File, pid int) error {
	asked := false
	deadline := time.Now().Add(downBound)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !asked {
			if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end process %d: %w", pid, err)
			}
			asked = true
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d has not ended within %v", pid, downBound)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
