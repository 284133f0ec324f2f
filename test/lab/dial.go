package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An Outcome is what became of an attempt to reach somebody.
type Outcome uint8

// The outcomes.
const (
	// OK: an answer came.
	OK Outcome = iota
	// Refused: ECONNREFUSED, from a TCP reset or an ICMP port unreachable.
	Refused
	// Timeout: nothing came within the time.
	Timeout
	// NoRoute: ENETUNREACH, there is no route here, or a router said so.
	NoRoute
	// Unreachable: EHOSTUNREACH, the neighbour does not answer, or a router said so.
	Unreachable
	// Denied: EPERM or EACCES. The node's own OUTPUT rules refuse a datagram with EPERM; EACCES is a "prohibited" from ICMP.
	Denied
	// Reset: the connection was made and then broken.
	Reset
	// Failed: anything else; Result.Err tells.
	Failed
)

var outcomeNames = [...]string{"ok", "refused", "timeout", "no route", "unreachable", "denied", "reset", "failed"}

// String returns the outcome in lower-case words.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return fmt.Sprintf("outcome %d", o)
}

// classify turns an error of a socket into an Outcome.
func classify(err error) Outcome {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return Timeout
	case errors.Is(err, unix.ENETUNREACH):
		return NoRoute
	case errors.Is(err, unix.EHOSTUNREACH):
		return Unreachable
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return Denied
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF):
		return Reset
	}
	return Failed
}

// A Dial says whom to reach, and how.
type Dial struct {
	Proto Proto
	To    netip.AddrPort
	// From is the local address and port; the kernel chooses what is zero of it.
	From netip.AddrPort
	// Timeout bounds the attempt, connection and answer together; two seconds when zero.
	Timeout time.Duration
	// Payload is what a datagram contains and the server repeats; "?" when empty. TCP does not use it.
	Payload string
}

func (d Dial) timeout() time.Duration {
	if d.Timeout == 0 {
		return 2 * time.Second
	}
	return d.Timeout
}

// A Result is what became of a Dial.
type Result struct {
	Outcome Outcome
	// Name is who answered, Seen the source address and port that the server saw. Both are zero without an answer.
	Name string
	Seen netip.AddrPort
	// Local is the client's own end, the zero AddrPort when it never had one.
	Local netip.AddrPort
	// Elapsed is the time until the answer or the error.
	Elapsed time.Duration
	// Repeated is how many SYNs TCP sent again because one, or what answered it, was lost.
	Repeated int
	// Err is the error of an Outcome other than OK, with what was tried.
	Err error
}

// String returns the result as one line for a test's log.
func (r Result) String() string {
	if r.Outcome == OK {
		return fmt.Sprintf("%s saw %s (from %s, %v)", r.Name, r.Seen, r.Local, r.Elapsed.Round(time.Microsecond))
	}
	return fmt.Sprintf("%s after %v: %v", r.Outcome, r.Elapsed.Round(time.Millisecond), r.Err)
}

// Expect is nil when the Outcome is the given one, and otherwise an error that says what it was instead. With Eventually it
// waits for an outcome; Err alone would be nil for an answer that should not have come.
func (r Result) Expect(o Outcome) error {
	if r.Outcome == o {
		return nil
	}
	return fmt.Errorf("want %s: %v", o, r)
}

// Ask makes one connection, or sends one datagram, and waits for the answer. The connection is reset afterwards, so it
// leaves no TIME_WAIT behind, and any number of them can follow each other.
func (ns *Namespace) Ask(d Dial) Result {
	c, r := ns.dial(d)
	if c != nil {
		c.file.Close()
	}
	return r
}

// Open is Ask, but keeps the connection open. The Conn is nil unless the Outcome is OK. Close of the Lab closes it too.
func (ns *Namespace) Open(d Dial) (*Conn, Result) {
	c, r := ns.dial(d)
	if r.Outcome != OK {
		if c != nil {
			c.file.Close()
		}
		return nil, r
	}
	if err := ns.lab.track(c); err != nil {
		c.file.Close()
		return nil, Result{Outcome: Failed, Err: err}
	}
	return c, r
}

// dial connects and takes the first answer. The Conn is not nil when there is a socket to close.
func (ns *Namespace) dial(d Dial) (*Conn, Result) {
	start := time.Now()
	c, err := ns.connect(d, d.timeout())
	var r Result
	if err == nil {
		r.Name, r.Seen, err = c.greeting(d)
	}
	if c != nil {
		r.Local, r.Repeated = c.local(), c.repeated()
	}
	r.Elapsed = time.Since(start)
	if err != nil {
		r.Outcome = classify(err)
		r.Err = fmt.Errorf("%s: %s %s: %w", ns.name, d.Proto, d.To, err)
	}
	return c, r
}

