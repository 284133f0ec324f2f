package rtnl

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
)

// TestWatchTellsOfForwardingTurnedOff, of either family, once; and not of our turning it on again.
func TestWatchTellsOfForwardingTurnedOff(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	events := ns.watch(c, watchBuffer)
	monitor := ns.monitor(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if err := EnsureForwarding(cluster.Families[:]...); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("0\n"), 0); err != nil {
			t.Fatal(err)
		}
		for e := await(t, events, RoutesChanged); e != RoutesChanged; { // links may still be coming up
			e = await(t, events, RoutesChanged)
		}
	}
	ns.ip("link add marker type bridge")
	told := 0
	for {
		messages, _, err := monitor.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range messages {
			if m.Header.Type != unix.RTM_NEWLINK {
				if e, _ := c.classify(messages[i : i+1]); e != 0 {
					told++
				}
				continue
			}
			if link, err := decodeLink(m.Data); err != nil {
				t.Fatal(err)
			} else if link.Name == "marker" {
				if told != 2 {
					t.Errorf("%d messages told of forwarding, want 2: one for each family", told)
				}
				return
			}
		}
	}
}
