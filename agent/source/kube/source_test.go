package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/tools/cache"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
)

func statusError(code int32) error {
	return fmt.Errorf("get: %w", &apierrors.StatusError{ErrStatus: metav1.Status{Code: code}})
}

func node(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.200.1.0/24"}}}
}

func service(name, clusterIP string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: clusterIP, Ports: []corev1.ServicePort{{Port: 80}}}}
}

func slice(svc string, addrs ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: svc + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: svc}}}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func serviceCIDR(name string, networks ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: networks}}
}

// A recorder takes what a Source publishes.
type recorder struct {
	*Source
	stop func()

	mu        sync.Mutex
	snapshots []*cluster.Snapshot
}

// run runs a Source. doubt, when given, is a func(string) to hear its doubts, or a Census of before.
func run(t *testing.T, s *apiServer, doubt ...any) *recorder {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &recorder{Source: New(s.client(t))}
	for _, d := range doubt {
		switch d := d.(type) {
		case func(string):
			r.OnDoubt = d
		case source.Census:
			r.Before = d
		}
	}
	ended := make(chan error, 1)
	go func() {
		ended <- r.Run(ctx, func(s *cluster.Snapshot) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.snapshots = append(r.snapshots, s)
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *recorder) all() []*cluster.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.snapshots)
}

func (r *recorder) last() *cluster.Snapshot {
	if all := r.all(); len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

// text is a Snapshot in short.
func text(s *cluster.Snapshot) string {
	if s == nil {
		return "nothing"
	}
	var b strings.Builder
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, "%s ", n.Name)
	}
	for _, svc := range s.Services {
		fmt.Fprintf(&b, "%s=%s[", svc.Name, svc.ClusterIPs[0])
		for _, s := range svc.Slices {
			for _, e := range s.Endpoints {
				fmt.Fprintf(&b, " %s", e.Addr)
			}
		}
		b.WriteString(" ] ")
	}
	for _, r := range s.ServiceCIDRs {
		fmt.Fprintf(&b, "%s ", r)
	}
	return strings.TrimSpace(b.String())
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *recorder) await(t *testing.T, want string) *cluster.Snapshot {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for text(r.last()) != want {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute %q is published, want %q", text(r.last()), want)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return r.last()
}

func TestSourceFollows(t *testing.T) {
	for _, noWatchList := range []bool{false, true} {
		t.Run(fmt.Sprintf("noWatchList=%v", noWatchList), func(t *testing.T) {
			s := newAPIServer(t)
			s.noWatchList = noWatchList
			s.put(node("n1"), service("a", "10.32.0.1"), service("b", "10.32.0.2"), slice("a", "10.200.1.2"))
			r := run(t, s)
			first := r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 ] b=10.32.0.2[ ]")
			if n := len(r.all()); n != 1 {
				t.Errorf("the first complete state came as Snapshot %d", n)
			}
			s.put(slice("a", "10.200.1.2", "10.200.1.3"))
			second := r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 10.200.1.3 ] b=10.32.0.2[ ]")
			if first.Services[1] != second.Services[1] || first.Nodes[0] != second.Nodes[0] {
				t.Error("what did not change lost its pointer")
			}
			s.remove(service("b", ""), node("n1"))
			s.put(node("n2"), slice("c", "10.200.1.9"))
			r.await(t, "n2 a=10.32.0.1[ 10.200.1.2 10.200.1.3 ]")
			s.put(service("c", "10.32.0.3"))
			r.await(t, "n2 a=10.32.0.1[ 10.200.1.2 10.200.1.3 ] c=10.32.0.3[ 10.200.1.9 ]")
			if since, err := r.Lost(); !since.IsZero() || err != nil {
				t.Errorf("Lost() = %v, %v", since, err)
			}
		})
	}
}

