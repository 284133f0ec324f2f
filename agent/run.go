package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/report"
	"github.com/fairway-net/fairway/agent/source"
	"github.com/fairway-net/fairway/agent/source/file"
	"github.com/fairway-net/fairway/agent/source/kube"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
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
	a := &assembly{Options: o}
	defer a.close()
	if err := a.assemble(ctx); err != nil {
		return err
	}
	a.loop.started = sync.OnceFunc(func() { go started() })
	tasks, err := a.tasks(ctx)
	if err != nil {
		return err
	}
	// Until the peers are told, everything goes on.
	last, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	return together(last, end, append(tasks, func(last context.Context) error { return a.announcer.departWhen(ctx, last) })...)
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
