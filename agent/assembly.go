package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
	"github.com/fairway-net/fairway/proxy/healthd"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/bgp/process"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// An assembly is what a running agent is made of.
type assembly struct {
	Options
	// self is the own Node.
	self  cluster.Ref
	world world
	facts Facts
	loop  *loop

	backend *netfilter.Backend
	// rulesPossible is closed when an iptables works, if none did at the start.
	rulesPossible chan struct{}
	services      *serviceParts
	routes        *rtnl.Conn
	announcer     *bgpPart
	learned       *learnedPart
	// saved is what an earlier agent has left, if that can be used.
	saved *cluster.Snapshot

	// held is what has to be closed at the end, in reverse order.
	held []func()
}

func (a *assembly) close() {
	for _, f := range slices.Backward(a.held) {
		f()
	}
}

func (a *assembly) hold(f func()) { a.held = append(a.held, f) }

// assemble looks at the machine and makes the Parts and their loop; nothing runs yet. After an error there may be something to close, too.
func (a *assembly) assemble(ctx context.Context) error {
	// The UID is not known yet. Kubelets put the name there, and kubectl describe looks for both.
	a.self = cluster.Ref{Kind: "Node", Name: a.Config.NodeName, UID: a.Config.NodeName}
	parts, err := a.kernelParts(ctx)
	if err != nil {
		return err
	}
	if a.world, err = a.open(); err != nil {
		return err
	}
	a.announcer = a.newAnnouncer(parts)
	a.hold(a.announcer.close)
	learned, err := rtnl.OpenLearned()
	if err != nil {
		return err
	}
	a.hold(learned.Close)
	a.learned = &learnedPart{conn: learned, nodeName: a.Config.NodeName, speaker: a.announcer.speaker}
	// BGP before the rules: what they will serve no more is withdrawn first.
	a.newLoop(slices.Concat([]Part{a.announcer}, parts, []Part{a.learned}))
	return nil
}

// kernelParts makes the Parts for routes and rules, for what the machine has.
func (a *assembly) kernelParts(ctx context.Context) ([]Part, error) {
	a.rulesPossible = make(chan struct{})
	backend, waiting, err := detect(ctx, a.Config.IPTablesBackend, sync.OnceFunc(func() { close(a.rulesPossible) }))
	if err != nil {
		return nil, err
	}
	a.backend = backend
	warnOfOtherModes()
	adjustOOMScore(oomScoreFile, a.Config.OOMScoreAdj)
	if a.routes, err = rtnl.Open(); err != nil {
		return nil, err
	}
	a.hold(a.routes.Close)
	if a.facts, err = learn(backend, a.Config); err != nil {
		return nil, err
	}
	a.services = newServiceParts(ctx, a.Config, backend, &a.facts, func() bool { return a.loop.status.view().healthy(time.Now()) })
	a.hold(a.services.close)
	parts := append([]Part{&routesPart{conn: a.routes, nodeName: a.Config.NodeName}}, a.services.parts...)
	if waiting != nil {
		parts = append(parts, waiting)
	}
	return parts, nil
}

// newAnnouncer makes the Part for BGP, which announces only what those for the rules have in the kernel.
func (a *assembly) newAnnouncer(parts []Part) *bgpPart {
	return newBGPPart(a.Config.NodeName, parts, process.New(process.Options{
		Changed: func(peer netip.Addr, up bool) {
			a.announcer.announceSession(a.world.reporter.Event, a.self, peer, up)
			a.loop.kick(bgpName)
		},
		Received: func() { a.loop.kick(learnedName) },
		Ended: func(e process.End) {
			a.announcer.crashed(e, a.world.reporter.Event, a.self, time.Now())
			a.loop.kick(bgpName)
			a.loop.kick(learnedName)
		},
	}))
}

// newLoop makes the loop that keeps all Parts, with its status and metrics.
func (a *assembly) newLoop(parts []Part) {
	s := newStatus(parts, a.Config.SyncPeriod)
	s.iptables = a.backend.Name
	m := newMetrics(s, a.Version, a.world.lost)
	m.registry.MustRegister(bgpCollector{a.announcer.speaker.Glance, a.announcer.speaker.Crashes, a.learned.installed})
	if a.facts.Counters {
		m.registry.MustRegister(packetCounters{netfilter.ReadCounters})
	}
	m.registry.MustRegister(append(a.world.metrics, droppedEvents(a.world.reporter.Dropped))...)
	l := newLoop(a.Config, a.facts, parts, m, s, newLogReporter(a.world.reporter))
	l.event = func(reason, message string) { a.world.reporter.Event(a.self, "Warning", reason, message) }
	if a.Config.StateDir != "" {
		l.saver = newSaver(a.Config.StateDir, a.Config.NodeName, func(notes ...cluster.Note) { l.remark("snapshot", notes...) })
		m.registry.MustRegister(l.saver.metrics()...)
		a.saved = l.saver.load()
	}
	a.world.guard(source.Count(a.saved), func(why string) { l.doubt(why) })
	a.loop = l
}

