package hostile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The types of messages (RFC 4271, section 4.1, and RFC 2918).
const (
	typeOpen         = 1
	typeUpdate       = 2
	typeNotification = 3
	typeKeepalive    = 4
	typeRouteRefresh = 5
)

// A Peer accepts sessions, has each receive its case once the time for that has come, and keeps it for as long as the
// other side does.
type Peer struct {
	ASN uint16
	// ID is the BGP identifier.
	ID [4]byte
	// Case is what it does wrong; the zero Case is a peer that does nothing wrong.
	Case Case
	// Sending, if there is one, is called before the case is sent.
	Sending func()

	mu sync.Mutex // guards what follows
	// established and sent count sessions that came up, and those in which the case was sent.
	established, sent int
	// ended are the ends of sessions.
	ended []error
}

// patience bounds every step of bringing a session up.
const patience = 10 * time.Second

// Serve serves sessions until the listener is closed.
func (p *Peer) Serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			err := p.session(c)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.ended = append(p.ended, err)
		}()
	}
}

// Established tells how many sessions came up, Sent in how many of all the case was sent.
func (p *Peer) Established() int { return p.count(&p.established) }
func (p *Peer) Sent() int        { return p.count(&p.sent) }

func (p *Peer) count(n *int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return *n
}

// Ended returns why sessions ended, in order.
func (p *Peer) Ended() []error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]error(nil), p.ended...)
}

// sending counts a case that is about to be sent.
func (p *Peer) sending() {
	if p.Sending != nil {
		p.Sending()
	}
	p.add(&p.sent)
}

func (p *Peer) add(n *int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*n++
}

// session brings one session up, sends the case, and keeps it; it returns what ended it.
func (p *Peer) session(c net.Conn) error {
	if err := expect(c, typeOpen); err != nil {
		return err
	}
	switch p.Case.Stage {
	case AsOpen:
		return p.say(c)
	case Capabilities:
		p.sending()
		if err := write(c, p.open(p.Case.Bytes)); err != nil {
			return err
		}
	default:
		if err := write(c, p.open(honest(p.ASN))); err != nil {
			return err
		}
	}
	if err := expect(c, typeKeepalive); err != nil {
		return err
	}
	if p.Case.Stage == AsKeepalive {
		return p.say(c)
	}
	if err := write(c, Keepalive()); err != nil {
		return err
	}
	p.add(&p.established)
	if p.Case.Stage == Established && p.Case.Bytes != nil {
		return p.say(c)
	}
	return keep(c)
}

// say sends the case, and then keeps the session.
func (p *Peer) say(c net.Conn) error {
	if p.Case.Stage == Established {
		// What comes before the other side has settled would be taken for a part of the handshake.
		if err := expect(c, typeKeepalive); err != nil {
			return err
		}
	}
	p.sending()
	if err := write(c, p.Case.Bytes); err != nil {
		return err
	}
	return keep(c)
}

// keep reads, and sends a KEEPALIVE a second, until the other side ends the session.
func keep(c net.Conn) error {
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Second):
				_ = write(c, Keepalive()) // the reader sees how it ends
			}
		}
	}()
	for {
		kind, body, err := read(c, time.Hour)
		if err != nil {
			return err
		}
		if kind == typeNotification {
			return notification(body)
		}
	}
}

// A Notification is the other side's last message.
type Notification struct{ Code, Subcode byte }

// Error implements error.
func (n Notification) Error() string { return fmt.Sprintf("NOTIFICATION %d/%d", n.Code, n.Subcode) }

func notification(body []byte) error {
	if len(body) < 2 {
		return errors.New("a NOTIFICATION without a code")
	}
	return Notification{body[0], body[1]}
}

func expect(c net.Conn, kind byte) error {
	for {
		got, body, err := read(c, patience)
		switch {
		case err != nil:
			return err
		case got == typeNotification:
			return notification(body)
		case got == kind:
			return nil
		case got != typeUpdate && got != typeKeepalive:
			return fmt.Errorf("a message of type %d, expected %d", got, kind)
		}
	}
}

func read(c net.Conn, within time.Duration) (kind byte, body []byte, err error) {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return 0, nil, err
	}
	var header [19]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint16(header[16:18])
	if length < 19 || length > 4096 {
		return 0, nil, fmt.Errorf("a message of %d bytes", length)
	}
	body = make([]byte, length-19)
	_, err = io.ReadFull(c, body)
	return header[18], body, err
}

func write(c net.Conn, b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}

// open is an OPEN with capabilities.
func (p *Peer) open(capabilities []byte) []byte {
	body := []byte{4, byte(p.ASN >> 8), byte(p.ASN), 0, 9}
	body = append(body, p.ID[:]...)
	if len(capabilities) == 0 {
		return message(typeOpen, append(body, 0))
	}
	body = append(body, byte(len(capabilities)+2), 2, byte(len(capabilities)))
	return message(typeOpen, append(body, capabilities...))
}

// honest are the capabilities of an ordinary router: both families, four-octet ASNs, and graceful restart.
func honest(asn uint16) []byte {
	return join(
		capability(1, 0, 1, 0, 1), capability(1, 0, 2, 0, 1),
		capability(65, 0, 0, byte(asn>>8), byte(asn)),
		capability(64, 0, 120))
}

// Keepalive is the message of that name.
func Keepalive() []byte { return message(typeKeepalive, nil) }

// message puts a header before a body.
func message(kind byte, body []byte) []byte {
	b := make([]byte, 19, 19+len(body))
	for i := range 16 {
		b[i] = 0xff
	}
	binary.BigEndian.PutUint16(b[16:], uint16(19+len(body)))
	b[18] = kind
	return append(b, body...)
}

func capability(code byte, value ...byte) []byte {
	return append([]byte{code, byte(len(value))}, value...)
}

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
