package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/test/lab"
)

// ends are both ends of the connections that are measured: a client in one namespace, and listening sockets in others. One thread
// opens a connection, accepts it and closes it: a packet crosses all links of a lab inside of the sender's system call, so
// nobody has to be woken for it, and how the machine schedules does not matter.
type ends struct {
	client    *lab.Namespace
	listeners []int
}

// listen adds a listening socket at all addresses of a namespace.
func (e *ends) listen(ns *lab.Namespace, port int) error {
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("make a socket: %w", err)
		}
		e.listeners = append(e.listeners, fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port}); err != nil {
			return fmt.Errorf("serve port %d: %w", port, err)
		}
		return unix.Listen(fd, 4096)
	})
}

func (e *ends) close() {
	for _, fd := range e.listeners {
		_ = unix.Close(fd) // nothing was written
	}
	e.listeners = nil
}

// errNoAnswer is the end of a connection attempt that got none, or a refusal.
var errNoAnswer = errors.New("no answer")

// reach opens a connection and returns the address of the server that it got to, or errNoAnswer after a time. It must run on the
// client's thread.
func (e *ends) reach(to netip.AddrPort, patience time.Duration) (netip.Addr, error) {
	fd, err := clientSocket(unix.SOCK_NONBLOCK)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return netip.Addr{}, errNoAnswer
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}, err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Microsecond) {
		server, peer, err := e.accept()
		if err == nil {
			reached, err := localAddr(server)
			_ = unix.Close(server)
			if err != nil {
				return netip.Addr{}, err
			}
			if peer.Port() == uint16(own.(*unix.SockaddrInet4).Port) { // else it is from an attempt that was given up
				return reached, nil
			}
			continue
		}
		if !errors.Is(err, unix.EAGAIN) {
			return netip.Addr{}, err
		}
		if time.Now().After(deadline) {
			return netip.Addr{}, errNoAnswer
		}
	}
}

// clientSocket makes a socket that closes with a reset, so that nothing of the connection is left.
func clientSocket(flags int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// accept takes a connection from one of the servers; EAGAIN when there is none.
func (e *ends) accept() (int, netip.AddrPort, error) {
	err := error(unix.EAGAIN)
	for _, l := range e.listeners {
		var fd int
		var peer unix.Sockaddr
		if fd, peer, err = unix.Accept4(l, unix.SOCK_CLOEXEC); err == nil {
			in := peer.(*unix.SockaddrInet4)
			return fd, netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)), nil
		}
	}
	return -1, netip.AddrPort{}, err
}

func localAddr(fd int) (netip.Addr, error) {
	a, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.AddrFrom4(a.(*unix.SockaddrInet4).Addr), nil
}
