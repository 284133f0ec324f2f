package netfilter

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// LocalPorts is where the kernel shows which ports the programs of this network namespace use.
type LocalPorts struct {
	proc string
}

// OpenLocalPorts returns the ports that the kernel shows.
func OpenLocalPorts() LocalPorts { return LocalPorts{proc: "/proc"} }

// A PortUse tells which ports the programs of a host use.
type PortUse struct {
	sockets map[localPort][]netip.Addr
	// first and last are net.ipv4.ip_local_port_range, which holds for IPv6 too.
	first, last uint16
	// reserved are net.ipv4.ip_local_reserved_ports, the parts of the range that the kernel leaves out.
	reserved []portRange
}

type localPort struct {
	protocol cluster.Protocol
	port     uint16
}

type portRange struct{ first, last uint16 }

// Sockets returns the addresses at which programs wait for connections or datagrams to a port.
func (u *PortUse) Sockets(p cluster.Protocol, port uint16) []netip.Addr {
	return u.sockets[localPort{p, port}]
}

// Ephemeral reports that the kernel may give the port to a connection of the host's own.
func (u *PortUse) Ephemeral(port uint16) bool {
	for _, r := range u.reserved {
		if r.first <= port && port <= r.last {
			return false
		}
	}
	return u.first <= port && port <= u.last
}

// Range returns net.ipv4.ip_local_port_range as the kernel writes it.
func (u *PortUse) Range() string { return fmt.Sprintf("%d %d", u.first, u.last) }

// States of sockets in /proc/net, from include/net/tcp_states.h: a TCP socket that listens, a UDP one without a peer.
const (
	stateListen      = "0A"
	stateUnconnected = "07"
)

// Read reads it all. Listening sockets come before all connections in /proc/net/tcp, so it costs what they are, however many
// connections there are.
func (l LocalPorts) Read() (*PortUse, error) {
	u := &PortUse{sockets: map[localPort][]netip.Addr{}}
	for _, table := range []struct {
		name, state string
		protocol    cluster.Protocol
	}{
		{"tcp", stateListen, cluster.TCP}, {"tcp6", stateListen, cluster.TCP},
		{"udp", stateUnconnected, cluster.UDP}, {"udp6", stateUnconnected, cluster.UDP},
	} {
		if err := l.readSockets(table.name, table.state, table.protocol, u); err != nil {
			return nil, fmt.Errorf("read the node's sockets: %w", err)
		}
	}
	text, err := l.sysctl("ip_local_port_range")
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Sscan(text, &u.first, &u.last); err != nil {
		return nil, fmt.Errorf("net.ipv4.ip_local_port_range is %q: %w", text, err)
	}
	if text, err = l.sysctl("ip_local_reserved_ports"); err != nil {
		return nil, err
	}
	u.reserved, err = parsePortRanges(text)
	return u, err
}

func (l LocalPorts) sysctl(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(l.proc, "sys/net/ipv4", name))
	return strings.TrimSpace(string(text)), err
}

func (l LocalPorts) readSockets(table, state string, p cluster.Protocol, u *PortUse) error {
	// Of the calling thread: /proc/net is that of the main one.
	file, err := os.Open(filepath.Join(l.proc, "thread-self/net", table))
	if os.IsNotExist(err) && strings.HasSuffix(table, "6") {
		return nil // a kernel without IPv6
	}
	if err != nil {
		return err
	}
	defer file.Close()
	return parseSockets(file, state, func(a netip.AddrPort) {
		key := localPort{p, a.Port()}
		u.sockets[key] = append(u.sockets[key], a.Addr())
	})
}

// parseSockets calls found with the local end of each socket in a state, in a text like /proc/net/tcp. TCP's ends with the
// first socket in another state.
//
//	sl  local_address rem_address   st …
//	 0: 0100007F:0CEA 00000000:0000 0A …
func parseSockets(text io.Reader, state string, found func(netip.AddrPort)) error {
	lines := bufio.NewScanner(text)
	lines.Scan() // the heading
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			return fmt.Errorf("unexpected line %q", lines.Text())
		}
		if f[3] != state {
			if state == stateListen {
				return nil
			}
			continue
		}
		a, err := parseSocketAddr(f[1])
		if err != nil {
			return err
		}
		found(a)
	}
	return lines.Err()
}

// parseSocketAddr parses "0100007F:0CEA": words of 32 bits in the machine's own order, and the port.
func parseSocketAddr(text string) (netip.AddrPort, error) {
	host, portText, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("unexpected address %q", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	port, err := strconv.ParseUint(portText, 16, 16)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("unexpected address %q", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// parsePortRanges parses "8080,9000-9100", or nothing.
func parsePortRanges(text string) (list []portRange, err error) {
	if text == "" {
		return nil, nil
	}
	for _, part := range strings.Split(text, ",") {
		firstText, lastText, isRange := strings.Cut(part, "-")
		if !isRange {
			lastText = firstText
		}
		first, err1 := strconv.ParseUint(firstText, 10, 16)
		last, err2 := strconv.ParseUint(lastText, 10, 16)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("net.ipv4.ip_local_reserved_ports is %q", text)
		}
		list = append(list, portRange{uint16(first), uint16(last)})
	}
	return list, nil
}
