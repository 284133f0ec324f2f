package file

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

const nodeYAML = `apiVersion: v1
kind: Node
metadata: {name: %s}
spec: {podCIDRs: [%s]}
`

const serviceYAML = `apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  clusterIP: %s
  ports:
  - port: 80
`

// write makes a folder with files, given as name, content, name, content…
func write(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		put(t, filepath.Join(dir, files[i]), files[i+1])
	}
	return dir
}

func put(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// text is a Snapshot in short.
func text(s *cluster.Snapshot) string {
	if s == nil {
		return "nothing"
	}
	var parts []string
	for _, n := range s.Nodes {
		parts = append(parts, fmt.Sprint(n.Name, n.PodCIDRs))
	}
	for _, svc := range s.Services {
		part := fmt.Sprint(svc.Namespace, "/", svc.Name, svc.ClusterIPs)
		for _, s := range svc.Slices {
			for _, e := range s.Endpoints {
				part += fmt.Sprintf("->%s@%s", e.Addr, e.NodeName)
			}
		}
		parts = append(parts, part)
	}
	for _, r := range s.ServiceCIDRs {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, " ")
}

// What kubectl prints, with everything in it that is of no interest here.
const kubectlYAML = `apiVersion: v1
items:
- apiVersion: v1
  kind: Node
  metadata:
    annotations:
      node.alpha.kubernetes.io/ttl: "0"
    creationTimestamp: "2026-01-02T03:04:05Z"
    labels:
      kubernetes.io/hostname: n1
    name: n1
    resourceVersion: "12"
    uid: 5d9bd1b5-4b6d-4b7c-8e6c-3b8a3f2a1c11
  spec:
    podCIDR: 10.200.1.0/24
    podCIDRs:
    - 10.200.1.0/24
  status:
    addresses:
    - address: 10.240.0.11
      type: InternalIP
    - address: n1
      type: Hostname
    allocatable:
      cpu: "2"
      memory: 3915776Ki
    conditions:
    - lastHeartbeatTime: "2026-01-02T03:04:05Z"
      message: kubelet is posting ready status
      reason: KubeletReady
      status: "True"
      type: Ready
    fieldOfALaterVersion: {x: 1}
    nodeInfo: {kubeletVersion: v1.37.2, swap: {capacity: 0}}
- apiVersion: v1
  kind: Service
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"shop"},
        - "spec":{"ports":[{"port":80}]}}
    name: web
    namespace: shop
  spec:
    clusterIP: 10.32.0.10
    clusterIPs:
    - 10.32.0.10
    internalTrafficPolicy: Cluster
    ipFamilies:
    - IPv4
    ipFamilyPolicy: SingleStack
    ports:
    - name: http
      nodePort: 30080
      port: 80
      protocol: TCP
      targetPort: web
    selector:
      app: web
    sessionAffinity: None
    type: NodePort
  status:
    loadBalancer: {}
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints:
  - addresses:
    - 10.200.1.2
    conditions:
      ready: true
      serving: true
      terminating: false
    nodeName: n1
    targetRef:
      kind: Pod
      name: web-0
      namespace: shop
  kind: EndpointSlice
  metadata:
    generateName: web-
    labels:
      endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
      kubernetes.io/service-name: web
    name: web-7xk2p
    namespace: shop
  ports:
  - name: http
    port: 8080
    protocol: TCP
- apiVersion: apps/v1
  kind: Deployment
  metadata:
    name: web
  spec:
    replicas: 3
kind: List
metadata:
  resourceVersion: ""
`

func TestLoad(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		want  string
		notes int
	}{
		{"kubectl get -o yaml", []string{"a.yaml", kubectlYAML}, "n1[10.200.1.0/24] shop/web[10.32.0.10]->10.200.1.2@n1", 0},
		{"several files and documents", []string{
			"b.yml", "# nothing\n---\n" + fmt.Sprintf(nodeYAML, "n2", "10.200.2.0/24") + "--- # next\n" + fmt.Sprintf(nodeYAML, "n1", "10.200.1.0/24") + "...\n---\n---\n",
			"a.yaml", fmt.Sprintf(serviceYAML, "web", "10.32.0.10"),
		}, "n1[10.200.1.0/24] n2[10.200.2.0/24] default/web[10.32.0.10]", 0},
		{"JSON as the API returns it, items without kind", []string{"a.json",
			`{"kind":"NodeList","apiVersion":"v1","items":[{"metadata":{"name":"n1"},"spec":{"podCIDRs":["10.200.1.0/24"]}}]}`,
		}, "n1[10.200.1.0/24]", 0},
		{"EndpointSliceList, and defaults as the API server sets them", []string{"a.yaml", `
kind: EndpointSliceList
apiVersion: discovery.k8s.io/v1
items:
- metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
  addressType: IPv6
  ports: [{port: 80}]
  endpoints: [{addresses: ["fd00::2"], nodeName: n1}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIPs: ["fd00::10", 10.32.0.10], ports: [{port: 80}]}
`}, "default/web[fd00::10 10.32.0.10]->fd00::2@n1", 0},
		{"Windows line ends and a byte order mark", []string{"a.yaml", "\ufeff" + strings.ReplaceAll(fmt.Sprintf(nodeYAML, "n1", "10.200.1.0/24")+"---\n"+fmt.Sprintf(nodeYAML, "n2", "10.200.2.0/24"), "\n", "\r\n")},
			"n1[10.200.1.0/24] n2[10.200.2.0/24]", 0},
		{"what is no manifest is not looked at", []string{"a.yaml", fmt.Sprintf(nodeYAML, "n1", "10.200.1.0/24"), "b.yaml~", "{", ".c.yaml", "{", "d.txt", "{", "sub.yaml/e.yaml", "{"},
			"n1[10.200.1.0/24]", 0},
		{"ServiceCIDRs", []string{"a.yaml", `
apiVersion: v1
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: ServiceCIDR
  metadata: {name: kubernetes, finalizers: [networking.k8s.io/service-cidr-finalizer]}
  spec: {cidrs: [10.32.0.0/24, "fd00:32::/112"]}
  status: {conditions: [{type: Ready, status: "True", reason: "", message: Kubernetes Service CIDR is ready}]}
---
apiVersion: networking.k8s.io/v1beta1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.31.0.0/24]}
`}, "10.31.0.0/24 10.32.0.0/24 fd00:32::/112", 0},
		{"a bad field is a Note", []string{"a.yaml", fmt.Sprintf(nodeYAML, "n1", "everything")}, "n1[]", 1},
		{"an empty cluster", []string{"a.yaml", "# nobody here\n"}, "", 0},
		{"other kinds alone", []string{"a.yaml", "kind: Namespace\napiVersion: v1\nmetadata: {name: x}\n---\nkind: Endpoints\napiVersion: v1\n---\nkind: PodList\napiVersion: v1\nitems: [{metadata: {name: x}}]"}, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := write(t, c.files...)
			s, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			if got := text(s); got != c.want || len(s.Notes) != c.notes || s.Host != nil {
				t.Errorf("got  %s %v %v\nwant %s and %d notes", got, s.Notes, s.Host, c.want, c.notes)
			}
		})
	}
}

