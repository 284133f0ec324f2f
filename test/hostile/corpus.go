package hostile

import "bytes"

// A Stage is where in a session a Case has its bytes.
type Stage uint8

// The stages.
const (
	// Established: as a message of its own in a session that is up.
	Established Stage = iota
	// AsOpen: as the first message.
	AsOpen
	// Capabilities: as the capabilities of an otherwise right OPEN.
	Capabilities
	// AsKeepalive: in place of the KEEPALIVE that confirms the OPEN.
	AsKeepalive
)

// A Case is something that a peer may send.
type Case struct {
	// Name says what is wrong with it, Report where something like it was reported.
	Name, Report string
	Stage        Stage
	Bytes        []byte
	// Fatal tells that gobgp v3.37 does not survive it: it panics, in a goroutine of its own.
	Fatal bool
}

// attribute is a path attribute.
func attribute(flags, code byte, value ...byte) []byte {
	if flags&0x10 != 0 { // extended length
		return append([]byte{flags, code, byte(len(value) >> 8), byte(len(value))}, value...)
	}
	return append([]byte{flags, code, byte(len(value))}, value...)
}

// The mandatory attributes of a route from AS 64500. The next hop is one that peers on the loopback interface may name.
var (
	origin  = attribute(0x40, 1, 0)
	asPath  = attribute(0x40, 2, 2, 1, 0, 0, 0xfb, 0xf4)
	nextHop = attribute(0x40, 3, 127, 0, 0, 1)
	nlri    = []byte{24, 198, 18, 1}
)

// update is an UPDATE with attributes, for 198.18.1.0/24.
func update(attributes ...[]byte) []byte {
	all := join(attributes...)
	return message(typeUpdate, join([]byte{0, 0, byte(len(all) >> 8), byte(len(all))}, all, nlri))
}

// with is a right UPDATE with one attribute more.
func with(extra []byte) []byte { return update(origin, asPath, nextHop, extra) }

// reach is an MP_REACH_NLRI for IPv6 unicast, or another family.
func reach(afi, safi byte, rest ...byte) []byte {
	return attribute(0x80, 14, append([]byte{0, afi, safi}, rest...)...)
}

