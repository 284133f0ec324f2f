package lab

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/agent/cluster"
)

// manifestFile is the one file of a Cluster's folder.
const manifestFile = "cluster.yaml"

// A Cluster is the state of a Kubernetes API as a folder for --cluster-dir. Changes are collected until Write, which
// replaces one file atomically: an agent sees all of them or none. Objects are copied when they are set, and get a UID and a
// creation time, which an object keeps until it is removed; of two objects, the one that was set first is the older.
type Cluster struct {
	// Dir is the folder.
	Dir string

	mu      sync.Mutex // guards the fields below
	objects map[string]object
	seq     int
	failed  error // of a change since the last Write
}

type object struct {
	meta metav1.ObjectMeta
	text []byte
}

// NewCluster returns an empty Cluster in a folder, which it makes when it is not there. Nothing is written yet.
func NewCluster(dir string) (*Cluster, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return &Cluster{Dir: dir, objects: map[string]object{}}, nil
}

// Cluster returns a new Cluster in a folder of the Lab, with the Nodes of its Topology, written.
func (l *Lab) Cluster() (*Cluster, error) {
	dir, err := os.MkdirTemp(l.Dir, "cluster-")
	if err != nil {
		return nil, err
	}
	c, err := NewCluster(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range l.Topology.Nodes {
		c.SetNode(NodeObject(n))
	}
	return c, c.Write()
}

// NodeObject returns the Kubernetes Node of a node: its podCIDRs, and the first address of each family as InternalIP.
func NodeObject(n NodeSpec) *corev1.Node {
	out := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}}}
	for _, p := range n.PodCIDRs {
		out.Spec.PodCIDRs = append(out.Spec.PodCIDRs, p.String())
	}
	if len(out.Spec.PodCIDRs) > 0 {
		out.Spec.PodCIDR = out.Spec.PodCIDRs[0]
	}
	for _, f := range cluster.Families {
		if a := first(n.Addrs, f); a.IsValid() {
			out.Status.Addresses = append(out.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
	}
	return out
}

// Service returns a Service default/NAME of type ClusterIP with one ClusterIP per family at most. Change what else it should be:
// its type, node ports, policies.
func Service(name string, clusterIPs []netip.Addr, ports ...corev1.ServicePort) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.Type = corev1.ServiceTypeClusterIP
	s.Spec.Ports = ports
	for _, a := range clusterIPs {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, corev1.IPFamily(cluster.FamilyOf(a).String()))
	}
	if len(clusterIPs) > 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(clusterIPs) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	s.Spec.IPFamilyPolicy = &policy
	return s
}

// TCPPort returns a TCP port of a Service. The name may be empty when it is the only one.
func TCPPort(name string, port, target uint16) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: corev1.ProtocolTCP, Port: int32(port), TargetPort: intstr.FromInt32(int32(target))}
}

// UDPPort returns a UDP port of a Service.
func UDPPort(name string, port, target uint16) corev1.ServicePort {
	p := TCPPort(name, port, target)
	p.Protocol = corev1.ProtocolUDP
	return p
}

// An Endpoint is a pod in an EndpointSlice with its conditions. Make it with Ready, NotReady, Terminating or Gone, or by hand.
type Endpoint struct {
	// Addrs are the endpoint's addresses, one per family at most.
	Addrs []netip.Addr
	// NodeName is the node that it is on; empty when the slice should not say.
	NodeName                    string
	Ready, Serving, Terminating bool
}

func endpoint(p *Pod) Endpoint { return Endpoint{Addrs: p.Addrs, NodeName: p.Node.Name} }

// Ready is a pod that takes traffic.
func Ready(p *Pod) Endpoint {
	e := endpoint(p)
	e.Ready, e.Serving = true, true
	return e
}

// NotReady is a pod that is not ready yet.
func NotReady(p *Pod) Endpoint { return endpoint(p) }

// Terminating is a pod that is going away and still serves.
func Terminating(p *Pod) Endpoint {
	e := endpoint(p)
	e.Serving, e.Terminating = true, true
	return e
}

// Gone is a pod that is going away and serves no more.
func Gone(p *Pod) Endpoint {
	e := endpoint(p)
	e.Terminating = true
	return e
}

