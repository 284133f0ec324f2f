package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// drainBound is how long what a child that has ended wrote last is waited for.
	drainBound = 2 * time.Second
	// endBound is how long a child may take to end when its agent's end is closed.
	endBound = 5 * time.Second
)

// marker is in the environment of every child. A child begins no other: a program that does not call Main when it should (a test, for
// one) would do so for ever.
const marker = "FAIRWAY_BGP_PROCESS"

// errGone is the error of a call to a child that has ended.
var errGone = errors.New("the BGP process has ended")

// A child is one child process and the conversation with it.
type child struct {
	cmd    *exec.Cmd
	conn   *conn
	output *relay
	// gone is closed when the conversation is over, exited when the process has ended and why is known.
	gone, exited chan struct{}
	why          string // why it ended; set before exited is closed

	mu sync.Mutex // guards what follows
	// calls are those that wait for their answers, last the number of the latest.
	calls map[uint64]chan<- reply
	last  uint64
	// verdict is why it was killed; empty when it was not.
	verdict string
}

// A reply is the answer to a call.
type reply struct {
	failure *failure
	body    *reader
}

// startChild starts one, with words added to its environment. tell is called with its news, by one goroutine, until exited is closed.
func startChild(env []string, tell func(*news)) (*child, error) {
	if os.Getenv(marker) != "" {
		return nil, errors.New("this is a BGP process itself")
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close() // which the child has then, or nobody
	connection, err := newConn(ours)
	if err != nil {
		return nil, err
	}
	c := &child{conn: connection, output: &relay{to: os.Stderr}, gone: make(chan struct{}), exited: make(chan struct{}), calls: map[uint64]chan<- reply{}}
	c.cmd = exec.Command("/proc/self/exe", Command)
	c.cmd.Args[0] = "fairway"
	if v := verbosity(); v > 0 {
		c.cmd.Args = append(c.cmd.Args, "--v="+strconv.Itoa(v))
	}
	c.cmd.Env = slices.Concat(os.Environ(), env, []string{marker + "=1"})
	c.cmd.ExtraFiles = []*os.File{theirs}
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	c.cmd.WaitDelay = drainBound
	if err := c.cmd.Start(); err != nil {
		return nil, errors.Join(err, connection.close())
	}
	klog.InfoS("The BGP process has begun", "pid", c.cmd.Process.Pid)
	told := make(chan struct{})
	go func() {
		defer close(told)
		c.listen(tell)
	}()
	go c.wait(told)
	return c, nil
}

// listen reads what the child writes, until it has ended or makes no sense.
func (c *child) listen(tell func(*news)) {
	defer close(c.gone)
	for {
		h, body, err := c.conn.read()
		var n news
		switch {
		case errors.Is(err, errMalformed):
			c.kill(fmt.Sprintf("it sent what can't be read: %v", err))
			return
		case err != nil:
			return
		case h.Call == 0:
			if err := body.get(&n); err != nil {
				c.kill(fmt.Sprintf("it sent news that can't be read: %v", err))
				return
			}
			tell(&n)
		default:
			c.mu.Lock()
			answer := c.calls[h.Call]
			delete(c.calls, h.Call)
			c.mu.Unlock()
			if answer != nil {
				answer <- reply{h.Failure, body} // it has room for one
			}
		}
	}
}

// wait waits for the end of the process, and for the last of its news.
func (c *child) wait(told <-chan struct{}) {
	err := c.cmd.Wait()
	<-told // the process's end of the conversation is closed
	c.output.flush()
	c.mu.Lock()
	verdict := c.verdict
	c.mu.Unlock()
	switch panicked := c.output.panicked(); {
	case verdict != "":
		c.why = verdict
	case panicked != "":
		c.why = panicked
	case err != nil:
		c.why = err.Error()
	default:
		c.why = "it ended by itself"
	}
	_ = c.conn.close() // nobody is at the other end
	close(c.exited)
}

// kill ends the process, for a reason: the first one counts.
func (c *child) kill(why string) {
	c.mu.Lock()
	if c.verdict == "" {
		c.verdict = why
	}
	c.mu.Unlock()
	_ = c.cmd.Process.Kill() // it may have ended
}

// end has the process end, and waits until it has.
func (c *child) end() {
	_ = c.conn.close() // it may have ended
	select {
	case <-c.exited:
	case <-time.After(endBound):
		c.kill("it did not end when it should")
		<-c.exited
	}
}

// call calls a method, and waits for the answer within a bound: a child that takes longer is killed. The answer is read also when
// there is an error that came with it.
func call[Q, A any](c *child, method string, q Q, bound time.Duration) (a A, err error) {
	answer := make(chan reply, 1)
	c.mu.Lock()
	c.last++
	id := c.last
	c.calls[id] = answer
	c.mu.Unlock()
	timer := time.NewTimer(bound)
	defer timer.Stop()
	// An error means that the process has ended, or that it does not read.
	if err := c.conn.write(header{Call: id, Method: method}, &q, time.Now().Add(bound)); errors.Is(err, os.ErrDeadlineExceeded) {
		c.kill(late(method, bound))
	}
	select {
	case r := <-answer:
		if err := r.body.get(&a); err != nil {
			c.kill(fmt.Sprintf("its answer to %s can't be read: %v", method, err))
			break
		}
		return a, r.failure.err()
	case <-timer.C:
		c.kill(late(method, bound))
	case <-c.gone:
	}
	<-c.exited
	var zero A
	return zero, fmt.Errorf("%w: %s", errGone, c.why)
}

func late(method string, bound time.Duration) string {
	return fmt.Sprintf("it did not answer (%s) within %s, and was killed", method, bound)
}

// verbosity is that of this process's log (-v).
func verbosity() (v int) {
	for klog.V(klog.Level(v + 1)).Enabled() {
		v++
	}
	return v
}

const (
	// longestLine is the most that a relay keeps of a line before it passes it on, longestWhy of why a process has ended.
	longestLine = 64 << 10
	longestWhy  = 300
)

// A relay passes on what a process writes, line by line, so that lines of several writers do not mix; and keeps the first that tells
// of its end.
type relay struct {
	to io.Writer

	mu   sync.Mutex // guards what follows
	line []byte     // is not complete
	why  string
}

// Write implements io.Writer. What can't be passed on is lost, as it would be without a relay.
func (r *relay) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line = append(r.line, p...)
	end := bytes.LastIndexByte(r.line, '\n') + 1
	if end == 0 && len(r.line) > longestLine {
		end = len(r.line)
	}
	r.pass(end)
	return len(p), nil
}

// flush passes on a last line without an end.
func (r *relay) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pass(len(r.line))
}

// pass passes on the first n bytes. It is called with mu held.
func (r *relay) pass(n int) {
	if n == 0 {
		return
	}
	for line := range bytes.Lines(r.line[:n]) {
		// As the runtime begins its reports. A line of the log begins otherwise.
		if r.why == "" && (bytes.HasPrefix(line, []byte("panic: ")) || bytes.HasPrefix(line, []byte("fatal error: "))) {
			line = bytes.TrimSpace(line)
			r.why = string(line[:min(len(line), longestWhy)])
		}
	}
	_, _ = r.to.Write(r.line[:n])
	r.line = slices.Delete(r.line, 0, n)
}

// panicked is the first line of the report of a panic; empty without one.
func (r *relay) panicked() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why
}
