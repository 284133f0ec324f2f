package main

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/controlplane"
)

// writers is how many requests are made at once.
const writers = 8

// objects writes objects to the API.
type objects struct{ *controlplane.ControlPlane }

// create writes the objects of a made-up cluster that do not exist yet.
func (cp objects) create(ctx context.Context, s *cluster.Snapshot) error {
	var tasks []func() error
	namespaces := map[string]bool{}
	for _, svc := range s.Services {
		if !namespaces[svc.Namespace] {
			namespaces[svc.Namespace] = true
			if err := existing(cp.createNamespace(ctx, svc.Namespace)); err != nil {
				return err
			}
		}
		tasks = append(tasks, func() error { return cp.createService(ctx, svc) })
	}
	for _, n := range s.Nodes {
		tasks = append(tasks, func() error { return cp.createNode(ctx, n) })
	}
	return parallel(tasks)
}

// existing takes for success that an object is there already.
func existing(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// parallel runs tasks, a few at once, until the first error.
func parallel(tasks []func() error) error {
	queue := make(chan func() error)
	errs := make(chan error, writers)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for task := range queue {
				if err := existing(task()); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	var failed error
	for _, task := range tasks {
		select {
		case queue <- task:
			continue
		case failed = <-errs:
		}
		break
	}
	close(queue)
	wg.Wait()
	select {
	case err := <-errs:
		failed = err
	default:
	}
	return failed
}

func (cp objects) createNamespace(ctx context.Context, name string) error {
	_, err := cp.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

func (cp objects) createNode(ctx context.Context, n *cluster.Node) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
	for _, p := range n.PodCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
	}
	node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	for _, a := range n.InternalIPs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	_, err := cp.Client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	return err
}

func (cp objects) createService(ctx context.Context, svc *cluster.Service) error {
	object := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: svc.Name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceType(svc.Type), ClusterIP: svc.ClusterIPs[0].String()}}
	for _, p := range svc.Ports {
		object.Spec.Ports = append(object.Spec.Ports, corev1.ServicePort{Name: p.Name, Port: int32(p.Port), NodePort: int32(p.NodePort)})
	}
	_, err := cp.Client.CoreV1().Services(svc.Namespace).Create(ctx, object, metav1.CreateOptions{})
	if existing(err) != nil {
		return fmt.Errorf("create Service %s/%s: %w", svc.Namespace, svc.Name, err)
	}
	_, err = cp.Client.DiscoveryV1().EndpointSlices(svc.Namespace).Create(ctx, sliceObject(svc), metav1.CreateOptions{})
	return err
}

// updateSlice writes the present endpoints of a Service.
func (cp objects) updateSlice(ctx context.Context, svc *cluster.Service) error {
	_, err := cp.Client.DiscoveryV1().EndpointSlices(svc.Namespace).Update(ctx, sliceObject(svc), metav1.UpdateOptions{})
	return err
}

// sliceObject is a Service's only EndpointSlice, with what a controller writes beside the addresses.
func sliceObject(svc *cluster.Service) *discoveryv1.EndpointSlice {
	slice := svc.Slices[0]
	object := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: slice.Name, Labels: map[string]string{
			discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, p := range slice.Ports {
		number, protocol := int32(p.Port), corev1.ProtocolTCP
		object.Ports = append(object.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &number, Protocol: &protocol})
	}
	for _, e := range slice.Endpoints {
		yes, no := true, false
		object.Endpoints = append(object.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{e.Addr.String()}, NodeName: &e.NodeName,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: svc.Namespace, Name: "pod-" + e.Addr.String()},
		})
	}
	return object
}
