package conformance_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

// send sends one packet of a protocol in the namespace, from one of its addresses, with everything that follows the IP header.
func send(ns *lab.Namespace, protocol int, src, dst netip.Addr, payload []byte) error {
	return ns.Do(func() error {
		domain := unix.AF_INET
		if dst.Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return fmt.Errorf("raw socket: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, rawAddr(src)); err != nil {
			return fmt.Errorf("bind raw socket to %s: %w", src, err)
		}
		if err := unix.Sendto(fd, payload, 0, rawAddr(dst)); err != nil {
			return fmt.Errorf("send to %s: %w", dst, err)
		}
		return nil
	})
}

func rawAddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// checksum is the Internet checksum of RFC 1071.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	if len(data)%2 == 1 {
		sum += uint32(data[len(data)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pseudo is the pseudo header that TCP's checksum (and ICMPv6's) covers, RFC 9293 §3.1 and RFC 8200 §8.1.
func pseudo(src, dst netip.Addr, protocol uint8, length int) []byte {
	out := append(src.AsSlice(), dst.AsSlice()...)
	if src.Is4() {
		return binary.BigEndian.AppendUint16(append(out, 0, protocol), uint16(length))
	}
	return append(binary.BigEndian.AppendUint32(out, uint32(length)), 0, 0, 0, protocol)
}

// segment is a TCP segment with the flags PSH and ACK.
func segment(src, dst netip.AddrPort, seq, ack uint32, data string) []byte {
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13] = 5<<4, 0x18
	binary.BigEndian.PutUint16(b[14:], 512) // the window
	b = append(b, data...)
	sum := checksum(append(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, len(b)), b...))
	binary.BigEndian.PutUint16(b[16:], sum)
	return b
}

// echoRequest is an ICMP echo request; the kernel fills in the checksum of ICMPv6 itself (RFC 3542 §3.1).
func echoRequest(f cluster.Family) (protocol int, message []byte, request, reply uint8) {
	if f == cluster.IPv6 {
		return unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0, 7, 0, 1}, 128, 129
	}
	message = []byte{8, 0, 0, 0, 0, 7, 0, 1}
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	return unix.IPPROTO_ICMP, message, 8, 0
}

// pingLeavesAlone fails the test unless p2's ping of an address arrives at the router, and at no pod.
func (s *stage) pingLeavesAlone(t *testing.T, f cluster.Family, to netip.Addr) {
	t.Helper()
	protocol, message, request, reply := echoRequest(f)
	isType := func(kind uint8) func(lab.Packet) bool {
		return func(p lab.Packet) bool { return int(p.Protocol) == protocol && p.ICMPType == kind }
	}
	away, err := s.Router().Capture("eth0", func(p lab.Packet) bool { return isType(request)(p) && p.Dst.Addr() == to })
	ok(t, err)
	defer away.Close()
	pod, err := s.p1.Capture("eth0", isType(request))
	ok(t, err)
	defer pod.Close()
	back, err := s.p2.Capture("eth0", isType(reply))
	ok(t, err)
	defer back.Close()
	ok(t, send(s.p2.Namespace, protocol, s.p2.Addr(f), to, message))
	ok(t, away.Wait(1, soon))
	// A ping of the pod itself takes the same way as one that would be translated; when it is answered, so would that be.
	ok(t, send(s.p2.Namespace, protocol, s.p2.Addr(f), s.p1.Addr(f), message))
	ok(t, back.Wait(1, soon))
	ok(t, pod.Wait(1, soon)) // the tap may be behind
	if pod.Count() != 1 || back.Count() != 1 {
		t.Errorf("a ping of %s: p1 got %v, p2 got %v; want one of each, of the ping of p1 itself", to, pod.Packets(), back.Packets())
	}
}

func sctpPort(name string, port, target uint16) corev1.ServicePort {
	p := lab.TCPPort(name, port, target)
	p.Protocol = corev1.ProtocolSCTP
	return p
}

// checkSCTP sends an SCTP association's first packet to the VIP and waits for it at the endpoint, with the target port:
// there are no SCTP sockets here, but conntrack translates SCTP all the same.
func checkSCTP(t *testing.T, s *stage, f cluster.Family) {
	t.Helper()
	dnat := fmt.Sprintf("-p sctp -m comment --comment \"default/all:s\" -j DNAT --to-destination %s", netip.AddrPortFrom(s.p1.Addr(f), 9003))
	if found := lines(s.save(t, f), dnat); len(found) != 1 {
		t.Errorf("rules with %q: %v in\n%s", dnat, found, strings.Join(lines(s.save(t, f), "sctp"), ""))
	}
	tap, err := s.p1.Capture("eth0", func(p lab.Packet) bool { return p.Protocol == unix.IPPROTO_SCTP && !p.Outgoing })
	ok(t, err)
	defer tap.Close()
	ok(t, send(s.p2.Namespace, unix.IPPROTO_SCTP, s.p2.Addr(f), vip(f, 10), sctpInit(5000, 53)))
	ok(t, tap.Wait(1, soon))
	if p := tap.Packets()[0]; p.Dst != netip.AddrPortFrom(s.p1.Addr(f), 9003) || p.Src.Addr() != s.p2.Addr(f) {
		t.Errorf("SCTP arrived as %v", p)
	}
}

