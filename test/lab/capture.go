package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// keptPackets is how many packets a Capture keeps whole; it counts all.
const keptPackets = 1000

// A Packet is what a Capture saw.
type Packet struct {
	// Outgoing is true for a packet that the namespace sent through the interface.
	Outgoing bool
	// Protocol is the IP protocol number, or the IPv6 next header: extension headers are not followed.
	Protocol uint8
	// Src and Dst have port 0 when the protocol has no ports, or the packet is a later fragment.
	Src, Dst netip.AddrPort
	// TCPFlags are the flags of a TCP header: 0x02 SYN, 0x04 RST, 0x10 ACK.
	TCPFlags uint8
	// Seq and Ack are the sequence numbers of a TCP header.
	Seq, Ack uint32
	// ICMPType is the type of an ICMP or ICMPv6 message.
	ICMPType uint8
	// Length is the whole IP packet's, in octets.
	Length int
}

// String returns the packet as one line.
func (p Packet) String() string {
	return fmt.Sprintf("%d %s > %s, flags %#x, icmp %d, %d octets", p.Protocol, p.Src, p.Dst, p.TCPFlags, p.ICMPType, p.Length)
}

// A Capture is a passive tap on an interface. It sees what is on the wire: outgoing packets after POSTROUTING, incoming
// ones before PREROUTING.
type Capture struct {
	ns    *Namespace
	file  *os.File
	match func(Packet) bool
	done  chan struct{}

	mu      sync.Mutex // guards the fields below
	count   int
	packets []Packet
}

// Capture starts a tap on an interface of the namespace, for the IP packets that match; a nil match is all of them. The
// tap sees every packet from when Capture returns. Put it on the router or a client to leave a node alone.
func (ns *Namespace) Capture(link string, match func(Packet) bool) (*Capture, error) {
	l, err := ns.handle.LinkByName(link)
	if err != nil {
		return nil, fmt.Errorf("%s: capture on %s: %w", ns.name, link, err)
	}
	fd := -1
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: l.Attrs().Index})
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("%s: capture on %s: %w", ns.name, link, err)
	}
	c := &Capture{ns: ns, file: os.NewFile(uintptr(fd), "capture"), match: match, done: make(chan struct{})}
	if err := ns.lab.track(c); err != nil {
		c.file.Close()
		return nil, err
	}
	go c.run()
	return c, nil
}

// Close ends the tap. What it saw stays.
func (c *Capture) Close() error {
	c.ns.lab.untrack(c)
	err := c.file.Close()
	<-c.done
	return err
}

// Count returns how many packets matched so far.
func (c *Capture) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// Packets returns the packets that matched so far, the first thousand at most.
func (c *Capture) Packets() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Packet(nil), c.packets...)
}

// Wait waits until n packets matched.
func (c *Capture) Wait(n int, bound time.Duration) error {
	return Eventually(bound, func() error {
		if have := c.Count(); have < n {
			return fmt.Errorf("%s: captured %d packets, want %d", c.ns.name, have, n)
		}
		return nil
	})
}

func (c *Capture) run() {
	defer close(c.done)
	raw, err := c.file.SyscallConn()
	if err != nil {
		return // closed before it began
	}
	buf := make([]byte, 1<<16)
	for {
		var (
			n    int
			from unix.Sockaddr
			got  error
		)
		err := raw.Read(func(fd uintptr) bool {
			n, from, got = unix.Recvfrom(int(fd), buf, 0)
			return got != unix.EAGAIN
		})
		if err != nil {
			return // closed
		}
		if got != nil {
			continue // the interface went down; the tap stays
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			continue
		}
		c.see(networkOrder(ll.Protocol), ll.Pkttype == unix.PACKET_OUTGOING, buf[:n])
	}
}

func (c *Capture) see(ethertype uint16, outgoing bool, data []byte) {
	p, ok := parsePacket(ethertype, data)
	p.Outgoing = outgoing
	if !ok || c.match != nil && !c.match(p) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	if len(c.packets) < keptPackets {
		c.packets = append(c.packets, p)
	}
}

// parsePacket reads the headers of an IP packet; false when it is none.
func parsePacket(ethertype uint16, data []byte) (Packet, bool) {
	p := Packet{Length: len(data)}
	var src, dst netip.Addr
	var payload []byte
	switch {
	case ethertype == unix.ETH_P_IP && len(data) >= 20:
		header := int(data[0]&0x0f) * 4
		if header < 20 || len(data) < header {
			return Packet{}, false
		}
		src, dst = netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))
		p.Protocol = data[9]
		if binary.BigEndian.Uint16(data[6:])&0x1fff == 0 { // the first fragment
			payload = data[header:]
		}
	case ethertype == unix.ETH_P_IPV6 && len(data) >= 40:
		src, dst = netip.AddrFrom16([16]byte(data[8:24])), netip.AddrFrom16([16]byte(data[24:40]))
		p.Protocol, payload = data[6], data[40:]
	default:
		return Packet{}, false
	}
	sport, dport := p.transport(payload)
	p.Src, p.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return p, true
}

// transport reads what it needs of the header after the IP header, and returns the ports.
func (p *Packet) transport(data []byte) (src, dst uint16) {
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(data) < 4 {
			return 0, 0
		}
		if p.Protocol == unix.IPPROTO_TCP && len(data) >= 14 {
			p.TCPFlags = data[13]
			p.Seq, p.Ack = binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:])
		}
		return binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:])
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if len(data) > 0 {
			p.ICMPType = data[0]
		}
	}
	return 0, 0
}

// networkOrder turns a number of the host's byte order into the network's, or back.
func networkOrder(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}
