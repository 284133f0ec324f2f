package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/routes/bgp/process"
	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "-announcer") || slices.Contains(os.Args, process.Command) { // processes of the part bgp
		main()
		os.Exit(0)
	}
	os.Exit(lab.Main(m))
}

// small is a run of everything that takes seconds.
func small(t *testing.T) options {
	o, err := parseFlags(strings.Fields("-services 20 -full 1 -rounds 1 -changes 2 -churn 8 -rest 100ms -slices 1 -nodes 30 -vips 20 -storm 300ms -contenders fairway-legacy,kube-proxy-nft,kube-proxy-nftables"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestSmallRun(t *testing.T) {
	lab.Require(t)
	var out bytes.Buffer
	if err := run(context.Background(), small(t), &out); err != nil {
		t.Fatal(err)
	}
	tables := 0
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "| ---") {
			tables++
		}
		if strings.Contains(line, "unfinished") || strings.Contains(line, "–") && !strings.HasPrefix(line, "| no rules") {
			t.Errorf("a figure is missing: %s", line)
		}
	}
	if tables != 8 {
		t.Errorf("%d tables, want planning, two kernels, routes, BGP, contenders, rates and times", tables)
	}
	if t.Failed() {
		t.Log(out.String())
	}
	nothingLeft(t)
}

// A storm leaves some Services with their endpoints and some without, or waiting for its last state would prove nothing.
func TestStorm(t *testing.T) {
	has := afterStorm(100, stormy(100, 1000))
	if !slices.Contains(has, true) || !slices.Contains(has, false) {
		t.Errorf("after it, %v", has)
	}
}

// A run that is interrupted while contenders run leaves nothing, and tells.
func TestInterruptedRun(t *testing.T) {
	lab.Require(t)
	o := small(t)
	o.only, o.rest = []string{partContenders}, time.Hour
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, o, &bytes.Buffer{}) }()
	err := lab.Eventually(5*time.Minute, func() error {
		if len(meters(t)) == 0 {
			return errors.New("no contender runs")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, errInterrupted) {
		t.Errorf("got %v, want %v", err, errInterrupted)
	}
	nothingLeft(t)
}

func nothingLeft(t *testing.T) {
	t.Helper()
	left := meters(t)
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		found, err := filepath.Glob(fmt.Sprintf("%s/fw%d-[0-9]*", dir, os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// meters lists the cgroups of this process's meters.
func meters(t *testing.T) []string {
	t.Helper()
	parent, err := ownCgroup()
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(fmt.Sprintf("%s/fairway-bench-%d-*", parent, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestFollowerSeesPlacesThatItMissed(t *testing.T) {
	f := &follower{places: map[netip.Addr]int{}}
	var at []int
	for i := range 4 {
		at = append(at, f.expect(place(i).Addr))
	}
	first, second := time.Unix(1, 0), time.Unix(2, 0)
	f.note(place(0).Addr, first, true)
	f.note(place(2).Addr, second, true) // place 1 was there for a moment only
	f.note(place(0).Addr, second.Add(1), true)
	f.note(netip.Addr{}, second, false)
	for i, want := range []time.Time{first, second, second, {}} {
		if got, _ := f.at(at[i]); !got.Equal(want) {
			t.Errorf("place %d was reached at %v, want %v", i, got, want)
		}
	}
	if f.lost != 1 {
		t.Errorf("%d connections were lost, want 1", f.lost)
	}
}

func TestQuantile(t *testing.T) {
	var s sample
	for i := range 100 {
		s.add(time.Duration(99 - i))
	}
	for part, want := range map[float64]time.Duration{0: 0, 0.1: 10, 0.5: 50, 0.99: 99, 1: 99} {
		if got := s.quantile(part); got != want {
			t.Errorf("quantile %v is %d, want %d", part, got, want)
		}
	}
}

// Every endpoint is where a stage has somebody who answers.
func TestEndpointsOfStage(t *testing.T) {
	s := madeUp(10_000, 5)
	seen := map[netip.Addr]bool{}
	for _, svc := range s.Services {
		if vip := svc.ClusterIPs[0]; seen[vip] || vip == serviceCIDR.Addr().Next() {
			t.Errorf("%s has the address %s of another", svc.Name, vip)
		}
		seen[svc.ClusterIPs[0]] = true
		here := map[netip.Addr]bool{}
		for _, e := range svc.Slices[0].Endpoints {
			if b := e.Addr.As4(); here[e.Addr] || b[2] == 0 && (b[3] < 2 || b[3] > lastEndpoint) {
				t.Errorf("%s has the endpoint %s", svc.Name, e.Addr)
			}
			here[e.Addr] = true
		}
	}
}
