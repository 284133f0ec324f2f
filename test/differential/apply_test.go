package differential

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/fairway-net/fairway/agent/source"
)

// A writer brings actions to the API, and counts what the API refuses: the generator does not know all its rules, and a
// refused object is none in the cluster, for both sides alike.
type writer struct {
	client   *kubernetes.Clientset
	written  int
	refusals map[string]int // by the message, without names
}

// objects are what the API has of a scene.
type objects struct {
	services []corev1.Service
	slices   []discoveryv1.EndpointSlice
	zone     string
}

// write does the actions of a step. What is refused, perhaps as another object still has an address or a node port, is
// tried again after the others.
func (w *writer) write(ctx context.Context, actions []action) error {
	for last := range 2 {
		var again []action
		for _, a := range actions {
			err := w.do(ctx, a)
			switch {
			case err == nil:
				w.written++
			case apierrors.IsNotFound(err) && a.verb == "delete": // its creation was refused
			case apierrors.IsInvalid(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err):
				again = append(again, a)
				if last == 1 {
					w.refusals[refusal(a, err)]++
				}
			default:
				return fmt.Errorf("%s: %w", a, err)
			}
		}
		actions = again
	}
	return nil
}

// refusal shortens an error to what several of its kind have in common.
func refusal(a action, err error) string {
	var status *apierrors.StatusError
	if errors.As(err, &status) && status.ErrStatus.Details != nil && len(status.ErrStatus.Details.Causes) > 0 {
		c := status.ErrStatus.Details.Causes[0]
		return a.verb + ": " + numbers.ReplaceAllString(c.Field+": "+c.Message, "…")
	}
	_, text, _ := strings.Cut(err.Error(), ": ")
	return a.verb + ": " + text
}

// numbers are what differs between errors of one kind.
var numbers = regexp.MustCompile(`[0-9a-f:.]*[0-9][0-9a-f:.]*`)

func (w *writer) do(ctx context.Context, a action) error {
	switch {
	case a.service != nil:
		return w.service(ctx, a)
	case a.slice != nil:
		return w.slice(ctx, a)
	}
	value := "null"
	if *a.zone != "" {
		value = `"` + *a.zone + `"`
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{"%s":%s}}}`, corev1.LabelTopologyZone, value)
	_, err := w.client.CoreV1().Nodes().Patch(ctx, ownNode, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

func (w *writer) service(ctx context.Context, a action) (err error) {
	services := w.client.CoreV1().Services(a.service.Namespace)
	var now *corev1.Service
	switch a.verb {
	case "delete":
		return services.Delete(ctx, a.service.Name, metav1.DeleteOptions{})
	case "create":
		now, err = services.Create(ctx, a.service, metav1.CreateOptions{})
	default:
		now, err = services.Update(ctx, a.service, metav1.UpdateOptions{})
	}
	if err != nil || len(now.Status.LoadBalancer.Ingress) == 0 && len(a.service.Status.LoadBalancer.Ingress) == 0 {
		return err
	}
	now.Status = a.service.Status
	_, err = services.UpdateStatus(ctx, now, metav1.UpdateOptions{})
	return err
}

func (w *writer) slice(ctx context.Context, a action) (err error) {
	all := w.client.DiscoveryV1().EndpointSlices(a.slice.Namespace)
	switch a.verb {
	case "delete":
		return all.Delete(ctx, a.slice.Name, metav1.DeleteOptions{})
	case "create":
		_, err = all.Create(ctx, a.slice, metav1.CreateOptions{})
	default:
		_, err = all.Update(ctx, a.slice, metav1.UpdateOptions{})
	}
	return err
}

// clear deletes all objects of the scene before.
func (w *writer) clear(ctx context.Context) error {
	o, err := w.read(ctx)
	if err != nil {
		return err
	}
	for _, svc := range o.services {
		if slices.Contains(namespaces, svc.Namespace) {
			err = errors.Join(err, w.client.CoreV1().Services(svc.Namespace).Delete(ctx, svc.Name, metav1.DeleteOptions{}))
		}
	}
	for _, ns := range namespaces {
		err = errors.Join(err, w.client.DiscoveryV1().EndpointSlices(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	}
	return err
}

// read lists what there is, in all namespaces: the API's own Service is a Service as any other.
func (w *writer) read(ctx context.Context) (*objects, error) {
	services, err := w.client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	all, err := w.client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	node, err := w.client.CoreV1().Nodes().Get(ctx, ownNode, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return &objects{services.Items, all.Items, node.Labels[corev1.LabelTopologyZone]}, nil
}

// served tells whether a service proxy looks after a Service.
func served(s *corev1.Service) bool {
	_, other := s.Labels[source.LabelProxyName]
	return !other && s.Spec.Type != corev1.ServiceTypeExternalName && s.Spec.ClusterIP != corev1.ClusterIPNone
}

// slicesOf returns the slices of a Service that a service proxy looks at.
func (o *objects) slicesOf(s *corev1.Service) (list []discoveryv1.EndpointSlice) {
	for _, e := range o.slices {
		_, headless := e.Labels[corev1.IsHeadlessService]
		if !headless && e.Namespace == s.Namespace && e.Labels[discoveryv1.LabelServiceName] == s.Name {
			list = append(list, e)
		}
	}
	return list
}

// summary returns the refusals and how often each occurred, in order.
func (w *writer) summary() (lines []string) {
	for _, m := range slices.Sorted(maps.Keys(w.refusals)) {
		lines = append(lines, fmt.Sprintf("%4d × %s", w.refusals[m], m))
	}
	return lines
}
