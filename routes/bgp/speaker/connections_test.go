package speaker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHangUp: connections to the peer end, and nothing else does.
func TestHangUp(t *testing.T) {
	peer, _ := connected(t, "127.0.0.2")
	other, _ := connected(t, "127.0.0.3")
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

// TestEndedByPeer: who has ended a connection is known, also when this end is closed meanwhile.
func TestEndedByPeer(t *testing.T) {
	for what, c := range map[string]struct {
		end  func(near, far *net.TCPConn) error
		want bool
	}{
		"nobody":             {func(_, _ *net.TCPConn) error { return nil }, false},
		"the peer":           {func(_, far *net.TCPConn) error { return far.Close() }, true},
		"the peer's process": {func(near, far *net.TCPConn) error { return errors.Join(far.Close(), until(near, io.EOF), near.Close()) }, true},
		"a reset": {func(near, far *net.TCPConn) error {
			return errors.Join(far.SetLinger(0), far.Close(), until(near, unix.ECONNRESET))
		}, false},
		"this end": {func(near, far *net.TCPConn) error { return errors.Join(near.CloseWrite(), until(far, io.EOF)) }, false},
		"this end, and both": {func(near, far *net.TCPConn) error {
			return errors.Join(near.CloseWrite(), until(far, io.EOF), far.Close(), until(near, io.EOF))
		}, false},
	} {
		near, far := connected(t, "127.0.0.2")
		held := hold(netip.MustParseAddr("127.0.0.2"))
		if len(held) != 1 {
			t.Fatalf("%s: %d connections are held, expected 1", what, len(held))
		}
		if err := c.end(near, far); err != nil {
			t.Fatal(what, err)
		}
		// What is said to nobody else arrives a moment later.
		arrived := func() bool { return endedByPeer(held) == c.want }
		for deadline := time.Now().Add(10 * time.Second); !arrived() && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if !arrived() {
			t.Errorf("%s has ended it: endedByPeer is %v", what, !c.want)
		}
		if err := letGo(held); err != nil {
			t.Error(err)
		}
		near.Close()
		far.Close()
	}
}

// until reads until there is an error, which should be that.
func until(c net.Conn, want error) error {
	if _, err := io.ReadAll(c); err == nil && want == io.EOF || errors.Is(err, want) {
		return nil
	} else {
		return fmt.Errorf("read to the end: %v, expected %v", err, want)
	}
}

// connected returns both ends of a TCP connection to an address of the loopback, far being that at the address.
func connected(t *testing.T, address string) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); conn.Close(); accepted.Close() })
	return conn.(*net.TCPConn), accepted.(*net.TCPConn)
}
