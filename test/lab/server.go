package lab

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A Proto is a transport protocol, by its IANA number.
type Proto uint8

// The protocols of servers and clients.
const (
	TCP Proto = unix.IPPROTO_TCP
	UDP Proto = unix.IPPROTO_UDP
)

// String returns "tcp" or "udp".
func (p Proto) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// A Server says what to serve. A TCP server greets every connection with a line "NAME SOURCE\n", where SOURCE is the
// address and port that it sees, and then sends back every line that it gets until the client closes. A UDP server
// answers every datagram with "NAME SOURCE CONTENT", from the address that the datagram was sent to.
type Server struct {
	Name  string
	Proto Proto
	// Addr is the address to serve on; all addresses of both families when it is the zero Addr.
	Addr netip.Addr
	Port uint16
}

// A Listener is a running Server.
type Listener struct {
	lab    *Lab
	closer func() error
	served atomic.Int64

	mu     sync.Mutex // guards the fields below
	conns  map[net.Conn]struct{}
	closed bool
}

// Serve starts a server in the namespace; it accepts when Serve returns. It runs until it or the Lab is closed. A port in
// use is syscall.EADDRINUSE.
func (ns *Namespace) Serve(s Server) (*Listener, error) {
	l := &Listener{lab: ns.lab, conns: map[net.Conn]struct{}{}}
	if err := l.start(ns, s); err != nil {
		return nil, fmt.Errorf("%s: serve %s as %s on %s port %d: %w", ns.name, s.Proto, s.Name, s.Addr, s.Port, err)
	}
	if err := ns.lab.track(l); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Listener) start(ns *Namespace, s Server) error {
	file, err := ns.bound(s)
	if err != nil {
		return err
	}
	defer file.Close() // the listener has a duplicate
	if s.Proto == UDP {
		pc, err := net.FilePacketConn(file)
		if err != nil {
			return err
		}
		l.closer = pc.Close
		go l.answer(pc.(*net.UDPConn), s)
		return nil
	}
	ln, err := net.FileListener(file)
	if err != nil {
		return err
	}
	l.closer = ln.Close
	go l.accept(ln, s.Name)
	return nil
}

// bound makes the server's socket, bound and listening. Package net is not asked to do that: its first use would
// look for IPv6 in whatever namespace the thread is in and remember the answer for the whole process.
func (ns *Namespace) bound(s Server) (*os.File, error) {
	wildcard := !s.Addr.IsValid()
	if wildcard {
		s.Addr = netip.IPv6Unspecified()
	}
	fd, err := ns.socket(s.Proto, s.Addr)
	if err != nil {
		return nil, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if wildcard {
		err = errors.Join(err,
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(s.Addr, s.Port)))
	}
	if err == nil && s.Proto == TCP {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), s.Proto.String()+" server"), nil
}

// Served returns how many connections or datagrams the server has had.
func (l *Listener) Served() int { return int(l.served.Load()) }

// Close ends the server and all its connections.
func (l *Listener) Close() error {
	l.lab.untrack(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	for c := range l.conns {
		c.Close()
	}
	return l.closer()
}

func (l *Listener) accept(ln net.Listener, name string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return // closed
		}
		l.served.Add(1)
		if l.hold(c) {
			go l.echo(c, name)
		}
	}
}

// hold remembers a connection for Close; when that has been, it closes the connection instead.
func (l *Listener) hold(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *Listener) echo(c net.Conn, name string) {
	defer func() {
		c.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, c)
	}()
	seen := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	if _, err := fmt.Fprintf(c, "%s %s\n", name, unmap(seen)); err != nil {
		return
	}
	r := bufio.NewReaderSize(c, 512)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		if _, err := c.Write(line); err != nil {
			return
		}
	}
}

func (l *Listener) answer(c *net.UDPConn, s Server) {
	buf, oob := make([]byte, 2048), make([]byte, 128)
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that an answer of ours caused
		}
		l.served.Add(1)
		out := fmt.Appendf(nil, "%s %s %s", s.Name, unmap(from), buf[:n])
		// An answer that cannot be sent is for the client to notice.
		_, _, _ = c.WriteMsgUDPAddrPort(out, sourceControl(oob[:oobn]), from)
	}
}

// sourceControl turns the control message that says where a datagram was sent to into the one that makes the answer come
// from there. There is none on a socket that is bound to one address.
func sourceControl(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16 {
			info := &unix.Inet6Pktinfo{} // interface 0: the route decides
			copy(info.Addr[:], m.Data)
			return unix.PktInfo6(info)
		}
	}
	return nil
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
