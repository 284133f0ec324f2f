package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// A server answers HTTP at one address.
type server struct {
	what, addr string
	// reason is that of the Event that says that the address can't be bound; kube-proxy's.
	reason  string
	handler http.Handler
	// patience is for how long an address that is in use is waited for, and again the pause before run tries anew.
	patience, again time.Duration
	// listener is set by open.
	listener net.Listener
}

// The patience and the pause of an agent's servers, and how often open tries within its patience.
const (
	listenPatience = 5 * time.Second
	serveAgain     = 5 * time.Second
	listenAgain    = 100 * time.Millisecond
)

// open opens the address. An agent that was killed may leave it in use for a moment, by a child that has not got as far
// as exec; and a restart should not have to begin again for that.
func (s *server) open(ctx context.Context) error {
	for end := time.Now().Add(s.patience); ; {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.addr)
		switch {
		case err == nil:
			s.listener = l
			return nil
		case !errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("serve %s: %w", s.what, err)
		case time.Now().After(end) || !sleep(ctx, listenAgain):
			return fmt.Errorf("serve %s: %w; does another agent, or kube-proxy, run on this host?", s.what, err)
		}
	}
}

// serve serves until the context ends, which is no error, or the listener fails.
func (s *server) serve(ctx context.Context) error {
	srv := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", s.what, err)
	}
	return nil
}

// run serves until the context ends, and tries again for as long when that fails. failed is told the first failure after
// the start or a success.
func (s *server) run(ctx context.Context, failed func(*server, error)) error {
	for told := false; ctx.Err() == nil; {
		err := s.open(ctx)
		if err == nil {
			if told {
				klog.InfoS("An address can be bound at last", "what", s.what, "address", s.addr)
			}
			told = false
			err = s.serve(ctx)
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !told {
			failed(s, err)
		}
		told = true
		sleep(ctx, s.again)
	}
	return nil
}

// serveOrFail is run for bindAddressHardFail: it ends with the error of the first failure.
func (s *server) serveOrFail(ctx context.Context, failed func(*server, error)) error {
	err := s.serve(ctx)
	if err != nil && ctx.Err() == nil {
		failed(s, err)
		return err
	}
	return nil
}

// healthHandler serves what kube-proxy serves on port 10256, with the same meaning, and /readyz.
//
//	/livez    200 unless the loop hangs, or a single sync has been running for ten minutes
//	/healthz  200 unless something has been waiting for so long, and 503 while the node is about to go away, so that
//	          load balancers send it nothing new
//	/readyz   200 when the latest state of the cluster is in the kernel, and nothing says that it is not any more
func healthHandler(s *status, m *metrics, now func() time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		code, body := healthBody(s.view(), now(), false)
		m.livez(code)
		answer(w, code, body)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		code, body := healthBody(s.view(), now(), true)
		m.healthz(code)
		answer(w, code, body)
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		code, body := readyBody(s.view(), now())
		answer(w, code, body)
	})
	return mux
}

// familyHealth is one family in the answer of /healthz.
type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// health is the answer of /healthz and /livez, in kube-proxy's form.
type health struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status"`
}

func healthBody(v view, now time.Time, eligibility bool) (int, any) {
	// Whether something waits, fails or is refused is nothing that a restart would mend; /livez is about what hangs.
	h := health{CurrentTime: now, Healthy: !v.stuck(now), Status: map[string]familyHealth{}}
	for name, p := range v.parts {
		ok := v.keepsUp(p, now)
		if eligibility && !withRouters(name) { // routers are told by BGP itself
			h.Healthy = h.Healthy && ok
		}
		family, isRules := strings.CutPrefix(name, rulesPrefix)
		if !isRules {
			continue
		}
		// Before the first success it is when the agent started, as in kube-proxy.
		updated := p.updated
		if updated.IsZero() {
			updated = v.started
		}
		if updated.After(h.LastUpdated) {
			h.LastUpdated = updated
		}
		h.Status[family] = familyHealth{updated, ok}
	}
	eligible := true
	if eligibility {
		eligible = v.node != nil && !v.node.ToBeDeleted // before the first look at the cluster it is not known, and not eligible
		h.NodeEligible = &eligible
	}
	if h.Healthy && eligible {
		h.LastUpdated = now
		return http.StatusOK, h
	}
	return http.StatusServiceUnavailable, h
}

// readiness is the answer of /readyz.
type readiness struct {
	Ready bool `json:"ready"`
	// Stale: what is programmed was saved before a restart, the cluster has not answered yet.
	Stale bool `json:"stale,omitempty"`
	// IPTables is the backend that the rules are in.
	IPTables string                   `json:"iptables"`
	Revision uint64                   `json:"revision"`
	Parts    map[string]partReadiness `json:"parts"`
}

type partReadiness struct {
	Programmed uint64 `json:"programmed"`
	// Verified is the revision that the kernel was known to hold VerifiedAge ago. InDoubt says that somebody has changed it since,
	// perhaps.
	Verified    uint64    `json:"verified"`
	VerifiedAge string    `json:"verifiedAge,omitempty"`
	InDoubt     bool      `json:"inDoubt,omitempty"`
	LastUpdated time.Time `json:"lastUpdated"`
	Error       string    `json:"error,omitempty"`
}

func readyBody(v view, now time.Time) (int, any) {
	r := readiness{Ready: v.ready(), Stale: v.stale(), IPTables: v.iptables, Revision: v.revision, Parts: map[string]partReadiness{}}
	for name, p := range v.parts {
		part := partReadiness{Programmed: p.programmed, Verified: p.programmed, InDoubt: p.doubt, LastUpdated: p.updated}
		if !p.verified.IsZero() {
			part.VerifiedAge = max(0, now.Sub(p.verified)).Round(time.Millisecond).String()
		}
		if p.err != nil {
			part.Error = p.err.Error()
		}
		r.Parts[name] = part
	}
	if !r.Ready {
		return http.StatusServiceUnavailable, r
	}
	return http.StatusOK, r
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	// An error means that the client has gone.
	_ = json.NewEncoder(w).Encode(body)
}

func textHeaders(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
}

// metricsHandler serves what kube-proxy serves on port 10249, as far as it applies; with profiling, also what tells about the
// program itself.
//
//	/metrics    for Prometheus
//	/healthz    ok, for as long as the agent answers; so does /healthz/ping
//	/proxyMode  iptables
//	/configz    the configuration in force, as JSON
//	/statusz    version, start and uptime, and where each part stands, for people
//
// and, with profiling, at /debug/quarantine what iptables-restore was given and said when it refused a Service.
func metricsHandler(m *metrics, c Config, now func() time.Time) http.Handler {
	mux := http.NewServeMux()
	text := func(path, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			textHeaders(w)
			fmt.Fprint(w, body)
		})
	}
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	text("/healthz", "ok")
	text("/healthz/ping", "ok")
	text("/proxyMode", "iptables")
	mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, configz(c)) })
	mux.HandleFunc("/statusz", func(w http.ResponseWriter, _ *http.Request) {
		textHeaders(w)
		fmt.Fprint(w, statusz(m, now()))
	})
	if c.EnableProfiling {
		profile(mux)
		mux.HandleFunc("/debug/quarantine", func(w http.ResponseWriter, _ *http.Request) {
			textHeaders(w)
			fmt.Fprint(w, quarantinez(m.status.view()))
		})
	}
	return mux
}
