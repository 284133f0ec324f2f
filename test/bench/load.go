package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// A target is what connections are opened to.
type target int

const (
	aPod target = iota // on another node, by its own address
	firstService
	lastService
	anyService // another one each time
	targets
)

var targetNames = [targets]string{"a pod's address", "the first service", "the last service", "random services"}

const (
	// loadTime is for how long connections are opened to one target before it is another one's turn.
	loadTime = 200 * time.Millisecond
	// batchSize is how many connections are open at once.
	batchSize = 64
	// connectTries is net.ipv4.tcp_syn_retries of the client: a connection without an answer fails after 3 s.
	connectTries = "1"
)

// The stages without a contender, which the others are compared with.
const (
	withoutRules = "no rules"
	trackingOnly = "no rules, but connection tracking"
)

// A load is what came of the connections on one stage.
type load struct {
	who   string
	ends  *ends
	to    [targets][]netip.AddrPort // nothing: this target is not for this stage
	rates [targets][]float64        // connections for each second of the client's, by turn
	parts [targets][]float64        // of the rate of the same turn to a pod without rules
	times [targets]sample           // of connect
}

// measureLoads opens connections on all stages, which take turns, target by target.
func (w *world) measureLoads(b beside, stages map[contender]*stage, o options) (loads []*load, err error) {
	progress("connections with %d Services", b.services)
	for _, name := range []string{withoutRules, trackingOnly} {
		s, err := newStage(true)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		if name == trackingOnly {
			// Any rule of the nat table brings connection tracking.
			if err := s.node.Restore(lab.Legacy, cluster.IPv4, "*nat\n-A POSTROUTING -d 192.0.2.1/32 -j MASQUERADE\nCOMMIT\n", true); err != nil {
				return nil, err
			}
		}
		loads = append(loads, &load{who: name, ends: &s.ends})
	}
	for _, c := range o.contenders {
		if b.by[c].unfinished {
			continue
		}
		l := &load{who: c.name, ends: &stages[c].ends}
		if err := w.aim(l, c, stages[c]); err != nil {
			return nil, err
		}
		loads = append(loads, l)
	}
	for _, l := range loads {
		l.to[aPod] = []netip.AddrPort{netip.AddrPortFrom(place(1000).Addr, targetPort)}
		if err := l.ends.client.Sysctl("net.ipv4.tcp_syn_retries", connectTries); err != nil {
			return nil, err
		}
	}
	for range o.slices {
		if err := w.turn(loads); err != nil {
			return nil, err
		}
	}
	return loads, nil
}

// turn loads each target of each stage once. The first stage is the one without rules, and its first target the pod.
func (w *world) turn(loads []*load) error {
	for t := range targets {
		for _, l := range loads {
			if len(l.to[t]) == 0 {
				continue
			}
			if err := interrupted(w.ctx); err != nil {
				return err
			}
			rate, times, err := l.ends.open(l.to[t])
			if err != nil {
				return fmt.Errorf("%s, connections to %s: %w", l.who, targetNames[t], err)
			}
			l.rates[t] = append(l.rates[t], rate)
			l.times[t] = append(l.times[t], times...)
			bare := loads[0].rates[aPod]
			l.parts[t] = append(l.parts[t], rate/bare[len(bare)-1])
		}
	}
	return nil
}

// open opens connections for a time, to the places in turn. It returns how many there were for each second of the client's, and how
// long each connect took.
//
// The client's time is what its thread used of a processor to open and close them. That is the packets' whole way, as they cross
// all links within the client's system calls; and it does not depend on what else the machine does.
func (e *ends) open(to []netip.AddrPort) (rate float64, times sample, err error) {
	runtime.GC() // not in between
	err = e.client.Do(func() error {
		return preferred(func() error {
			var used time.Duration
			for start := time.Now(); time.Since(start) < loadTime; {
				batch, took, err := e.batch(to, len(times))
				if err != nil {
					return err
				}
				used += took
				times = append(times, batch...)
			}
			if used < times.quantile(0.5)*time.Duration(len(times))/2 {
				return errors.New("this kernel does not count the handling of packets as the time of a thread (CONFIG_IRQ_TIME_ACCOUNTING)")
			}
			rate = float64(len(times)) / used.Seconds()
			return nil
		})
	})
	return rate, times, err
}