// Slice returns an EndpointSlice of a Service, for one family, with the Service's ports (a target port that is a name is left
// to the caller) and the endpoints that have an address of the family. Its name is the Service's with a suffix.
func Slice(s *corev1.Service, suffix string, f cluster.Family, endpoints ...Endpoint) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: s.Name + "-" + suffix,
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Name},
		},
		AddressType: discoveryv1.AddressType(f.String()),
	}
	for _, p := range s.Spec.Ports {
		target := p.TargetPort.IntVal
		if target == 0 {
			target = p.Port
		}
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &target})
	}
	for _, e := range endpoints {
		a := first(e.Addrs, f)
		if !a.IsValid() {
			continue
		}
		ep := discoveryv1.Endpoint{
			Addresses:  []string{a.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating},
		}
		if e.NodeName != "" {
			ep.NodeName = &e.NodeName
		}
		out.Endpoints = append(out.Endpoints, ep)
	}
	return out
}

// SetNode adds a Node or replaces the one of the same name.
func (c *Cluster) SetNode(n *corev1.Node) {
	n = n.DeepCopy()
	n.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
	c.set("Node", &n.ObjectMeta, n)
}

// SetService adds a Service or replaces the one of the same name.
func (c *Cluster) SetService(s *corev1.Service) {
	s = s.DeepCopy()
	s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
	c.set("Service", &s.ObjectMeta, s)
}

// SetSlice adds an EndpointSlice or replaces the one of the same name.
func (c *Cluster) SetSlice(s *discoveryv1.EndpointSlice) {
	s = s.DeepCopy()
	s.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
	c.set("EndpointSlice", &s.ObjectMeta, s)
}

// SetEndpoints gives a Service its endpoints: one slice per family of its ClusterIPs, named after the family, for all
// ports of the Service. Slices of other names stay as they are.
func (c *Cluster) SetEndpoints(s *corev1.Service, endpoints ...Endpoint) {
	for _, ip := range s.Spec.ClusterIPs {
		a, err := netip.ParseAddr(ip)
		if err != nil {
			continue // "None" has no family
		}
		f := cluster.FamilyOf(a)
		c.SetSlice(Slice(s, strings.ToLower(f.String()), f, endpoints...))
	}
}

// RemoveNode removes a Node. Removing what is not there does nothing.
func (c *Cluster) RemoveNode(name string) { c.remove("Node", "", name) }

// RemoveService removes a Service and leaves its slices.
func (c *Cluster) RemoveService(s *corev1.Service) { c.remove("Service", s.Namespace, s.Name) }

// RemoveSlice removes an EndpointSlice by namespace and name.
func (c *Cluster) RemoveSlice(namespace, name string) { c.remove("EndpointSlice", namespace, name) }

// RemoveEndpoints removes the slices that SetEndpoints makes.
func (c *Cluster) RemoveEndpoints(s *corev1.Service) {
	for _, f := range cluster.Families {
		c.RemoveSlice(s.Namespace, s.Name+"-"+strings.ToLower(f.String()))
	}
}

// Write replaces the folder's file by what the Cluster is now, and returns when that is done.
func (c *Cluster) Write() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.failed; err != nil {
		c.failed = nil
		return err
	}
	var out bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(c.objects)) {
		out.WriteString("---\n")
		out.Write(c.objects[key].text)
	}
	return replaceFile(filepath.Join(c.Dir, manifestFile), out.Bytes())
}

// replaceFile writes a file next to the old one and renames it. Its name has no ending that an agent reads.
func replaceFile(path string, content []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func objectKey(kind, namespace, name string) string { return kind + "/" + namespace + "/" + name }

// set renders an object, after giving it the UID and the time of the one that it replaces, or new ones. Those that the
// caller set stay.
func (c *Cluster) set(kind string, meta *metav1.ObjectMeta, o any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := objectKey(kind, meta.Namespace, meta.Name)
	old, ok := c.objects[key]
	if !ok {
		c.seq++
		old.meta.UID = types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012x", c.seq))
		old.meta.CreationTimestamp = metav1.NewTime(time.Date(2024, 1, 1, 0, 0, c.seq, 0, time.UTC))
	}
	if meta.UID == "" {
		meta.UID = old.meta.UID
	}
	if meta.CreationTimestamp.IsZero() {
		meta.CreationTimestamp = old.meta.CreationTimestamp
	}
	text, err := yaml.Marshal(o)
	if err != nil {
		c.failed = errors.Join(c.failed, fmt.Errorf("render %s: %w", key, err))
		return
	}
	c.objects[key] = object{meta: *meta, text: text}
}

func (c *Cluster) remove(kind, namespace, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.objects, objectKey(kind, namespace, name))
}
