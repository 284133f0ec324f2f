package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

const (
	bgpName = "bgp"
	// firstRules is how long the first session waits for the first rules: what is announced after it is up comes too late
	// for a router that kept this node's routes while the agent was restarted.
	firstRules = 20 * time.Second
	// sessionPatience is how long a session that has never been up may take before that is a Note.
	sessionPatience = 15 * time.Second
	// goodbye is how long an agent that ends waits for its last words to the peers to be sent.
	goodbye = 200 * time.Millisecond
)

// announcements returns what the node should announce; nil without BGP.
func announcements(s *cluster.Snapshot, c Config, pods *routes.Table, services [2]Services) (*bgp.Table, []cluster.Note) {
	if c.BGP == nil {
		return nil, nil
	}
	var vips []bgp.VIP
	for _, family := range services {
		vips = append(vips, servedAddresses(family.Table)...)
	}
	return bgp.Plan(s, *c.BGP, pods, vips)
}

// servedAddresses returns the addresses of Services that get to an endpoint from here, by the verdicts that the rules are made
// of: one port that does is enough.
func servedAddresses(t *proxy.Table) []bgp.VIP {
	vips := make([]bgp.VIP, 0, len(t.Ports))
	for _, p := range t.Ports {
		add := func(v proxy.Verdict, k bgp.Kind, addrs ...netip.Addr) {
			if v != proxy.ToCluster && v != proxy.ToLocal {
				return
			}
			for _, a := range addrs {
				if a.IsValid() {
					vips = append(vips, bgp.VIP{Addr: a, Kind: k, Service: p.Service, Local: v == proxy.ToLocal})
				}
			}
		}
		add(p.Internal, bgp.ClusterIPs, p.ClusterIP)
		add(p.External, bgp.ExternalIPs, p.ExternalIPs...)
		add(p.External, bgp.LoadBalancerIPs, p.LoadBalancerIPs...)
	}
	return vips
}

// bgpPart keeps the BGP sessions, and what is announced in them. An address of a Service is announced when the latest Plan
// wants it and the rules in the kernel serve it: new rules are in the kernel before a router learns of the address, and it
// is withdrawn as soon as the Plan is made that takes the rules away. An agent without BGP has the Part, too: its configuration
// may come to have it.
type bgpPart struct {
	speaker  bgpSpeaker
	nodeName string
	// departing is held by who has the node leave its peers, or come back to them.
	departing sync.Mutex

	syncing sync.Mutex // guards what follows
	// plan is the Plan of the latest Sync; nil before the first. began is when there first was one with BGP.
	plan  *Plan
	began time.Time
	stage stage
	// identity is what the BGP process was begun with; the zero value before the first.
	identity identity
	// announced is what the peers were told last.
	announced []bgp.Path
	// draining is since when they know that the node is to have no traffic to Services; the zero Time while it is not so.
	draining time.Time

	mu sync.Mutex // guards what follows
	// kernel is what the rules in the kernel serve, for each family that has rules; nil before the first are there.
	kernel map[cluster.Family]*rulesInKernel
	// configured tells whether the latest Plan has BGP; nil before the first. mesh are its peers that are nodes.
	configured *bool
	mesh       map[netip.Addr]string
	// crashes are those of the BGP process, for which there is no session before heldUntil.
	crashes   bgpCrashes
	heldUntil time.Time
}

// A bgpSpeaker keeps the sessions: process.Speaker says what each of its methods does.
type bgpSpeaker interface {
	Sync(*bgp.Table) (speaker.Result, error)
	Identity() (asn uint32, routerID netip.Addr)
	Sessions() []speaker.Session
	Glance() []speaker.Session
	Routes(peer netip.Addr, d speaker.Direction) ([]speaker.Route, error)
	Received([]bgp.ImportRange) ([]bgp.Received, error)
	Crashes() uint64
	Replaced() uint64
	Restart(listenPort uint16, patience time.Duration) error
	Leave(patience time.Duration) (ended int, err error)
	Stop(patience time.Duration) error
	Close(patience time.Duration) error
}

// rulesInKernel are the rules of one family.
type rulesInKernel struct {
	table *proxy.Table
	// unserved are the Services that were left out of them, quarantined.
	unserved []cluster.Ref
	// served are the addresses that they serve.
	served map[netip.Addr]bool
}

// newBGPPart returns the Part for an agent with other parts.
func newBGPPart(nodeName string, others []Part, s bgpSpeaker) *bgpPart {
	p := &bgpPart{speaker: s, nodeName: nodeName, kernel: map[cluster.Family]*rulesInKernel{}}
	for _, o := range others {
		if rules, ok := o.(*rulesPart); ok {
			p.kernel[cluster.Families[rules.index]] = nil
		}
	}
	return p
}