func repeat(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// header is a message of which the header says something else.
func header(length uint16, kind byte, marker byte) []byte {
	return append(repeat(marker, 16), byte(length>>8), byte(length), kind)
}

// Corpus returns the cases.
func Corpus() []Case {
	const (
		unknown  = "gobgp#3325"
		tooShort = "CVE-2026-30405, gobgp#3305"
		as4      = "CVE-2026-41643, gobgp#3308"
		encap    = "CVE-2023-38802, CVE-2024-44070, VU#347067"
		seven    = "RFC 7606"
	)
	established := []Case{
		{Name: "a message of an unknown type", Report: unknown, Bytes: message(0xff, nil), Fatal: true},
		{Name: "an UPDATE of one octet", Report: "RFC 4271, section 6.3", Bytes: message(typeUpdate, []byte{0})},
		{Name: "a withdrawn route longer than its section", Report: "CVE-2026-37462", Bytes: message(typeUpdate, []byte{0, 2, 32, 10, 0, 0, 1, 0, 0})},
		{Name: "an attribute longer than its section", Report: "CVE-2026-37462", Bytes: message(typeUpdate, append([]byte{0, 0, 0, 3}, origin...))},
		{Name: "attributes that claim more than the message has", Report: "CVE-2023-38283", Bytes: message(typeUpdate, append([]byte{0, 0, 0xff, 0xff}, origin...))},
		{Name: "a NEXT_HOP of two octets", Report: tooShort, Bytes: update(origin, asPath, attribute(0x40, 3, 1, 2))},
		{Name: "a NEXT_HOP of no octets", Report: tooShort, Bytes: update(origin, asPath, attribute(0x40, 3))},
		{Name: "a NEXT_HOP of 0.0.0.0", Report: seven, Bytes: update(origin, asPath, attribute(0x40, 3, 0, 0, 0, 0))},
		{Name: "an unknown well-known attribute", Report: "CVE-2026-41642", Bytes: with(attribute(0x40, 99, 1))},
		{Name: "an ORIGIN that is not transitive", Report: "CVE-2026-41642, gobgp#3392", Bytes: update(attribute(0x00, 1, 0), asPath, nextHop)},
		{Name: "an ORIGIN of 9", Report: seven, Bytes: update(attribute(0x40, 1, 9), asPath, nextHop)},
		{Name: "an ORIGIN of two octets", Report: "CVE-2026-42285", Bytes: update(attribute(0x40, 1, 0, 0), asPath, nextHop)},
		{Name: "two ORIGINs", Report: seven, Bytes: with(origin)},
		{Name: "AS4_PATH before AS_PATH", Report: as4, Bytes: update(attribute(0xc0, 17, 2, 1, 0, 0, 0xfb, 0xf4), origin, nextHop, asPath), Fatal: true},
		{Name: "two AS4_PATHs", Report: as4, Bytes: update(origin, asPath, nextHop, attribute(0xc0, 17, 2, 1, 0, 0, 0xfb, 0xf4), attribute(0xc0, 17, 2, 1, 0, 0, 0xfb, 0xf4))},
		{Name: "an empty AS4_PATH", Report: as4, Bytes: with(attribute(0xc0, 17))},
		{Name: "an AS4_PATH whose segment claims 255 ASNs", Report: as4, Bytes: with(attribute(0xc0, 17, 2, 255, 0, 0, 0xfb, 0xf4))},
		{Name: "an AS_PATH of an unknown segment", Report: seven, Bytes: update(origin, attribute(0x40, 2, 9, 1, 0, 0, 0xfb, 0xf4), nextHop)},
		{Name: "an AS_PATH whose segment claims 255 ASNs", Report: seven, Bytes: update(origin, attribute(0x40, 2, 2, 255, 0, 0, 0xfb, 0xf4), nextHop)},
		{Name: "an AS_PATH of one octet", Report: seven, Bytes: update(origin, attribute(0x40, 2, 2), nextHop)},
		{Name: "an empty AS_PATH", Report: "GHSA-frrj-87jh-2772", Bytes: update(origin, attribute(0x40, 2), nextHop)},
		{Name: "an AS_PATH of confederations", Report: "GHSA-frrj-87jh-2772", Bytes: update(origin, attribute(0x40, 2, 3, 1, 0, 0, 0xfb, 0xf4), nextHop)},
		{Name: "no attributes, but a route", Report: "CVE-2023-41358", Bytes: message(typeUpdate, append([]byte{0, 0, 0, 0}, nlri...))},
		{Name: "no mandatory attributes", Report: "CVE-2023-46753", Bytes: update(attribute(0xc0, 31, repeat(0, 16)...))},
		{Name: "a prefix of 33 bits", Report: seven, Bytes: message(typeUpdate, join([]byte{0, 0, 0, byte(len(origin) + len(asPath) + len(nextHop))}, origin, asPath, nextHop, []byte{33, 198, 18, 1, 0, 0}))},
		{Name: "a prefix that is cut off", Report: seven, Bytes: message(typeUpdate, join([]byte{0, 0, 0, byte(len(origin) + len(asPath) + len(nextHop))}, origin, asPath, nextHop, []byte{32, 198}))},
		{Name: "an MP_REACH_NLRI of no octets", Report: "CVE-2023-46752", Bytes: with(attribute(0x80, 14))},
		{Name: "an MP_REACH_NLRI whose next hop claims 255 octets", Report: "CVE-2023-46752", Bytes: with(reach(2, 1, 255, 0x20, 1))},
		{Name: "an MP_REACH_NLRI with a next hop of five octets", Report: seven, Bytes: with(reach(2, 1, append([]byte{5, 1, 2, 3, 4, 5, 0, 64}, repeat(0x20, 8)...)...))},
		{Name: "an MP_REACH_NLRI without a next hop", Report: "gobgp 173621ff", Bytes: with(reach(2, 1, 0, 0, 64, 0x20, 1, 0, 0, 0, 0, 0, 0))},
		{Name: "an MP_REACH_NLRI with a prefix of 200 bits", Report: seven, Bytes: with(reach(2, 1, append(append([]byte{16}, repeat(0x20, 16)...), append([]byte{0, 200}, repeat(1, 25)...)...)...))},
		{Name: "an MP_REACH_NLRI of a family that was not agreed on", Report: seven, Bytes: with(reach(25, 70, append([]byte{4, 1, 2, 3, 4, 0}, repeat(0, 4)...)...))},
		{Name: "flow specification rules that are cut off", Report: "CVE-2025-43972, CVE-2023-38406", Bytes: with(reach(1, 133, 0, 0, 20, 1, 24, 10))},
		{Name: "BGP-LS with a sub-TLV that is cut off", Report: "gobgp f842cdf3, gobgp#3019", Bytes: with(reach(64, 71, join([]byte{16, 4}, repeat(1, 3), []byte{4, 1, 2, 3, 4, 0, 0, 1, 0, 20, 3}, repeat(0, 8), []byte{1, 0, 0, 7, 2, 0, 0})...))},
		{Name: "a BGP-LS attribute that is cut off", Report: "gobgp f842cdf3", Bytes: with(attribute(0x80, 29, 4, 0, 0, 1))},
		{Name: "a BGP-LS attribute with a one-octet SR capability", Report: "gobgp 8448d2cc", Bytes: with(attribute(0x80, 29, 4, 10, 0, 1, 0))},
		{Name: "a BGP-LS attribute of SRv6 End.X", Report: "gobgp 76b17b72", Bytes: with(attribute(0x80, 29, 4, 82, 0, 4, 0, 0, 0, 0))},
		{Name: "an MP_UNREACH_NLRI of two octets", Report: seven, Bytes: with(attribute(0x80, 15, 0, 2))},
		{Name: "an MP_UNREACH_NLRI and a route, without mandatory attributes", Report: "CVE-2023-47234", Bytes: update(attribute(0x80, 15, 0, 2, 1))},
		{Name: "an End-of-RIB marker with a malformed attribute", Report: "CVE-2023-47235", Bytes: message(typeUpdate, join([]byte{0, 0, 0, 10}, attribute(0x80, 15, 0, 2, 1), attribute(0x40, 1, 9)))},
		{Name: "flow specification rules without attributes", Report: "CVE-2023-41909", Bytes: update(reach(1, 133, 0, 0, 0))},
		{Name: "a labelled route that is cut off", Report: "CVE-2023-38407, gobgp 7b3e5553", Bytes: with(reach(1, 4, 4, 127, 0, 0, 1, 0, 120, 0, 0, 0))},
		{Name: "a Tunnel Encapsulation attribute that is cut off", Report: encap, Bytes: with(attribute(0xc0, 23, 0, 8, 0, 40, 1))},
		{Name: "a Tunnel Encapsulation attribute of zeroes", Report: encap, Bytes: with(attribute(0xc0, 23, repeat(0, 9)...))},
		{Name: "a Tunnel Encapsulation attribute with a short SR policy", Report: "CVE-2024-44070, gobgp 7e767a8d", Bytes: with(attribute(0xc0, 23, 0, 15, 0, 6, 128, 0, 3, 0, 1, 9))},
		{Name: "a Tunnel Encapsulation attribute with an empty binding SID", Report: "gobgp 5d52dd11", Bytes: with(attribute(0xc0, 23, 0, 15, 0, 2, 13, 0))},
		{Name: "a corrupted attribute 28", Report: "VU#347067, CVE-2023-4481", Bytes: with(attribute(0xc0, 28, 0xff, 0xff, 0xff))},
		{Name: "an Entropy Label attribute of 200 octets", Report: "CVE-2023-4481", Bytes: with(attribute(0xe0, 28, repeat(0xff, 200)...))},
		{Name: "an AIGP attribute that is cut off", Report: "CVE-2023-41359, gobgp 51ad1ada", Bytes: with(attribute(0x80, 26, 1, 0, 11, 0))},
		{Name: "an AIGP attribute of length 0", Report: "gobgp#2367", Bytes: with(attribute(0x80, 26, 1, 0, 0))},
		{Name: "a PMSI Tunnel attribute of one octet", Report: seven, Bytes: with(attribute(0xc0, 22, 0))},
		{Name: "a Prefix-SID attribute with an unknown SRv6 sub-TLV", Report: "CVE-2026-7734", Bytes: with(attribute(0xc0, 40, 5, 0, 7, 0, 0xff, 0, 3, 1, 2, 3)), Fatal: true},
		{Name: "a Prefix-SID attribute that is cut off", Report: "CVE-2023-31490, CVE-2024-31948, FRR#19336", Bytes: with(attribute(0xc0, 40, 1, 0, 7, 0))},
		{Name: "a Prefix-SID attribute with an SRv6 SID that is cut off", Report: "gobgp b6c58c87", Bytes: with(attribute(0xc0, 40, 5, 0, 8, 0, 1, 0, 4, 0, 0, 0, 0)), Fatal: true},
		{Name: "an Only-to-Customer attribute of 1024 octets", Report: "BIRD 2.0.8, 2025-10-24", Bytes: with(attribute(0xd0, 35, repeat(0, 1024)...))},
		{Name: "IPv6 extended communities of 12 octets", Report: "CVE-2026-37461", Bytes: with(attribute(0xc0, 25, repeat(0, 12)...))},
		{Name: "IPv6 extended communities of 20 octets, unknown", Report: "CVE-2026-37461, gobgp 2ee365d3", Bytes: with(attribute(0xc0, 25, repeat(0x7f, 20)...))},
		{Name: "extended communities of seven octets", Report: seven, Bytes: with(attribute(0xc0, 16, repeat(0, 7)...))},
		{Name: "extended communities of every kind", Report: "gobgp 9c13d68e", Bytes: with(attribute(0xd0, 16, everyKind()...))},
		{Name: "communities of three octets", Report: seven, Bytes: with(attribute(0xc0, 8, 1, 2, 3))},
		{Name: "large communities of 11 octets", Report: seven, Bytes: with(attribute(0xc0, 32, repeat(1, 11)...))},
		{Name: "an AGGREGATOR of five octets", Report: seven, Bytes: with(attribute(0xc0, 7, repeat(1, 5)...))},
		{Name: "a CLUSTER_LIST of three octets", Report: seven, Bytes: with(attribute(0x80, 10, 1, 2, 3))},
		{Name: "an ORIGINATOR_ID of one octet", Report: seven, Bytes: with(attribute(0x80, 9, 1))},
		{Name: "a LOCAL_PREF of no octets", Report: seven, Bytes: with(attribute(0x40, 5))},
		{Name: "an ATTR_SET in an ATTR_SET", Report: "RFC 6368", Bytes: with(attribute(0xc0, 128, join([]byte{0, 0, 0xfb, 0xf4}, attribute(0xc0, 128, 0, 0, 0xfb, 0xf4))...))},
		{Name: "an AS_PATH of 900 ASNs", Report: "CVE-2026-49943", Bytes: update(origin, attribute(0x50, 2, longPath()...), nextHop)},
		{Name: "a hundred attributes that nobody knows", Report: "VU#347067", Bytes: with(unknownAttributes())},
		{Name: "a ROUTE-REFRESH of no octets", Report: "CVE-2023-41360", Bytes: message(typeRouteRefresh, nil)},
		{Name: "a ROUTE-REFRESH with a malformed ORF", Report: "CVE-2023-41360, FRR#22828", Bytes: message(typeRouteRefresh, []byte{0, 1, 0, 1, 1, 64, 255, 255})},
		{Name: "a ROUTE-REFRESH of a family that was not agreed on", Report: "RFC 7313", Bytes: message(typeRouteRefresh, []byte{0, 25, 0, 70})},
		{Name: "a NOTIFICATION of one octet", Report: "RFC 4271, section 6.4", Bytes: message(typeNotification, []byte{6})},
		{Name: "a NOTIFICATION with a shutdown text longer than itself", Report: "RFC 8203", Bytes: message(typeNotification, []byte{6, 2, 255, 'x'})},
		{Name: "a NOTIFICATION with a shutdown text that is not UTF-8", Report: "RFC 8203", Bytes: message(typeNotification, []byte{6, 2, 2, 0xff, 0xfe})},
		{Name: "a NOTIFICATION of unknown codes", Report: seven, Bytes: message(typeNotification, []byte{255, 255})},
		{Name: "another OPEN", Report: "found here", Bytes: message(typeOpen, []byte{4, 0xfb, 0xf4, 0, 9, 9, 9, 9, 9, 0})},
		{Name: "an OPEN of one octet", Report: "RFC 4271, section 6.1", Bytes: message(typeOpen, []byte{4})},
		{Name: "a KEEPALIVE with a body", Report: "RFC 4271, section 6.1", Bytes: message(typeKeepalive, []byte{1, 2, 3})},
		{Name: "a header of length 18", Report: "RFC 4271, section 6.1", Bytes: header(18, typeUpdate, 0xff)},
		{Name: "a header of length 0", Report: "RFC 4271, section 6.1", Bytes: header(0, typeUpdate, 0xff)},
		{Name: "a header of length 65535", Report: "RFC 4271, section 6.1", Bytes: header(65535, typeUpdate, 0xff)},
		{Name: "a marker of zeroes", Report: "gobgp f0f24a2a", Bytes: header(19, typeKeepalive, 0)},
		{Name: "a web server's words", Report: "RFC 4271, section 6.1", Bytes: []byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")},
		{Name: "a message that never ends", Report: "RFC 4271, section 6.5", Bytes: header(4096, typeUpdate, 0xff)},
	}
	var all []Case
	for _, c := range established {
		c.Stage = Established
		all = append(all, c)
	}
	mp4, as4Octets := capability(1, 0, 1, 0, 1), capability(65, 0, 0, 0xfb, 0xf4)
	caps := func(name, report string, parts ...[]byte) {
		all = append(all, Case{Name: name, Report: report, Stage: Capabilities, Bytes: join(parts...)})
	}
	caps("no capabilities", "RFC 5492")
	caps("a capability that is cut off", "RFC 5492", mp4, as4Octets, []byte{64, 200, 0})
	caps("a four-octet ASN of no octets", "GHSA-gjrg-jjr3-56cm", mp4, capability(65), capability(2))
	caps("a four-octet ASN of no octets, at the end", "GHSA-gjrg-jjr3-56cm", mp4, capability(65))
	caps("a software version of length 0", "CVE-2025-43971", mp4, as4Octets, capability(75, 0))
	caps("a software version of no octets", "CVE-2025-43971", mp4, as4Octets, capability(75))
	caps("a software version longer than itself", "gobgp 67c05941", mp4, as4Octets, capability(75, 64, 'x'))
	caps("a software version that is not UTF-8", "found here", mp4, as4Octets, capability(75, 2, 0xff, 0xfe))
	caps("a host name longer than itself", "gobgp 2b09db39", mp4, as4Octets, capability(73, 200, 'x'))
	caps("a host name of no octets", "gobgp 2b09db39", mp4, as4Octets, capability(73))
	caps("a host name that is not UTF-8", "found here", mp4, as4Octets, capability(73, 2, 0xff, 0xfe, 0))
	caps("graceful restart of one octet", "RFC 4724", mp4, as4Octets, capability(64, 1))
	caps("graceful restart with half a family", "RFC 4724", mp4, as4Octets, capability(64, 0, 120, 0, 1))
	caps("long-lived graceful restart of one octet", "RFC 9494", mp4, as4Octets, capability(71, 1))
	caps("a family of one octet", "RFC 4760", capability(1, 1), as4Octets)
	caps("a family that nobody knows", "RFC 4760", capability(1, 0xff, 0xff, 0, 0xff), as4Octets)
	caps("add-path with half a family", "RFC 7911", mp4, as4Octets, capability(69, 0, 1))
	caps("an extended next hop with half a family", "RFC 8950", mp4, as4Octets, capability(5, 0, 1, 0))
	caps("the same capability thirty times", "RFC 5492", mp4, as4Octets, bytes.Repeat(capability(2), 30))
	caps("capabilities that nobody knows", "RFC 5492", mp4, as4Octets, capability(250, repeat(0xff, 40)...), capability(0))
	opens := func(name, report string, fatal bool, b []byte) {
		all = append(all, Case{Name: name, Report: report, Stage: AsOpen, Bytes: b, Fatal: fatal})
	}
	opens("an OPEN of version 3", "RFC 4271, section 6.2", false, message(typeOpen, []byte{3, 0xfb, 0xf4, 0, 9, 9, 9, 9, 9, 0}))
	opens("an OPEN of another AS", "RFC 4271, section 6.2", false, message(typeOpen, []byte{4, 0, 1, 0, 9, 9, 9, 9, 9, 0}))
	opens("an OPEN with a hold time of 1", "RFC 4271, section 6.2", false, message(typeOpen, []byte{4, 0xfb, 0xf4, 0, 1, 9, 9, 9, 9, 0}))
	opens("an OPEN with an identifier of 0.0.0.0", "RFC 6286", false, message(typeOpen, []byte{4, 0xfb, 0xf4, 0, 9, 0, 0, 0, 0, 0}))
	opens("an OPEN whose parameters claim 255 octets", "CVE-2022-43681", false, message(typeOpen, []byte{4, 0xfb, 0xf4, 0, 9, 9, 9, 9, 9, 255}))
	opens("an OPEN with an extended parameter length", "CVE-2022-40302, CVE-2022-40318", false, message(typeOpen, []byte{4, 0xfb, 0xf4, 0, 9, 9, 9, 9, 9, 255, 255, 0, 1, 2}))
	opens("an OPEN with an unknown parameter", "RFC 4271, section 6.2", false, message(typeOpen, []byte{4, 0xfb, 0xf4, 0, 9, 9, 9, 9, 9, 3, 9, 1, 0}))
	opens("an OPEN of nine octets", "RFC 4271, section 6.1", false, message(typeOpen, repeat(4, 9)))
	opens("an UPDATE in place of the OPEN", "RFC 6608", false, with(nil))
	opens("a message of an unknown type in place of the OPEN", unknown, true, message(9, nil))
	opens("a KEEPALIVE with a body in place of the OPEN", "RFC 6608", false, message(typeKeepalive, []byte{1}))
	opens("a NOTIFICATION of one octet in place of the OPEN", "RFC 4271, section 6.4", false, message(typeNotification, []byte{6}))
	confirms := func(name, report string, b []byte) {
		all = append(all, Case{Name: name, Report: report, Stage: AsKeepalive, Bytes: b})
	}
	confirms("an UPDATE in place of the KEEPALIVE", "RFC 6608", with(nil))
	confirms("a malformed UPDATE in place of the KEEPALIVE", "RFC 6608", message(typeUpdate, []byte{0}))
	confirms("a malformed ROUTE-REFRESH in place of the KEEPALIVE", "CVE-2023-41360", message(typeRouteRefresh, []byte{0}))
	confirms("AS4_PATH before AS_PATH in place of the KEEPALIVE", as4, update(attribute(0xc0, 17, 2, 1, 0, 0, 0xfb, 0xf4), origin, nextHop, asPath))
	return all
}

// everyKind has an extended community of every type, with the subtypes that have a meaning in most.
func everyKind() (list []byte) {
	for kind := range 256 {
		list = append(list, byte(kind), byte(kind%16), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	}
	return list
}

// longPath is an AS_PATH value of 900 ASNs.
func longPath() (value []byte) {
	for range 4 {
		value = append(value, 2, 225)
		for range 225 {
			value = append(value, 0, 0, 0xfb, 0xf4)
		}
	}
	return value
}

// unknownAttributes are a hundred optional transitive ones.
func unknownAttributes() (all []byte) {
	for code := 130; code < 230; code++ {
		all = append(all, attribute(0xc0, byte(code), 0xde, 0xad)...)
	}
	return all
}
