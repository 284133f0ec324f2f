package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

func TestSummarise(t *testing.T) {
	start := time.Now()
	at := func(ms int, o Outcome, name string) attempt {
		return attempt{at: start.Add(time.Duration(ms) * time.Millisecond), outcome: o, name: name, decided: true}
	}
	refused := at(10, Refused, "")
	refused.detail = "why"
	got := summarise([]attempt{
		at(0, OK, "a"), refused, at(20, OK, "a"),
		at(30, Timeout, ""), at(40, Refused, ""), at(70, OK, "b"), at(80, Timeout, ""), at(90, Timeout, ""),
	})
	want := Report{
		Attempts: 8, Failures: map[Outcome]int{Refused: 2, Timeout: 3}, Names: map[string]int{"a": 2, "b": 1},
		LongestOutage: 40 * time.Millisecond,
		FirstFailure:  start.Add(10 * time.Millisecond), LastFailure: start.Add(90 * time.Millisecond), Detail: "why",
		Last: map[string]time.Time{"a": start.Add(20 * time.Millisecond), "b": start.Add(70 * time.Millisecond)},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if s := got.String(); s != "8 attempts, 5 failed (2 refused, 3 timeout), longest outage 40 ms, the first at "+start.Add(10*time.Millisecond).Format("15:04:05.000")+" why" {
		t.Error(s)
	}
	if s := summarise(nil).String(); s != "0 attempts, none failed" {
		t.Error(s)
	}
}

func TestTopologyCheck(t *testing.T) {
	for want, change := range map[string]func(*Topology){
		"used twice":     func(t *Topology) { t.Nodes[1].Name = "n1" },
		"lower-case":     func(t *Topology) { t.Clients[0].Name = "a-name-too-long" },
		"no network \"x": func(t *Topology) { t.Clients[0].Network = "x" },
		"has no network": func(t *Topology) { t.Networks = nil },
	} {
		topology := Conformance()
		change(&topology)
		if err := topology.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, topology := range []Topology{Bare(), Conformance()} {
		if err := topology.check(); err != nil {
			t.Error(err)
		}
	}
}

func TestAgentFlags(t *testing.T) {
	l := &Lab{Topology: Conformance()}
	n := &Node{Namespace: &Namespace{lab: l}, NodeSpec: l.Topology.Nodes[0]}
	got := n.flags(AgentOptions{
		Cluster: &Cluster{Dir: "d"}, Backend: NFT, Flags: []string{"--cluster-cidrs=10.0.0.0/8", "-v=4"}, Without: []string{"--service-cidrs"},
	})
	want := []string{"--node-name=n1", "--iptables-backend=nft", "--control-socket=n1.sock", "--cluster-dir=d", "--cluster-cidrs=10.0.0.0/8", "-v=4"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestClusterFile(t *testing.T) {
	c, err := NewCluster(filepath.Join(t.TempDir(), "cluster"))
	if err != nil {
		t.Fatal(err)
	}
	topology := Conformance()
	n1 := &Node{NodeSpec: topology.Nodes[0]}
	p1 := &Pod{PodSpec: topology.Nodes[0].Pods[0], Node: n1}
	c.SetNode(NodeObject(topology.Nodes[0]))
	svc := Service("web", addrs("10.96.0.10", "fd00:10:96::10"), TCPPort("http", 80, 8080), UDPPort("dns", 53, 5353))
	c.SetService(svc)
	c.SetEndpoints(svc, Terminating(p1))
	nodes, services, endpointSlices := load(t, c)
	if len(nodes) != 1 || len(services) != 1 || len(endpointSlices) != 2 {
		t.Fatalf("%d nodes, %d services, %d slices", len(nodes), len(services), len(endpointSlices))
	}
	if a := nodes[0].Status.Addresses; len(a) != 2 || a[0].Address != "192.168.0.2" || a[1].Address != "fd00:192:168::2" {
		t.Errorf("node addresses: %v", a)
	}
	v6 := endpointSlices[1]
	if v6.Name != "web-ipv6" || v6.AddressType != discoveryv1.AddressTypeIPv6 || *v6.Ports[1].Port != 5353 ||
		v6.Endpoints[0].Addresses[0] != "fd00:10:244:1::2" || *v6.Endpoints[0].Conditions.Ready ||
		!*v6.Endpoints[0].Conditions.Serving || !*v6.Endpoints[0].Conditions.Terminating || *v6.Endpoints[0].NodeName != "n1" {
		t.Errorf("slice: %+v", v6)
	}
	uid, created := services[0].UID, services[0].CreationTimestamp
	svc.Spec.Type = corev1.ServiceTypeNodePort
	c.SetService(svc)
	_, services, _ = load(t, c)
	if s := services[0]; s.UID != uid || !s.CreationTimestamp.Equal(&created) || s.Spec.Type != corev1.ServiceTypeNodePort {
		t.Errorf("changed: %+v", s)
	}
	c.RemoveService(svc)
	c.RemoveEndpoints(svc)
	if _, services, endpointSlices = load(t, c); len(services)+len(endpointSlices) != 0 {
		t.Errorf("removed: %v, %v", services, endpointSlices)
	}
	c.SetService(svc)
	if _, services, _ = load(t, c); services[0].UID == uid || !created.Before(&services[0].CreationTimestamp) {
		t.Errorf("made again: %+v", services[0].ObjectMeta)
	}
}

// load writes the Cluster and reads its file back.
func load(t *testing.T, c *Cluster) (nodes []corev1.Node, services []corev1.Service, endpointSlices []discoveryv1.EndpointSlice) {
	t.Helper()
	if err := c.Write(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(c.Dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("files: %v, %v", files, err)
	}
	text, err := os.ReadFile(filepath.Join(c.Dir, files[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(text), "---\n")[1:] {
		var err error
		switch {
		case strings.Contains(doc, "kind: Node\n"):
			nodes = append(nodes, corev1.Node{})
			err = yaml.UnmarshalStrict([]byte(doc), &nodes[len(nodes)-1])
		case strings.Contains(doc, "kind: Service\n"):
			services = append(services, corev1.Service{})
			err = yaml.UnmarshalStrict([]byte(doc), &services[len(services)-1])
		default:
			endpointSlices = append(endpointSlices, discoveryv1.EndpointSlice{})
			err = yaml.UnmarshalStrict([]byte(doc), &endpointSlices[len(endpointSlices)-1])
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
	}
	return nodes, services, endpointSlices
}

func TestParsePacket(t *testing.T) {
	udp := []byte{0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x04, 0xd2, 0, 53, 0, 10, 0, 0, 'h', 'i'}
	p, ok := parsePacket(0x0800, udp)
	if !ok || p.Src != netip.MustParseAddrPort("10.0.0.1:1234") || p.Dst != netip.MustParseAddrPort("10.0.0.2:53") || p.Length != 30 {
		t.Errorf("%v %v", p, ok)
	}
	later := append([]byte(nil), udp...)
	later[7] = 1 // the fragment's offset
	if p, ok := parsePacket(0x0800, later); !ok || p.Dst != netip.MustParseAddrPort("10.0.0.2:0") {
		t.Errorf("a later fragment: %v %v", p, ok)
	}
	for n := range udp {
		if _, ok := parsePacket(0x0800, udp[:n]); ok != (n >= 20) {
			t.Errorf("%d octets: %v", n, ok)
		}
	}
	if _, ok := parsePacket(0x0806, udp); ok {
		t.Error("ARP is no IP")
	}
}
