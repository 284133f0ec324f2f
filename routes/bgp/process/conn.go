package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// longestFrame is the most bytes that one frame may have: far more than the routes of a full table.
const longestFrame = 1 << 30

// A header begins a frame, whose body follows.
type header struct {
	// Call numbers a call and its answer; it is 0 for news, which are not asked for.
	Call uint64
	// Method is what is called; empty in an answer.
	Method string
	// Failure is the error of an answer, which has its body all the same; nil for none.
	Failure *failure
}

// A failure is an error that came from the other process: its text, and which of the known ones it is.
type failure struct {
	Text string
	Is   []int
}

// known are the errors that a caller may ask for by errors.Is.
var known = [...]error{speaker.ErrNoSession, os.ErrNotExist, os.ErrPermission}

func newFailure(err error) *failure {
	if err == nil {
		return nil
	}
	f := &failure{Text: err.Error()}
	for i, k := range known {
		if errors.Is(err, k) {
			f.Is = append(f.Is, i)
		}
	}
	return f
}

func (f *failure) err() error {
	if f == nil {
		return nil
	}
	return f
}

// Error implements error.
func (f *failure) Error() string { return f.Text }

// Unwrap returns the known errors that it is.
func (f *failure) Unwrap() (list []error) {
	for _, i := range f.Is {
		if i >= 0 && i < len(known) {
			list = append(list, known[i])
		}
	}
	return list
}

// A conn carries frames: four bytes with the length of what follows, then the header and the body.
type conn struct {
	c       net.Conn
	writing sync.Mutex
}

// newConn takes over one end of a socket pair.
func newConn(f *os.File) (*conn, error) {
	c, err := net.FileConn(f)
	if closeErr := f.Close(); err == nil && closeErr != nil {
		err = errors.Join(closeErr, c.Close())
	}
	if err != nil {
		return nil, err
	}
	return &conn{c: c}, nil
}

// socketPair returns two ends that no other program inherits.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "bgp-speaker"), os.NewFile(uintptr(fds[1]), "bgp-speaker"), nil
}

// write writes a frame, until the deadline; the zero Time is none.
func (c *conn) write(h header, body any, deadline time.Time) error {
	w := &writer{b: make([]byte, 4, 512)}
	w.put(&h)
	w.seen = nil // the body is read on its own
	w.put(body)
	if len(w.b)-4 > longestFrame {
		return fmt.Errorf("a message has %d bytes, at most %d can be sent", len(w.b)-4, longestFrame)
	}
	binary.BigEndian.PutUint32(w.b, uint32(len(w.b)-4))
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.c.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := c.c.Write(w.b)
	return err
}

// read reads a frame; the body is what the reader still has.
func (c *conn) read() (h header, body *reader, err error) {
	var size [4]byte
	if _, err := io.ReadFull(c.c, size[:]); err != nil {
		return h, nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > longestFrame {
		return h, nil, fmt.Errorf("%w: a frame of %d bytes", errMalformed, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.c, b); err != nil {
		return h, nil, err
	}
	r := &reader{b: b}
	if err := r.get(&h); err != nil {
		return h, nil, err
	}
	return h, &reader{b: r.b}, nil
}

func (c *conn) close() error { return c.c.Close() }
