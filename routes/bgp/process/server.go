package process

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// Command is the argument with which the program is to call Main.
const Command = "bgp-speaker"

const (
	// inherited is the child's end of the socket pair.
	inherited = 3
	// shortName is the child's name where there is room for no more than 15 bytes, as in ps -e and top.
	shortName = "fairway-bgp"
	// gcPercent is half of Go's own default: what a speaker has in use hardly changes, as with the agent.
	gcPercent = 50
	// oomDistance is by how much more readily than the agent the kernel ends the child when memory is short, in thousandths of the
	// memory: so much more than the agent may have in use.
	oomDistance = 100
)

// Main is the child: it serves the agent that has started it, until that ends or closes its end. Without such an agent it is an error.
func Main() error {
	// It is the agent that decides when this process ends; it sees a terminal's signals, too.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	c, err := inheritedConn()
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if err := os.WriteFile("/proc/self/comm", []byte(shortName), 0); err != nil {
		klog.V(2).InfoS("The BGP process has no name of its own", "err", err)
	}
	if err := dieFirst("/proc/self/oom_score_adj"); err != nil {
		klog.V(2).InfoS("The kernel spares the BGP process as it does the agent", "err", err)
	}
	return serve(c)
}

func inheritedConn() (*conn, error) {
	kind, err := unix.GetsockoptInt(inherited, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || kind != unix.AF_UNIX {
		return nil, errors.New(Command + " is a part of the agent, which starts it itself; there is nothing to start it for by hand")
	}
	return newConn(os.NewFile(inherited, Command))
}

// dieFirst has the kernel end this process before the one that it got its value from; see proc_pid_oom_score_adj(5). To raise the value
// takes no privilege.
func dieFirst(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strconv.Itoa(min(score+oomDistance, 1000))), 0)
}

// What can be called: the methods of a speaker.Speaker, and what each is asked.
const (
	methodSync     = "Sync"     // syncCall → speaker.Result
	methodSessions = "Sessions" // nothing → []speaker.Session
	methodReceived = "Received" // []bgp.ImportRange → []bgp.Received
	methodRoutes   = "Routes"   // routesCall → []speaker.Route
	methodLeave    = "Leave"    // time.Duration → int
	methodClose    = "Close"    // time.Duration → nothing
)

// A syncCall is a Table without its paths, with the steps to these from those of the last one, and the verbosity of the log.
type syncCall struct {
	Table           bgp.Table
	Paths, Draining []step
	Verbosity       int
}

type routesCall struct {
	Peer      netip.Addr
	Direction speaker.Direction
}

// news are what the speaker tells without being asked.
type news struct {
	// Changed are sessions that came up or went down, in that order.
	Changed []change
	// Received tells that peers may announce something else.
	Received bool
}

type change struct {
	Peer netip.Addr
	Up   bool
}

// A server is the child's end.
type server struct {
	conn    *conn
	speaker *speaker.Speaker
	// table is the last Table; only Syncs use it, which come one after the other.
	table     bgp.Table
	verbosity int

	mu   sync.Mutex // guards news
	news news
	// more holds an element while there are news.
	more chan struct{}
}

// serve answers until the other end is closed.
func serve(c *conn) error {
	s := &server{conn: c, more: make(chan struct{}, 1), verbosity: verbosity()}
	s.speaker = speaker.New(s.changed, s.heard)
	go s.tell()
	for {
		h, body, err := c.read()
		if err != nil {
			// The agent has ended or wants this to end; when its last frame is cut off, it was killed. There is nobody to tell.
			return nil
		}
		go s.answer(h, body)
	}
}

// answer answers a call.
func (s *server) answer(h header, body *reader) {
	var result any
	var err error
	switch h.Method {
	case methodSync:
		result, err = handle(body, s.sync)
	case methodSessions:
		result, err = handle(body, func(struct{}) ([]speaker.Session, error) { return s.speaker.Sessions(), nil })
	case methodReceived:
		result, err = handle(body, s.speaker.Received)
	case methodRoutes:
		result, err = handle(body, func(q routesCall) ([]speaker.Route, error) { return s.speaker.Routes(q.Peer, q.Direction) })
	case methodLeave:
		result, err = handle(body, s.speaker.Leave)
	case methodClose:
		result, err = handle(body, func(patience time.Duration) (struct{}, error) { return struct{}{}, s.speaker.Close(patience) })
	default:
		panic("process: an unknown method " + h.Method)
	}
	_ = s.conn.write(header{Call: h.Call, Failure: newFailure(err)}, result, time.Time{}) // without a reader this process ends
}

// handle calls a function with what a body holds, and returns a pointer to what it returned.
func handle[Q, A any](body *reader, f func(Q) (A, error)) (*A, error) {
	var q Q
	if err := body.get(&q); err != nil {
		panic(fmt.Sprintf("process: a %T can't be read: %v", q, err)) // both ends are of one build
	}
	a, err := f(q)
	return &a, err
}

func (s *server) sync(q syncCall) (result speaker.Result, err error) {
	paths, err := follow(s.table.Paths, q.Paths)
	draining, drainErr := follow(s.table.Draining, q.Draining)
	if err := errors.Join(err, drainErr); err != nil {
		panic("process: " + err.Error())
	}
	s.table = q.Table
	s.table.Paths, s.table.Draining = paths, draining
	if q.Verbosity != s.verbosity {
		var v klog.Level
		if err := v.Set(strconv.Itoa(q.Verbosity)); err != nil {
			return result, err
		}
		s.verbosity = q.Verbosity
	}
	return s.speaker.Sync(&s.table)
}

// changed and heard are told by the speaker, and must not block.
func (s *server) changed(peer netip.Addr, up bool) {
	s.mu.Lock()
	s.news.Changed = append(s.news.Changed, change{peer, up})
	s.mu.Unlock()
	s.signal()
}

func (s *server) heard() {
	s.mu.Lock()
	s.news.Received = true
	s.mu.Unlock()
	s.signal()
}

func (s *server) signal() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// tell sends the news, those that come while others are sent together.
func (s *server) tell() {
	for range s.more {
		s.mu.Lock()
		n := s.news
		s.news = news{}
		s.mu.Unlock()
		if s.conn.write(header{}, &n, time.Time{}) != nil {
			return // without a reader this process ends
		}
	}
}
