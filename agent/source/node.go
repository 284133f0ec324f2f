package source

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
)

// taintToBeDeleted is put on a node by the cluster autoscaler before it drains the node (KEP-3836).
const taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// labelsOf returns an object's labels as "key=value", in order. Nodes have most of them in common, so they are interned.
func labelsOf(labels map[string]string) []string {
	var list []string
	for key, value := range labels {
		list = append(list, intern(key+"="+value))
	}
	slices.Sort(list)
	return list
}

func convertNode(n *corev1.Node) *Object {
	o := &Object{ID: ID{Kind: KindNode, Name: n.Name}}
	r := &remarks{}
	o.remarks = r
	r.about = cluster.Ref{Kind: string(KindNode), Name: plain(n.Name)}
	uid := r.uid(string(n.UID))
	r.about.UID = uid
	if !isSubdomain(n.Name) {
		r.invalid("metadata.name is %s, which is not a name of a Node (RFC 1123 subdomain); the Node is left out", quoted(n.Name))
		return o
	}
	node := &cluster.Node{Name: n.Name, UID: uid, Created: n.CreationTimestamp.UTC(), ToBeDeleted: toBeDeleted(n), Labels: labelsOf(n.Labels)}
	_, node.Excluded = n.Labels[corev1.LabelNodeExcludeBalancers]
	podCIDRs, field := n.Spec.PodCIDRs, "spec.podCIDRs"
	if len(podCIDRs) == 0 && n.Spec.PodCIDR != "" {
		podCIDRs, field = []string{n.Spec.PodCIDR}, "spec.podCIDR"
	}
	for _, s := range podCIDRs {
		if p, ok := r.prefix(field, s); ok {
			node.PodCIDRs = append(node.PodCIDRs, p)
		}
	}
	r.nodeAddresses(node, n.Status.Addresses)
	if zone := n.Labels[corev1.LabelTopologyZone]; isLabelValue(zone) {
		node.Zone = intern(zone)
	} else if zone != "" {
		r.invalid("label %s is %s, which is not a label value", corev1.LabelTopologyZone, quoted(zone))
	}
	node.KubeRouter = kubeRouterNode(node.Ref(), n.Annotations)
	o.node = node
	return o
}

func (r *remarks) nodeAddresses(node *cluster.Node, addresses []corev1.NodeAddress) {
	for i, na := range addresses {
		list := &node.InternalIPs
		switch na.Type {
		case corev1.NodeInternalIP:
		case corev1.NodeExternalIP:
			list = &node.ExternalIPs
		default:
			continue
		}
		if a, ok := r.addr(fmt.Sprintf("status.addresses[%d] (%s)", i, na.Type), na.Address); ok {
			*list = append(*list, a)
		}
	}
}

func toBeDeleted(n *corev1.Node) bool {
	if n.DeletionTimestamp != nil {
		return true
	}
	for _, t := range n.Spec.Taints {
		if t.Key == taintToBeDeleted {
			return true
		}
	}
	return false
}
