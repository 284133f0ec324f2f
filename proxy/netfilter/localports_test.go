package netfilter

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

// hostProc is a /proc with sockets as a little-endian kernel writes them.
func hostProc(t *testing.T, files map[string]string) LocalPorts {
	t.Helper()
	l := LocalPorts{proc: t.TempDir()}
	for name, text := range files {
		file := filepath.Join(l.proc, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

const socketHeading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func TestLocalPorts(t *testing.T) {
	if !littleEndian() {
		t.Skip("the texts are those of a little-endian kernel")
	}
	l := hostProc(t, map[string]string{
		"thread-self/net/tcp": socketHeading +
			"   0: 00000000:7599 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n" +
			"   1: 0100007F:759A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0\n" +
			"   2: 0B00F00A:759B 0C00F00A:0050 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0\n",
		"thread-self/net/tcp6": socketHeading +
			"   0: 00000000000000000000000000000000:7599 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4\n" +
			"   1: 400200FD000000000000000011000000:759C 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 5\n",
		"thread-self/net/udp": socketHeading +
			" 100: 0B00F00A:C350 0C00F00A:0035 01 00000000:00000000 00:00000000 00000000     0        0 6 2 0 0\n" +
			" 101: 0B00F00A:7599 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7 2 0 0\n",
		"sys/net/ipv4/ip_local_port_range":     "32768\t60999\n",
		"sys/net/ipv4/ip_local_reserved_ports": "40000,50000-50010\n",
	})
	u, err := l.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		protocol cluster.Protocol
		port     uint16
		want     []string
	}{
		{cluster.TCP, 30105, []string{"0.0.0.0", "::"}},
		{cluster.TCP, 30106, []string{"127.0.0.1"}},
		{cluster.TCP, 30107, nil}, // a connection
		{cluster.TCP, 30108, []string{"fd00:240::11"}},
		{cluster.UDP, 30105, []string{"10.240.0.11"}},
		{cluster.UDP, 50000, nil}, // one with a peer
	} {
		var want []netip.Addr
		for _, s := range c.want {
			want = append(want, netip.MustParseAddr(s))
		}
		if have := u.Sockets(c.protocol, c.port); !slices.Equal(have, want) {
			t.Errorf("%s %d: %v, want %v", c.protocol, c.port, have, want)
		}
	}
	for port, want := range map[uint16]bool{30080: false, 32767: false, 32768: true, 39999: true, 40000: false, 50005: false, 50011: true, 61000: false} {
		if u.Ephemeral(port) != want {
			t.Errorf("Ephemeral(%d) is %v", port, !want)
		}
	}
	if r := u.Range(); r != "32768 60999" {
		t.Errorf("Range() is %q", r)
	}
}

func littleEndian() bool {
	a, err := parseSocketAddr("0100007F:0001")
	return err == nil && a.Addr() == netip.MustParseAddr("127.0.0.1")
}

func TestLocalPortsRefusesNonsense(t *testing.T) {
	for _, line := range []string{"x", "0: 00:1 0 0A", "0: 0100007F:zz 0 0A", "0: 010000:1 0 0A", "0: 0000000001000000:1 0 0A"} {
		if err := parseSockets(strings.NewReader("heading\n"+line+"\n"), stateListen, func(netip.AddrPort) {}); err == nil {
			t.Errorf("%q is taken", line)
		}
	}
	if _, err := parsePortRanges("1-x"); err == nil {
		t.Error("a range of letters is taken")
	}
}

// What the kernel shows of this process, a socket of which listens.
func TestLocalPortsOfKernel(t *testing.T) {
	if _, err := OpenLocalPorts().Read(); err != nil {
		t.Fatal(err)
	}
}