func TestLoadSeveralPaths(t *testing.T) {
	dir := write(t, "nodes/a.yaml", fmt.Sprintf(nodeYAML, "n1", "10.200.1.0/24"), "services.txt", fmt.Sprintf(serviceYAML, "web", "10.32.0.10"))
	s, err := Load(filepath.Join(dir, "nodes"), filepath.Join(dir, "services.txt"))
	if want := "n1[10.200.1.0/24] default/web[10.32.0.10]"; err != nil || text(s) != want {
		t.Errorf("got %s, %v; want %s", text(s), err, want)
	}
}

func TestLoadHost(t *testing.T) {
	dir := write(t, "host.yaml", `
apiVersion: fairway.dev/v1alpha1
kind: Host
links:
- {name: eth0, index: 2, addresses: [192.168.0.2/24, "fd00::2/64"]}
- {name: lo, index: 1, loopback: true, addresses: [127.0.0.1/8]}
- {name: eth1, up: false}
`)
	s, err := Load(dir)
	want := &cluster.Host{Links: []cluster.Link{
		{Index: 1, Name: "lo", Up: true, Loopback: true, Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}},
		{Index: 2, Name: "eth0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.0.2/24"), netip.MustParsePrefix("fd00::2/64")}},
		{Index: 3, Name: "eth1"},
	}}
	if err != nil || !reflect.DeepEqual(s.Host, want) {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestLoadErrors(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
	for _, c := range []struct {
		name string
		in   string
		want string // after the file's name
	}{
		{"syntax", "kind: Foo\n  bad: [1\n", "2: document 1: mapping values are not allowed in this context"},
		{"syntax in a later document", "# one\n---\n# two\n---\nkind: Foo\n---\na: [1\nb: 2\n", "7: document 2: did not find expected ',' or ']'"},
		{"tab", service + "---\n" + service + "spec:\n\tports: 1\n", "9: document 2: found character that cannot start any token"},
		{"repeated key", service + "spec:\n  clusterIP: a\n  clusterIP: b\n", `6: document 1: key "clusterIP" already set in map`},
		{"type", service + "spec:\n  ports:\n  - name: a\n    port: eighty\n", "7: document 1: spec.ports.port is of type string; wanted is a whole number"},
		{"type, in flow style", service + "spec: {ports: [\n{name: a, port: eighty}]}\n", "5: document 1: spec.ports.port is of type string; wanted is a whole number"},
		{"type, of a field that is there twice", "# c\n" + service + "spec:\n  ports:\n  - port: eighty\n  - port: 81\n", "2: document 1: spec.ports.port is of type string; wanted is a whole number"},
		{"type, a bool for a string", service + "spec:\n  clusterIP: no\n", "5: document 1: spec.clusterIP is of type bool; wanted is a string (put it in quotes)"},
		{"type, a number for a list", service + "spec:\n  ports: 80\n", "5: document 1: spec.ports is of type number; wanted is a list"},
		{"type, in a List", "kind: List\napiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Namespace\n  spec:\n    x:\n    - port: 1\n- apiVersion: v1\n  kind: Service\n  spec:\n    ports:\n    - port: x\nmetadata: {}\n", "13: document 1: spec.ports.port is of type string; wanted is a whole number"},
		{"kind missing", "---\n\nmetadata: {name: x}\n", `3: document 1: kind is missing; every document has apiVersion and kind, as in "apiVersion: v1, kind: Service"`},
		{"no object", "just words\n", "1: document 1: this is of type string; an object with apiVersion and kind is wanted"},
		{"old EndpointSlice", "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1\n", `1: document 1: apiVersion of an EndpointSlice is "discovery.k8s.io/v1beta1"; discovery.k8s.io/v1 is known`},
		{"old ServiceCIDR", "kind: ServiceCIDR\napiVersion: networking.k8s.io/v1alpha1\n", `1: document 1: apiVersion of a ServiceCIDR is "networking.k8s.io/v1alpha1"; networking.k8s.io/v1 is known`},
		{"Service without apiVersion", "kind: Service\n", `1: document 1: apiVersion of a Service is ""; v1 is known`},
		{"List in a List", "kind: List\napiVersion: v1\nitems:\n- kind: List\n  apiVersion: v1\n", "4: document 1: a List within a List; kubectl prints none, put the items into the outer one"},
		{"twice", service + "---\n" + service, "5: document 2: Service default/web is given a second time; the first is at FILE:1"},
		{"host, unknown field", "kind: Host\napiVersion: fairway.dev/v1alpha1\nlinks:\n- {name: a, adresses: []}\n", `1: document 1: json: unknown field "adresses"`},
		{"host, address", "kind: Host\napiVersion: fairway.dev/v1alpha1\nlinks:\n- {name: a, addresses: [10.0.0.1]}\n", `1: document 1: links[0].addresses: "10.0.0.1" is not an address with the length of its prefix, such as 192.168.0.2/24`},
		{"host, name", "kind: Host\napiVersion: fairway.dev/v1alpha1\nlinks:\n- {name: a/b}\n", `1: document 1: links[0].name is "a/b"; a link's name has 1 to 15 printable characters without '/'`},
		{"host, index", "kind: Host\napiVersion: fairway.dev/v1alpha1\nlinks:\n- {name: a, index: -1}\n", "1: document 1: links[0].index is -1; an index is a number from 1"},
		{"host, link twice", "kind: Host\napiVersion: fairway.dev/v1alpha1\nlinks:\n- {name: a}\n- {name: a}\n", "1: document 1: links[1]: name a or index 2 is given twice"},
		{"host twice", "kind: Host\napiVersion: fairway.dev/v1alpha1\n---\nkind: Host\napiVersion: fairway.dev/v1alpha1\n", "4: document 2: Host document is given a second time; the first is at FILE:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(write(t, "a.yaml", c.in), "a.yaml")
			s, err := Load(path)
			var fault *Error
			if err == nil || !errors.As(err, &fault) {
				t.Fatalf("got %v, %v", text(s), err)
			}
			if want := path + ":" + strings.ReplaceAll(c.want, "FILE", path); err.Error() != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
		})
	}
}

