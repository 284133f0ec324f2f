package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

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

// The kernel tells that an IPv4 route is deleted before it takes the route out of the table (fib_table_delete of net/ipv4/fib_trie.c), and on a
// kernel whose dumps take no RTNL lock (seen on 6.18) nobody waits for whoever deletes. So a Sync may find there what it has just been told is gone: rarely, and once more when the
// one who deletes has to wait for a processor. The same is told again after these times, of which the last is for a machine that has much to do.
var toldAgain = [...]time.Duration{100 * time.Millisecond, time.Second}

// An echo tells of deleted routes again. Its calls and others come one at a time.
type echo struct {
	mu      sync.Mutex // guards what follows, and is held in calls
	changed func(Event)
	ended   bool
	timers  [len(toldAgain)]*time.Timer
}

// tell calls changed, now, and if there are deleted routes, again later.
func (o *echo) tell(e Event, deleted bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	o.changed(e)
	for i, after := range toldAgain {
		switch {
		case !deleted:
		case o.timers[i] == nil:
			o.timers[i] = time.AfterFunc(after, func() { o.tell(RoutesChanged, false) })
		default:
			o.timers[i].Reset(after)
		}
	}
}

// end ends the calls.
func (o *echo) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	for _, t := range o.timers {
		if t != nil {
			t.Stop()
		}
	}
}

// Watch calls changed whenever something changed that may call for a Sync, until the context ends; it then returns nil.
// The first call, with all Events, comes as soon as the watch stands: what happened after that will be told. Calls come
// one at a time, for a burst of changes often many, so callers coalesce. Our own writes are not told. A route that somebody deleted is told more
// than once: at first it may still be there to be read.
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
	told := &echo{changed: changed}
	defer told.end()
	told.tell(everything, false)
	for {
		messages, from, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			told.tell(everything, true) // the socket itself is fine, and its next message is a new one
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("watch routes: receive: %w", err)
		case from.Pid != nl.PidKernel:
			continue
		}
		if e, deleted := c.classify(messages); e != 0 {
			told.tell(e, deleted)
		}
	}
}

// classify tells what a batch of messages means for us, and whether a route that concerns us was deleted.
func (c *Conn) classify(messages []syscall.NetlinkMessage) (e Event, deleted bool) {
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
				deleted = deleted || m.Header.Type == unix.RTM_DELROUTE
			}
		case unix.RTM_NEWNETCONF:
			if stopsForwarding(m.Data) {
				e |= RoutesChanged
			}
		}
	}
	return e, deleted
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