// close takes leave of the peers when the agent ends. What becomes of the announcements, the peers know: see speaker.Close.
func (p *bgpPart) close() {
	if err := p.speaker.Close(goodbye); err != nil {
		klog.ErrorS(err, "BGP sessions end without a word")
	}
}

// announceSession tells the log of a session that came up or went down, and the Node of one with a router that came up; one that is down is
// a Note.
func (p *bgpPart) announceSession(event func(about cluster.Ref, eventType, reason, message string), node cluster.Ref, peer netip.Addr, up bool) {
	p.mu.Lock()
	name, isNode := p.mesh[peer]
	p.mu.Unlock()
	what := map[bool]string{false: "A BGP session is down", true: "A BGP session is up"}[up]
	if isNode {
		klog.InfoS(what, "peer", peer, "node", name)
		return
	}
	klog.InfoS(what, "peer", peer)
	if !up {
		return
	}
	event(node, "Normal", "BGPSessionUp", fmt.Sprintf("the session with the BGP peer %s is up", peer))
}

func (*bgpPart) Name() string { return bgpName }

// observe takes note of what the rules' Parts have in the kernel.
func (p *bgpPart) observe(part string, plan *Plan, r Report) (news bool) {
	for i, f := range cluster.Families {
		if part != rulesPrefix+f.String() {
			continue
		}
		return p.inKernel(f, plan.Services[i].Table, r.unserved())
	}
	return false
}

func (p *bgpPart) inKernel(f cluster.Family, t *proxy.Table, unserved []cluster.Ref) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.kernel[f]; k != nil && k.table == t && slices.Equal(k.unserved, unserved) {
		return false
	}
	served := map[netip.Addr]bool{}
	for _, v := range servedAddresses(t) {
		if !slices.Contains(unserved, v.Service.Ref()) {
			served[v.Addr] = true
		}
	}
	p.kernel[f] = &rulesInKernel{t, unserved, served}
	return true
}

// ready returns the Table without what the rules in the kernel do not serve, and whether there are rules of every family.
func (p *bgpPart) ready(want *bgp.Table) (t *bgp.Table, complete bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	complete = true
	for _, k := range p.kernel {
		complete = complete && k != nil
	}
	unserved := func(path bgp.Path) bool {
		k := p.kernel[path.Family()]
		switch {
		case path.Kind == bgp.PodCIDRs:
			return false
		case k == nil:
			return true
		}
		return path.Kind != bgp.ServiceCIDRs && !k.served[path.Prefix.Addr()]
	}
	able := *want
	able.Paths = slices.DeleteFunc(slices.Clone(want.Paths), unserved)
	able.Draining = slices.DeleteFunc(slices.Clone(want.Draining), unserved)
	return &able, complete
}

func (p *bgpPart) Sync(_ context.Context, plan *Plan, _ bool) (Report, error) {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	configured := plan.BGP != nil
	p.mu.Lock()
	p.configured = &configured
	if configured {
		p.mesh = meshNames(plan.BGP.Peers)
	}
	p.mu.Unlock()
	p.plan = plan
	return p.sync()
}

// sync has the peers told what the latest Plan and the stage say. It is called with syncing held.
func (p *bgpPart) sync() (Report, error) {
	if p.plan.BGP == nil {
		return Report{}, p.speaker.Stop(goodbye) // the section bgp may have been taken away
	}
	if p.began.IsZero() {
		p.began = time.Now()
	}
	node := nodeRef(p.plan.Snapshot, p.nodeName)
	if p.stage == stageGone {
		p.announced = nil
		return Report{Notes: []cluster.Note{leftNote(node)}}, nil
	}
	if crashes, wait := p.held(time.Now()); wait > 0 {
		return Report{Notes: []cluster.Note{crashes.note(node)}, Retry: wait}, nil
	}
	want, complete := p.ready(p.plan.BGP)
	if wait := firstRules - time.Since(p.began); !complete && wait > 0 {
		return Report{Retry: wait}, nil // or when the rules are there
	}
	identityErr := p.identify(p.plan.config.BGP)
	until := p.drain(want, p.plan.config.BGP.NoticeTime, time.Now())
	want.Paths = p.stage.paths(want.Paths)
	result, err := p.speaker.Sync(want)
	logAnnouncements(result.Changes)
	if err == nil {
		p.announced = want.Paths
	}
	logSessions(result.Changes)
	notes, retry := sessionNotes(p.speaker.Sessions(), node, time.Now())
	if is := result.RouterID; is.IsValid() && want.RouterID.IsValid() && is != want.RouterID && !p.identity.routerID.IsValid() {
		notes = append(notes, cluster.Note{Object: node, Reason: cluster.ReasonBGPRouterIDChanged,
			Detail: fmt.Sprintf("The BGP identifier stays %s, which was the node's IPv4 InternalIP when BGP began; it becomes %s when the agent is restarted, or by bgp.routerID.", is, want.RouterID)})
	}
	return Report{Notes: notes, Retry: soonest(result.Again, until, retry)}, errors.Join(identityErr, err)
}

