package agent

import (
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// A clientWatch finds out which Services with session affinity have more clients than the kernel remembers: some of them lose
// their endpoint, which nobody else would tell.
type clientWatch struct {
	lists interface {
		Full(names []string) (full []string, limit int, err error)
	}
	// every is how often the lists are looked at.
	every  time.Duration
	looked time.Time
	notes  []cluster.Note
}

// look returns a Note for each Service that has an endpoint without room for another client. It reads the kernel's lists at
// most that often; in between it returns what it found.
func (w *clientWatch) look(t *proxy.Table, now time.Time) []cluster.Note {
	if now.Sub(w.looked) < w.every {
		return w.notes
	}
	w.looked, w.notes = now, nil
	for _, p := range t.Ports {
		names := iptables.ClientLists(p)
		if len(names) == 0 {
			continue
		}
		full, limit, err := w.lists.Full(names)
		if err != nil {
			klog.V(2).InfoS("The clients of endpoints can't be counted", "err", err)
			return nil
		}
		if len(full) > 0 {
			w.notes = append(w.notes, cluster.Note{Object: p.Service.Ref(), Reason: cluster.ReasonAffinityListFull,
				Detail: fmt.Sprintf("port %s: for %d of its %s endpoints the kernel remembers %d clients, which is the most it does; for each one more "+
					"another loses its endpoint. Right would be the module option ip_list_tot in /etc/modprobe.d (options xt_recent ip_list_tot=10000), or a shorter timeout",
					p.Name, len(full), t.Family, limit)})
		}
	}
	return w.notes
}
