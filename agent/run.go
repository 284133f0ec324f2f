package agent

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/report"
	"github.com/fairway-net/fairway/agent/source"
	"github.com/fairway-net/fairway/agent/source/file"
	"github.com/fairway-net/fairway/agent/source/kube"
	"github.com/fairway-net/fairway/proxy/healthd"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/bgp/process"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// Options are what an agent is started with.
type Options struct {
	Config Config
	// Files and Flags are what Config was made of (see Configure). The files are read again when they change; without any, never.
	Files Files
	Flags func(*AgentConfiguration)
	// Remarks are what was said of kube-proxy's configuration, for the log.
	Remarks []Remark
	// ClusterDir is a folder of manifests that the cluster is read from instead of the Kubernetes API that
	// Config.ClientConnection is about.
	ClusterDir string
	// Version is shown in the log and in metrics.
	Version string
}

// Run runs an agent until the context ends, and then returns nil. Routes and rules stay in the kernel. An error means
// that the agent could not start: no way to the API's configuration, or, with bindAddressHardFail, an address in use; or that it
// started where no iptables worked, and one does now.
func Run(ctx context.Context, o Options) error {
	err := run(ctx, o)
	if ctx.Err() != nil { // also while it was starting: what was under way failed for that
		return nil
	}
	return err
}

