package agent

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// metrics are the agent's own counters. What the status knows is not counted twice: a collector reads it at the moment
// of a scrape. Names that begin with kubeproxy_ mean what they mean in kube-proxy, so that dashboards and alerts go on
// working; the others begin with fairway_.
type metrics struct {
	registry *prometheus.Registry
	status   *status
	version  string
	start    time.Time
	changes  *changes

	syncDuration    *prometheus.HistogramVec // by part
	proxyDuration   *prometheus.HistogramVec // by ip_family
	fullDuration    *prometheus.HistogramVec // by ip_family
	partialDuration *prometheus.HistogramVec // by ip_family
	programming     *prometheus.HistogramVec // by ip_family
	serviceChanges  prometheus.Counter
	endpointChanges prometheus.Counter
	partialFailures *prometheus.CounterVec   // by ip_family
	lastRules       *prometheus.GaugeVec     // by table and ip_family
	syncErrors      *prometheus.CounterVec   // by part
	proxyFailures   *prometheus.CounterVec   // by ip_family
	writes          *prometheus.CounterVec   // by part
	drift           *prometheus.CounterVec   // by part
	found           *prometheus.CounterVec   // by ip_family, table, kind and found_by
	flowsDuration   *prometheus.HistogramVec // by ip_family
	flowsDeleted    *prometheus.CounterVec   // by ip_family
	planDuration    prometheus.Histogram
	healthzTotal    *prometheus.CounterVec // by code
	livezTotal      *prometheus.CounterVec // by code
	listsDoubted    prometheus.Counter
}

