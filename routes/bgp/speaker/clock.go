package speaker

import (
	"net/netip"
	"time"

	"k8s.io/klog/v2"
)

// clockCheck is how often sessions that began in the future are looked for.
const clockCheck = 5 * time.Second

// gobgp drops each UPDATE that it receives earlier, by the clock on the wall and in whole seconds, than the session began. So a clock that is
// set back, as is usual some time after a node has booted, makes it deaf to sessions that are younger than that, until the clock has caught
// up. watchClock begins such sessions anew, for as long as the process lives.
func (s *Speaker) watchClock() {
	for range time.Tick(clockCheck) {
		for _, a := range s.deaf(time.Now()) {
			err := hangUp(a)
			klog.InfoS("The clock was set back to before the beginning of a BGP session, it begins anew", "peer", a, "err", err)
		}
	}
}

// deaf returns the peers whose sessions began later than now.
func (s *Speaker) deaf(now time.Time) (peers []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, r := range s.records {
		// Without their monotonic clocks, by which nothing begins in the future.
		if r.up && now.Round(0).Before(r.since.Round(0).Truncate(time.Second)) {
			peers = append(peers, a)
		}
	}
	return peers
}