func run(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	started := frugal()
	klog.InfoS("Starting fairway", "version", o.Version, "node", o.Config.NodeName)
	for _, r := range o.Remarks {
		klog.InfoS("Of kube-proxy's configuration", "field", r.Field, "detail", r.Detail)
	}
	rulesPossible := make(chan struct{})
	backend, waiting, err := detect(ctx, o.Config.IPTablesBackend, sync.OnceFunc(func() { close(rulesPossible) }))
	if err != nil {
		return err
	}
	warnOfOtherModes()
	adjustOOMScore(oomScoreFile, o.Config.OOMScoreAdj)
	conn, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	var s *status
	facts, err := learn(backend, o.Config)
	if err != nil {
		return err
	}
	services := newServiceParts(ctx, o.Config, backend, &facts, func() bool { return s.view().healthy(time.Now()) })
	defer services.close()
	parts := append([]Part{&routesPart{conn: conn, nodeName: o.Config.NodeName}}, services.parts...)
	if waiting != nil {
		parts = append(parts, waiting)
	}
	w, err := o.open()
	if err != nil {
		return err
	}
	// The UID is not known yet. Kubelets put the name there, and kubectl describe looks for both.
	self := cluster.Ref{Kind: "Node", Name: o.Config.NodeName, UID: o.Config.NodeName}
	var l *loop
	var announcer *bgpPart
	announcer = newBGPPart(o.Config.NodeName, parts, process.New(process.Options{
		Changed: func(peer netip.Addr, up bool) {
			announcer.announceSession(w.reporter.Event, self, peer, up)
			l.kick(bgpName)
		},
		Received: func() { l.kick(learnedName) },
		Ended: func(e process.End) {
			announcer.crashed(e, w.reporter.Event, self, time.Now())
			l.kick(bgpName)
			l.kick(learnedName)
		},
	}))
	defer announcer.close()
	learnedConn, err := rtnl.OpenLearned()
	if err != nil {
		return err
	}
	defer learnedConn.Close()
	learned := &learnedPart{conn: learnedConn, nodeName: o.Config.NodeName, speaker: announcer.speaker}
	// BGP before the rules: what they will serve no more is withdrawn first.
	parts = slices.Concat([]Part{announcer}, parts, []Part{learned})
	s = newStatus(parts, o.Config.SyncPeriod)
	s.iptables = backend.Name
	m := newMetrics(s, o.Version, w.lost)
	m.registry.MustRegister(bgpCollector{announcer.speaker.Glance, announcer.speaker.Crashes, learned.installed})
	if facts.Counters {
		m.registry.MustRegister(packetCounters{netfilter.ReadCounters})
	}
	m.registry.MustRegister(append(w.metrics, droppedEvents(w.reporter.Dropped))...)
	l = newLoop(o.Config, facts, parts, m, s, newLogReporter(w.reporter))
	l.started = sync.OnceFunc(func() { go started() })
	var saved *cluster.Snapshot
	if o.Config.StateDir != "" {
		l.saver = newSaver(o.Config.StateDir, o.Config.NodeName, func(notes ...cluster.Note) { l.remark("snapshot", notes...) })
		m.registry.MustRegister(l.saver.metrics()...)
		saved = l.saver.load()
	}
	w.guard(source.Count(saved), func(why string) { l.doubt(why) })
	l.event = func(reason, message string) { w.reporter.Event(self, "Warning", reason, message) }
	serving, err := o.servers(ctx, w, self, l)
	if err != nil {
		return err
	}
	serving = append(serving, o.listening(l, announcer, &patient{loop: l, version: o.Version, lost: w.lost, absent: backend.Missing, dropsInvalid: facts.DropInvalid})...)
	w.reporter.Event(self, "Normal", "Starting", "fairway "+o.Version+" is starting")
	if l.saver != nil {
		serving = append(serving, l.saver.run)
	}
	if saved != nil {
		serving = append(serving, func(ctx context.Context) error {
			l.fallBack(ctx, saved, w.lost)
			<-ctx.Done() // the end of one task is the end of all
			return nil
		})
	}
	// Until the peers are told, everything goes on.
	last, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	return together(last, end, append(serving,
		w.reporter.Run,
		func(last context.Context) error { return announcer.departWhen(ctx, last) },
		func(ctx context.Context) error { return w.source.Run(ctx, l.publish) },
		func(ctx context.Context) error { return watchHost(ctx, conn, l) },
		func(ctx context.Context) error { return watchLearned(ctx, learnedConn, l) },
		func(ctx context.Context) error { return watchRules(ctx, backend, l, services.rules) },
		func(ctx context.Context) error { return endWhen(ctx, rulesPossible) },
		func(ctx context.Context) error { l.run(ctx); return nil })...)
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

// lastWords is how long an agent that has to end waits for the Event that says why.
const lastWords = 2 * time.Second

// servers returns the tasks that serve a loop's health and metrics. With bindAddressHardFail, an address that can't be bound is an
// error at once; else an Event on the own Node, self, and tried again.
func (o Options) servers(ctx context.Context, w world, self cluster.Ref, l *loop) (tasks []func(context.Context) error, err error) {
	failed := func(s *server, err error) {
		klog.ErrorS(err, "An address can't be bound", "address", s.addr)
		w.reporter.Event(self, "Warning", s.reason, err.Error())
	}
	for _, server := range []*server{
		{what: "health", addr: o.Config.HealthzBindAddress, reason: "FailedToStartProxierHealthcheck", handler: healthHandler(l.status, l.metrics, time.Now)},
		{what: "metrics", addr: o.Config.MetricsBindAddress, reason: "FailedToStartMetricServer", handler: metricsHandler(l.metrics, l.configuration, time.Now)},
	} {
		server.patience, server.again = listenPatience, serveAgain
		switch {
		case server.addr == "":
		case !o.Config.BindAddressHardFail:
			tasks = append(tasks, func(ctx context.Context) error { return server.run(ctx, failed) })
		default:
			if err := server.open(ctx); err != nil {
				failed(server, err)
				last, cancel := context.WithTimeout(ctx, lastWords)
				defer cancel()
				return nil, errors.Join(err, w.reporter.Run(last))
			}
			tasks = append(tasks, func(ctx context.Context) error { return server.serveOrFail(ctx, failed) })
		}
	}
	return tasks, nil
}

// listening returns the tasks that take what an operator says while the agent runs: at the control socket, and by the
// configuration's files.
func (o Options) listening(l *loop, announcer *bgpPart, self *patient) (tasks []func(context.Context) error) {
	if path := o.Config.ControlSocket; path != "" {
		self.sessions = func() ([]speaker.Session, error) {
			_, _, sessions, err := announcer.sessions()
			return sessions, err
		}
		socket := &controlSocket{path: path, handler: withDoctor(self, controlHandler(announcer, l.kick)), again: serveAgain, failed: func(err error) {
			l.remark("socket", socketNotes(o.Config.NodeName, path, err)...)
		}}
		tasks = append(tasks, socket.run)
	}
	if o.Files != (Files{}) {
		again := newRereader(o, l.setConfig, func(notes ...cluster.Note) { l.remark("configuration", notes...) })
		l.metrics.registry.MustRegister(again.metric())
		tasks = append(tasks, again.run)
	}
	return tasks
}

// together runs tasks until the context ends or one of them fails; then it ends the others and waits for them.
func together(ctx context.Context, cancel context.CancelFunc, tasks ...func(context.Context) error) error {
	errs := make([]error, len(tasks))
	var wg sync.WaitGroup
	for i, task := range tasks {
		wg.Go(func() {
			defer cancel()
			errs[i] = task(ctx)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
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

// A world is where the cluster is read from, and where what the agent has to say about objects goes.
type world struct {
	source   source.Source
	reporter interface {
		Reporter
		Run(context.Context) error
		Event(about cluster.Ref, eventType, reason, message string)
		Dropped() uint64
	}
	// lost tells since when the API has not answered; nil where there is none.
	lost func() (since time.Time, err error)
	// metrics are those of the requests to the API.
	metrics []prometheus.Collector
	// guard makes the source doubt lists of much less than the cluster had, and say so.
	guard func(before source.Census, doubt func(why string))
}

func (o Options) open() (world, error) {
	if o.ClusterDir != "" {
		folder := &file.Source{Dir: o.ClusterDir, OnError: folderError(o.ClusterDir)}
		guard := func(before source.Census, doubt func(string)) { folder.Before, folder.OnDoubt = before, doubt }
		return world{source: folder, reporter: report.Discard{}, guard: guard}, nil
	}
	c := o.Config.ClientConnection
	client, err := kube.Connect(kube.Options{Kubeconfig: c.Kubeconfig, Version: o.Version,
		QPS: float32(c.QPS), Burst: c.Burst, ContentType: c.ContentType, AcceptContentTypes: c.AcceptContentTypes})
	if err != nil {
		return world{}, err
	}
	api := kube.New(client)
	guard := func(before source.Census, doubt func(string)) { api.Before, api.OnDoubt = before, doubt }
	return world{source: api, guard: guard, reporter: report.New(client, o.Config.NodeName), lost: api.Lost, metrics: kube.Metrics()}, nil
}

func folderError(dir string) func(error) {
	return func(err error) {
		if err != nil {
			klog.ErrorS(err, "The folder of manifests can't be used, everything stays as it is until it can", "dir", dir)
			return
		}
		klog.InfoS("The folder of manifests is good again", "dir", dir)
	}
}

// retryWatch is the pause before a failed watch on the kernel is tried again.
const retryWatch = time.Second

// watchHost follows what others change on this machine: links and addresses, which lead to a new Plan, and routes of
// ours, which are put back.
func watchHost(ctx context.Context, conn *rtnl.Conn, l *loop) error {
	w := hostWatcher{conn: conn, loop: l}
	for ctx.Err() == nil {
		if err := w.watch(ctx); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Links, addresses and routes can't be followed, what was known of them stays", "retryIn", retryWatch)
			sleep(ctx, retryWatch)
		}
	}
	return nil
}

// A hostWatcher turns the kernel's events into Hosts and kicks.
type hostWatcher struct {
	conn *rtnl.Conn
	loop *loop
	host *cluster.Host
}

// watch follows until the context ends, or something fails. A Host that could not be read would be missed until the next
// event, so that is a failure, too: a new watch begins with reading it.
func (w *hostWatcher) watch(ctx context.Context) error {
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err := w.conn.Watch(watching, func(e rtnl.Event) {
		if err := w.changed(watching, e); err != nil {
			stop(err)
		}
	})
	if err != nil {
		return err
	}
	return context.Cause(watching)
}

func (w *hostWatcher) changed(ctx context.Context, e rtnl.Event) error {
	if e&(rtnl.HostChanged|rtnl.Overrun) != 0 {
		h, err := w.conn.Host(ctx)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(h, w.host) {
			w.host = h
			w.loop.setHost(h)
		}
	}
	w.loop.kick(routesName)
	return nil
}