// connect makes a socket in the namespace and connects it. The time begins when the socket is ready, and holds for what
// comes after connecting too; zero is no limit. The Conn is not nil when there is a socket to close.
func (ns *Namespace) connect(d Dial, timeout time.Duration) (*Conn, error) {
	fd, err := ns.socket(d.Proto, d.To.Addr())
	if err != nil {
		return nil, err
	}
	err = bindLocal(fd, d)
	c := &Conn{file: os.NewFile(uintptr(fd), d.Proto.String()), lab: ns.lab, proto: d.Proto, to: d.To}
	if err != nil {
		return c, err
	}
	if timeout != 0 {
		if err := c.file.SetDeadline(time.Now().Add(timeout)); err != nil {
			return c, err
		}
	}
	return c, c.connect()
}

// bindLocal gives a socket its local end and its manner of closing.
func bindLocal(fd int, d Dial) error {
	if d.Proto == TCP {
		err := errors.Join(
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
			receiveErrors(fd, d.To.Addr(), 1))
		if err != nil {
			return err
		}
	}
	from := d.From
	if !from.Addr().IsValid() && from.Port() == 0 {
		return nil
	}
	if !from.Addr().IsValid() {
		any := netip.IPv4Unspecified()
		if d.To.Addr().Is6() {
			any = netip.IPv6Unspecified()
		}
		from = netip.AddrPortFrom(any, from.Port())
	}
	option, level := unix.SO_REUSEADDR, unix.SOL_SOCKET
	if from.Port() == 0 {
		// The port is chosen at connect, where ports in use toward other peers are free.
		option, level = unix.IP_BIND_ADDRESS_NO_PORT, unix.IPPROTO_IP
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return err
	}
	return unix.Bind(fd, sockaddr(from))
}

// udpBuffer is the receive buffer of UDP sockets, in bytes: room for some ten thousand datagrams. The kernel's default is full after little more than a
// second in which this process had no time to read, and what is dropped then would count as lost on the way.
const udpBuffer = 8 << 20

// socket makes a non-blocking socket in the namespace, of the family of an address.
func (ns *Namespace) socket(proto Proto, like netip.Addr) (int, error) {
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if like.Is6() {
		domain = unix.AF_INET6
	}
	if proto == UDP {
		kind = unix.SOCK_DGRAM
	}
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto))
		return err
	})
	if err == nil && proto == UDP {
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer); err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	if err != nil {
		return -1, fmt.Errorf("make a %s socket: %w", proto, err)
	}
	return fd, nil
}

// A Conn is an open connection to a Server, or a connected UDP socket. It is a net.Conn.
type Conn struct {
	file  *os.File
	lab   *Lab
	proto Proto
	to    netip.AddrPort
}

var _ net.Conn = (*Conn)(nil)

// connect connects the socket. Asking connect again is how Linux tells of one that was in progress.
//
// A packet crosses all of the lab's links inside the sender's system call, so an ICMP error comes back while connect
// still holds the socket, and TCP merely notes it and repeats the SYN a second later. With IP_RECVERR the error is queued as well,
// which tells the same at once.
func (c *Conn) connect() error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		result = unix.Connect(int(fd), sockaddr(c.to))
		switch {
		case errors.Is(result, unix.EINPROGRESS), errors.Is(result, unix.EALREADY), errors.Is(result, unix.EINTR):
			queued := queuedError(int(fd))
			if queued == nil {
				return false
			}
			result = queued
		case errors.Is(result, unix.EISCONN):
			result = nil
		}
		return true
	})
	if err != nil {
		return err // the deadline; result only says that it was in progress
	}
	if result == nil && c.proto == TCP {
		// On an open connection the option would turn passing errors into fatal ones.
		return c.control(func(fd int) error { return receiveErrors(fd, c.to.Addr(), 0) })
	}
	return result
}

// control runs a function on the socket's descriptor.
func (c *Conn) control(f func(fd int) error) error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) { result = f(int(fd)) })
	return errors.Join(err, result)
}

// lateAnswer is how long an answer is waited for to a SYN that was sent again.
const lateAnswer = time.Second

// repeated returns how many SYNs TCP had to send again, and had no answer to; 0 where that can't be told. Each that arrives is answered, the
// second by another SYN+ACK or an ACK, so as many answers as SYNs mean that none was lost, and no answer either: on a machine with much to do
// they may take longer than TCP waits, and a processor that stood still may run TCP's timer before it looks at what has come.
func (c *Conn) repeated() (n int) {
	if c.proto != TCP {
		return 0
	}
	for end := time.Now().Add(lateAnswer); ; time.Sleep(time.Millisecond) {
		_ = c.control(func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil { // a client sends nothing before the greeting but SYNs and ACKs
				answers := int(info.Segs_in) - int(info.Data_segs_in)
				n = min(int(info.Total_retrans), max(0, 1+int(info.Total_retrans)-answers))
			}
			return err
		})
		if n == 0 || time.Now().After(end) {
			return n
		}
	}
}

