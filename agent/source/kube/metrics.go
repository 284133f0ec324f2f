package kube

import (
	"context"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/metrics"
)

// What requests to the API take and how they end, with the names, labels and buckets that all components of Kubernetes have
// (k8s.io/component-base/metrics/prometheus/restclient). client-go has one place in a process for them.
var (
	requestDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "rest_client_request_duration_seconds",
		Help:    "Time until the API server answered a request.",
		Buckets: []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}}, []string{"verb", "host"})
	requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rest_client_requests_total",
		Help: "Requests to the API server."}, []string{"code", "method", "host"})
	requestRetries = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rest_client_request_retries_total",
		Help: "Requests to the API server that were repeated."}, []string{"code", "verb", "host"})
)

var registerOnce sync.Once

// Metrics returns the metrics of all Clients' requests.
func Metrics() []prometheus.Collector {
	registerOnce.Do(func() {
		metrics.Register(metrics.RegisterOpts{RequestLatency: observer{}, RequestResult: observer{}, RequestRetry: observer{}})
	})
	return []prometheus.Collector{requestDuration, requests, requestRetries}
}

// observer implements the interfaces of client-go.
type observer struct{}

// Observe implements [metrics.LatencyMetric].
func (observer) Observe(_ context.Context, verb string, u url.URL, latency time.Duration) {
	requestDuration.WithLabelValues(verb, u.Host).Observe(latency.Seconds())
}

// Increment implements [metrics.ResultMetric].
func (observer) Increment(_ context.Context, code, method, host string) {
	requests.WithLabelValues(code, method, host).Inc()
}

// IncrementRetry implements [metrics.RetryMetric].
func (observer) IncrementRetry(_ context.Context, code, verb, host string) {
	requestRetries.WithLabelValues(code, verb, host).Inc()
}
