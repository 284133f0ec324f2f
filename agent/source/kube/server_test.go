package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// An apiServer is as much of a Kubernetes API as a reflector needs: list, watch from a version, and watch-list. It speaks
// JSON.
type apiServer struct {
	*httptest.Server
	noWatchList bool

	mu       sync.Mutex
	wake     chan struct{} // closed and replaced at every change of what follows
	version  int
	down     bool
	hangsUp  bool           // every request, without an answer
	withheld string         // a resource whose list is not complete yet
	refused  map[string]int // resources that are answered with a code
	// emptyCache makes lists of the cache empty; those of the store, without a resource version, are not. pages, when positive, is how
	// many objects a list has before it is continued.
	emptyCache bool
	pages      int
	objects    map[string]map[string]json.RawMessage
	history    []event
	requests   []*http.Request
	bodies     [][]byte
}

type event struct {
	resource string
	version  int
	typ      string
	object   json.RawMessage
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{wake: make(chan struct{}), objects: map[string]map[string]json.RawMessage{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.do(func() { s.down = true })
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) client(t *testing.T) *Client {
	t.Helper()
	c, err := newClient(&rest.Config{Host: s.URL, UserAgent: "fairway/test"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// do changes the server's state.
func (s *apiServer) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.wake)
	s.wake = make(chan struct{})
}

func resourceOf(obj any) (resource, apiVersion, kind string) {
	switch obj.(type) {
	case *corev1.Node:
		return "nodes", "v1", "Node"
	case *corev1.Service:
		return "services", "v1", "Service"
	case *discoveryv1.EndpointSlice:
		return "endpointslices", "discovery.k8s.io/v1", "EndpointSlice"
	case *networkingv1.ServiceCIDR:
		return "servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"
	}
	panic(fmt.Sprintf("no resource for %T", obj))
}

// put creates or updates objects, and remove deletes them.
func (s *apiServer) put(objs ...metav1.Object)    { s.write("", objs) }
func (s *apiServer) remove(objs ...metav1.Object) { s.write("DELETED", objs) }

func (s *apiServer) write(typ string, objs []metav1.Object) {
	s.do(func() {
		for _, obj := range objs {
			resource, apiVersion, kind := resourceOf(obj)
			s.version++
			obj.SetResourceVersion(strconv.Itoa(s.version))
			obj.(runtime.Object).GetObjectKind().SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind(kind))
			raw := encode(obj)
			raw = json.RawMessage(strings.Replace(string(raw), `"apiVersion":"meta.k8s.io/v1"`, `"apiVersion":"`+apiVersion+`"`, 1))
			if s.objects[resource] == nil {
				s.objects[resource] = map[string]json.RawMessage{}
			}
			key := obj.GetNamespace() + "/" + obj.GetName()
			e := event{resource, s.version, typ, raw}
			switch _, known := s.objects[resource][key]; {
			case typ == "DELETED":
				delete(s.objects[resource], key)
			case known:
				e.typ = "MODIFIED"
				s.objects[resource][key] = raw
			default:
				e.typ = "ADDED"
				s.objects[resource][key] = raw
			}
			s.history = append(s.history, e)
		}
	})
}

func encode(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	resource := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	q := r.URL.Query()
	s.mu.Lock()
	s.requests, s.bodies = append(s.requests, r), append(s.bodies, body)
	down, hangsUp, refused := s.down, s.hangsUp, s.refused[resource]
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case hangsUp:
		panic(http.ErrAbortHandler)
	case down:
		s.status(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
	case refused != 0:
		reasons := map[int]metav1.StatusReason{http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusNotFound: metav1.StatusReasonNotFound}
		s.status(w, refused, reasons[refused])
	case r.Method == http.MethodPost:
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"apiVersion":"v1","kind":"Status","status":"Success"}`)
	case q.Get("sendInitialEvents") == "true" && s.noWatchList:
		s.status(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case q.Get("watch") == "true" || q.Get("watch") == "1":
		s.watch(w, r, resource, q)
	default:
		s.list(w, resource, q)
	}
}

func (s *apiServer) status(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	_, _ = w.Write(encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: int32(code), Reason: reason, Message: "as the test wants"}))
}

func (s *apiServer) list(w http.ResponseWriter, resource string, q url.Values) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kinds := map[string]string{"nodes": `"v1","kind":"NodeList"`, "services": `"v1","kind":"ServiceList"`, "endpointslices": `"discovery.k8s.io/v1","kind":"EndpointSliceList"`,
		"servicecidrs": `"networking.k8s.io/v1","kind":"ServiceCIDRList"`}
	var items []json.RawMessage
	for _, key := range slices.Sorted(maps.Keys(s.objects[resource])) {
		items = append(items, s.objects[resource][key])
	}
	if s.emptyCache && q.Get("resourceVersion") != "" {
		items = nil
	}
	next := ""
	if s.pages > 0 {
		from, _ := strconv.Atoi(q.Get("continue"))
		items = items[from:]
		if len(items) > s.pages {
			items, next = items[:s.pages], strconv.Itoa(from+s.pages)
		}
	}
	fmt.Fprintf(w, `{"apiVersion":%s,"metadata":{"resourceVersion":"%d","continue":%q},"items":%s}`, kinds[resource], s.version, next, encode(items))
}

// watch streams from the history; a watch-list begins with what is there.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, resource string, q url.Values) {
	send := func(typ string, object json.RawMessage) {
		_, _ = fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", typ, object)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	if q.Get("sendInitialEvents") == "true" {
		for s.withheld == resource && s.await(r) {
			continue
		}
		from = s.version
		for _, raw := range s.objects[resource] {
			if !s.emptyCache {
				send("ADDED", raw)
			}
		}
		_, apiVersion, kind := resourceOf(map[string]any{"nodes": &corev1.Node{}, "services": &corev1.Service{}, "endpointslices": &discoveryv1.EndpointSlice{}, "servicecidrs": &networkingv1.ServiceCIDR{}}[resource])
		send("BOOKMARK", json.RawMessage(fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"resourceVersion":"%d","annotations":{"k8s.io/initial-events-end":"true"}}}`, apiVersion, kind, s.version)))
	}
	for !s.down && !s.hangsUp {
		for _, e := range s.history {
			if e.resource == resource && e.version > from {
				send(e.typ, e.object)
				from = e.version
			}
		}
		w.(http.Flusher).Flush()
		if !s.await(r) {
			return
		}
	}
}

// await is called with mu held and returns with it held, after a change; false when the client left.
func (s *apiServer) await(r *http.Request) bool {
	wake := s.wake
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-wake:
		return true
	case <-r.Context().Done():
		return false
	}
}
