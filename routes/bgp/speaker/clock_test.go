package speaker

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestDeaf: sessions that began later than now, by the clock on the wall, are found, and no others.
func TestDeaf(t *testing.T) {
	now := time.Now()
	s := New(nil, nil)
	for address, r := range map[string]*record{
		"192.0.2.1": {up: true, since: now.Add(-time.Minute)},
		"192.0.2.2": {up: true, since: now},
		"192.0.2.3": {up: true, since: now.Add(time.Hour)},
		"192.0.2.4": {up: false, since: now.Add(time.Hour)},
	} {
		s.records[netip.MustParseAddr(address)] = r
	}
	if deaf := s.deaf(now); len(deaf) != 1 || deaf[0] != netip.MustParseAddr("192.0.2.3") {
		t.Errorf("sessions with %v began in the future, expected 192.0.2.3 alone", deaf)
	}
}

// TestHangUp: connections to the peer end, and nothing else does.
func TestHangUp(t *testing.T) {
	peer, other := connection(t, "127.0.0.2"), connection(t, "127.0.0.3")
	if err := hangUp(netip.MustParseAddr("127.0.0.2")); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection to the peer: %v, expected its end", err)
	}
	if _, err := other.Write([]byte{1}); err != nil {
		t.Errorf("the connection to another: %v, expected that it goes on", err)
	}
	if err := hangUp(netip.MustParseAddr("127.0.0.4")); err == nil {
		t.Error("no error for a peer that there is no connection to")
	}
}

// connection returns an end of a TCP connection to an address of the loopback; that at the address reads, and writes nothing.
func connection(t *testing.T, address string) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); conn.Close(); far.Close() })
	return conn
}