func TestSourceAsksForWhatItNeeds(t *testing.T) {
	s := newAPIServer(t)
	r := run(t, s)
	until(t, "published", func() bool { return r.last() != nil })
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[string]bool{}
	for _, q := range s.requests {
		v := q.URL.Query()
		seen[fmt.Sprintf("%s field=%s label=%s initial=%s", q.URL.Path, v.Get("fieldSelector"), v.Get("labelSelector"), v.Get("sendInitialEvents"))] = true
		if a := q.Header.Get("Accept"); !strings.HasPrefix(a, "application/vnd.kubernetes.protobuf") {
			t.Errorf("Accept is %q", a)
		}
		if a := q.Header.Get("User-Agent"); a != "fairway/test" {
			t.Errorf("User-Agent is %q", a)
		}
	}
	for _, want := range []string{
		"/api/v1/nodes field= label= initial=true",
		"/api/v1/services field=spec.clusterIP!=None label=!service.kubernetes.io/service-proxy-name initial=true",
		"/apis/discovery.k8s.io/v1/endpointslices field= label=!service.kubernetes.io/headless initial=true",
		"/apis/networking.k8s.io/v1/servicecidrs field= label= initial=true",
	} {
		if !seen[want] {
			t.Errorf("no request %s among %v", want, seen)
		}
	}
}

func TestSourceWaitsForCompleteLists(t *testing.T) {
	s := newAPIServer(t)
	s.withheld = "endpointslices"
	s.put(node("n1"), service("a", "10.32.0.1"), slice("a", "10.200.1.2"))
	r := run(t, s)
	until(t, "all other lists complete", func() bool {
		r.Source.mu.Lock()
		defer r.Source.mu.Unlock()
		return len(r.complete) == len(lists)-1
	})
	s.put(service("b", "10.32.0.2"))
	until(t, "the change known", func() bool {
		r.Source.mu.Lock()
		defer r.Source.mu.Unlock()
		return len(r.assembler.Snapshot().Services) == 2
	})
	if got := r.last(); got != nil {
		t.Fatalf("published without EndpointSlices: %s", text(got))
	}
	s.do(func() { s.withheld = "" })
	r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 ] b=10.32.0.2[ ]")
}

// TestSourceWithoutServiceCIDRs: an API that does not have them, or does not let them be read, is none that is lost, and
// everything else goes on.
func TestSourceWithoutServiceCIDRs(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusForbidden} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			s := newAPIServer(t)
			s.refused = map[string]int{"servicecidrs": code}
			s.put(node("n1"), service("a", "10.32.0.1"), slice("a", "10.200.1.2"), serviceCIDR("kubernetes", "10.32.0.0/24"))
			r := run(t, s)
			before := r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 ]")
			s.put(service("b", "10.32.0.2"))
			r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 ] b=10.32.0.2[ ]")
			if since, err := r.Lost(); !since.IsZero() || err != nil {
				t.Errorf("Lost() = %v, %v", since, err)
			}
			s.do(func() { s.refused = nil })
			after := r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 ] b=10.32.0.2[ ] 10.32.0.0/24")
			if after.Services[0] != before.Services[0] {
				t.Error("a Service lost its pointer over it")
			}
			s.put(serviceCIDR("more", "10.33.0.0/24", "fd00:32::/112"))
			r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 ] b=10.32.0.2[ ] 10.32.0.0/24 10.33.0.0/24 fd00:32::/112")

			// The same while the agent runs: what does not exist is gone, what is only forbidden stays as it was known.
			s.do(func() { s.refused, s.down = map[string]int{"servicecidrs": code}, true })
			until(t, "lost", func() bool { since, _ := r.Lost(); return !since.IsZero() })
			s.do(func() { s.down = false })
			until(t, "refused again", func() bool { since, _ := r.Lost(); return since.IsZero() })
			s.put(service("c", "10.32.0.3"))
			want := "n1 a=10.32.0.1[ 10.200.1.2 ] b=10.32.0.2[ ] c=10.32.0.3[ ]"
			if code == http.StatusForbidden {
				want += " 10.32.0.0/24 10.33.0.0/24 fd00:32::/112"
			}
			r.await(t, want)
		})
	}
	s := newAPIServer(t)
	s.refused = map[string]int{"endpointslices": http.StatusForbidden}
	r := run(t, s)
	until(t, "without EndpointSlices the API is lost", func() bool { since, err := r.Lost(); return !since.IsZero() && err != nil })
	if r.last() != nil {
		t.Error("published without EndpointSlices")
	}
}

