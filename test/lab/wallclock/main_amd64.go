package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// syscallStop is the signal of a stop at a system call, with PTRACE_O_TRACESYSGOOD.
	syscallStop = unix.SIGTRAP | 0x80
	// The kinds of auxiliary vector entries (getauxval(3)).
	atNull, atIgnore, atVDSO = 0, 1, 33
	word                     = 8
)

// A tracer runs one program.
type tracer struct {
	program string // its base name; others that it starts are let go
	ahead   string // the file that says by how much its clock is ahead
	begun   map[int]bool
}

func run(ahead string, argv []string) error {
	if _, err := readAhead(ahead); err != nil {
		return err
	}
	runtime.LockOSThread() // a tracer is a thread
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	t := &tracer{program: filepath.Base(argv[0]), ahead: ahead, begun: map[int]bool{pid: true}}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
		return fmt.Errorf("wait for %s: %w", argv[0], err)
	}
	err := unix.PtraceSetOptions(pid, unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACESYSGOOD|
		unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACEFORK|unix.PTRACE_O_TRACEVFORK|unix.PTRACE_O_TRACEEXEC)
	if err != nil {
		return fmt.Errorf("trace %s: %w", argv[0], err)
	}
	t.hideVDSO(pid)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	go func() {
		for s := range signals {
			// An error is that it has ended.
			_ = unix.Kill(pid, s.(unix.Signal))
		}
	}()
	resume(pid, 0)
	return t.follow(pid)
}

// follow waits for what is traced, until the program has ended, whose status becomes this process's.
func (t *tracer) follow(first int) error {
	for {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case status.Exited() || status.Signaled():
			delete(t.begun, tid)
			if tid == first {
				end(status)
			}
			continue
		}
		t.stopped(tid, status)
	}
}

// end ends this process as the program did.
func end(status unix.WaitStatus) {
	if status.Exited() {
		os.Exit(status.ExitStatus())
	}
	os.Exit(128 + int(status.Signal()))
}

// stopped lets a thread that has stopped go on. What fails meanwhile fails because the thread has been killed, which the next wait tells.
func (t *tracer) stopped(tid int, status unix.WaitStatus) {
	switch sig := status.StopSignal(); {
	case sig == syscallStop:
		t.shift(tid)
		resume(tid, 0)
	case sig == unix.SIGTRAP && status.TrapCause() == unix.PTRACE_EVENT_EXEC:
		if name, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", tid)); err == nil && filepath.Base(name) != t.program {
			_ = unix.PtraceDetach(tid) // its clock is nobody's concern, and it is faster without
			return
		}
		t.hideVDSO(tid)
		resume(tid, 0)
	case sig == unix.SIGTRAP && status.TrapCause() > 0:
		resume(tid, 0)
	case sig == unix.SIGSTOP && !t.begun[tid]: // how a new thread begins
		t.begun[tid] = true
		resume(tid, 0)
	default:
		resume(tid, sig)
	}
}

func resume(tid int, sig unix.Signal) { _ = unix.PtraceSyscall(tid, int(sig)) }

// shift moves what clock_gettime(CLOCK_REALTIME) has just answered.
func (t *tracer) shift(tid int) {
	var info struct { // struct ptrace_syscall_info, as far as it is needed
		op   uint8
		_    [7 + 2*word]byte
		more [8 * word]byte
	}
	const exit = 2
	if n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info),
		uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 || n == 0 || info.op != exit {
		return
	}
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &regs) != nil || regs.Orig_rax != unix.SYS_CLOCK_GETTIME || regs.Rdi != unix.CLOCK_REALTIME || regs.Rax != 0 {
		return
	}
	ahead, err := readAhead(t.ahead)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) // and the program with it
	}
	var seconds [word]byte
	if _, err := unix.PtracePeekData(tid, uintptr(regs.Rsi), seconds[:]); err != nil {
		return
	}
	binary.NativeEndian.PutUint64(seconds[:], binary.NativeEndian.Uint64(seconds[:])+uint64(int64(ahead/time.Second)))
	_, _ = unix.PtracePokeData(tid, uintptr(regs.Rsi), seconds[:])
}

// readAhead reads by how much the clock is ahead, in whole seconds.
func readAhead(file string) (time.Duration, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: right would be a number of seconds: %w", file, err)
	}
	return time.Duration(seconds) * time.Second, nil
}

// hideVDSO takes the vDSO from a program that has not begun: it would ask for the time there, without a system call.
func (t *tracer) hideVDSO(pid int) {
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(pid, &regs) != nil {
		return
	}
	at := uintptr(regs.Rsp)
	next := func() (v uint64) {
		var b [word]byte
		if _, err := unix.PtracePeekData(pid, at, b[:]); err != nil {
			return 0
		}
		at += word
		return binary.NativeEndian.Uint64(b[:])
	}
	next()        // argc
	for range 2 { // argv and the environment
		for next() != 0 {
		}
	}
	for {
		switch place := at; next() {
		case atNull:
			return
		case atVDSO:
			var ignore [word]byte
			binary.NativeEndian.PutUint64(ignore[:], atIgnore)
			_, _ = unix.PtracePokeData(pid, place, ignore[:])
			return
		}
		next()
	}
}
