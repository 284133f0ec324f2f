package agent

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// bgpCollector shows where the BGP sessions stand at the moment of a scrape.
type bgpCollector struct {
	sessions func() []speaker.Session
	// crashes counts the ends of the BGP process that nobody asked for.
	crashes func() uint64
	// imported counts the routes to imported prefixes, by family in the order of cluster.Families.
	imported func() [2]int
}

var (
	descSession   = prometheus.NewDesc("fairway_bgp_session_up", "1 while the session with a BGP peer is established.", []string{"peer"}, nil)
	descPeer      = prometheus.NewDesc("fairway_bgp_peer_info", "1, with what is known of a BGP peer as labels.", []string{"peer", "asn", "state", "graceful_restart", "last_error"}, nil)
	descAnnounced = prometheus.NewDesc("fairway_bgp_announced_prefixes", "Prefixes announced to a BGP peer.", []string{"peer", "ip_family"}, nil)
	descReceived  = prometheus.NewDesc("fairway_bgp_received_prefixes", "Prefixes that a BGP peer sends.", []string{"peer", "ip_family"}, nil)
	descMesh      = prometheus.NewDesc("fairway_bgp_mesh_sessions", "Sessions with other nodes (bgp.mesh), by their state.", []string{"state"}, nil)
	descFromMesh  = prometheus.NewDesc("fairway_bgp_mesh_received_prefixes", "Prefixes that other nodes send.", []string{"ip_family"}, nil)
	descCrashes   = prometheus.NewDesc("fairway_bgp_crashes_total", "Times that the BGP process ended without being asked to.", nil, nil)
	descImported  = prometheus.NewDesc("fairway_bgp_imported_routes", "Routes in the kernel to prefixes that BGP peers send.", []string{"ip_family"}, nil)
)

// Describe implements prometheus.Collector.
func (bgpCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descSession, descPeer, descAnnounced, descReceived, descMesh, descFromMesh, descCrashes, descImported} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c bgpCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ch <- prometheus.MustNewConstMetric(descCrashes, prometheus.CounterValue, float64(c.crashes()))
	for i, n := range c.imported() {
		gauge(descImported, float64(n), cluster.Families[i].String())
	}
	mesh, others := countMesh(c.sessions())
	if len(mesh.byState) > 0 {
		for i, n := range mesh.received {
			gauge(descFromMesh, float64(n), cluster.Families[i].String())
		}
	}
	for state, n := range mesh.byState {
		gauge(descMesh, float64(n), state)
	}
	for _, s := range others {
		peer := s.Peer.Address.String()
		gauge(descSession, boolean(s.Up()), peer)
		gauge(descPeer, 1, peer, strconv.FormatUint(uint64(s.Peer.ASN), 10), s.State, strconv.FormatBool(s.GracefulRestart), s.LastError)
		for i, f := range cluster.Families {
			if s.Families[i] {
				gauge(descAnnounced, float64(s.Announced[i]), peer, f.String())
				gauge(descReceived, float64(s.Received[i]), peer, f.String())
			}
		}
	}
}
