package source

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Kind is a kind of object that a Snapshot is made of, as the API spells it.
type Kind string

// The kinds that [Convert] knows.
const (
	KindNode          Kind = "Node"
	KindService       Kind = "Service"
	KindEndpointSlice Kind = "EndpointSlice"
	KindServiceCIDR   Kind = "ServiceCIDR"
)

// Kinds are all of them, in the order in which everything treats them.
var Kinds = [...]Kind{KindNode, KindService, KindEndpointSlice, KindServiceCIDR}

// An ID names an object among all others. Namespace and Name are as given, so they may be no valid names.
type ID struct {
	Kind            Kind
	Namespace, Name string
}

// String returns "Kind namespace/name", quoted where a part could not be a Kubernetes name.
func (id ID) String() string {
	return cluster.Ref{Kind: string(id.Kind), Namespace: plain(id.Namespace), Name: plain(id.Name)}.String()
}

func compareIDs(a, b ID) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind))
}

// An Object is a Kubernetes object in the terms of the vocabulary: its value, unless the object is none of ours or was
// refused, and the remarks about what of it was not taken over. It keeps nothing of the object that it was made from
// but strings, so holding Objects costs little memory. It is immutable.
type Object struct {
	ID      ID
	node    *cluster.Node
	service *cluster.Service
	slice   *cluster.EndpointSlice
	// serviceCIDRs are the networks of a ServiceCIDR.
	serviceCIDRs []netip.Prefix
	// owner is the name of the Service that an EndpointSlice belongs to, in the slice's namespace.
	owner string
	// remarks is nil when there are none, as with nearly all objects.
	remarks *remarks
}

// Convert converts a *corev1.Node, *corev1.Service, *discoveryv1.EndpointSlice or *networkingv1.ServiceCIDR. The error is
// for any other type: the program is wrong, not the object.
func Convert(obj any) (*Object, error) {
	var converted *Object
	switch o := obj.(type) {
	case *corev1.Node:
		converted = convertNode(o)
	case *corev1.Service:
		converted = convertService(o)
	case *discoveryv1.EndpointSlice:
		converted = convertEndpointSlice(o)
	case *networkingv1.ServiceCIDR:
		converted = convertServiceCIDR(o)
	default:
		return nil, fmt.Errorf("convert %T: not a Node, Service, EndpointSlice or ServiceCIDR", obj)
	}
	if converted.remarks != nil && len(converted.remarks.notes) == 0 {
		converted.remarks = nil
	}
	return converted, nil
}

// maxRemarks bounds what is said about one object. Somebody who put a thousand bad addresses into a slice learns as
// much from the first few.
const maxRemarks = 5

// remarks collects the Notes about one object.
type remarks struct {
	about cluster.Ref
	notes []cluster.Note
	// more counts the Notes beyond maxRemarks; moreReason is the reason of the first of them.
	more       int
	moreReason string
}

func (r *remarks) add(reason, format string, args ...any) {
	if len(r.notes) >= maxRemarks {
		r.skip(1, reason)
		return
	}
	r.notes = append(r.notes, cluster.Note{Object: r.about, Reason: reason, Detail: fmt.Sprintf(format, args...)})
}

func (r *remarks) invalid(format string, args ...any) {
	r.add(cluster.ReasonInvalidField, format, args...)
}

func (r *remarks) skip(n int, reason string) {
	if r.more == 0 {
		r.moreReason = reason
	}
	r.more += n
}

// take adds another object's remarks, which may be nil, as being about r's object.
func (r *remarks) take(other *remarks) {
	if other == nil {
		return
	}
	for _, n := range other.notes {
		if len(r.notes) >= maxRemarks {
			r.skip(1, n.Reason)
			continue
		}
		n.Object = r.about
		r.notes = append(r.notes, n)
	}
	if other.more > 0 {
		r.skip(other.more, other.moreReason)
	}
}

// all returns the Notes with, if some were left out, a last one that counts them. r may be nil.
func (r *remarks) all() []cluster.Note {
	if r == nil {
		return nil
	}
	if r.more == 0 {
		return r.notes
	}
	return append(slices.Clip(r.notes), cluster.Note{Object: r.about, Reason: r.moreReason, Detail: fmt.Sprintf("and %d more", r.more)})
}