func TestLoadErrorsInJSON(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"syntax", "{\"kind\": \"Service\",\n\"apiVersion\": \"v1\",\n\"spec\": {\"ports\": [{\"port\": }]}}", "3: document 1: invalid character '}' looking for beginning of value"},
		{"cut off", "{\"kind\": \"Service\",\n", "2: document 1: unexpected end of JSON input"},
		{"type", "{\"kind\": \"Service\",\n\"apiVersion\": \"v1\",\n\"spec\": {\"ports\": [{\"port\": \"x\"}]}}", "3: document 1: spec.ports.port is of type string; wanted is a whole number"},
		{"type, in a List", "{\"kind\": \"List\", \"apiVersion\": \"v1\", \"items\": [\n{\"kind\": \"Namespace\", \"apiVersion\": \"v1\", \"x\": 1},\n{\"kind\": \"Service\", \"apiVersion\": \"v1\",\n \"spec\": {\"clusterIP\": 1}}\n]}", "4: document 1: spec.clusterIP is of type number; wanted is a string (put it in quotes)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(write(t, "a.json", c.in), "a.json")
			if s, err := Load(path); err == nil || err.Error() != path+":"+c.want {
				t.Errorf("got  %v, %v\nwant %s", text(s), err, c.want)
			}
		})
	}
}