// sctpInit is an SCTP packet with an INIT chunk, RFC 9260 §3.3.2, and the checksum of its Appendix A.
func sctpInit(src, dst uint16) []byte {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	b[12] = 1                                   // INIT
	binary.BigEndian.PutUint16(b[14:], 20)      // length of the chunk
	binary.BigEndian.PutUint32(b[16:], 0x12345) // initiate tag
	binary.BigEndian.PutUint32(b[20:], 1<<16)   // receiver window
	binary.BigEndian.PutUint16(b[24:], 1)       // outbound streams
	binary.BigEndian.PutUint16(b[26:], 1)       // inbound streams
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[8:], sum)
	return b
}

// A TCP segment outside of the window, which conntrack does not translate, is dropped and not forwarded: the client would
// reset a connection that it does not know. One inside the window passes.
func TestCase62OutOfWindow(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: forwarding})
		onFamilies(t, func(t *testing.T, f cluster.Family) { checkOutOfWindow(t, s, f) })
	})
}

func checkOutOfWindow(t *testing.T, s *stage, f cluster.Family) {
	t.Helper()
	service, endpoint := netip.AddrPortFrom(vip(f, 10), 80), netip.AddrPortFrom(s.p3.Addr(f), target)
	tap := func(ns *lab.Namespace, link string, match func(lab.Packet) bool) *lab.Capture {
		c, err := ns.Capture(link, match)
		ok(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	sent := tap(s.p3.Namespace, "eth0", func(p lab.Packet) bool { return p.Src == endpoint })
	untranslated := tap(s.p2.Namespace, "eth0", func(p lab.Packet) bool { return p.Src == endpoint })
	astray := tap(s.Router(), "eth0", func(p lab.Packet) bool { return p.Dst == service })
	conn, r := s.p2.Open(lab.Dial{Proto: lab.TCP, To: service})
	ok(t, r.Expect(lab.OK))
	defer conn.Close()
	client := r.Local
	echo(t, conn)
	ok(t, sent.Wait(1, soon)) // the tap may be behind
	// The SYN-ACK comes first. After it the server has sent its greeting and one echo; the client one line.
	first := sent.Packets()[0]
	next := first.Seq + 1 + uint32(len("p3 "+r.Seen.String()+"\n")+len(question))
	acked := first.Ack + uint32(len(question))

	const beyond = 1 << 30
	ok(t, send(s.p3.Namespace, unix.IPPROTO_TCP, endpoint.Addr(), client.Addr(), segment(endpoint, client, next+beyond, acked, "forged\n")))
	ok(t, send(s.p2.Namespace, unix.IPPROTO_TCP, client.Addr(), service.Addr(), segment(client, service, acked+beyond, next, "forged\n")))
	ok(t, lab.Eventually(soon, func() error {
		for _, p := range sent.Packets() {
			if p.Seq == next+beyond {
				return nil
			}
		}
		return errors.New("the forged segment has not left p3")
	}))
	s.leavesAlone(t, s.p2.Namespace, tcp(service.Addr(), 81)) // what is forwarded to the router has arrived there by now
	echo(t, conn)
	next, acked = next+uint32(len(question)), acked+uint32(len(question))

	ok(t, send(s.p3.Namespace, unix.IPPROTO_TCP, endpoint.Addr(), client.Addr(), segment(endpoint, client, next, acked, "forged\n")))
	ok(t, conn.SetReadDeadline(time.Now().Add(soon)))
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if got := string(buf[:n]); got != "forged\n" {
		t.Errorf("a segment inside of the window: the client reads %q, %v", got, err)
	}
	if n := untranslated.Count(); n != 0 {
		t.Errorf("the client got segments from the endpoint's own address: %v", untranslated.Packets())
	}
	if n := astray.Count(); n != 0 {
		t.Errorf("the router got segments to the VIP: %v", astray.Packets())
	}
}

// question is the line that echo asks.
const question = "anybody there?\n"

func echo(t *testing.T, conn *lab.Conn) {
	t.Helper()
	line := strings.TrimSpace(question)
	if got, err := conn.Ask(line, soon); err != nil || got != line {
		t.Fatalf("asked %q: %q, %v", line, got, err)
	}
}