// newMetrics makes the metrics of an agent. lost, when not nil, tells since when the Kubernetes API has not answered.
func newMetrics(s *status, version string, lost func() (time.Time, error)) *metrics {
	seconds := prometheus.ExponentialBuckets(0.001, 2, 15)
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: seconds}, labels)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry: prometheus.NewRegistry(), status: s, version: version, start: time.Now(),
		syncDuration:  histogram("fairway_sync_duration_seconds", "Time of one sync of a part, failed ones included.", "part"),
		proxyDuration: histogram("kubeproxy_sync_proxy_rules_duration_seconds", "Time of one sync of the service rules, failed ones included.", "ip_family"),
		fullDuration: histogram("kubeproxy_sync_full_proxy_rules_duration_seconds",
			"Time of one sync of the service rules that read all rules back first, failed ones included.", "ip_family"),
		partialDuration: histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds",
			"Time of one sync of the service rules that took the difference to what was known of the kernel, failed ones included.", "ip_family"),
		programming: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kubeproxy_network_programming_duration_seconds",
			Help: "Time from a change of endpoints until it was in the kernel, for each changed EndpointSlice.", Buckets: programmingBuckets()}, []string{"ip_family"}),
		serviceChanges: prometheus.NewCounter(prometheus.CounterOpts{Name: "kubeproxy_sync_proxy_rules_service_changes_total",
			Help: "Services that came, went or changed."}),
		endpointChanges: prometheus.NewCounter(prometheus.CounterOpts{Name: "kubeproxy_sync_proxy_rules_endpoint_changes_total",
			Help: "EndpointSlices that came, went or changed."}),
		partialFailures: counter("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
			"Syncs of the service rules that took the difference to what was known of the kernel, and failed or were refused.", "ip_family"),
		lastRules: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubeproxy_sync_proxy_rules_iptables_last",
			Help: "Rules written by the last sync."}, []string{"table", "ip_family"}),
		syncErrors:    counter("fairway_sync_errors_total", "Failed syncs.", "part"),
		proxyFailures: counter("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "Restores of service rules that were refused, and syncs that failed otherwise.", "ip_family"),
		writes:        counter("fairway_sync_writes_total", "Syncs that wrote to the kernel.", "part"),
		drift:         counter("fairway_drift_repaired_total", "Routes and chains repaired after somebody else had changed them.", "part"),
		found: counter("fairway_drift_total", "Changes that somebody else made to the service rules, by what they were and how they were noticed.",
			"ip_family", "table", "kind", "found_by"),
		flowsDuration: histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", "Time of one look through conntrack's UDP entries.", "ip_family"),
		flowsDeleted:  counter("kubeproxy_conntrack_reconciler_deleted_entries_total", "UDP entries deleted from conntrack because their endpoint or service is gone.", "ip_family"),
		planDuration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "fairway_plan_duration_seconds",
			Help: "Time to decide and render everything after a change.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15)}),
		listsDoubted: prometheus.NewCounter(prometheus.CounterOpts{Name: "fairway_lists_doubted_total",
			Help: "Looks at the cluster that found more than half of it gone, and were not believed until they were confirmed."}),
		healthzTotal: counter("kubeproxy_proxy_healthz_total", "Answers of /healthz.", "code"),
		livezTotal:   counter("kubeproxy_proxy_livez_total", "Answers of /livez.", "code"),
	}
	m.changes = newChanges(s, m.start)
	pending := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "fairway_build_info", Help: "1, with the version as label.",
		ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	if lost != nil {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fairway_api_lost_seconds",
			Help: "How long the Kubernetes API has not answered; 0 while it does. What was last known stays in force."}, func() float64 {
			since, err := lost()
			if err == nil {
				return 0
			}
			return time.Since(since).Seconds()
		}))
	}
	m.registry.MustRegister(m.syncDuration, m.proxyDuration, m.syncErrors, m.proxyFailures, m.writes, m.drift, m.found, m.flowsDuration, m.flowsDeleted, m.planDuration,
		m.fullDuration, m.partialDuration, m.programming, m.serviceChanges, m.endpointChanges, m.partialFailures, m.lastRules,
		pending("kubeproxy_sync_proxy_rules_service_changes_pending", "Changes of Services that are not in the kernel yet.",
			func() int { services, _ := m.changes.pending(); return services }),
		pending("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not in the kernel yet.",
			func() int { _, endpoints := m.changes.pending(); return endpoints }),
		m.healthzTotal, m.livezTotal, m.listsDoubted, build, statusCollector{s}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// programmingBuckets are kube-proxy's: 0.25 and 0.5 s, then every second up to a minute, every 5 s up to two, and every 30 s
// up to five.
func programmingBuckets() []float64 {
	return slices.Concat([]float64{0.25, 0.5}, prometheus.LinearBuckets(1, 1, 59), prometheus.LinearBuckets(60, 5, 12),
		prometheus.LinearBuckets(120, 30, 7))
}

func (m *metrics) healthz(code int) { m.healthzTotal.WithLabelValues(strconv.Itoa(code)).Inc() }
func (m *metrics) livez(code int)   { m.livezTotal.WithLabelValues(strconv.Itoa(code)).Inc() }

func (m *metrics) doubted() { m.listsDoubted.Inc() }

func (m *metrics) planned(d time.Duration) { m.planDuration.Observe(d.Seconds()) }

// changed counts what a goal brings that the Plan before it, nil for none, did not have.
func (m *metrics) changed(g goal, before *Plan) {
	var old *cluster.Snapshot
	if before != nil {
		old = before.Snapshot
	}
	b := compareSnapshots(old, g.plan.Snapshot)
	b.revision = g.revision
	m.serviceChanges.Add(float64(b.services))
	m.endpointChanges.Add(float64(b.endpoints))
	m.changes.add(b)
}

// done counts an outcome.
func (m *metrics) done(o outcome) {
	took := o.end.Sub(o.start).Seconds()
	m.syncDuration.WithLabelValues(o.part).Observe(took)
	family, isRules := strings.CutPrefix(o.part, rulesPrefix)
	if isRules {
		m.rulesDone(o, family)
	}
	if o.report.Wrote {
		m.writes.WithLabelValues(o.part).Inc()
	}
	m.drift.WithLabelValues(o.part).Add(float64(o.report.Drift))
	if o.err == nil {
		return
	}
	m.syncErrors.WithLabelValues(o.part).Inc()
}

// rulesDone counts an outcome of the rules of a family.
func (m *metrics) rulesDone(o outcome, family string) {
	took := o.end.Sub(o.start).Seconds()
	m.proxyDuration.WithLabelValues(family).Observe(took)
	if o.report.Full {
		m.fullDuration.WithLabelValues(family).Observe(took)
	} else {
		m.partialDuration.WithLabelValues(family).Observe(took)
	}
	failures := o.report.Refused
	if o.err != nil {
		failures = max(failures, 1)
	}
	if failures > 0 {
		m.proxyFailures.WithLabelValues(family).Add(float64(failures))
		if !o.report.Full {
			m.partialFailures.WithLabelValues(family).Inc()
		}
	}
	by := "watch"
	if o.report.Found.Audit {
		by = "audit"
	}
	for _, d := range o.report.Found.Drifts {
		m.found.WithLabelValues(family, d.Table, string(d.Kind), by).Inc()
	}
	m.flowsDeleted.WithLabelValues(family).Add(float64(o.report.Flows.Deleted))
	if d := o.report.Flows.Duration; d > 0 {
		m.flowsDuration.WithLabelValues(family).Observe(d.Seconds())
	}
	m.lastRules.WithLabelValues(iptables.Filter, family).Set(float64(o.report.WroteFilter))
	m.lastRules.WithLabelValues(iptables.NAT, family).Set(float64(o.report.WroteNAT))
	if o.err != nil {
		return
	}
	i := slices.IndexFunc(cluster.Families[:], func(f cluster.Family) bool { return f.String() == family })
	for _, t := range m.changes.programmed(cluster.Families[i], o.revision) {
		// The clock of who saw the change may be ahead of this one.
		m.programming.WithLabelValues(family).Observe(max(0, o.end.Sub(t).Seconds()))
	}
}

// droppedEvents shows how many Events were not written.
func droppedEvents(dropped func() uint64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "fairway_events_dropped_total",
		Help: "Events that were not written, because the API did not take them or for the bounds on their number."},
		func() float64 { return float64(dropped()) })
}

