package kube

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
)

// minGap is the least time between two Snapshots. The first change after a rest is published at once; what comes
// during the gap goes into the next one. What is made of a Snapshot of 10,000 Services takes some 5 ms of processor time,
// garbage collection included, so that is a tenth of a core at most.
const minGap = 50 * time.Millisecond

// A watched is one of the lists that a Snapshot is made of.
type watched struct {
	kind          source.Kind
	resource      string
	example       runtime.Object
	list          func() runtime.Object
	group         func(*Client) rest.Interface
	fieldSelector string
	labelSelector string
	// optional means that the API may not have the resource, or not allow it: then it counts as an empty list.
	optional bool
}

var lists = [...]watched{{
	kind: source.KindNode, resource: "nodes", example: &corev1.Node{},
	list:  func() runtime.Object { return &corev1.NodeList{} },
	group: func(c *Client) rest.Interface { return c.core },
}, {
	kind: source.KindService, resource: "services", example: &corev1.Service{},
	list:          func() runtime.Object { return &corev1.ServiceList{} },
	group:         func(c *Client) rest.Interface { return c.core },
	fieldSelector: "spec.clusterIP!=None", labelSelector: "!" + source.LabelProxyName,
}, {
	kind: source.KindEndpointSlice, resource: "endpointslices", example: &discoveryv1.EndpointSlice{},
	list:          func() runtime.Object { return &discoveryv1.EndpointSliceList{} },
	group:         func(c *Client) rest.Interface { return c.discovery },
	labelSelector: "!" + source.LabelHeadless,
}, {
	// There since Kubernetes 1.33, and a ClusterRole of an earlier manifest does not grant it.
	kind: source.KindServiceCIDR, resource: "servicecidrs", example: &networkingv1.ServiceCIDR{},
	list:     func() runtime.Object { return &networkingv1.ServiceCIDRList{} },
	group:    func(c *Client) rest.Interface { return c.networking },
	optional: true,
}}

// A Source publishes the cluster as the Kubernetes API has it. Run may be called once.
type Source struct {
	client  *Client
	contact contact
	changed chan struct{} // of capacity 1: something is to be published

	// OnDoubt, when set before Run, is called when the lists are not believed yet, with the reason, and with "" when that is over. It
	// must return quickly.
	OnDoubt func(why string)
	// Before, set before Run, is what the cluster had when it was last known.
	Before source.Census

	mu        sync.Mutex
	assembler *source.Assembler                  // guarded by mu
	complete  map[source.Kind]bool               // guarded by mu: a complete list has arrived
	without   map[source.Kind]bool               // guarded by mu: the API does not have or allow the list
	listed    bool                               // guarded by mu: a list has arrived since the last Snapshot
	relists   map[source.Kind]context.CancelFunc // guarded by mu: end a watch, so that the list is asked for anew
}

var _ source.Source = (*Source)(nil)

// New returns a Source that has not contacted the API yet.
func New(c *Client) *Source {
	return &Source{
		client:    c,
		contact:   contact{failing: map[source.Kind]error{}, answers: make(chan struct{})},
		changed:   make(chan struct{}, 1),
		assembler: source.NewAssembler(),
		complete:  map[source.Kind]bool{},
		without:   map[source.Kind]bool{},
		relists:   map[source.Kind]context.CancelFunc{},
	}
}

// Lost returns since when the API has not answered and the latest error; the zero time while it does. It may be called
// from any goroutine.
func (s *Source) Lost() (since time.Time, err error) { return s.contact.lost() }

// Run implements [source.Source]. It returns nil only, as there is no failure that cannot heal: credentials are renewed,
// permissions granted, servers come back.
func (s *Source) Run(ctx context.Context, publish func(*cluster.Snapshot)) error {
	// The reflectors report at their own discretion what the contact says already; one degree quieter.
	ctx = klog.NewContext(ctx, klog.Background().V(2))
	// Nobody waits for the reflectors to end: client-go sleeps between two attempts without looking at ctx, and what
	// they might still store, nobody publishes.
	for i := range lists {
		go s.follow(ctx, &lists[i])
	}
	var last *cluster.Snapshot
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		}
		next, listed := s.snapshot()
		if next == nil || next == last {
			continue
		}
		if listed {
			before := s.Before
			if last != nil {
				before = source.Count(last)
			}
			if next = s.believed(ctx, before, next); next == nil {
				return nil
			}
		}
		publish(next)
		last = next
		if sleep(ctx, minGap) != nil {
			return nil
		}
	}
}

