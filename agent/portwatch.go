package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// A portWatch finds node ports that the node's own programs use as well. The Service has them then, and the program wonders.
type portWatch struct {
	ports interface {
		Read() (*netfilter.PortUse, error)
	}
	// every is how often the ports are looked at.
	every  time.Duration
	looked time.Time
	use    *netfilter.PortUse // nil when it can't be read
	table  *proxy.Table       // that notes are of
	notes  []cluster.Note
}

// look returns a Note for each node port that a program waits at, and one on the node, self, for those that its own connections may
// take. It reads the kernel's tables at most that often.
func (w *portWatch) look(t *proxy.Table, self cluster.Ref, now time.Time) []cluster.Note {
	fresh := now.Sub(w.looked) >= w.every
	if !fresh && t == w.table {
		return w.notes
	}
	if fresh {
		var err error
		if w.use, err = w.ports.Read(); err != nil {
			klog.V(2).InfoS("Whether programs use node ports can't be told", "err", err)
		}
		w.looked = now
	}
	w.table, w.notes = t, nil
	if w.use == nil {
		return nil
	}
	var ephemeral []string
	for _, p := range t.Ports {
		if p.NodePort == 0 {
			continue
		}
		port := fmt.Sprintf("%d/%s", p.NodePort, p.Protocol)
		sockets := w.use.Sockets(p.Protocol, p.NodePort)
		if at := slices.IndexFunc(sockets, t.TakesFrom); at >= 0 {
			w.notes = append(w.notes, cluster.Note{Object: p.Service.Ref(), Reason: cluster.ReasonNodePortInUse,
				Detail: fmt.Sprintf("port %s: its node port %s is also that of a program on node %s, at %s; what comes for it goes to the Service. Right would be another port for one of the two",
					p.Name, port, self.Name, netip.AddrPortFrom(sockets[at], p.NodePort))})
		}
		if w.use.Ephemeral(p.NodePort) {
			ephemeral = append(ephemeral, fmt.Sprintf("%s (%s)", port, p.Name))
		}
	}
	if len(ephemeral) > 0 {
		w.notes = append(w.notes, cluster.Note{Object: self, Reason: cluster.ReasonNodePortEphemeral, Detail: fmt.Sprintf(
			"node ports in net.ipv4.ip_local_port_range (%s), from which this node's own connections take their ports: %s. Replies to such a connection that conntrack has forgotten go to the "+
				"Service. Right would be net.ipv4.ip_local_reserved_ports with the range of node ports, or node ports outside of it", w.use.Range(), some(ephemeral))})
	}
	return w.notes
}

// some is a list with its first elements only, in a sentence that should stay short.
func some(list []string) string {
	const most = 5
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