func TestSourceOutage(t *testing.T) {
	s := newAPIServer(t)
	s.put(node("n1"), service("a", "10.32.0.1"), service("b", "10.32.0.2"), slice("a", "10.200.1.2"))
	r := run(t, s)
	before := r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 ] b=10.32.0.2[ ]")
	s.do(func() { s.down = true })
	until(t, "lost", func() bool { since, err := r.Lost(); return !since.IsZero() && err != nil })
	s.remove(service("b", "")) // nobody sees this happen
	s.put(slice("a", "10.200.1.7"))
	s.do(func() { s.history = nil })
	if r.last() != before {
		t.Error("the outage changed the state")
	}
	s.do(func() { s.down = false })
	after := r.await(t, "n1 a=10.32.0.1[ 10.200.1.7 ]")
	if after.Nodes[0] != before.Nodes[0] {
		t.Error("a Node that did not change lost its pointer")
	}
	until(t, "back", func() bool { since, _ := r.Lost(); return since.IsZero() })
	for _, s := range r.all() {
		if len(s.Nodes) == 0 || len(s.Services) == 0 {
			t.Errorf("an incomplete state was published: %s", text(s))
		}
	}
}

// A load balancer without an API server behind it takes connections and ends them. That is an outage too.
func TestSourceHungUpOn(t *testing.T) {
	s := newAPIServer(t)
	s.put(node("n1"))
	r := run(t, s)
	before := r.await(t, "n1")
	s.do(func() { s.hangsUp = true })
	until(t, "lost", func() bool { since, err := r.Lost(); return !since.IsZero() && err != nil })
	s.put(node("n2"))
	if r.last() != before {
		t.Error("the outage changed the state")
	}
	s.do(func() { s.hangsUp = false })
	r.await(t, "n1 n2")
	until(t, "back", func() bool { since, _ := r.Lost(); return since.IsZero() })
}

// A machine without an API server refuses connections. Afterwards a watch goes on from where it was, without a list.
func TestSourceRefused(t *testing.T) {
	s := newAPIServer(t)
	s.put(node("n1"))
	listen := func(at string) *http.Server {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Addr: l.Addr().String(), Handler: s}
		go func() { _ = server.Serve(l) }() // ends with Close
		t.Cleanup(func() { server.Close() })
		return server
	}
	server := listen("127.0.0.1:0")
	s.URL = "http://" + server.Addr
	r := run(t, s)
	r.await(t, "n1")
	s.put(node("n2")) // a watch that ends at once, without an event, would be followed by a list
	before := r.await(t, "n1 n2")
	server.Close()
	until(t, "lost", func() bool { since, err := r.Lost(); return !since.IsZero() && utilnet.IsConnectionRefused(err) })
	s.put(node("n3"))
	if r.last() != before {
		t.Error("the outage changed the state")
	}
	old := 0
	s.do(func() { old = len(s.requests) })
	listen(server.Addr)
	r.await(t, "n1 n2 n3")
	until(t, "back", func() bool { since, _ := r.Lost(); return since.IsZero() })
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, request := range s.requests[old:] {
		q := request.URL.Query()
		if strings.HasSuffix(request.URL.Path, "/nodes") && (q.Get("watch") == "" || q.Get("sendInitialEvents") == "true") {
			t.Errorf("Nodes were listed again: %s", request.URL)
		}
	}
}