// snapshot returns nil until all lists are complete. listed tells that it holds a list that the one before did not.
func (s *Source) snapshot() (next *cluster.Snapshot, listed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.complete) < len(lists) {
		return nil, false
	}
	listed, s.listed = s.listed, false
	return s.assembler.Snapshot(), listed
}

// follow keeps one list up to date until ctx ends.
func (s *Source) follow(ctx context.Context, w *watched) {
	backoff := wait.Backoff{Duration: firstRetry, Factor: 2, Jitter: 0.5, Steps: 100, Cap: lastRetry}
	tries := &attempts{contact: &s.contact, delay: firstRetry}
	r := cache.NewReflectorWithOptions(s.listerWatcher(w, tries), w.example, &store{Source: s, kind: w.kind},
		cache.ReflectorOptions{Name: w.resource, Backoff: &backoff})
	// Not r.RunWithContext: it logs every failure. What goes wrong, the contact has seen.
	for ctx.Err() == nil {
		most := lastRetry
		watching, relist := context.WithCancel(ctx)
		s.mu.Lock()
		s.relists[w.kind] = relist
		s.mu.Unlock()
		if err := r.ListAndWatchWithContext(watching); w.unavailable(err) {
			most = lastOptional
		}
		relist()
		if tries.wait(ctx, most) != nil {
			return
		}
	}
}

func (s *Source) listerWatcher(w *watched, tries *attempts) cache.ListerWatcher {
	request := func(o *metav1.ListOptions) *rest.Request { return s.request(w, o) }
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := w.list()
			err := request(&o).Do(ctx).Into(list)
			return list, s.result(w, err)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			stream, err := request(&o).Watch(ctx)
			for utilnet.IsConnectionRefused(err) {
				// The reflector would go on from where it was, too, but sleep meanwhile, whatever happens.
				_ = s.result(w, err)
				if err := tries.wait(ctx, lastRetry); err != nil {
					return nil, err
				}
				stream, err = request(&o).Watch(ctx)
			}
			if err == nil && reflect.TypeOf(stream) == unanswered {
				// The reflector takes it for a watch that ended at once, and gives up.
				_ = s.contact.result(w.kind, errUnanswered)
				return stream, nil
			}
			if err == nil {
				tries.opened = time.Now()
			}
			return stream, s.result(w, err)
		},
	}
}

// client-go returns a watch of the type unanswered, and no error, when the connection was closed or timed out before there was an
// answer: by a load balancer, for example, that has no API server behind it.
var (
	unanswered    = reflect.TypeOf(watch.NewEmptyWatch())
	errUnanswered = errors.New("the connection ended without an answer")
)

// request makes a request for a list or a watch. Trying again is the reflector's and follow's: the client's own ten times, a second
// apart, would keep the contact from knowing that the API is lost.
func (s *Source) request(w *watched, o *metav1.ListOptions) *rest.Request {
	o.FieldSelector, o.LabelSelector = w.fieldSelector, w.labelSelector
	return w.group(s.client).Get().MaxRetries(0).Resource(w.resource).VersionedParams(o, s.client.parameters)
}

// unavailable reports whether a request failed because the API does not have the resource (404) or does not allow it
// (403), and that is nothing to wait for.
func (w *watched) unavailable(err error) bool {
	return w.optional && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err))
}

// result takes note of how a request ended. It returns err.
func (s *Source) result(w *watched, err error) error {
	if !w.unavailable(err) {
		if err == nil {
			s.setWithout(w, nil)
		}
		return s.contact.result(w.kind, err)
	}
	_ = s.contact.result(w.kind, nil) // the API answers
	s.setWithout(w, err)
	return err
}

// setWithout records that an optional list can't be had, with the reason, or, with nil, that it can. What the API does
// not have, there is none of; what it only ceased to allow stays as it was last known.
func (s *Source) setWithout(w *watched, reason error) {
	s.mu.Lock()
	was := s.without[w.kind]
	s.without[w.kind] = reason != nil
	first := reason != nil && !s.complete[w.kind]
	s.mu.Unlock()
	switch {
	case reason != nil && !was:
		klog.InfoS("The API does not give objects of a kind; the agent works without them, and asks again from time to time", "resource", w.resource, "reason", reason)
	case reason == nil && was:
		klog.InfoS("The API gives objects of a kind that it did not give before", "resource", w.resource)
	}
	if first || apierrors.IsNotFound(reason) {
		// A Replace with no objects has none that it could fail to convert.
		_ = (&store{Source: s, kind: w.kind}).Replace(nil, "")
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