func TestLoadNamesEveryBrokenFile(t *testing.T) {
	dir := write(t, "a.yaml", "kind: [", "b.yaml", "kind: Namespace\napiVersion: v1", "c.yaml", "x: 1")
	_, err := Load(dir)
	if err == nil || !strings.Contains(err.Error(), "a.yaml:1: ") || !strings.Contains(err.Error(), "c.yaml:1: ") || strings.Contains(err.Error(), "b.yaml") {
		t.Errorf("error is %v", err)
	}
}

func TestLoadWithoutManifests(t *testing.T) {
	if _, err := Load(t.TempDir()); !errors.Is(err, ErrNoManifests) {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	dir := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a dangling link: %v", err)
	}
}

// FuzzDecode holds that no file makes the decoder panic, and that an error has a line of the file.
func FuzzDecode(f *testing.F) {
	f.Add(kubectlYAML)
	f.Add("kind: List\napiVersion: v1\nitems:\n- kind: Service\n  apiVersion: v1\n  spec: {ports: x}\n")
	f.Add("--- {kind: Service, apiVersion: v1}\n---\n---\n...\n- a\n")
	f.Add(`{"kind":"List","items":[{"kind":"Node","apiVersion":"v1","metadata":1}]}`)
	f.Fuzz(func(t *testing.T, in string) {
		for _, path := range []string{"a.yaml", "a.json"} {
			_, err := decodeFile(path, []byte(in))
			fault, _ := err.(*Error)
			if most := strings.Count(in, "\n") + 1; err != nil && (fault == nil || fault.Line < 1 || fault.Line > most) {
				t.Errorf("%d lines, error %v", most, err)
			}
		}
	})
}