// When the API answers for one list, the others do not wait any longer.
func TestAttemptsAfterAnAnswer(t *testing.T) {
	c := contact{failing: map[source.Kind]error{}, answers: make(chan struct{})}
	refused := errors.New("connection refused")
	for _, kind := range []source.Kind{source.KindNode, source.KindService} {
		_ = c.result(kind, refused)
	}
	a := attempts{contact: &c, delay: 2 * time.Hour}
	ended := make(chan error, 1)
	go func() { ended <- a.wait(t.Context(), time.Hour) }()
	for waited := false; !waited; {
		_ = c.result(source.KindNode, nil)
		select {
		case err := <-ended:
			if waited = true; err != nil {
				t.Error(err)
			}
		case <-time.After(time.Millisecond): // it may not have begun to wait
			_ = c.result(source.KindNode, refused)
		}
	}
	if a.delay != time.Hour {
		t.Errorf("the next wait is about %s, want the longest there is", a.delay)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.wait(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that is cancelled: %v", err)
	}
	a.opened = time.Now().Add(-2 * goodWatch)
	if err := a.wait(t.Context(), time.Hour); err != nil || a.delay != 2*firstRetry || !a.opened.IsZero() {
		t.Errorf("after a good watch: %v, the next wait is about %s", err, a.delay)
	}
}

// What no API server lets pass comes from one that is broken, or newer: fields that are null or missing, and values that nobody knows.
// It is left out, with a Note where it matters, and the rest is served.
func TestSourceStrangeObjects(t *testing.T) {
	s := newAPIServer(t)
	s.put(node("n1"), service("a", "10.32.0.1"), slice("a", "10.200.1.2"))
	r := run(t, s)
	r.await(t, "n1 a=10.32.0.1[ 10.200.1.2 ]")
	nothing := slice("a")
	nothing.Name, nothing.AddressType, nothing.Ports = "a-nothing", "", nil
	unknown := slice("a", "10.200.1.9")
	unknown.Name, unknown.AddressType = "a-unknown", "FQDN2"
	empty := slice("a")
	empty.Name, empty.Endpoints = "a-empty", []discoveryv1.Endpoint{{}, {Addresses: []string{""}}}
	empty.Ports = []discoveryv1.EndpointPort{{}}
	strange := service("strange", "10.32.0.9")
	strange.Spec.Type, strange.Spec.SessionAffinity, strange.Spec.IPFamilies = "Unheard", "Moon", []corev1.IPFamily{"IPv5"}
	strange.Spec.ExternalTrafficPolicy, strange.Spec.Ports[0].Protocol = "Never", "QUIC"
	bare := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "bare"}}
	s.put(nothing, unknown, empty, strange, bare, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n0"}}, serviceCIDR("none"))
	s.put(service("z", "10.32.0.2")) // what comes after them is served
	until(t, "the Service that comes last", func() bool { return strings.Contains(text(r.last()), "z=10.32.0.2[ ]") })
	if have := text(r.last()); !strings.Contains(have, "a=10.32.0.1[ 10.200.1.2 ]") {
		t.Errorf("published is %s", have)
	}
}

// A deletion that was missed comes, through an informer, as a DeletedFinalStateUnknown instead of an object. There is no informer
// here, and a reflector lists anew; one that came all the same is an error, and no panic.
func TestStoreOfTombstones(t *testing.T) {
	s := newAPIServer(t)
	source := New(s.client(t))
	for _, obj := range []any{
		cache.DeletedFinalStateUnknown{Key: "default/a", Obj: service("a", "10.32.0.1")}, cache.DeletedFinalStateUnknown{}, nil, "default/a",
	} {
		st := &store{Source: source, kind: lists[1].kind}
		if err := st.Update(obj); err == nil {
			t.Errorf("%T is stored", obj)
		}
		if err := st.Delete(obj); err == nil {
			t.Errorf("%T is deleted", obj)
		}
	}
}