// A statusCollector shows the status as it is at a scrape.
type statusCollector struct{ status *status }

var (
	descNotes       = prometheus.NewDesc("fairway_notes", "What was refused and holds now, by reason.", []string{"reason"}, nil)
	descReady       = prometheus.NewDesc("fairway_programmed", "1 when the latest state of the cluster is in the kernel.", []string{"part"}, nil)
	descSync        = prometheus.NewDesc("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "Time of the last successful sync of the service rules.", []string{"ip_family"}, nil)
	descQueued      = prometheus.NewDesc("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "Time at which a sync of the service rules was last asked for.", []string{"ip_family"}, nil)
	descVerified    = prometheus.NewDesc("fairway_verified_age_seconds", "How long ago the kernel was last known to hold what was programmed.", []string{"part"}, nil)
	descPending     = prometheus.NewDesc("fairway_pending_seconds", "How long the oldest change has been waiting to be programmed.", []string{"part"}, nil)
	descRules       = prometheus.NewDesc("kubeproxy_sync_proxy_rules_iptables_total", "Rules that should be in the kernel.", []string{"table", "ip_family"}, nil)
	descRoutes      = prometheus.NewDesc("fairway_routes", "Routes to other nodes' pods that should be in the kernel.", []string{"ip_family"}, nil)
	descNoLocal     = prometheus.NewDesc("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Service ports that drop traffic because their policy is Local and this node has no endpoint.", []string{"traffic_policy", "ip_family"}, nil)
	descPorts       = prometheus.NewDesc("fairway_service_ports", "Service ports that are served.", []string{"ip_family"}, nil)
	descStale       = prometheus.NewDesc("fairway_snapshot_stale", "1 while what was saved on the disk is in force, because the cluster has not answered.", nil, nil)
	descQuarantined = prometheus.NewDesc("fairway_quarantined_services", "Services whose rules the kernel refused.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c statusCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	v := c.status.view()
	byReason := map[string]int{}
	quarantined := map[cluster.Ref]bool{}
	for _, n := range v.notes {
		byReason[n.Reason]++
		if n.Reason == cluster.ReasonQuarantined {
			quarantined[n.Object] = true
		}
	}
	for reason, n := range byReason {
		gauge(descNotes, float64(n), reason)
	}
	gauge(descStale, boolean(v.stale()))
	gauge(descQuarantined, float64(len(quarantined)))
	now := time.Now()
	for name, p := range v.parts {
		gauge(descReady, boolean(v.revision > 0 && p.programmed == v.revision && !p.doubt), name)
		if !p.verified.IsZero() {
			gauge(descVerified, max(0, now.Sub(p.verified).Seconds()), name)
		}
		waiting := 0.0
		if !p.pending.IsZero() {
			waiting = now.Sub(p.pending).Seconds()
		}
		gauge(descPending, waiting, name)
		if family, isRules := strings.CutPrefix(name, rulesPrefix); isRules {
			gauge(descSync, unixSeconds(p.updated), family)
			gauge(descQueued, unixSeconds(p.queued), family)
		}
	}
	if v.plan != nil {
		collectPlan(v.plan, gauge)
	}
}

func collectPlan(p *Plan, gauge func(*prometheus.Desc, float64, ...string)) {
	routes := map[cluster.Family]int{cluster.IPv4: 0, cluster.IPv6: 0}
	for _, r := range p.Routes.Routes {
		routes[r.Family()]++
	}
	for f, n := range routes {
		gauge(descRoutes, float64(n), f.String())
	}
	for _, s := range p.Services {
		gauge(descPorts, float64(len(s.Table.Ports)), s.Family.String())
		internal, external := 0, 0
		for _, p := range s.Table.Ports {
			if p.Internal == proxy.Drop {
				internal++
			}
			if p.FromOutside() && p.External == proxy.Drop {
				external++
			}
		}
		gauge(descNoLocal, float64(internal), "internal", s.Family.String())
		gauge(descNoLocal, float64(external), "external", s.Family.String())
		for _, table := range iptables.Tables {
			gauge(descRules, float64(s.Rules.Table(table).Rules()), table, s.Family.String())
		}
	}
}

// unixSeconds is 0 for a time that has not been.
func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// packetCounters shows what the kernel has counted at a scrape; read is netfilter.ReadCounters.
type packetCounters struct {
	read func() (map[string]uint64, error)
}

var descPackets = map[string]*prometheus.Desc{
	iptables.InvalidCounter: prometheus.NewDesc("kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
		"Forwarded packets that were dropped because conntrack calls them INVALID.", nil, nil),
	iptables.LocalhostCounter: prometheus.NewDesc("kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
		"First packets of connections to node ports on 127.0.0.0/8.", nil, nil),
}

// Describe implements prometheus.Collector.
func (packetCounters) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descPackets {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c packetCounters) Collect(ch chan<- prometheus.Metric) {
	packets, err := c.read()
	if err != nil {
		return // an error here would cost the whole scrape
	}
	for name, d := range descPackets {
		if n, known := packets[name]; known {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
		}
	}
}
