package netfilter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// Numbers of linux/netfilter/nfnetlink.h and linux/netfilter/nfnetlink_conntrack.h.
const (
	subsystemConntrack = 1 // NFNL_SUBSYS_CTNETLINK

	conntrackGet    = 1 // IPCTNL_MSG_CT_GET
	conntrackDelete = 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	// filterProtoNum is CTA_FILTER_F_CTA_PROTO_NUM of net/netfilter/nf_internals.h: what is compared is the protocol.
	filterProtoNum = 1 << 3
)

// conntrackAttempts is how often a dump is tried that the kernel breaks off or finds inconsistent.
const conntrackAttempts = 5

// A FlowsReport says what CleanFlows did.
type FlowsReport struct {
	// Seen counts the UDP entries that were looked at.
	Seen int
	// Deleted counts the entries that were deleted, not those that were gone already.
	Deleted int
	// Offloaded counts the stale entries that the kernel keeps because a flow table or the hardware handles their packets.
	Offloaded int
	Duration  time.Duration
}

// CleanFlows deletes the conntrack entries of UDP flows of a family that are stale, each by what tells it from all others: a
// flow that began again meanwhile, and has an endpoint that it may have, stays. The entries are those of the calling thread's
// network namespace.
//
// After an error some may be left, and those that were deleted are counted all the same; errors.Is finds ErrNoKernelSupport,
// and fs.ErrPermission without NET_ADMIN.
func CleanFlows(f cluster.Family, stale func(proxy.Flow) bool) (FlowsReport, error) {
	start := time.Now()
	n, err := openNfnetlink(subsystemConntrack)
	var report FlowsReport
	if err == nil {
		defer n.close()
		report, err = conntrack{f, n.execute}.clean(stale)
	}
	report.Duration = time.Since(start)
	if err != nil {
		err = fmt.Errorf("conntrack entries of %s UDP flows: %w", f, err)
	}
	return report, err
}

// A conntrack is the table of one family; execute is nfnetlink's, or a test's.
type conntrack struct {
	family  cluster.Family
	execute func(m message, each func(attrs []byte)) error
}

// clean works on what an interrupted dump showed, too, before it begins the next.
func (c conntrack) clean(stale func(proxy.Flow) bool) (FlowsReport, error) {
	var report FlowsReport
	for attempt := 1; ; attempt++ {
		found, seen, err := c.find(stale)
		report.Seen, report.Offloaded = seen, 0
		for _, e := range found {
			if err := c.delete(e, &report); err != nil {
				return report, err
			}
		}
		switch {
		case err == nil:
			return report, nil
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS):
			return report, fmt.Errorf("read: %w", explain(err, "ctnetlink (CONFIG_NF_CT_NETLINK)"))
		case attempt == conntrackAttempts:
			return report, fmt.Errorf("read, %d attempts: %w", attempt, err)
		}
	}
}

// An entry is what tells one conntrack entry from all others. Its number is made of its place in memory and its first tuple (net/netfilter/nf_conntrack_core.c,
// nf_ct_get_id), and a flow that begins again is likely to get the same memory. So the other tuple is what it is looked up by: where it was translated to.
type entry struct {
	reply, zone, id []byte // the attributes as the kernel gave them; zone and id may be missing
}

// find dumps the UDP entries and keeps nothing but the stale ones.
func (c conntrack) find(stale func(proxy.Flow) bool) (found []entry, seen int, err error) {
	err = c.execute(message{conntrackGet, unix.NLM_F_DUMP, afOf(c.family), onlyUDP()}, func(attrs []byte) {
		e, flow, ok := decodeFlow(attrs)
		if !ok {
			return
		}
		seen++
		if stale(flow) {
			found = append(found, entry{bytes.Clone(e.reply), bytes.Clone(e.zone), bytes.Clone(e.id)})
		}
	})
	return found, seen, err
}

// onlyUDP makes the kernel leave other protocols out of a dump; before Linux 5.8 it takes no notice of that.
func onlyUDP() []byte {
	number := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	proto := nested(nil, ctaTupleProto, attr(nil, ctaProtoNum, []byte{unix.IPPROTO_UDP}))
	filter := attr(nil, ctaFilterOrigFlags, number(filterProtoNum))
	filter = attr(filter, ctaFilterReplyFlags, number(0))
	return nested(nested(nil, ctaTupleOrig, proto), ctaFilter, filter)
}

func (c conntrack) delete(e entry, report *FlowsReport) error {
	attrs := nested(nil, ctaTupleReply, e.reply)
	if e.zone != nil {
		attrs = attr(attrs, ctaZone, e.zone)
	}
	if e.id != nil {
		attrs = attr(attrs, ctaID, e.id)
	}
	err := c.execute(message{conntrackDelete, unix.NLM_F_ACK, afOf(c.family), attrs}, func([]byte) {})
	switch {
	case err == nil:
		report.Deleted++
	case errors.Is(err, unix.ENOENT): // gone already
	case errors.Is(err, unix.EBUSY): // net/netfilter/nf_conntrack_netlink.c, ctnetlink_del_conntrack: IPS_OFFLOAD
		report.Offloaded++
	default:
		return fmt.Errorf("delete: %w", explain(err, "ctnetlink (CONFIG_NF_CT_NETLINK)"))
	}
	return nil
}

// decodeFlow reads an entry. ok is false when it is none of UDP. The parts of the entry are parts of attrs.
func decodeFlow(attrs []byte) (e entry, flow proxy.Flow, ok bool) {
	var orig, reply tuple
	for kind, b := range attributes(attrs) {
		switch kind {
		case ctaTupleOrig:
			orig = decodeTuple(b)
		case ctaTupleReply:
			e.reply, reply = b, decodeTuple(b)
		case ctaZone:
			e.zone = b
		case ctaID:
			e.id = b
		}
	}
	flow = proxy.Flow{Dst: orig.dst, Answers: reply.src, Zoned: e.zone != nil || orig.zoned || reply.zoned}
	return e, flow, orig.protocol == unix.IPPROTO_UDP && flow.Dst.IsValid() && flow.Answers.IsValid()
}

// A tuple is one direction of an entry.
type tuple struct {
	src, dst netip.AddrPort
	protocol uint8
	zoned    bool
}

func decodeTuple(b []byte) (t tuple) {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	for kind, b := range attributes(b) {
		switch kind {
		case ctaTupleIP:
			for kind, b := range attributes(b) {
				switch kind {
				case ctaIPv4Src, ctaIPv6Src:
					src, _ = netip.AddrFromSlice(b)
				case ctaIPv4Dst, ctaIPv6Dst:
					dst, _ = netip.AddrFromSlice(b)
				}
			}
		case ctaTupleProto:
			for kind, b := range attributes(b) {
				switch {
				case kind == ctaProtoNum && len(b) == 1:
					t.protocol = b[0]
				case kind == ctaProtoSrcPort && len(b) == 2:
					srcPort = binary.BigEndian.Uint16(b)
				case kind == ctaProtoDstPort && len(b) == 2:
					dstPort = binary.BigEndian.Uint16(b)
				}
			}
		case ctaTupleZone:
			t.zoned = true
		}
	}
	t.src, t.dst = netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	return t
}