// batch opens some connections, the first of them to the place of a number, and closes them. It returns the time of each connect, and
// the client's time for everything. Taking the connections is the server's time, which does not count.
func (e *ends) batch(to []netip.AddrPort, number int) (times sample, used time.Duration, err error) {
	var clients, servers []int
	defer func() {
		for _, fd := range slices.Concat(clients, servers) {
			_ = unix.Close(fd) // nothing was written
		}
	}()
	begin := threadTime()
	for i := range batchSize {
		fd, took, err := connect(to[(number+i)%len(to)])
		if err != nil {
			return nil, 0, err
		}
		clients, times = append(clients, fd), append(times, took)
	}
	used = threadTime() - begin
	for start := time.Now(); len(servers) < len(clients); {
		fd, _, err := e.accept()
		switch {
		case err == nil:
			servers = append(servers, fd)
		case !errors.Is(err, unix.EAGAIN):
			return nil, 0, err
		case time.Since(start) > time.Second: // the last packet of a handshake may be on its way
			return nil, 0, fmt.Errorf("of %d connections, %d came to no server", len(clients), len(clients)-len(servers))
		}
	}
	begin = threadTime()
	for _, fd := range clients {
		_ = unix.Close(fd)
	}
	clients = nil
	return times, used + threadTime() - begin, nil
}

// connect opens a connection. It returns how long connect took.
func connect(to netip.AddrPort) (fd int, took time.Duration, err error) {
	if fd, err = clientSocket(0); err != nil {
		return -1, 0, err
	}
	start := time.Now()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return -1, 0, errors.Join(fmt.Errorf("connect to %s: %w", to, err), unix.Close(fd))
	}
	return fd, time.Since(start), nil
}

// threadTime is the processor time of this thread.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic("bench: clock_gettime: " + err.Error()) // only wrong arguments fail
	}
	return time.Duration(t.Nano())
}

// aim finds out what the first and the last Service of a contender's rules are.
func (w *world) aim(l *load, c contender, s *stage) error {
	fronts, err := w.inOrder(c, s)
	if err != nil {
		return err
	}
	l.to[firstService], l.to[lastService] = fronts[:1], fronts[len(fronts)-1:]
	l.to[anyService] = slices.Clone(fronts)
	rand.Shuffle(len(fronts), func(i, j int) { l.to[anyService][i], l.to[anyService][j] = l.to[anyService][j], l.to[anyService][i] })
	return nil
}

// flat is a rule of kube-proxy's list of all Services.
var flat = regexp.MustCompile(`(?m)^-A KUBE-SERVICES -d (\S+)/32 .* --dport 80 -j KUBE-SVC-`)

// inOrder returns the Services' addresses in the order in which a packet is compared with them, where the rules are
// one list; else in that of their addresses.
func (w *world) inOrder(c contender, s *stage) ([]netip.AddrPort, error) {
	ours := map[string]bool{}
	var fronts []netip.AddrPort
	for _, svc := range w.snapshot.Services {
		ours[svc.ClusterIPs[0].String()] = true
		fronts = append(fronts, netip.AddrPortFrom(svc.ClusterIPs[0], 80))
	}
	slices.SortFunc(fronts, netip.AddrPort.Compare)
	if c.mode == "nftables" {
		return fronts, nil
	}
	text, err := s.node.Save(c.backend, cluster.IPv4, "nat")
	if err != nil {
		return nil, err
	}
	var listed []netip.AddrPort
	for _, m := range flat.FindAllStringSubmatch(text, -1) {
		if ours[m[1]] {
			listed = append(listed, netip.AddrPortFrom(netip.MustParseAddr(m[1]), 80))
		}
	}
	if len(listed) == len(fronts) {
		return listed, nil
	}
	if c.mode != "" || strings.Count(text, "\n-A KUBE-SERVICES ") > len(fronts)/2 {
		return nil, fmt.Errorf("KUBE-SERVICES of %s lists %d Services of %d", c.name, len(listed), len(fronts))
	}
	return fronts, nil
}