// tasks returns what runs until the agent ends.
func (a *assembly) tasks(ctx context.Context) ([]func(context.Context) error, error) {
	tasks, err := a.servers(ctx, a.world, a.self, a.loop)
	if err != nil {
		return nil, err
	}
	tasks = append(tasks, a.listening(a.loop, a.announcer, &patient{loop: a.loop, version: a.Version, lost: a.world.lost,
		absent: a.backend.Missing, dropsInvalid: a.facts.DropInvalid})...)
	a.world.reporter.Event(a.self, "Normal", "Starting", "fairway "+a.Version+" is starting")
	if a.loop.saver != nil {
		tasks = append(tasks, a.loop.saver.run)
	}
	if a.saved != nil {
		tasks = append(tasks, func(ctx context.Context) error {
			a.loop.fallBack(ctx, a.saved, a.world.lost)
			<-ctx.Done() // the end of one task is the end of all
			return nil
		})
	}
	return append(tasks,
		a.world.reporter.Run,
		func(ctx context.Context) error { return a.world.source.Run(ctx, a.loop.publish) },
		func(ctx context.Context) error { return watchHost(ctx, a.routes, a.loop) },
		func(ctx context.Context) error { return watchLearned(ctx, a.learned.conn, a.loop) },
		func(ctx context.Context) error { return watchRules(ctx, a.backend, a.loop, a.services.rules) },
		func(ctx context.Context) error { return endWhen(ctx, a.rulesPossible) },
		func(ctx context.Context) error { a.loop.run(ctx); return nil }), nil
}

func announceBackend(b *netfilter.Backend) {
	klog.InfoS("Using iptables", "backend", b.Name, "version", b.Version, "why", b.Why)
	for f, reason := range b.Missing {
		klog.InfoS("An address family is left out, the other is served", "family", f, "reason", reason)
	}
	for _, w := range b.Warnings {
		klog.InfoS("Warning", "detail", w)
	}
}

// warnOfOtherModes says what of a kube-proxy in another mode acts on the same packets.
func warnOfOtherModes() {
	list, err := netfilter.OtherModes()
	if err != nil {
		klog.InfoS("Whether there is something of a kube-proxy in another mode can't be told", "reason", err)
	}
	for _, w := range list {
		klog.InfoS("Warning", "detail", w)
	}
}

// learn finds out what a Plan has to know of this machine.
func learn(b *netfilter.Backend, c Config) (Facts, error) {
	// First, as one of the settings is whether conntrack is liberal.
	refused := netfilter.ApplyConntrack(c.Conntrack)
	liberal, err := netfilter.TCPLiberal()
	if err != nil {
		return Facts{}, err
	}
	counters := netfilter.EnsureCounters()
	if counters != nil {
		klog.InfoS("Dropped and accepted packets are not counted", "reason", counters)
	}
	return Facts{RandomFully: b.RandomFully, DropInvalid: !liberal, Counters: counters == nil, Refused: refused}, nil
}

// serviceParts are the Parts for Services, of the families that have iptables here.
type serviceParts struct {
	parts   []Part
	rules   map[cluster.Family]*rulesPart
	servers []*healthd.Servers
}

// newServiceParts makes them, and adds to the Facts which families are absent and what the rules that are there tell.
func newServiceParts(ctx context.Context, c Config, backend *netfilter.Backend, facts *Facts, healthy func() bool) *serviceParts {
	s := &serviceParts{rules: map[cluster.Family]*rulesPart{}}
	for i, f := range cluster.Families {
		if backend.Missing[f] != "" {
			facts.Absent[i] = true
			continue
		}
		servers := healthd.New(f, healthy)
		rules := &rulesPart{index: i, nodeName: c.NodeName, rules: netfilter.NewRules(backend),
			clients: clientWatch{lists: netfilter.OpenClientLists(), every: c.SyncPeriod},
			ports:   portWatch{ports: netfilter.OpenLocalPorts(), every: c.SyncPeriod},
			flows:   flowKeeper{clean: netfilter.CleanFlows}, suspects: &suspicions{}}
		rules.rules.KeepFirst = c.KeepJumpsFirst
		s.servers, s.rules[f] = append(s.servers, servers), rules
		s.parts = append(s.parts, rules, &healthChecksPart{i, servers})
		// What can't be read now, the Part will say, and try again.
		if have, err := backend.Read(ctx, f, nil); err == nil {
			facts.Large[i] = have.Large
			rules.flows.found = have.Served(cluster.UDP)
		}
	}
	return s
}

func (s *serviceParts) close() {
	for _, servers := range s.servers {
		servers.Close()
	}
}
