package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
)

// ErrNoKernelSupport is found by errors.Is when the kernel lacks a subsystem of nfnetlink. The error's text names it.
var ErrNoKernelSupport = errors.New("not supported by this kernel")

// nfnetlinkTimeout bounds a single answer of the kernel.
var nfnetlinkTimeout = unix.Timeval{Sec: 30}

// An nfnetlink speaks with one subsystem of netfilter (linux/netfilter/nfnetlink.h), in the network namespace of the thread
// that opened it.
type nfnetlink struct {
	subsystem uint8
	socket    *nl.SocketHandle
}

func openNfnetlink(subsystem uint8) (*nfnetlink, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER) // to no group: a plain socket
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("nfnetlink (CONFIG_NETFILTER_NETLINK): %w", ErrNoKernelSupport)
	}
	if err != nil {
		return nil, fmt.Errorf("open nfnetlink socket: %w", err)
	}
	if err := errors.Join(s.SetSendTimeout(&nfnetlinkTimeout), s.SetReceiveTimeout(&nfnetlinkTimeout)); err != nil {
		s.Close()
		return nil, fmt.Errorf("set up nfnetlink socket: %w", err)
	}
	return &nfnetlink{subsystem, &nl.SocketHandle{Socket: s}}, nil
}

func (n *nfnetlink) close() { n.socket.Close() }

// A message is a request to a subsystem.
type message struct {
	kind   uint8  // what the subsystem should do
	flags  int    // NLM_F_*
	family uint8  // AF_*
	attrs  []byte // attributes, see attr
}

// execute sends a message and passes the attributes of each answer on. They must not be kept. Within each, nothing may be
// executed.
func (n *nfnetlink) execute(m message, each func(attrs []byte)) error {
	req := nl.NewNetlinkRequest(int(n.subsystem)<<8|int(m.kind), m.flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: m.family, Version: nl.NFNETLINK_V0})
	req.AddRawData(m.attrs)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: n.socket}
	return req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(payload []byte) bool {
		if len(payload) >= nl.SizeofNfgenmsg {
			each(payload[nl.SizeofNfgenmsg:])
		}
		return true
	})
}

// attrTypeMask is NLA_TYPE_MASK of linux/netlink.h: the rest of a type are flags.
const attrTypeMask = 0x3fff

// attr appends an attribute whose content are the given pieces, one after another.
func attr(to []byte, kind uint16, pieces ...[]byte) []byte {
	start := len(to)
	to = append(to, 0, 0, 0, 0)
	for _, p := range pieces {
		to = append(to, p...)
	}
	binary.NativeEndian.PutUint16(to[start:], uint16(len(to)-start))
	binary.NativeEndian.PutUint16(to[start+2:], kind)
	return append(to, make([]byte, -len(to)&3)...)
}

// nested appends an attribute that consists of attributes.
func nested(to []byte, kind uint16, attrs ...[]byte) []byte {
	return attr(to, kind|unix.NLA_F_NESTED, attrs...)
}

// attributes walks the attributes of a message. It ends early at one that is cut off.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

// afOf returns the kernel's number of a family.
func afOf(f cluster.Family) uint8 {
	if f == cluster.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// explain puts a subsystem's refusal into words. nfnetlink answers EINVAL when there is no such subsystem, after it has asked
// for the kernel module (net/netfilter/nfnetlink.c, nfnetlink_rcv_msg).
func explain(err error, subsystem string) error {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w (%w)", subsystem, ErrNoKernelSupport, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; the capability NET_ADMIN is needed", err)
	}
	return err
}
