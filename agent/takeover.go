package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// TakeoverOptions are settings of a takeover and of the way back.
type TakeoverOptions struct {
	// Config has the address at which the node's agent serves /readyz.
	Config Config
	// Stopped: the operator says that no kube-proxy runs, where the host's processes can't be seen.
	Stopped bool
	// EndIPVS: connections that go through IPVS may end.
	EndIPVS bool
}

// Takeover removes what kube-proxy, in whatever mode, left in this node's kernel and what the agent replaces, once the agent's own
// rules are there, and says what it removes. It refuses while a kube-proxy runs, and when the agent is not ready. It needs no
// API. A second Takeover finds nothing to do.
func Takeover(ctx context.Context, o TakeoverOptions, out io.Writer) error {
	if err := refuseToTake(o); err != nil {
		return err
	}
	ready, err := askAgent(ctx, o.Config.HealthzBindAddress)
	if err != nil {
		return err
	}
	if err := ready.serving(ctx); err != nil {
		return err
	}
	left, err := netfilter.FindLeftovers(ctx, ready.IPTables)
	if err != nil {
		return err
	}
	keepIPVS := left.HasIPVS() && left.EstablishedIPVS() > 0 && !o.EndIPVS
	steps := left.Steps(!keepIPVS)
	if len(steps) == 0 {
		fmt.Fprintln(out, "There is nothing of kube-proxy's left to remove.")
	}
	for i, s := range steps {
		if err := refuseToTake(o); s.Canaries && err != nil {
			return err
		}
		fmt.Fprintf(out, "%d. %s\n", i+1, s.What)
		if err := s.Do(ctx); err != nil {
			return err
		}
	}
	if left, err = netfilter.FindLeftovers(ctx, ready.IPTables); err != nil {
		return err
	}
	for _, remark := range left.Remarks() {
		fmt.Fprintln(out, "#", remark)
	}
	if keepIPVS {
		return fmt.Errorf("%d connections still go through IPVS and would end: its virtual services, interface and ipsets stay; run this again later, or with --end-ipvs-connections", left.EstablishedIPVS())
	}
	return nil
}

// refuseToTake is an error while a kube-proxy runs, or might.
func refuseToTake(o TakeoverOptions) error {
	n, err := findNeighbours("/proc")
	if err != nil {
		return err
	}
	return n.refuseKubeProxies(o.Stopped)
}

// askAgent asks this node's agent where it stands. An agent that is not ready is an error.
func askAgent(ctx context.Context, healthz string) (r readiness, err error) {
	if healthz == "" {
		return r, errors.New("the agent serves no /readyz (healthzBindAddress: none), so it can't say whether its rules are in the kernel")
	}
	url := "http://" + reachable(healthz) + "/readyz"
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s does not say that fairway's rules are in the kernel: %w; nothing was removed", url, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return r, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return r, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&r); err != nil || r.IPTables == "" {
		return r, fmt.Errorf("the answer (%s) is not fairway's", res.Status)
	}
	if !r.Ready {
		return r, fmt.Errorf("the agent is not ready yet: %s", r.lags())
	}
	return r, nil
}

// reachable is the address at which a server that listens at an address is reached from the same machine.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}

// lags says what keeps an agent from being ready.
func (r readiness) lags() string {
	for name, p := range r.Parts {
		if p.Error != "" {
			return fmt.Sprintf("%s: %s", name, p.Error)
		}
		if p.Programmed != r.Revision {
			return fmt.Sprintf("%s has revision %d of %d", name, p.Programmed, r.Revision)
		}
	}
	return "it has not seen the cluster"
}

// serving is an error unless the kernel leads packets to the agent's rules, in every family that it serves: what it read last may be
// a while ago.
func (r readiness) serving(ctx context.Context) error {
	b, err := netfilter.Inspect(ctx, r.IPTables)
	if err != nil {
		return err
	}
	for _, f := range cluster.Families {
		if _, served := r.Parts[rulesPrefix+f.String()]; !served {
			continue
		}
		have, err := b.Look(ctx, f)
		if err != nil {
			return err
		}
		if !have.Serving() {
			return fmt.Errorf("the agent says that its %s rules are in iptables-%s, but they are not; nothing was removed", f, r.IPTables)
		}
	}
	return nil
}

// How long GiveBack waits for kube-proxy, which looks for its canaries every syncPeriod (30 s by default), and how often it looks.
const (
	canaryPatience = 3 * time.Minute
	canaryPause    = 200 * time.Millisecond
)

// GiveBack hands the rules over to a kube-proxy in iptables mode that runs, after the agent has stopped: kube-proxy writes everything
// anew, and what it does not sweep of ours goes. Until then what is there goes on working.
func GiveBack(ctx context.Context, o TakeoverOptions, out io.Writer) error {
	n, err := findNeighbours("/proc")
	switch {
	case err != nil:
		return err
	case len(n.agents) > 0:
		return fmt.Errorf("an agent of fairway still runs (pid %s) and would take the rules back: stop it first", pids(n.agents))
	case len(n.kubeProxies) == 0 && !n.partial:
		return errors.New("no kube-proxy runs: start it first; fairway's rules are left in place until then (fairway cleanup removes them)")
	}
	if _, err := askAgent(ctx, o.Config.HealthzBindAddress); err == nil {
		return errors.New("an agent of fairway still answers at /readyz and would take the rules back: stop it first")
	}
	for _, p := range n.kubeProxies {
		if p.Mode == "nftables" || p.Mode == "ipvs" {
			return fmt.Errorf("kube-proxy runs: %s; that mode has rules of its own and takes none over: fairway cleanup removes fairway's", p)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, canaryPatience)
	defer cancel()
	h, err := findHandover(ctx)
	if err != nil {
		return err
	}
	if err := h.Prompt(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "1. removed the chains by which kube-proxy notices a flush, so that it writes all of its rules:", strings.Join(h.Families(), ", "))
	if err := waitUntil(ctx, h.Done); err != nil {
		return fmt.Errorf("kube-proxy does not write its rules anew: %w", err)
	}
	fmt.Fprintln(out, "2. kube-proxy has written them")
	removed, err := h.Sweep(ctx)
	fmt.Fprintf(out, "3. removed %d chains of fairway's that kube-proxy does not look for\n", removed)
	return err
}

// findHandover waits until there is a canary; kube-proxy makes them soon after it starts.
func findHandover(ctx context.Context) (h *netfilter.Handover, err error) {
	found := waitUntil(ctx, func(ctx context.Context) (bool, error) {
		h, err = netfilter.FindHandover(ctx)
		return err == nil && len(h.Families()) > 0, err
	})
	if found != nil {
		return nil, fmt.Errorf("kube-proxy has made none of its chains: %w", found)
	}
	return h, nil
}

// waitUntil asks again and again.
func waitUntil(ctx context.Context, done func(context.Context) (bool, error)) error {
	for {
		yes, err := done(ctx)
		if yes || err != nil {
			return err
		}
		if !sleep(ctx, canaryPause) {
			return ctx.Err()
		}
	}
}
