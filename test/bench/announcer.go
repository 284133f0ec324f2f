package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/process"
)

const (
	nodesASN, routerASN = 64512, 64500
	// stormRate is how often a second what should be announced changes in a storm.
	stormRate = 1000
)

// routerAddr is the router's address on the nodes' network.
var routerAddr = netip.MustParseAddr("10.0.255.1")

// An announcer is the part of an agent that decides and announces, in a process of its own: Plans are made of Snapshots of the
// cluster and told by a speaker, which has a process of its own again. There are no rules in a kernel that would have to come first.
type announcer struct {
	speaker  *process.Speaker
	config   agent.Config
	snapshot *cluster.Snapshot // with the endpoints of all Services
	plan     *agent.Plan
}

// runAnnouncer obeys the commands that it reads, a line each, until there are no more:
//
//	some N      announce the addresses of the first N Services; it answers "done"
//	storm D N   for the time D, change what is announced, stormRate times a second; it answers "done" and how many Plans it told
func runAnnouncer(services int, in io.Reader, out io.Writer) error {
	c := config()
	c.BGP = &bgp.Config{NodeName: c.NodeName, ASN: nodesASN,
		Peers: []bgp.PeerConfig{{Peer: bgp.Peer{Address: routerAddr, Port: 179, ASN: routerASN, Families: [2]bool{true, false},
			HoldTime: 30 * time.Second, KeepaliveTime: 10 * time.Second, ConnectRetryTime: time.Second, RestartTime: 2 * time.Minute}}},
		Announce: []bgp.Announcement{{Kinds: []bgp.Kind{bgp.PodCIDRs, bgp.ClusterIPs}, Attributes: bgp.Attributes{LocalPref: bgp.DefaultLocalPref}}}}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // as the agent does once everything is programmed
	}
	a := &announcer{speaker: process.New(process.Options{Changed: func(netip.Addr, bool) {}, Received: func() {}}), config: c, snapshot: madeUp(services, 1)}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var n, plans int
		var took time.Duration
		var text string
		var err error
		if _, scanned := fmt.Sscanf(lines.Text(), "some %d", &n); scanned == nil {
			err = a.tell(a.some(n))
		} else if _, scanned = fmt.Sscanf(lines.Text(), "storm %s", &text); scanned == nil {
			if took, err = time.ParseDuration(text); err == nil {
				plans, err = a.storm(int(took.Seconds() * stormRate))
			}
		} else {
			err = errors.New("an unknown command: " + lines.Text())
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "done", plans)
	}
	return lines.Err()
}

// tell announces what a Snapshot calls for.
func (a *announcer) tell(s *cluster.Snapshot) error {
	a.plan = agent.MakePlan(s, a.config, agent.Offline, a.plan)
	_, err := a.speaker.Sync(a.plan.BGP)
	return err
}

// some is the Snapshot in which the first n Services have endpoints.
func (a *announcer) some(n int) *cluster.Snapshot {
	s := *a.snapshot
	s.Services = slices.Clone(s.Services)
	for i := n; i < len(s.Services); i++ {
		s.Services[i] = without(s.Services[i])
	}
	return &s
}

// without is a Service without its endpoints.
func without(svc *cluster.Service) *cluster.Service {
	empty := *svc
	empty.Slices = nil
	return &empty
}

// stormy returns which Service each of the changes of a storm is of: it loses its endpoints, or gets them back.
func stormy(services, changes int) []int {
	r := rand.New(rand.NewPCG(1, 2))
	list := make([]int, changes)
	for i := range list {
		list[i] = r.IntN(services)
	}
	return list
}

// afterStorm tells which Services have endpoints after the changes, when all had before.
func afterStorm(services int, changes []int) []bool {
	has := make([]bool, services)
	for i := range has {
		has[i] = true
	}
	for _, i := range changes {
		has[i] = !has[i]
	}
	return has
}

// storm publishes changes at stormRate, as a source does, while Plans are made of what is the latest then, and told. After each
// there is a rest as long as it took, as the agent's loop has it. It returns how many there were; the last one is of all changes.
func (a *announcer) storm(n int) (plans int, err error) {
	var mu sync.Mutex
	services := slices.Clone(a.snapshot.Services) // guarded by mu
	latest := func() *cluster.Snapshot {
		mu.Lock()
		defer mu.Unlock()
		s := *a.snapshot
		s.Services = slices.Clone(services)
		return &s
	}
	wake := make(chan struct{}, 1)
	go func() {
		defer close(wake)
		start := time.Now()
		for i, at := range stormy(len(services), n) {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / stormRate)))
			mu.Lock()
			if full := a.snapshot.Services[at]; services[at] == full {
				services[at] = without(full)
			} else {
				services[at] = full
			}
			mu.Unlock()
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}()
	for range wake {
		start := time.Now()
		if err := a.tell(latest()); err != nil {
			return plans, err
		}
		plans++
		time.Sleep(time.Since(start))
	}
	return plans + 1, a.tell(latest())
}
