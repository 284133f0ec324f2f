package healthd

import (
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fairway-net/fairway/proxy"
)

// limits are what a client may take.
type limits struct {
	// request and answer bound how long a request may take to arrive, and its answer to be taken; idle bounds the pause
	// between two requests on one connection.
	request, answer, idle time.Duration
	header                int // bytes
}

// The ports are open to everybody who reaches the node, so nobody may hold a connection that asks nothing. But load
// balancers that ask over and over on one connection, as kube-proxy lets them, should find it open the next time: the pause
// may be longer than the usual interval of half a minute or less.
var defaultLimits = limits{request: 10 * time.Second, answer: 10 * time.Second, idle: 2 * time.Minute, header: 16 << 10}

// A server answers at one address and port.
type server struct {
	listener net.Listener
	http     *http.Server
	healthy  func() bool
	state    atomic.Pointer[state]
	// done is closed when the server accepts no more connections.
	done chan struct{}
}

// A state is what a server answers with.
type state struct {
	namespace, name string
	endpoints       int
}

// serve answers on a listener, which becomes its own.
func serve(l net.Listener, c proxy.HealthCheck, healthy func() bool, may limits) *server {
	s := &server{listener: l, healthy: healthy, done: make(chan struct{})}
	s.set(c)
	s.http = &http.Server{Handler: s, ReadTimeout: may.request, WriteTimeout: may.answer, IdleTimeout: may.idle, MaxHeaderBytes: may.header}
	go func() {
		defer close(s.done)
		// It ends when it is stopped, or when the listener is broken; then the next Sync replaces it.
		_ = s.http.Serve(l)
	}()
	return s
}

func (s *server) set(c proxy.HealthCheck) {
	s.state.Store(&state{c.Service.Namespace, c.Service.Name, c.LocalEndpoints})
}

// ended tells whether the server has stopped by itself.
func (s *server) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// stop frees the port before it returns. A request that was under way is answered, with no endpoints; how long that may
// take is bounded by the timeouts.
func (s *server) stop() {
	gone := *s.state.Load()
	gone.endpoints = 0
	s.state.Store(&gone)
	s.listener.Close()
	<-s.done
	// This closes the connections that wait for another request, and has the others closed after their answer. (Shutdown
	// would not answer a request whose header is not complete yet.)
	s.http.SetKeepAlivesEnabled(false)
}

// An answer is the body, in kube-proxy's form.
type answer struct {
	Service             service `json:"service"`
	LocalEndpoints      int     `json:"localEndpoints"`
	ServiceProxyHealthy bool    `json:"serviceProxyHealthy"`
}

type service struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// ServeHTTP implements http.Handler, for any path and method.
func (s *server) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	now, healthy := s.state.Load(), s.healthy()
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(now.endpoints))
	code := http.StatusServiceUnavailable
	if now.endpoints > 0 && healthy {
		code = http.StatusOK
	}
	w.WriteHeader(code)
	body, err := json.MarshalIndent(answer{service{now.namespace, now.name}, now.endpoints, healthy}, "", "\t")
	if err != nil {
		panic("healthd: an answer that is no JSON: " + err.Error())
	}
	// An error means that the client has gone.
	_, _ = w.Write(body)
}
