package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// noPorts can't be read; it counts how often that was tried.
type noPorts struct{ reads int }

func (p *noPorts) Read() (*netfilter.PortUse, error) {
	p.reads++
	return nil, errors.New("no /proc")
}

// TestPortWatchReadsSeldom: the ports are read now and then, and not for each change of the cluster; that they can't be is no failure.
func TestPortWatchReadsSeldom(t *testing.T) {
	ports := &noPorts{}
	const every = 30 * time.Second
	w := portWatch{ports: ports, every: every}
	start := time.Unix(1e9, 0)
	for _, c := range []struct {
		after time.Duration
		reads int
	}{{0, 1}, {time.Second, 1}, {every, 2}, {every + time.Second, 2}} {
		table := &proxy.Table{Ports: []*proxy.Port{{NodePort: 30080, Protocol: cluster.TCP}}}
		if notes := w.look(table, cluster.Ref{}, start.Add(c.after)); len(notes) != 0 || ports.reads != c.reads {
			t.Errorf("after %s: %v, %d reads, want %d", c.after, notes, ports.reads, c.reads)
		}
	}
}

// TestTakesFrom: which programs of the node lose their connections to a node port of the same number.
func TestTakesFrom(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	everywhere, localhost := proxy.NodePorts{Everywhere: true}, proxy.NodePorts{Everywhere: true, Localhost: true}
	for _, c := range []struct {
		family cluster.Family
		ports  proxy.NodePorts
		takes  string // of the addresses below
	}{
		{cluster.IPv4, everywhere, "0.0.0.0 :: 10.0.0.1 10.0.0.2"},
		{cluster.IPv4, localhost, "0.0.0.0 :: 10.0.0.1 10.0.0.2 127.0.0.1"},
		{cluster.IPv4, proxy.NodePorts{Addrs: own}, "0.0.0.0 :: 10.0.0.1"},
		{cluster.IPv4, proxy.NodePorts{}, ""},
		{cluster.IPv6, everywhere, ":: fd00::1"},
	} {
		var takes []string
		table := &proxy.Table{Family: c.family, NodePorts: c.ports}
		for _, a := range strings.Fields("0.0.0.0 :: 10.0.0.1 10.0.0.2 127.0.0.1 fd00::1 ::1") {
			if table.TakesFrom(netip.MustParseAddr(a)) {
				takes = append(takes, a)
			}
		}
		if have := strings.Join(takes, " "); have != c.takes {
			t.Errorf("%s %+v: %q, want %q", c.family, c.ports, have, c.takes)
		}
	}
}
