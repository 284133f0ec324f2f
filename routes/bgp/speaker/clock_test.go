package speaker

import (
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
