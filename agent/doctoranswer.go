package agent

import (
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/doctor"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// doctorPath is where the control socket tells what only the running agent knows.
const doctorPath = "/doctor"

// A patient is what a running agent says of itself from.
type patient struct {
	loop    *loop
	version string
	// lost tells since when the API has not answered; nil where there is none.
	lost func() (time.Time, error)
	// sessions are those of BGP, as bgpPart.sessions returns them.
	sessions func() ([]speaker.Session, error)
	// absent says for each family without iptables what is missing.
	absent map[cluster.Family]string
	// dropsInvalid: the rules drop what conntrack calls INVALID.
	dropsInvalid bool
}

// withDoctor adds what a patient tells to what the control socket answers.
func withDoctor(p *patient, others http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+doctorPath, p)
	mux.Handle("/", others)
	return mux
}

// ServeHTTP answers with a doctor.Agent.
func (p *patient) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, p.tell())
}

// tell says how it stands with the agent.
func (p *patient) tell() doctor.Agent {
	v, config := p.loop.status.view(), p.loop.configuration()
	a := doctor.Agent{Version: p.version, Node: config.NodeName, Started: v.started, Ready: v.ready(), Stale: v.stale(), Revision: v.revision, IPTables: v.iptables,
		Absent: []doctor.Absent{}, Parts: []doctor.Part{}, Repairs: v.repairs, Notes: []doctor.Note{}, BGP: p.bgp(), ClusterCIDRs: config.ClusterCIDRs, DropsInvalid: p.dropsInvalid}
	for _, f := range cluster.Families {
		if why := p.absent[f]; why != "" {
			a.Absent = append(a.Absent, doctor.Absent{Family: f.String(), Why: why})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.parts)) {
		s := v.parts[name]
		part := doctor.Part{Name: name, Programmed: s.programmed, Verified: s.verified, InDoubt: s.doubt, Pending: s.pending, Audited: s.audited}
		if s.err != nil {
			part.Error = s.err.Error()
		}
		a.Parts = append(a.Parts, part)
	}
	for _, n := range v.notes {
		a.Notes = append(a.Notes, doctor.Note{Object: n.Object.String(), Reason: n.Reason, Detail: n.Detail})
	}
	if p.lost != nil {
		a.API = &doctor.API{}
		var err error
		if a.API.Lost, err = p.lost(); err != nil {
			a.API.Error = err.Error()
		} else {
			a.API.Lost = time.Time{}
		}
	}
	if v.plan != nil {
		tellPods(&a, v.plan)
	}
	return a
}

// tellPods adds where this node's pods are, and some of another node.
func tellPods(a *doctor.Agent, p *Plan) {
	a.PodCIDRs = p.Routes.Own
	for i, f := range cluster.Families {
		ours, theirs := endpoints(p.Services[i].Table, a.PodCIDRs)
		if ours.IsValid() {
			a.Pods = append(a.Pods, ours)
		}
		to := func(r routes.Route) bool { return r.Family() == f && r.Link != "" }
		at := slices.IndexFunc(p.Routes.Routes, func(r routes.Route) bool { return to(r) && theirs.IsValid() && r.Dst.Contains(theirs) })
		if at < 0 {
			at, theirs = slices.IndexFunc(p.Routes.Routes, to), netip.Addr{}
		}
		if at >= 0 {
			a.Others = append(a.Others, doctor.Others{Pods: p.Routes.Routes[at].Dst, Pod: theirs, Link: p.Routes.Routes[at].Link})
		}
	}
	if p.Snapshot.Host == nil {
		return
	}
	for _, l := range p.Snapshot.Host.Links {
		for _, pods := range a.PodCIDRs {
			if slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return pods.Contains(a.Addr()) }) && !slices.Contains(a.PodLinks, l.Name) {
				a.PodLinks = append(a.PodLinks, l.Name)
			}
		}
	}
}

// endpoints returns an endpoint of a Service inside of networks and one outside, if there are any; both are not valid without a table.
func endpoints(t *proxy.Table, networks []netip.Prefix) (inside, outside netip.Addr) {
	if t == nil {
		return inside, outside
	}
	for _, port := range t.Ports {
		for _, b := range slices.Concat(port.Cluster, port.Local) {
			addr := b.Addr.Addr()
			found := &outside
			if slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) }) {
				found = &inside
			}
			if !found.IsValid() {
				*found = addr
			}
			if inside.IsValid() && outside.IsValid() {
				return inside, outside
			}
		}
	}
	return inside, outside
}

// bgp tells how it stands with the sessions.
func (p *patient) bgp() doctor.BGP {
	b := doctor.BGP{Peers: []doctor.BGPPeer{}}
	sessions, err := p.sessions()
	if errors.Is(err, errNoBGP) {
		return b
	}
	b.Configured = true
	if err != nil {
		b.Waiting = err.Error()
	}
	for _, s := range sessions {
		status := peerStatus(s)
		b.Peers = append(b.Peers, doctor.BGPPeer{Address: status.Address, State: status.State, Up: status.up(), Since: status.Since,
			LastError:   defaultTo(status.PasswordError, status.LastError),
			AskedToKeep: status.GracefulRestart.Enabled, Keeps: status.GracefulRestart.KeepsRoutes})
	}
	return b
}
