package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/routes"
)

// dumpAttempts is how often an interrupted dump is read again before it is an error. A dump of the main table takes
// well under 100 ms, so something that changes it ten times in a row while it is read is a storm that is better met
// by the caller's pacing.
const dumpAttempts = 10

// socketTimeout bounds a single answer of the kernel, which waits at most for the rtnl lock.
var socketTimeout = unix.Timeval{Sec: 30}

// A Conn is a connection to the kernel's routes, in the network namespace of the thread that opened it. Of the routes, those of one
// protocol number are its own. Its methods may be called from any goroutine.
type Conn struct {
	// protocol is what our routes carry.
	protocol uint8
	socket   *nl.SocketHandle
	// port is the socket's address (nlmsg_pid), by which [Conn.Watch] knows our own writes.
	port uint32
	// execute sends a request and passes the payload of each answer on; tests stand in between.
	execute func(req *nl.NetlinkRequest, each func(payload []byte)) error
	// executeAll sends requests at once, and returns the sequence numbers of those that the kernel refuses; tests stand in
	// between, too.
	executeAll func([]*nl.NetlinkRequest) (refused map[uint32]bool, err error)
	// watched are the destinations of the last Sync: another's route to one of these concerns us.
	watched atomic.Pointer[watched]
}

// Open connects to the kernel, for the routes to pods ([routes.Protocol]). It needs no privilege; [Conn.Sync] needs
// CAP_NET_ADMIN in the user namespace that owns the network namespace.
func Open() (*Conn, error) { return open(routes.Protocol) }

// OpenLearned is Open for the routes that BGP peers announced ([routes.ProtocolLearned]).
func OpenLearned() (*Conn, error) { return open(routes.ProtocolLearned) }

func open(protocol uint8) (*Conn, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE) // to no group: a plain socket
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	c := &Conn{protocol: protocol, socket: &nl.SocketHandle{Socket: s}}
	c.execute, c.executeAll = c.send, c.sendAll
	if err := c.configure(s); err != nil {
		s.Close()
		return nil, fmt.Errorf("set up rtnetlink socket: %w", err)
	}
	return c, nil
}

func (c *Conn) configure(s *nl.NetlinkSocket) error {
	var err error
	if c.port, err = s.GetPid(); err != nil {
		return err
	}
	// With strict checking (Linux 4.20) the kernel itself leaves other tables out of a dump; without, as it was before,
	// it sends all of them and we leave them out.
	err = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return err
	}
	return errors.Join(
		s.SetExtAck(true), // errors then carry the kernel's own words
		s.SetSendTimeout(&socketTimeout),
		s.SetReceiveTimeout(&socketTimeout))
}

// Close closes the connection. A Watch that is running goes on until its context ends.
func (c *Conn) Close() { c.socket.Close() }

// send is the real execute.
func (c *Conn) send(req *nl.NetlinkRequest, each func(payload []byte)) error {
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: c.socket}
	return req.ExecuteIter(unix.NETLINK_ROUTE, 0, func(payload []byte) bool {
		each(payload)
		return true
	})
}

// dump reads a complete list. Every attempt calls start first and then each for every object, so what an interrupted
// attempt collected can be forgotten.
func (c *Conn) dump(ctx context.Context, kind uint16, header nl.NetlinkRequestData, start func(), each func(payload []byte) error) error {
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		req := nl.NewNetlinkRequest(int(kind), unix.NLM_F_DUMP)
		req.AddData(header)
		if kind == unix.RTM_GETLINK {
			req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extMaskSkipStats)))
		}
		start()
		var bad error
		err := c.execute(req, func(payload []byte) {
			if bad == nil {
				bad = each(payload)
			}
		})
		switch {
		case errors.Is(err, nl.ErrDumpInterrupted):
			continue
		case err != nil:
			return err
		}
		return bad
	}
	return fmt.Errorf("%d attempts: %w", dumpAttempts, nl.ErrDumpInterrupted)
}

// watched is the set of destinations that the last Sync wanted.
type watched struct {
	table *routes.Table
	dsts  map[netip.Prefix]struct{}
}
