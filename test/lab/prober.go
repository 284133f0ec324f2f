package lab

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A ProbeConfig says what to ask all the time.
type ProbeConfig struct {
	// Dial is whom to ask. Its Timeout, half a second when zero here, is also when an unanswered attempt counts as failed.
	// For UDP, its From port is the port that all datagrams come from.
	Dial Dial
	// Rate is attempts per second, up to 1,000; 200 when zero.
	Rate int
	// NoRepeats counts a connection of which a SYN, or what answered it, was lost as a Timeout, however soon the answer came then. So a
	// long Timeout can tell a lost packet from a busy machine.
	NoRepeats bool
	// NewFlows makes each datagram come from a socket of its own, so that each is a new flow to the rules.
	NewFlows bool
}

// A Prober asks at a constant rate: one new connection each time over TCP, or one datagram each time from the same socket
// over UDP, or with NewFlows from a new one. An attempt that takes long does not hold up the next.
type Prober struct {
	ns   *Namespace
	cfg  ProbeConfig
	stop chan struct{}
	done chan struct{} // closed when no attempt is under way any more
	// asked is closed when the last datagram has been sent.
	asked chan struct{}
	once  sync.Once

	mu       sync.Mutex // guards the fields below
	attempts []attempt
	settled  int // all attempts before this one are decided
}

// An attempt is one question. Until it is decided it counts as a timeout.
type attempt struct {
	at      time.Time
	outcome Outcome
	decided bool
	name    string
	// detail is what else is known of a failed one.
	detail string
}

// A Report is what a Prober saw.
type Report struct {
	Attempts int
	// Failures counts what had no answer, by Outcome.
	Failures map[Outcome]int
	// Names counts the answers by who gave them.
	Names map[string]int
	// LongestOutage is the longest time from the first failed attempt of a row to the next that succeeded, or to the last
	// attempt; zero without a failure.
	LongestOutage time.Duration
	// FirstFailure and LastFailure are when these attempts began; the zero Time without a failure.
	FirstFailure, LastFailure time.Time
	// Detail is what else is known of the first failed attempt: its port and time, and how often TCP sent again. Empty for datagrams from one port.
	Detail string
	// Last is when the last attempt with an answer began, by who gave it.
	Last map[string]time.Time
}

// Failed is the number of attempts without an answer.
func (r Report) Failed() int {
	n := 0
	for _, c := range r.Failures {
		n += c
	}
	return n
}

// String returns the report as one line.
func (r Report) String() string {
	if r.Failed() == 0 {
		return fmt.Sprintf("%d attempts, none failed", r.Attempts)
	}
	var kinds []string
	for o, n := range r.Failures {
		kinds = append(kinds, fmt.Sprintf("%d %s", n, o))
	}
	slices.Sort(kinds)
	return fmt.Sprintf("%d attempts, %d failed (%s), longest outage %d ms, the first at %s %s",
		r.Attempts, r.Failed(), strings.Join(kinds, ", "), r.LongestOutage.Milliseconds(), r.FirstFailure.Format("15:04:05.000"), r.Detail)
}

// Probe starts a Prober. Stop it for its report; closing the Lab ends it as well.
func (ns *Namespace) Probe(cfg ProbeConfig) (*Prober, error) {
	if cfg.Rate == 0 {
		cfg.Rate = 200
	}
	if cfg.Dial.Timeout == 0 {
		cfg.Dial.Timeout = 500 * time.Millisecond
	}
	p := &Prober{ns: ns, cfg: cfg, stop: make(chan struct{}), done: make(chan struct{}), asked: make(chan struct{})}
	run := p.runAsks
	if cfg.Dial.Proto == UDP && !cfg.NewFlows {
		c, err := ns.connect(cfg.Dial, 0)
		if err != nil {
			if c != nil {
				c.file.Close()
			}
			return nil, fmt.Errorf("%s: probe %s: %w", ns.name, cfg.Dial.To, err)
		}
		run = func() { p.runUDP(c) }
	}
	if err := ns.lab.track(p); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		run()
	}()
	return p, nil
}

// Close ends the Prober.
func (p *Prober) Close() error {
	p.Stop()
	return nil
}

// Stop ends the Prober, waits until its last attempt is decided, and returns the report. A second Stop returns it again.
func (p *Prober) Stop() Report {
	p.ns.lab.untrack(p)
	p.once.Do(func() { close(p.stop) })
	<-p.done
	return p.Report()
}

// Report returns what there is until now. Attempts under way are left out.
func (p *Prober) Report() Report {
	p.mu.Lock()
	decided := slices.DeleteFunc(slices.Clone(p.attempts), func(a attempt) bool { return !a.decided })
	p.mu.Unlock()
	return summarise(decided)
}

