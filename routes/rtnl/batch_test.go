package rtnl

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
)

// TestManyWithRefused: of many routes that are created, and then replaced, with the same messages, the kernel has no way for some. It
// is told which; all others are there.
func TestManyWithRefused(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	want := manyRoutes(t, c, 3*batchSize+1)
	refused := map[netip.Prefix]bool{}
	for i := 0; i < len(want.Routes); i += 7 {
		if r := &want.Routes[i]; r.Dst.Addr().Is4() {
			r.Gateway = netip.MustParseAddr("192.0.2.1") // on no link
			refused[r.Dst] = true
		}
	}
	report, err := c.Sync(context.Background(), want)
	if err != nil {
		t.Fatal(err)
	}
	check := func(done []routes.Route) {
		t.Helper()
		if len(refused) == 0 || len(report.Waiting) != len(refused) || len(report.Notes) != len(refused) || report.Installed != len(want.Routes)-len(refused) {
			t.Fatalf("%d wait with %d notes, and %d of %d are there; expected %d to wait", len(report.Waiting), len(report.Notes), report.Installed, len(want.Routes), len(refused))
		}
		for _, r := range report.Waiting {
			if !refused[r.Dst] {
				t.Errorf("%s waits", r)
			}
		}
		if slices.ContainsFunc(done, func(r routes.Route) bool { return refused[r.Dst] }) {
			t.Error("one that the kernel refused counts as written")
		}
		for _, n := range report.Notes {
			if n.Reason != cluster.ReasonNextHopUnreachable {
				t.Errorf("the note is %+v", n)
			}
		}
	}
	check(report.Added)
	there := len(want.Routes) - len(refused)
	if len(report.Added) != there {
		t.Errorf("%d were added, expected %d", len(report.Added), there)
	}

	for i := range want.Routes {
		if r := &want.Routes[i]; r.Dst.Addr().Is4() && !refused[r.Dst] {
			r.Gateway = netip.MustParseAddr(fmt.Sprintf("10.240.77.%d", 1+i%200))
		}
	}
	if report, err = c.Sync(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	check(report.Replaced)
	if len(report.Replaced) == 0 || len(report.Added) > 0 || len(report.Deleted) > 0 {
		t.Errorf("%d were replaced, %d added, %d deleted", len(report.Replaced), len(report.Added), len(report.Deleted))
	}
	if r := synced(t, c, want); len(r.Added)+len(r.Replaced)+len(r.Deleted) > 0 {
		t.Error("the next one writes again")
	}
}
