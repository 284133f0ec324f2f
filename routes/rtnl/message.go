package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
)

// Values of linux/rtnetlink.h, linux/icmpv6.h and linux/netconf.h that x/sys/unix lacks.
const (
	extMaskSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	prefMedium       = 0      // ICMPV6_ROUTER_PREF_MEDIUM
	attrTypeMask     = 0x3fff // NLA_TYPE_MASK of linux/netlink.h: the rest are flags

	netconfIfindex    = 1  // NETCONFA_IFINDEX
	netconfForwarding = 2  // NETCONFA_FORWARDING
	netconfAll        = -1 // NETCONFA_IFINDEX_ALL
)

// errShort is for a message of the kernel that is shorter than its fixed header.
var errShort = errors.New("message too short")

// afOf returns the kernel's number of a family.
func afOf(f cluster.Family) uint8 {
	if f == cluster.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// encode writes one of our routes. Everything by which the kernel could mistake another's route for ours is set: table,
// protocol, priority, gateway and link.
func encode(req *nl.NetlinkRequest, header *nl.RtMsg, r routes.Route) {
	header.Family = afOf(r.Family())
	header.Dst_len = uint8(r.Dst.Bits())
	header.Protocol = r.Protocol()
	req.AddData(header)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()))
	if len(r.Hops) > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_MULTIPATH, encodeHops(r.Hops)))
	}
	if r.Gateway.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Gateway.AsSlice()))
	}
	if r.LinkIndex != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(r.LinkIndex))))
	}
	if r.Metric != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(r.Metric)))
	}
}

// encodeHops writes the value of RTA_MULTIPATH: for each hop a struct rtnexthop of linux/rtnetlink.h and its attributes. The weight
// is one more than what it says there.
func encodeHops(hops []routes.Hop) (value []byte) {
	for _, h := range hops {
		gateway := nl.NewRtAttr(unix.RTA_GATEWAY, h.Gateway.AsSlice()).Serialize()
		value = binary.NativeEndian.AppendUint16(value, uint16(unix.SizeofRtNexthop+len(gateway)))
		value = append(value, 0, 0)
		value = binary.NativeEndian.AppendUint32(value, uint32(h.LinkIndex))
		value = append(value, gateway...)
	}
	return value
}

// nextHopMarks are the flags of a next hop by which the kernel says how it is doing.
const nextHopMarks = unix.RTNH_F_DEAD | unix.RTNH_F_LINKDOWN | unix.RTNH_F_OFFLOAD | unix.RTNH_F_TRAP

// decodeHops reads the value of RTA_MULTIPATH, in the order of CompareHops; ok is false when there is more to it than routes.Hop
// can say.
func decodeHops(value []byte) (hops []routes.Hop, ok bool) {
	for len(value) >= unix.SizeofRtNexthop {
		length := int(binary.NativeEndian.Uint16(value))
		if length < unix.SizeofRtNexthop || length > len(value) || value[2]&^nextHopMarks != 0 || value[3] != 0 {
			return nil, false
		}
		attrs, err := nl.ParseRouteAttr(value[unix.SizeofRtNexthop:length])
		if err != nil || len(attrs) != 1 || attrs[0].Attr.Type&attrTypeMask != unix.RTA_GATEWAY {
			return nil, false
		}
		h := routes.Hop{LinkIndex: int(binary.NativeEndian.Uint32(value[4:]))}
		h.Gateway, _ = netip.AddrFromSlice(attrs[0].Value)
		hops = append(hops, h)
		value = value[min(len(value), (length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	slices.SortFunc(hops, routes.CompareHops)
	return hops, len(hops) > 1 && len(value) == 0
}

// A kernelRoute is a route of any owner as a dump or a notification shows it.
type kernelRoute struct {
	routes.Route
	table    uint32
	protocol uint8
	tos      uint8
	// cloned marks an entry of the route cache.
	cloned bool
	// odd is true when there is more to the route than routes.Route can say: next hops of different weights, a source
	// address, a type other than unicast, path metrics, and so on.
	odd bool
	// words tells the kind for people: empty for unicast, else "blackhole" and so on.
	words string
}

// decode reads the payload of RTM_NEWROUTE or RTM_DELROUTE.
func decode(payload []byte) (kernelRoute, error) {
	if len(payload) < unix.SizeofRtMsg {
		return kernelRoute{}, fmt.Errorf("route: %w", errShort)
	}
	header := nl.DeserializeRtMsg(payload)
	attrs, err := nl.ParseRouteAttr(payload[unix.SizeofRtMsg:])
	if err != nil {
		return kernelRoute{}, fmt.Errorf("route: attributes: %w", err)
	}
	r := kernelRoute{
		table: uint32(header.Table), protocol: header.Protocol, tos: header.Tos,
		cloned: header.Flags&unix.RTM_F_CLONED != 0,
		odd: header.Type != unix.RTN_UNICAST || header.Scope != unix.RT_SCOPE_UNIVERSE ||
			header.Src_len != 0 || header.Flags&unix.RTNH_F_ONLINK != 0,
		words: typeWords[header.Type],
	}
	dst := unspecified(header.Family)
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_DST {
			dst, _ = netip.AddrFromSlice(a.Value)
			continue
		}
		r.attribute(a.Attr.Type&attrTypeMask, a.Value)
	}
	r.Dst = netip.PrefixFrom(dst, int(header.Dst_len))
	r.Learned = r.protocol == routes.ProtocolLearned
	return r, nil
}

// attribute takes one attribute over.
func (r *kernelRoute) attribute(kind uint16, value []byte) {
	switch kind {
	case unix.RTA_GATEWAY:
		r.Gateway, _ = netip.AddrFromSlice(value)
	case unix.RTA_OIF:
		r.LinkIndex = int(number(value))
	case unix.RTA_PRIORITY:
		r.Metric = number(value)
	case unix.RTA_TABLE:
		r.table = number(value)
	case unix.RTA_MULTIPATH:
		hops, ok := decodeHops(value)
		r.Hops, r.odd = hops, r.odd || !ok
	case unix.RTA_CACHEINFO: // age and counters of a cached route
	case unix.RTA_PREF:
		r.odd = r.odd || len(value) != 1 || value[0] != prefMedium
	default: // RTA_PREFSRC, RTA_METRICS, RTA_NH_ID, RTA_VIA, RTA_ENCAP, …
		r.odd = true
	}
}

// ours returns a route of ours as routes.Diff compares it: one that is odd has no gateway, so it equals none that is
// wanted, and a request to delete it is not bound to one next hop.
func (r kernelRoute) ours() routes.Route {
	if r.odd {
		return routes.Route{Dst: r.Dst, Metric: r.Metric, Learned: r.Learned}
	}
	return r.Route
}

// String returns the route for people, close to what `ip route` prints for it.
func (r kernelRoute) String() string {
	s := r.Dst.String()
	if r.words != "" {
		s = r.words + " " + s
	}
	if r.Gateway.IsValid() || len(r.Hops) > 0 {
		s += " via " + r.Via()
	}
	return fmt.Sprintf("%s proto %d metric %d", s, r.protocol, r.Metric)
}

var typeWords = map[uint8]string{
	unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_ANYCAST: "anycast", unix.RTN_MULTICAST: "multicast",
	unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw",
}

func unspecified(family uint8) netip.Addr {
	if family == unix.AF_INET6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// number reads a 32-bit attribute in the machine's byte order; 0 when it has another size.
func number(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}