// An identity is what of the configuration a BGP process has for as long as it runs. Where routerID is the zero Addr, the identifier was taken
// from the Node, and stays when the Node's address changes: whoever changes that may not think of BGP, and sessions would pay for it.
type identity struct {
	asn        uint32
	routerID   netip.Addr
	listenPort uint16
}

// identify has another BGP process begun if the configuration has another identity. When its port can't be listened at, that is the error, and
// the sessions go on with the identity that they have.
func (p *bgpPart) identify(c *bgp.Config) error {
	want := identity{c.ASN, c.RouterID, c.ListenPort}
	if p.identity != want && p.identity != (identity{}) {
		if err := p.speaker.Restart(want.listenPort, goodbye); err != nil {
			return fmt.Errorf("bgp.listenPort %d: %w; the BGP sessions go on with AS %d, bgp.listenPort %d", want.listenPort, err, p.identity.asn, p.identity.listenPort)
		}
		klog.InfoS("BGP begins anew, for another asn, routerID or listenPort", "asn", want.asn, "listenPort", want.listenPort)
	}
	p.identity = want
	return nil
}

// logAnnouncements writes a line for each change of what is announced.
func logAnnouncements(c bgp.Changes) {
	if n := len(c.Announce) + len(c.Withdraw); n > announceEach && !klog.V(1).Enabled() {
		klog.InfoS("Many prefixes are announced or withdrawn at once, -v=1 shows each", "announced", len(c.Announce), "withdrawn", len(c.Withdraw))
		return
	}
	for _, p := range c.Announce {
		klog.InfoS("Announcing", "path", p.String())
	}
	for _, p := range c.Withdraw {
		klog.InfoS("Withdrawing", "prefix", p)
	}
}

// logSessions writes a line for each session that a change of the configuration ends, begins or touches.
func logSessions(c bgp.Changes) {
	for _, a := range c.Remove {
		klog.InfoS("A BGP peer is removed", "peer", a)
	}
	for _, p := range c.Reset {
		klog.InfoS("A BGP session begins anew, for changed settings", "settings", p.String())
	}
	for _, p := range c.Update {
		klog.InfoS("A BGP session goes on with changed settings", "settings", p.String())
	}
}

// sessionNotes tells of the sessions that are not as they should be, and when that may change by time alone; 0 for never.
func sessionNotes(sessions []speaker.Session, node cluster.Ref, now time.Time) (notes []cluster.Note, retry time.Duration) {
	note := func(reason, format string, args ...any) {
		notes = append(notes, cluster.Note{Object: node, Reason: reason, Detail: fmt.Sprintf(format, args...)})
	}
	again := func(in time.Duration) { retry = soonest(retry, in) }
	var mesh []speaker.Session
	for _, s := range sessions {
		if s.Peer.Node != "" {
			mesh = append(mesh, s)
			continue
		}
		if s.PasswordError != "" {
			note(cluster.ReasonBGPPasswordMissing, "The password of the BGP peer %s can't be read any more, and the session goes on with the one that it has: %s.", s.Peer.Address, s.PasswordError)
		}
		wait := sessionPatience - now.Sub(s.Since)
		switch {
		case s.Locked():
			note(cluster.ReasonBGPPasswordMissing, "There is no session with the BGP peer %s: %s.", s.Peer.Address, s.LastError)
			again(sessionPatience)
		case s.TooMany:
			note(cluster.ReasonBGPTooManyPrefixes, "The BGP peer %s (AS %d) sent more than %d prefixes of a family; its session is ended, and tried again after %s. Right would be a router that sends less, or maxPrefixes of this peer in the configuration.",
				s.Peer.Address, s.Peer.ASN, s.Peer.MaxPrefixes, speaker.Pardon)
			again(max(speaker.Pardon-now.Sub(s.Since), 0) + time.Second)
		case !s.Up() && !s.BeenUp && wait > 0:
			again(wait)
		case !s.Up():
			note(cluster.ReasonBGPSessionDown, "The session with the BGP peer %s (AS %d) is down: %s.", s.Peer.Address, s.Peer.ASN, defaultTo(s.LastError, "no answer"))
		case s.Peer.RestartTime > 0 && !s.GracefulRestart:
			note(cluster.ReasonBGPNoGracefulRestart, "The BGP peer %s does not keep this node's routes while the agent is restarted; right would be graceful restart in its configuration, at least as a helper, or gracefulRestart.enabled: false for this peer.", s.Peer.Address)
		}
	}
	more, in := meshNotes(mesh, node, now)
	return append(notes, more...), soonest(retry, in)
}

// soonest is the shortest of the times that are not 0; 0 when all are.
func soonest(times ...time.Duration) (least time.Duration) {
	for _, d := range times {
		if least == 0 || d > 0 && d < least {
			least = d
		}
	}
	return least
}