func TestSourceBurst(t *testing.T) {
	s := newAPIServer(t)
	r := run(t, s)
	until(t, "published", func() bool { return r.last() != nil })
	var want []string
	for i := range 300 {
		s.put(service(fmt.Sprintf("s%03d", i), "10.32.0.1"))
		want = append(want, fmt.Sprintf("s%03d=10.32.0.1[ ]", i))
	}
	r.await(t, strings.Join(want, " "))
	r.stop()
	count := len(r.all())
	s.put(service("late", "10.32.0.1"))
	if len(r.all()) != count {
		t.Error("published after Run had ended")
	}
}

func TestContact(t *testing.T) {
	c := contact{failing: map[source.Kind]error{}, answers: make(chan struct{})}
	refused := errors.New("connection refused")
	for _, step := range []struct {
		kind source.Kind
		err  error
		lost bool
	}{
		{"Node", nil, false},
		{"Node", context.Canceled, false},
		{"Node", statusError(http.StatusGone), false},
		{"Node", statusError(http.StatusTooManyRequests), false},
		{"Node", statusError(http.StatusUnprocessableEntity), false},
		{"Node", refused, true},
		{"Service", nil, true},
		{"Service", statusError(http.StatusForbidden), true},
		{"Node", nil, true},
		{"Service", nil, false},
		{"Service", statusError(http.StatusUnauthorized), true},
		{"Service", statusError(http.StatusGone), false},
		{"Service", statusError(http.StatusServiceUnavailable), true},
	} {
		if got := c.result(step.kind, step.err); got != step.err {
			t.Errorf("%v became %v", step.err, got)
		}
		since, err := c.lost()
		if !since.IsZero() != step.lost || (err != nil) != step.lost {
			t.Errorf("after %v of %s: lost since %v: %v", step.err, step.kind, since, err)
		}
	}
}

func TestCreateEvent(t *testing.T) {
	s := newAPIServer(t)
	c := s.client(t)
	e := &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "fairway.1"}, Reason: "InvalidField"}
	if err := c.CreateEvent(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	last, body := s.requests[len(s.requests)-1], s.bodies[len(s.bodies)-1]
	s.mu.Unlock()
	if last.URL.Path != "/apis/events.k8s.io/v1/namespaces/default/events" || last.Method != http.MethodPost || !strings.Contains(string(body), "InvalidField") {
		t.Errorf("%s %s %q", last.Method, last.URL.Path, body)
	}
	s.do(func() { s.down = true })
	if err := c.CreateEvent(t.Context(), e); err == nil || !strings.HasPrefix(err.Error(), "create event default/fairway.1: ") {
		t.Errorf("error is %v", err)
	}
}

func TestConnect(t *testing.T) {
	good := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(good, []byte("{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], contexts: [{name: x, context: {cluster: c}}], current-context: x}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(Options{Kubeconfig: good, Version: "1"}); err != nil {
		t.Error(err)
	}
	if _, err := Connect(Options{Kubeconfig: good + "-not"}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), good+"-not") {
		t.Errorf("a missing kubeconfig: %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Connect(Options{}); err == nil {
		t.Error("connected in a pod that is none")
	}
}

// TestContentTypes: requests and answers have the encodings of the options, or else protobuf.
func TestContentTypes(t *testing.T) {
	type encodings struct{ sent, accepted string }
	for _, c := range []struct {
		options Options
		want    encodings
	}{
		{Options{}, encodings{"application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"}},
		{Options{ContentType: "application/json", AcceptContentTypes: "application/json"}, encodings{"application/json", "application/json"}},
	} {
		var got encodings
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = encodings{r.Header.Get("Content-Type"), r.Header.Get("Accept")}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"apiVersion":"events.k8s.io/v1","kind":"Event"}`)
		}))
		defer api.Close()
		c.options.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
		text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: " + api.URL + "}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
		if err := os.WriteFile(c.options.Kubeconfig, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		client, err := Connect(c.options)
		if err != nil {
			t.Fatal(err)
		}
		if err := client.CreateEvent(t.Context(), &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}}); err != nil || got != c.want {
			t.Errorf("%+v: the API got %+v, %v; expected %+v", c.options, got, err, c.want)
		}
	}
}