// receiveErrors sets IP_RECVERR or its IPv6 twin.
func receiveErrors(fd int, like netip.Addr, value int) error {
	if like.Is4() {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, value)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, value)
}

// queuedError takes an ICMP error from the socket's error queue; nil when there is none. See struct sock_extended_err in
// include/uapi/linux/errqueue.h: it begins with the errno.
func queuedError(fd int) error {
	oob := make([]byte, 256)
	_, n, _, _, err := unix.Recvmsg(fd, nil, oob, unix.MSG_ERRQUEUE)
	if err != nil {
		return nil // EAGAIN: the queue is empty
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if t := m.Header.Type; len(m.Data) >= 4 && (t == unix.IP_RECVERR || t == unix.IPV6_RECVERR) {
			return syscall.Errno(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return nil
}

// greeting takes the server's first answer; for a datagram, after sending one.
func (c *Conn) greeting(d Dial) (string, netip.AddrPort, error) {
	if c.proto == UDP {
		payload := d.Payload
		if payload == "" {
			payload = "?"
		}
		if _, err := c.file.Write([]byte(payload)); err != nil {
			return "", netip.AddrPort{}, err
		}
	}
	line, err := c.readLine()
	if err != nil {
		return "", netip.AddrPort{}, err
	}
	return parseAnswer(line)
}

// parseAnswer takes "NAME SOURCE" or "NAME SOURCE CONTENT" apart.
func parseAnswer(line string) (string, netip.AddrPort, error) {
	name, rest, _ := strings.Cut(line, " ")
	source, _, _ := strings.Cut(rest, " ")
	seen, err := netip.ParseAddrPort(source)
	if err != nil {
		return "", netip.AddrPort{}, fmt.Errorf("an answer that no lab server gives: %q", line)
	}
	return name, seen, nil
}

// readLine reads to the end of a line, or one datagram.
func (c *Conn) readLine() (string, error) {
	buf := make([]byte, 2048)
	n := 0
	for n < len(buf) {
		got, err := c.file.Read(buf[n:])
		n += got
		if got > 0 && (c.proto == UDP || buf[n-1] == '\n') {
			break
		}
		if err != nil {
			return "", err
		}
	}
	return strings.TrimSuffix(string(buf[:n]), "\n"), nil
}

// Ask sends a line to the server and takes the answer: over TCP the line itself, over UDP "NAME SOURCE LINE". It tells
// whether an old connection still works. Classify the error with OutcomeOf.
func (c *Conn) Ask(line string, timeout time.Duration) (string, error) {
	if err := c.file.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	text := line
	if c.proto == TCP {
		text += "\n"
	}
	if _, err := c.file.Write([]byte(text)); err != nil {
		return "", err
	}
	return c.readLine()
}

// OutcomeOf tells the Outcome that an error of a Conn stands for.
func OutcomeOf(err error) Outcome { return classify(err) }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) { return c.file.Read(p) }

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) { return c.file.Write(p) }

// Close closes the connection with a reset.
func (c *Conn) Close() error {
	c.lab.untrack(c)
	return c.file.Close()
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.netAddr(c.local()) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.netAddr(c.to) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.file.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.file.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.file.SetWriteDeadline(t) }

func (c *Conn) netAddr(a netip.AddrPort) net.Addr {
	if c.proto == UDP {
		return net.UDPAddrFromAddrPort(a)
	}
	return net.TCPAddrFromAddrPort(a)
}

// local is the socket's own end; the zero AddrPort when it cannot be told.
func (c *Conn) local() netip.AddrPort {
	var out netip.AddrPort
	// A closed file has no local end, which the zero value says.
	_ = c.control(func(fd int) error {
		sa, err := unix.Getsockname(fd)
		if err == nil {
			out = addrPort(sa)
		}
		return err
	})
	return out
}

// Spread asks n times, one after the other, and counts the answers by name. An attempt without an answer counts under its
// Outcome's name in angle brackets, "<refused>".
func (ns *Namespace) Spread(d Dial, n int) map[string]int {
	out := map[string]int{}
	for range n {
		if r := ns.Ask(d); r.Outcome == OK {
			out[r.Name]++
		} else {
			out["<"+r.Outcome.String()+">"]++
		}
	}
	return out
}

// Get asks for a URL with an address for a host, from inside the namespace, and returns the status and the body. A
// timeout of zero is two seconds.
func (ns *Namespace) Get(url string, timeout time.Duration) (int, string, error) {
	d := Dial{Proto: TCP, Timeout: timeout}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return nil, err
			}
			d := d
			d.To = to
			c, err := ns.connect(d, d.timeout())
			if err != nil && c != nil {
				c.file.Close()
			}
			if err != nil {
				return nil, err
			}
			return c, nil
		},
	}
	client := http.Client{Transport: transport, Timeout: d.timeout()}
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", fmt.Errorf("%s: %w", ns.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, "", fmt.Errorf("%s: read %s: %w", ns.name, url, err)
	}
	return resp.StatusCode, string(body), nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
