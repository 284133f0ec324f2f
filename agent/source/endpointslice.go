package source

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairway-net/fairway/agent/cluster"
)

// LabelHeadless on an EndpointSlice marks those of headless Services, which no service proxy needs.
const LabelHeadless = corev1.IsHeadlessService

// convertEndpointSlice makes remarks about the Service, because that is where an operator looks; the slice is named in
// the sentence. The Service's UID is not known here: the Assembler adds it.
func convertEndpointSlice(s *discoveryv1.EndpointSlice) *Object {
	o := &Object{ID: ID{Kind: KindEndpointSlice, Namespace: s.Namespace, Name: s.Name}}
	owner := s.Labels[discoveryv1.LabelServiceName]
	if _, headless := s.Labels[LabelHeadless]; headless || !isLabel(owner) || !isLabel(s.Namespace) {
		return o
	}
	o.owner = owner
	o.remarks = &remarks{}
	c := sliceConverter{remarks: o.remarks, name: plain(s.Name)}
	c.about = cluster.Ref{Kind: string(KindService), Namespace: s.Namespace, Name: owner}
	switch {
	case !isSubdomain(s.Name):
		c.invalid("EndpointSlice %s has no name of an EndpointSlice (RFC 1123 subdomain), and is left out", quoted(s.Name))
		return o
	case s.AddressType == discoveryv1.AddressTypeIPv4:
		c.family = cluster.IPv4
	case s.AddressType == discoveryv1.AddressTypeIPv6:
		c.family = cluster.IPv6
	case s.AddressType == discoveryv1.AddressTypeFQDN:
		c.add(cluster.ReasonNotSupported, "EndpointSlice %s has host names (addressType FQDN); a Service's rules need addresses", c.name)
		return o
	default:
		c.invalid("EndpointSlice %s: addressType is %s; it can be IPv4 or IPv6", c.name, quoted(string(s.AddressType)))
		return o
	}
	o.slice = &cluster.EndpointSlice{Name: s.Name, Family: c.family, Triggered: c.triggered(s.Annotations),
		Ports: c.ports(s.Ports), Endpoints: c.endpoints(s.Endpoints)}
	return o
}

// A sliceConverter converts one EndpointSlice, whose name begins its remarks.
type sliceConverter struct {
	*remarks
	name   string
	family cluster.Family
}

func (c *sliceConverter) field(format string, args ...any) string {
	return "EndpointSlice " + c.name + ": " + fmt.Sprintf(format, args...)
}

// triggered reads when the change happened that led to this version of the slice.
func (c *sliceConverter) triggered(annotations map[string]string) time.Time {
	text, ok := annotations[corev1.EndpointsLastChangeTriggerTime]
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		c.invalid("%s is %s, which is not a time such as 2026-01-02T15:04:05.123Z (RFC 3339); how long the change takes is not measured",
			c.field("annotation %s", corev1.EndpointsLastChangeTriggerTime), quoted(text))
		return time.Time{}
	}
	return t.UTC()
}

// ports reads the slice's ports. One without a name or without a number is no port of a Service: the API server
// sets both where they are meant.
func (c *sliceConverter) ports(ports []discoveryv1.EndpointPort) []cluster.EndpointPort {
	var out []cluster.EndpointPort
	for i, p := range ports {
		if p.Name == nil || p.Port == nil || *p.Port == 0 {
			continue
		}
		if *p.Name != "" && !isLabel(*p.Name) {
			c.invalid("%s is %s, which is not a name of a port (RFC 1123 label); the port is left out", c.field("ports[%d].name", i), quoted(*p.Name))
			continue
		}
		given := ""
		if p.Protocol != nil {
			given = string(*p.Protocol)
		}
		number, okPort := c.port(c.field("ports[%d].port", i), *p.Port)
		protocol, okProtocol := c.protocol(c.field("ports[%d].protocol", i), given)
		if okPort && okProtocol {
			out = append(out, cluster.EndpointPort{Name: intern(*p.Name), Protocol: protocol, Port: number})
		}
	}
	return out
}

func (c *sliceConverter) endpoints(endpoints []discoveryv1.Endpoint) []cluster.Endpoint {
	if len(endpoints) == 0 {
		return nil
	}
	out := make([]cluster.Endpoint, 0, len(endpoints))
	for i := range endpoints {
		if e, ok := c.endpoint(i, &endpoints[i]); ok {
			out = append(out, e)
		}
	}
	return out
}

// endpoint reads one endpoint. Only its first address counts: the API says that all of them lead to the same pod.
func (c *sliceConverter) endpoint(i int, given *discoveryv1.Endpoint) (cluster.Endpoint, bool) {
	if len(given.Addresses) == 0 {
		c.invalid("%s is empty; the endpoint is left out", c.field("endpoints[%d].addresses", i))
		return cluster.Endpoint{}, false
	}
	a, ok := parseAddr(given.Addresses[0])
	if !ok {
		c.invalid("%s is %s, which is not an IP address; the endpoint is left out", c.field("endpoints[%d].addresses[0]", i), quoted(given.Addresses[0]))
		return cluster.Endpoint{}, false
	}
	if why := special(a); why != "" {
		c.add(cluster.ReasonEndpointRefused, "%s is %s, %s; an endpoint is a pod's or another host's own address", c.field("endpoints[%d]", i), a, why)
		return cluster.Endpoint{}, false
	}
	if cluster.FamilyOf(a) != c.family {
		c.add(cluster.ReasonEndpointRefused, "%s is %s, but the slice's addressType is %s", c.field("endpoints[%d]", i), a, c.family)
		return cluster.Endpoint{}, false
	}
	e := cluster.Endpoint{
		Addr:        a,
		Ready:       orDefault(given.Conditions.Ready, true),
		Serving:     orDefault(given.Conditions.Serving, true),
		Terminating: orDefault(given.Conditions.Terminating, false),
	}
	if n := given.NodeName; n != nil && isSubdomain(*n) {
		e.NodeName = intern(*n)
	} else if n != nil && *n != "" {
		c.invalid("%s is %s, which is not a name of a Node (RFC 1123 subdomain); the endpoint counts as on no node", c.field("endpoints[%d].nodeName", i), quoted(*n))
	}
	c.hints(&e, i, given.Hints)
	return e, true
}

// hints reads the topology hints. An unreadable one is left out; if it was the endpoint's only one, the endpoint is
// unhinted, and then hints steer nothing, which is the safe side.
func (c *sliceConverter) hints(e *cluster.Endpoint, i int, hints *discoveryv1.EndpointHints) {
	if hints == nil {
		return
	}
	for j, z := range hints.ForZones {
		if !isLabelValue(z.Name) {
			c.invalid("%s is %s, which is not a zone (a label value)", c.field("endpoints[%d].hints.forZones[%d]", i, j), quoted(z.Name))
			continue
		}
		e.ForZones = append(e.ForZones, intern(z.Name))
	}
	for j, n := range hints.ForNodes {
		if !isSubdomain(n.Name) {
			c.invalid("%s is %s, which is not a name of a Node (RFC 1123 subdomain)", c.field("endpoints[%d].hints.forNodes[%d]", i, j), quoted(n.Name))
			continue
		}
		e.ForNodes = append(e.ForNodes, intern(n.Name))
	}
}

func orDefault(b *bool, def bool) bool {
	if b == nil {
		return def
	}
	return *b
}