// summarise makes the report of attempts in the order in which they began.
func summarise(attempts []attempt) Report {
	r := Report{Attempts: len(attempts), Failures: map[Outcome]int{}, Names: map[string]int{}, Last: map[string]time.Time{}}
	var since time.Time // the first failure of the row; zero outside of one
	for _, a := range attempts {
		if !since.IsZero() {
			r.LongestOutage = max(r.LongestOutage, a.at.Sub(since))
		}
		if a.outcome == OK {
			since = time.Time{}
			r.Names[a.name]++
			r.Last[a.name] = a.at
			continue
		}
		r.Failures[a.outcome]++
		r.LastFailure = a.at
		if r.FirstFailure.IsZero() {
			r.FirstFailure, r.Detail = a.at, a.detail
		}
		if since.IsZero() {
			since = a.at
		}
	}
	return r
}

// tick calls f at the rate, with the number of the attempt, until Stop. When this process was held up, the attempts that
// it missed are not made up for: they would be a burst.
func (p *Prober) tick(f func(n int)) {
	interval := time.Second / time.Duration(p.cfg.Rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := time.Now()
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			return
		case <-timer.C:
		}
		f(n)
		next = next.Add(interval)
		if late := time.Since(next); late > 10*interval {
			next = next.Add(late)
		}
		timer.Reset(time.Until(next))
	}
}

func (p *Prober) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempts = append(p.attempts, attempt{at: time.Now()})
}

// decide records what became of an attempt; only the first call for an attempt counts.
func (p *Prober) decide(n int, o Outcome, name, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := &p.attempts[n]; !a.decided {
		a.outcome, a.name, a.detail, a.decided = o, name, detail, true
	}
}

// runAsks makes a new socket for each attempt.
func (p *Prober) runAsks() {
	var wg sync.WaitGroup
	p.tick(func(n int) {
		p.begin()
		wg.Go(func() {
			r := p.ns.Ask(p.cfg.Dial)
			if r.Outcome == OK && (r.Repeated == 0 || !p.cfg.NoRepeats) {
				p.decide(n, OK, r.Name, "")
				return
			}
			detail := fmt.Sprintf("(%s; sent again: %d)", r, r.Repeated)
			if r.Outcome == OK {
				r.Outcome = Timeout
			}
			p.decide(n, r.Outcome, "", detail)
		})
	})
	wg.Wait()
}

// runUDP sends numbered datagrams and reads the answers, which repeat the number.
func (p *Prober) runUDP(c *Conn) {
	reader := make(chan struct{})
	go func() {
		defer close(reader)
		p.readAnswers(c)
	}()
	p.tick(func(n int) {
		p.begin()
		if _, err := c.file.Write([]byte(strconv.Itoa(n))); err != nil {
			p.decide(n, classify(err), "", "")
		}
		p.expire(p.cfg.Dial.Timeout)
	})
	close(p.asked)
	wait := p.cfg.Dial.Timeout
	if p.finished() {
		wait = 0
	}
	// A deadline that cannot be set belongs to a closed file, at which the reader ends as well.
	_ = c.file.SetReadDeadline(time.Now().Add(wait))
	<-reader
	p.expire(0)
	c.file.Close()
}

// readAnswers decides attempts by their answers until the socket's deadline. An ICMP error does not say which datagram it
// is about; the oldest undecided one is it, as errors come in order.
func (p *Prober) readAnswers(c *Conn) {
	buf := make([]byte, 2048)
	for !p.finished() {
		n, err := c.file.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			p.decideOldest(classify(err))
		default:
			p.answered(string(buf[:n]))
		}
	}
}

func (p *Prober) answered(text string) {
	name, _, err := parseAnswer(text)
	number, errNumber := strconv.Atoi(text[strings.LastIndexByte(text, ' ')+1:])
	if err != nil || errNumber != nil {
		return // not of a lab server; the attempt stays undecided and becomes a timeout
	}
	p.decide(number, OK, name, "")
}

// finished tells whether the last datagram has been sent and nothing is under way. That the Prober was stopped is not enough: one more
// may be on its way.
func (p *Prober) finished() bool {
	select {
	case <-p.asked:
	default:
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.undecided() == len(p.attempts)
}

// decideOldest decides the oldest attempt that is under way, if there is one.
func (p *Prober) decideOldest(o Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := p.undecided(); i < len(p.attempts) {
		p.attempts[i].outcome, p.attempts[i].decided = o, true
	}
}

// expire decides the attempts that are under way for longer than an age.
func (p *Prober) expire(age time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := p.undecided(); i < len(p.attempts) && time.Since(p.attempts[i].at) > age; i = p.undecided() {
		p.attempts[i].outcome, p.attempts[i].decided = Timeout, true
	}
}

// undecided is the number of the oldest attempt under way, or of the next one. The caller holds mu.
func (p *Prober) undecided() int {
	for p.settled < len(p.attempts) && p.attempts[p.settled].decided {
		p.settled++
	}
	return p.settled
}
