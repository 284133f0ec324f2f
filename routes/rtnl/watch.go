package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/routes"
)

// An Event is a set of things that may have changed.
type Event uint8

const (
	// RoutesChanged: somebody else changed a route of ours, or one to a destination of ours; or turned forwarding off, which
	// [EnsureForwarding] turns on again.
	RoutesChanged Event = 1 << iota
	// HostChanged: a link or an address changed. It always comes with RoutesChanged, because the kernel drops the IPv4
	// routes of a link that goes down, or that loses its last address, without a word about them. So after it a Sync is
	// due even when [Conn.Host] returns what it did before.
	HostChanged
	// Overrun: messages were lost (ENOBUFS), or not seen because the watch was not running yet. Anything may have
	// changed; the other two come with it.
	Overrun

	everything = RoutesChanged | HostChanged | Overrun
)

// String names the things, for the log.
func (e Event) String() string {
	var names []string
	for _, n := range [...]struct {
		bit  Event
		name string
	}{{RoutesChanged, "routes"}, {HostChanged, "host"}, {Overrun, "overrun"}} {
		if e&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, "+")
}

// watchBuffer is the size of the receive buffer in bytes (the kernel doubles it). A notification of a route takes about
// 1 KiB of it, so this holds what a flush of several thousand routes sends while we are busy elsewhere.
const watchBuffer = 4 << 20

// Watch calls changed whenever something changed that may call for a Sync, until the context ends; it then returns nil.
// The first call, with all Events, comes as soon as the watch stands: what happened after that will be told. Calls come
// one at a time, for a burst of changes often many, so callers coalesce. Our own writes are not told.
//
// When the kernel had to drop messages, that is an Overrun event and the watch goes on. Any other failure of the socket
// is returned; call Watch again, whose first event then makes up for what was missed.
//
// The watch is on the network namespace of the calling thread.
func (c *Conn) Watch(ctx context.Context, changed func(Event)) error {
	return c.watchWith(ctx, watchBuffer, changed)
}

func (c *Conn) watchWith(ctx context.Context, buffer int, changed func(Event)) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return fmt.Errorf("watch routes: subscribe: %w", err)
	}
	// Beyond net.core.rmem_max the size needs CAP_NET_ADMIN; what the maximum allows does as well, with more overruns.
	if socket.SetReceiveBufferSize(buffer, true) != nil {
		if err := socket.SetReceiveBufferSize(buffer, false); err != nil {
			socket.Close()
			return fmt.Errorf("watch routes: size of receive buffer: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, socket.Close)
	defer func() {
		if stop() { // not run, and it never will be
			socket.Close()
		}
	}()
	changed(everything)
	for {
		messages, from, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed(everything) // the socket itself is fine, and its next message is a new one
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("watch routes: receive: %w", err)
		case from.Pid != nl.PidKernel:
			continue
		}
		if e := c.classify(messages); e != 0 {
			changed(e)
		}
	}
}

// classify tells what a batch of messages means for us.
func (c *Conn) classify(messages []syscall.NetlinkMessage) Event {
	var e Event
	for i := range messages {
		m := &messages[i]
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			// Bridges tell of their ports in messages of their own family; the links are the same.
			if len(m.Data) > 0 && m.Data[0] == unix.AF_UNSPEC {
				e |= HostChanged | RoutesChanged
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			e |= HostChanged | RoutesChanged
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if m.Header.Pid != c.port && c.concerns(m.Data) {
				e |= RoutesChanged
			}
		case unix.RTM_NEWNETCONF:
			if stopsForwarding(m.Data) {
				e |= RoutesChanged
			}
		}
	}
	return e
}

// stopsForwarding reports whether a changed setting, the payload of RTM_NEWNETCONF, is that the namespace as a whole
// forwards no more. Forwarding that is turned on is nothing to repair: we do so ourselves.
func stopsForwarding(payload []byte) bool {
	const header = 4 // struct netconfmsg of linux/netconf.h, one octet, aligned
	if len(payload) < header {
		return true // better one Sync too many
	}
	attrs, err := nl.ParseRouteAttr(payload[header:])
	if err != nil {
		return true
	}
	all, off := false, false
	for _, a := range attrs {
		if len(a.Value) != 4 {
			continue
		}
		value := int32(binary.NativeEndian.Uint32(a.Value))
		switch a.Attr.Type {
		case netconfIfindex:
			all = value == netconfAll
		case netconfForwarding:
			off = value == 0
		}
	}
	return all && off
}

// concerns reports whether a changed route is ours, or goes where one of ours goes.
func (c *Conn) concerns(payload []byte) bool {
	r, err := decode(payload)
	if err != nil {
		return true // better one Sync too many
	}
	if r.table != unix.RT_TABLE_MAIN || r.cloned {
		return false
	}
	if r.protocol == c.protocol {
		return true
	}
	w := c.watched.Load()
	if w == nil {
		return false
	}
	_, ok := w.dsts[r.Dst]
	return ok
}

// watch makes the destinations of a table known to a running Watch.
func (c *Conn) watch(t *routes.Table) {
	if w := c.watched.Load(); w != nil && w.table == t {
		return
	}
	w := &watched{table: t, dsts: make(map[netip.Prefix]struct{}, len(t.Routes))}
	for _, r := range t.Routes {
		w.dsts[r.Dst] = struct{}{}
	}
	c.watched.Store(w)
}
