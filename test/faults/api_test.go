package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
)

// frontPort is where the front listens, on the machine of the control plane.
const frontPort = 7080

// A front stands between an agent and the real API server, and spoils what passes through.
type front struct {
	proxy *httputil.ReverseProxy

	mu sync.Mutex // guards the fields below
	// state is cancelled by cut, which ends all that passes through at the time.
	state  context.Context
	cancel context.CancelFunc
	mode   frontMode
	// lists counts the complete lists that were asked for, gone the watches that were told to list anew.
	lists, gone int
}

// A frontMode says what is spoiled.
type frontMode struct {
	// down ends every request without an answer, stalled never answers.
	down, stalled bool
	// selector is added to the label selector of lists from the server's cache and of watches: who asks gets less than there is, but for
	// who asks the store itself, with a list without a version.
	selector string
	// expired tells a watch that would go on from a known version that the version is too old (410 Gone).
	expired bool
}

// set changes the mode for what is asked from now on; cut ends what passes through already.
func (f *front) set(m frontMode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mode = m
}

func (f *front) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancel()
	f.state, f.cancel = context.WithCancel(context.Background())
}

// counts returns how many lists and how many expired watches there were.
func (f *front) counts() (lists, gone int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists, f.gone
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	watch, initial := query.Get("watch") != "", query.Get("sendInitialEvents") == "true"
	f.mu.Lock()
	mode, state := f.mode, f.state
	resumes := watch && !initial && query.Get("resourceVersion") != ""
	if r.Method == http.MethodGet && (!watch || initial) {
		f.lists++
	}
	if mode.expired && resumes {
		f.gone++
	}
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(state, cancel)()
	switch {
	case mode.down:
		panic(http.ErrAbortHandler)
	case mode.stalled:
		<-ctx.Done()
		panic(http.ErrAbortHandler)
	case mode.expired && resumes:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusGone)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}`)
		return
	case mode.selector != "" && r.Method == http.MethodGet && query.Get("limit") == "":
		if have := query.Get("labelSelector"); have != "" {
			mode.selector = have + "," + mode.selector
		}
		query.Set("labelSelector", mode.selector)
		r.URL.RawQuery = query.Encode()
	}
	f.proxy.ServeHTTP(w, r.WithContext(ctx))
}

// An api is a rig whose agent of n1 reads the real API, through a front.
type api struct {
	*rig
	cp    *controlplane.ControlPlane
	front *front
}

// newAPI builds the cluster with a control plane. The agent of n2 has the folder: it is not what is tested.
func newAPI(t *testing.T, b lab.Backend) *api {
	t.Helper()
	a := &api{rig: newCluster(t, b, topology())}
	binaries, err := controlplane.Build()
	a.ok(err)
	control := a.lab.Client("control")
	a.cp, err = controlplane.Start(binaries, control, controlplane.Options{Dir: t.TempDir(), ServiceCIDRs: a.lab.Topology.ServiceCIDRs})
	a.ok(err)
	a.serveFront(control)
	for _, n := range a.lab.Topology.Nodes {
		_, err := a.cp.Client.CoreV1().Nodes().Create(context.Background(), lab.NodeObject(n), metav1.CreateOptions{})
		a.ok(err)
	}
	a.create(service("web", 10, webNodePort), lab.Ready(a.p2), lab.Ready(a.p3))
	a.start(a.n2, lab.AgentOptions{Cluster: a.cluster, Backend: b})
	a.start(a.n1, lab.AgentOptions{Backend: b, Flags: []string{"--kubeconfig=" + a.kubeconfig(control.Addrs[0])}})
	a.ready(a.n1, a.n2)
	return a
}

// serveFront starts the front on the machine of the control plane.
func (a *api) serveFront(on *lab.Client) {
	a.Helper()
	f := &front{}
	f.state, f.cancel = context.WithCancel(context.Background())
	to := &url.URL{Scheme: "https", Host: a.cp.Endpoint()}
	config, err := clientcmd.BuildConfigFromFlags("", a.cp.Kubeconfig)
	a.ok(err)
	config.Dial = controlplane.Dialer(on.Namespace)
	transport, err := rest.TransportFor(config)
	a.ok(err)
	f.proxy = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:     transport,
		FlushInterval: -1, // a watch is a stream
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	var listener net.Listener
	a.ok(on.Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(on.Addrs[0], frontPort).String())
		return err
	}))
	server := &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // ends with Close
	a.Cleanup(func() {
		f.cut()
		server.Close()
	})
	a.front = f
}

// kubeconfig writes one that leads to the front.
func (a *api) kubeconfig(at netip.Addr) string {
	a.Helper()
	file := filepath.Join(a.lab.Dir, "kubeconfig")
	config := clientcmdapi.NewConfig()
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: "http://" + netip.AddrPortFrom(at, frontPort).String()}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test"}
	config.CurrentContext = "test"
	a.ok(clientcmd.WriteToFile(*config, file))
	return file
}

// create makes a Service that does not exist yet, and makes or replaces its slices.
func (a *api) create(s *corev1.Service, endpoints ...lab.Endpoint) {
	a.Helper()
	ctx, services := context.Background(), a.cp.Client.CoreV1().Services(s.Namespace)
	s.Labels = map[string]string{"test/service": s.Name}
	if _, err := services.Get(ctx, s.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		_, err := services.Create(ctx, s, metav1.CreateOptions{})
		a.ok(err)
	} else {
		a.ok(err)
	}
	for _, f := range cluster.Families {
		slice := lab.Slice(s, strings.ToLower(f.String()), f, endpoints...)
		slices := a.cp.Client.DiscoveryV1().EndpointSlices(s.Namespace)
		slice.Labels["test/service"] = s.Name
		_, err := slices.Create(ctx, slice, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = slices.Update(ctx, slice, metav1.UpdateOptions{})
		}
		a.ok(err)
	}
}

// remove deletes a Service and its slices.
func (a *api) remove(s *corev1.Service) {
	a.Helper()
	ctx := context.Background()
	a.ok(a.cp.Client.CoreV1().Services(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{}))
	a.ok(a.cp.Client.DiscoveryV1().EndpointSlices(s.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "test/service=" + s.Name}))
}

// lost is for how long the agent of n1 says that it has not had the API.
func (a *api) lost() float64 {
	a.Helper()
	return a.metric(a.n1, "fairway_api_lost_seconds")
}

// Fault 29: the API server is away or hangs while pods come and go. Traffic goes on, nothing is deleted, the time without it is told,
// and afterwards everything that was missed arrives.
func TestFault29APIDown(t *testing.T) {
	t.Parallel()
	a := newAPI(t, lab.NFT)
	moves, gone := service("moves", 20, 0), service("gone", 21, 0)
	a.create(moves, lab.Ready(a.p2))
	a.create(gone, lab.Ready(a.p2))
	a.eventually(eventBound, func() error { return errors.Join(a.serves(20, a.p2), a.serves(21, a.p2)) })
	flows := a.flow(a.serviceFlows())
	rules, routes := a.rules(a.n1), a.table(a.n1)

	a.front.set(frontMode{down: true})
	a.front.cut()
	pods := []*lab.Pod{a.p2, a.p3}
	began := time.Now()
	for i := 0; time.Since(began) < lasts(10*time.Minute, 5*time.Second); i++ {
		a.create(moves, lab.Ready(pods[i%2]))
		time.Sleep(100 * time.Millisecond)
	}
	a.create(moves, lab.Ready(a.p3))
	a.remove(gone)
	a.create(service("new", 22, 0), lab.Ready(a.p2))
	var first float64
	a.eventually(eventBound, func() error {
		if first = a.lost(); first == 0 {
			return errors.New("the agent does not say that the API is lost")
		}
		return nil
	})
	a.eventually(eventBound, func() error {
		if later := a.lost(); later <= first {
			return fmt.Errorf("the API is lost for %v s, and then for %v s", first, later)
		}
		return nil
	})
	a.same("rules, while the API is away,", rules, a.rules(a.n1))
	a.same("routes, while the API is away,", routes, a.table(a.n1))
	a.front.set(frontMode{})
	a.comes("the API is back, since it can be reached", time.Now(), 10*time.Second, func() error {
		return errors.Join(a.serves(20, a.p3), a.serves(21), a.serves(22, a.p2))
	})
	// Each kind of object is asked for again in its own time.
	a.eventually(lookBound, func() error {
		if s := a.lost(); s != 0 {
			return fmt.Errorf("fairway_api_lost_seconds is %v", s)
		}
		return nil
	})

	rules = a.rules(a.n1)
	a.ok(a.cp.APIServer.Signal(unix.SIGSTOP))
	time.Sleep(lasts(time.Minute, 3*time.Second))
	a.same("rules, while the API hangs,", rules, a.rules(a.n1))
	a.ok(a.cp.APIServer.Signal(unix.SIGCONT))
	began = time.Now()
	a.create(moves, lab.Ready(a.p2))
	a.comes("the API goes on after it hung", began, 10*time.Second, func() error { return a.serves(20, a.p2) })
	flows.stop()
	a.exactly()
}

// Fault 30: the API server gives less than there is, tells watches to list anew, or ends them all the time. Nothing is taken away for
// what a list lacks until a second look has found it gone, and what is really gone goes.
func TestFault30WrongLists(t *testing.T) {
	t.Parallel()
	a := newAPI(t, lab.Legacy)
	const many = 12 // with fewer, half of them means nothing
	for i := range many {
		a.create(service(fmt.Sprint("many-", i), 30+i, 0), lab.Ready(a.p2))
	}
	a.eventually(lookBound, func() error { return errors.Join(a.serves(30, a.p2), a.serves(30+many-1, a.p2)) })
	flows := a.flow(a.serviceFlows())
	rules := func() string { return a.rulesOf(cluster.IPv4) + a.rulesOf(cluster.IPv6) }
	before := rules()

	// A cache that has nothing, or not all.
	for what, selector := range map[string]string{"empty lists": "test/service=none", "partial lists": "test/service in (web,many-1)"} {
		a.front.set(frontMode{selector: selector, expired: true})
		a.front.cut()
		a.eventually(lookBound, func() error { return a.said(a.n1, 0, note{"Node n1", cluster.ReasonListDoubted, "are left"}) })
		time.Sleep(lasts(time.Minute, 3*time.Second)) // so long it has for doing wrong
		a.same("rules, with "+what+",", before, rules())
		a.front.set(frontMode{})
		a.front.cut()
		a.comes(what+", since they are whole again", time.Now(), 10*time.Second, func() error { return a.quiet(a.n1, cluster.ReasonListDoubted) })
		a.same("rules, after "+what+",", before, rules())
	}

	// Watches that end all the time, and have to list anew: a storm of lists, and nothing changes.
	lists, _ := a.front.counts()
	a.front.set(frontMode{expired: true})
	for began := time.Now(); time.Since(began) < lasts(time.Minute, 4*time.Second); time.Sleep(100 * time.Millisecond) {
		a.front.cut()
	}
	after, gone := a.front.counts()
	a.Logf("%d lists and %d watches that were too old while all ended ten times a second", after-lists, gone)
	if gone == 0 {
		a.Error("no watch was told that it is too old")
	}
	a.front.set(frontMode{})
	a.same("rules, after the storm,", before, rules())

	// Most of it is really gone, and the agent hears of it from a list.
	a.front.set(frontMode{down: true})
	a.front.cut()
	for i := range many {
		a.remove(service(fmt.Sprint("many-", i), 30+i, 0))
	}
	a.front.set(frontMode{})
	a.comes("most Services are gone, since the list came", time.Now(), 15*time.Second, func() error {
		for i := range many {
			if err := a.serves(30 + i); err != nil {
				return err
			}
		}
		return nil
	})
	// Without endpoints they are refused, too: Services and EndpointSlices are lists of their own.
	a.eventually(lookBound, func() error {
		if strings.Contains(rules(), "default/many-") {
			return errors.New("there are rules of Services that are gone")
		}
		return nil
	})
	flows.stop()
	a.exactly()
}
