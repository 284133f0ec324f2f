package speaker

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A connection is a duplicate of gobgp's file of a TCP connection to a peer. gobgp gives no access to its own, and tells only that a connection
// was lost, not by whom it was ended. The connection is closed when both files are.
type connection int

// connectionsTo returns duplicates of this process's connections to BGP peers at an address. They are to be closed, also upon an error.
func connectionsTo(peer netip.Addr) (list []connection, err error) {
	const files = "/proc/self/fd"
	entries, err := os.ReadDir(files)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return list, fmt.Errorf("%s: %w", files, err)
		}
		if slices.Contains(list, connection(fd)) {
			continue // the folder itself had this number
		}
		// A duplicate: the number may be another file's a moment later.
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue // it was closed meanwhile
		}
		if remote(own) == peer {
			list = append(list, connection(own))
			continue
		}
		if err := unix.Close(own); err != nil {
			return list, fmt.Errorf("close a duplicate of file %d: %w", fd, err)
		}
	}
	return list, nil
}

// remote returns who is at the other end of a TCP connection; the zero Addr for any other file.
func remote(fd int) netip.Addr {
	if protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || protocol != unix.IPPROTO_TCP {
		return netip.Addr{}
	}
	name, err := unix.Getpeername(fd)
	if err != nil {
		return netip.Addr{}
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(name.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(name.Addr).Unmap()
	}
	return netip.Addr{}
}

// endedByPeer tells that the other end has closed the connection, and this one had not done so before (CLOSE-WAIT, RFC 9293). A kernel does
// that for a process that has ended. After a reset there is no such state, nor while a peer is silent.
func (c connection) endedByPeer() bool {
	info, err := unix.GetsockoptTCPInfo(int(c), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == unix.BPF_TCP_CLOSE_WAIT
}

// hangUp closes this process's connections to BGP peers at an address, without gobgp's knowledge: the routers at their other ends then keep the
// node's routes, if they have agreed to graceful restart. All that gobgp itself offers to end a session is a NOTIFICATION,
// after which they would not (RFC 4724, section 4).
func hangUp(peer netip.Addr) error {
	list, err := connectionsTo(peer)
	errs := []error{err}
	for _, c := range list {
		// Of two duplicates of one connection, the second may find it ended.
		if err := unix.Shutdown(int(c), unix.SHUT_RDWR); !errors.Is(err, unix.ENOTCONN) {
			errs = append(errs, err)
		}
	}
	if len(list) == 0 {
		errs = append(errs, fmt.Errorf("there is no connection to %s", peer))
	}
	return errors.Join(append(errs, letGo(list))...)
}

// hold takes hold of the connections of a session that has come up, for when it is lost. That it can't is as if the peer had not ended it.
func hold(peer netip.Addr) []connection {
	list, err := connectionsTo(peer)
	if err != nil {
		_ = letGo(list)
		return nil
	}
	return list
}

// letGo closes duplicates.
func letGo(list []connection) error {
	var errs []error
	for _, c := range list {
		errs = append(errs, unix.Close(int(c)))
	}
	return errors.Join(errs...)
}

// endedByPeer tells that the other end has closed one of the connections.
func endedByPeer(list []connection) bool { return slices.ContainsFunc(list, connection.endedByPeer) }
