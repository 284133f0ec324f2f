package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/fairway-net/fairway/test/lab"
)

const namespace = "default"

// An api writes objects as the controllers of a cluster would: kubelet, endpoint slice controller, people.
type api struct {
	tb testing.TB
	*kubernetes.Clientset
}

// createNode registers a node with its addresses and podCIDRs.
func (a api) createNode(n lab.NodeSpec) {
	a.tb.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
	for _, p := range n.PodCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
	}
	node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	for _, addr := range n.Addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr.String()})
	}
	if _, err := a.CoreV1().Nodes().Create(context.Background(), node, metav1.CreateOptions{}); err != nil {
		a.tb.Fatalf("create Node: %v", err)
	}
}

func (a api) deleteNode(name string) {
	a.tb.Helper()
	if err := a.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		a.tb.Fatalf("delete Node: %v", err)
	}
}

// createService makes a Service of both families without selector and returns it with the addresses and the node
// ports that the API server gave it. Its ports are http, 80/TCP, and echo, 7/UDP; at the pods both are podPort.
func (a api) createService(name string, kind corev1.ServiceType) *corev1.Service {
	a.tb.Helper()
	policy := corev1.IPFamilyPolicyRequireDualStack
	svc, err := a.CoreV1().Services(namespace).Create(context.Background(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type: kind, IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{
				{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(podPort)},
				{Name: "echo", Protocol: corev1.ProtocolUDP, Port: 7, TargetPort: intstr.FromInt32(podPort)},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		a.tb.Fatalf("create Service: %v", err)
	}
	return svc
}

func (a api) deleteService(name string) {
	a.tb.Helper()
	if err := a.CoreV1().Services(namespace).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		a.tb.Fatalf("delete Service: %v", err)
	}
	// The garbage collector of a cluster would remove the slices.
	if err := a.DiscoveryV1().EndpointSlices(namespace).DeleteCollection(context.Background(), metav1.DeleteOptions{},
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name}); err != nil {
		a.tb.Fatalf("delete EndpointSlices: %v", err)
	}
}

// setEndpoints writes a Service's slices, one per family: these pods, all ready.
func (a api) setEndpoints(service string, pods ...*lab.Pod) {
	a.tb.Helper()
	for _, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		var endpoints []discoveryv1.Endpoint
		for _, p := range pods {
			for _, addr := range p.Addrs {
				if addr.Is4() == (kind == discoveryv1.AddressTypeIPv4) {
					endpoints = append(endpoints, endpoint(addr, p.Node.Name))
				}
			}
		}
		a.setSlice(service, kind, endpoints)
	}
}

func endpoint(addr netip.Addr, node string) discoveryv1.Endpoint {
	ready := true
	return discoveryv1.Endpoint{
		Addresses: []string{addr.String()}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
	}
}

// setSlice creates or replaces a Service's slice of a family.
func (a api) setSlice(service string, kind discoveryv1.AddressType, endpoints []discoveryv1.Endpoint) {
	a.tb.Helper()
	ctx, slices := context.Background(), a.DiscoveryV1().EndpointSlices(namespace)
	port, http, tcp, echo, udp := int32(podPort), "http", corev1.ProtocolTCP, "echo", corev1.ProtocolUDP
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name:   service + "-" + strings.ToLower(string(kind)),
			Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: kind, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{
			{Name: &http, Port: &port, Protocol: &tcp}, {Name: &echo, Port: &port, Protocol: &udp},
		},
	}
	have, err := slices.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + slice.Name})
	if err == nil && len(have.Items) == 0 {
		_, err = slices.Create(ctx, slice, metav1.CreateOptions{})
	} else if err == nil {
		_, err = slices.Update(ctx, slice, metav1.UpdateOptions{})
	}
	if err != nil {
		a.tb.Fatalf("EndpointSlice of %s: %v", service, err)
	}
}

// event waits for an Event with this reason on an object, whose message names a value. It is read as kubectl reads
// it, through the core API.
func (a api) event(kind, name, reason, value string) {
	a.tb.Helper()
	eventually(a.tb, fmt.Sprintf("Event %s on %s %s about %s", reason, kind, name, value), func() error {
		list, err := a.CoreV1().Events(metav1.NamespaceAll).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		var others []string
		for _, e := range list.Items {
			if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == reason && strings.Contains(e.Message, value) {
				return nil
			}
			others = append(others, fmt.Sprintf("%s %s: %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message))
		}
		return fmt.Errorf("not among the Events:\n%s", strings.Join(others, "\n"))
	})
}
