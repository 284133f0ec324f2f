package netfilter

import (
	"errors"
	"maps"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/proxy/iptables"
)

// send sends datagrams to the discard port of the loopback address.
func send(t *testing.T, n int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for range n {
		if err := unix.Sendto(fd, []byte("?"), 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}); err != nil {
			t.Fatal(err)
		}
	}
}

// Rules count into the counters, which are made once and keep what they have.
func TestCounters(t *testing.T) {
	onBackends(t, func(t *testing.T, b *Backend) {
		if have, err := ReadCounters(); err != nil || len(have) > 0 {
			t.Fatalf("counters before there are any: %v, %v", have, err)
		}
		for range 2 {
			if err := EnsureCounters(); errors.Is(err, ErrNoKernelSupport) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
		}
		zero := map[string]uint64{iptables.InvalidCounter: 0, iptables.LocalhostCounter: 0}
		if have, err := ReadCounters(); err != nil || !maps.Equal(have, zero) {
			t.Errorf("new counters: %v, %v", have, err)
		}
		shell(t, "", "ip", "link", "set", "lo", "up")
		restore := b.Binaries[b.Families()[0]].Restore
		shell(t, "*filter\n-A OUTPUT -p udp -m nfacct --nfacct-name "+iptables.LocalhostCounter+" -j ACCEPT\nCOMMIT\n", restore, "--noflush")
		send(t, 3)
		if err := EnsureCounters(); err != nil {
			t.Fatal(err)
		}
		want := map[string]uint64{iptables.InvalidCounter: 0, iptables.LocalhostCounter: 3}
		if have, err := ReadCounters(); err != nil || !maps.Equal(have, want) {
			t.Errorf("counters %v, %v, want %v", have, err, want)
		}
	})
}
