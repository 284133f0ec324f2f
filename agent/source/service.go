package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
)

// LabelProxyName on a Service, with any value, gives it to another service proxy.
const LabelProxyName = "service.kubernetes.io/service-proxy-name"

// AnnotationAnnounce on a Service says which of its addresses are announced to routers: some of ClusterIPs, ExternalIPs and
// LoadBalancerIPs, separated by commas, or None.
const AnnotationAnnounce = "fairway.dev/announce"

// The API's default and bound of sessionAffinityConfig.clientIP.timeoutSeconds.
const (
	defaultAffinity = 10800
	maxAffinity     = 86400
)

// nobody stands for source ranges that all failed to parse: no packet comes from these two prefixes, so the load
// balancer address is closed rather than open to everybody.
var nobody = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("::/128")}

func convertService(s *corev1.Service) *Object {
	o := &Object{ID: ID{Kind: KindService, Namespace: s.Namespace, Name: s.Name}}
	if _, other := s.Labels[LabelProxyName]; other || s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return o
	}
	r := &remarks{}
	o.remarks = r
	r.about = cluster.Ref{Kind: string(KindService), Namespace: plain(s.Namespace), Name: plain(s.Name)}
	uid := r.uid(string(s.UID))
	r.about.UID = uid
	if !r.serviceNames(s) {
		return o
	}
	svc := &cluster.Service{Namespace: intern(s.Namespace), Name: s.Name, UID: uid, Created: s.CreationTimestamp.UTC()}
	svc.ClusterIPs = r.clusterIPs(&s.Spec)
	if len(svc.ClusterIPs) == 0 && len(r.notes) == 0 {
		r.invalid("spec.clusterIP is empty; the API server gives every Service but a headless one an address")
	}
	if len(svc.ClusterIPs) == 0 {
		return o
	}
	svc.Type = r.serviceType(s.Spec.Type)
	svc.Ports = r.servicePorts(s.Spec.Ports)
	for i, e := range s.Spec.ExternalIPs {
		if a, ok := r.addr(fmt.Sprintf("spec.externalIPs[%d]", i), e); ok {
			svc.ExternalIPs = append(svc.ExternalIPs, a)
		}
	}
	svc.LoadBalancerIPs = r.ingress(s.Status.LoadBalancer.Ingress)
	svc.LoadBalancerSourceRanges = r.sourceRanges(s.Spec.LoadBalancerSourceRanges)
	r.policies(svc, &s.Spec)
	svc.Affinity = r.affinity(&s.Spec)
	svc.Announce = r.announce(s.Annotations)
	svc.KubeRouter = kubeRouterService(svc.Ref(), s.Annotations)
	o.service = svc
	return o
}

func (r *remarks) serviceNames(s *corev1.Service) bool {
	switch {
	case !isLabel(s.Name):
		r.invalid("metadata.name is %s, which is not a name of a Service (RFC 1123 label); the Service is left out", quoted(s.Name))
	case !isLabel(s.Namespace):
		r.invalid("metadata.namespace is %s, which is not a name of a Namespace (RFC 1123 label); the Service is left out", quoted(s.Namespace))
	default:
		return true
	}
	return false
}

// clusterIPs returns the ClusterIP of each family. Which of clusterIPs is whose is what ipFamilies says, and an address
// that is not of the family at its place is refused. Without ipFamilies (objects from before Kubernetes 1.20) only
// spec.clusterIP counts.
func (r *remarks) clusterIPs(spec *corev1.ServiceSpec) []netip.Addr {
	given := spec.ClusterIPs
	if len(spec.IPFamilies) == 0 || len(given) == 0 {
		given = []string{spec.ClusterIP}
	}
	var ips []netip.Addr
	for i, s := range given {
		field := fmt.Sprintf("spec.clusterIPs[%d]", i)
		if s == "" {
			continue
		}
		a, ok := r.addr(field, s)
		if !ok {
			continue
		}
		family := cluster.FamilyOf(a)
		if len(spec.IPFamilies) > 0 && (i >= len(spec.IPFamilies) || string(spec.IPFamilies[i]) != family.String()) {
			r.invalid("%s is %s, but spec.ipFamilies does not have %s at this place", field, a, family)
			continue
		}
		if slices.ContainsFunc(ips, func(b netip.Addr) bool { return cluster.FamilyOf(b) == family }) {
			r.invalid("%s is %s, a second %s address; a Service has one of each family at most", field, a, family)
			continue
		}
		ips = append(ips, a)
	}
	return ips
}

func (r *remarks) serviceType(t corev1.ServiceType) string {
	switch t {
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		return string(t)
	case corev1.ServiceTypeClusterIP, "":
	default:
		r.invalid("spec.type is %s; it is taken as ClusterIP", quoted(string(t)))
	}
	return string(corev1.ServiceTypeClusterIP)
}

// servicePorts reads spec.ports. The API server refuses two ports with one name or with one number and protocol; from a
// file they may come, and then the first counts, as rules are named and matched by these.
func (r *remarks) servicePorts(ports []corev1.ServicePort) []cluster.ServicePort {
	var out []cluster.ServicePort
	for i, p := range ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		port, ok := r.servicePort(field, p)
		if !ok {
			continue
		}
		twice := slices.ContainsFunc(out, func(q cluster.ServicePort) bool {
			return q.Protocol == port.Protocol && (q.Name == port.Name || q.Port == port.Port)
		})
		if twice {
			r.invalid("%s (name %s, port %d/%s) repeats the name or the number of a port before it, and is left out", field, quoted(port.Name), port.Port, port.Protocol)
			continue
		}
		out = append(out, port)
	}
	return out
}

func (r *remarks) servicePort(field string, p corev1.ServicePort) (cluster.ServicePort, bool) {
	if p.Name != "" && !isLabel(p.Name) {
		r.invalid("%s.name is %s, which is not a name of a port (RFC 1123 label); the port is left out", field, quoted(p.Name))
		return cluster.ServicePort{}, false
	}
	number, okPort := r.port(field+".port", p.Port)
	protocol, okProtocol := r.protocol(field+".protocol", string(p.Protocol))
	if !okPort || !okProtocol {
		return cluster.ServicePort{}, false
	}
	out := cluster.ServicePort{Name: intern(p.Name), Protocol: protocol, Port: number}
	if p.NodePort != 0 {
		out.NodePort, _ = r.port(field+".nodePort", p.NodePort)
	}
	return out, true
}

// ingress returns the load balancer's addresses. An entry with only a host name, or of ipMode Proxy, is for the load
// balancer alone (KEP-1860).
func (r *remarks) ingress(entries []corev1.LoadBalancerIngress) []netip.Addr {
	var out []netip.Addr
	for i, e := range entries {
		if e.IP == "" || e.IPMode != nil && *e.IPMode == corev1.LoadBalancerIPModeProxy {
			continue
		}
		if a, ok := r.addr(fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i), e.IP); ok {
			out = append(out, a)
		}
	}
	return out
}

func (r *remarks) sourceRanges(given []string) []netip.Prefix {
	var out []netip.Prefix
	for i, s := range given {
		if p, ok := r.prefix(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), strings.TrimSpace(s)); ok {
			out = append(out, p)
		}
	}
	if len(given) > 0 && len(out) == 0 {
		return slices.Clone(nobody)
	}
	return out
}

// policies sets the traffic policies and the health check port. externalTrafficPolicy Local counts only where there can
// be external traffic, and a health check port only for a LoadBalancer with it.
func (r *remarks) policies(svc *cluster.Service, spec *corev1.ServiceSpec) {
	if p := spec.InternalTrafficPolicy; p != nil {
		svc.InternalTrafficPolicy = r.policy("spec.internalTrafficPolicy", string(*p))
	}
	external := r.policy("spec.externalTrafficPolicy", string(spec.ExternalTrafficPolicy))
	if spec.Type == corev1.ServiceTypeLoadBalancer || spec.Type == corev1.ServiceTypeNodePort || len(svc.ExternalIPs) > 0 {
		svc.ExternalTrafficPolicy = external
	}
	if n := spec.HealthCheckNodePort; n != 0 && spec.Type == corev1.ServiceTypeLoadBalancer && external == cluster.PolicyLocal {
		svc.HealthCheckNodePort, _ = r.port("spec.healthCheckNodePort", n)
	}
}

func (r *remarks) policy(field, s string) cluster.TrafficPolicy {
	switch s {
	case "Local":
		return cluster.PolicyLocal
	case "Cluster", "":
	default:
		r.invalid("%s is %s; it is taken as Cluster, and can be Cluster or Local", field, quoted(s))
	}
	return cluster.PolicyCluster
}

func (r *remarks) affinity(spec *corev1.ServiceSpec) time.Duration {
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityClientIP:
	case corev1.ServiceAffinityNone, "":
		return 0
	default:
		r.invalid("spec.sessionAffinity is %s; it is taken as None, and can be None or ClientIP", quoted(string(spec.SessionAffinity)))
		return 0
	}
	seconds := int32(defaultAffinity)
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	if seconds < 1 || seconds > maxAffinity {
		r.invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds is %d; it is taken as %d, and can be 1 to %d", seconds, defaultAffinity, maxAffinity)
		seconds = defaultAffinity
	}
	return time.Duration(seconds) * time.Second
}

// announce reads the annotation about announcements. A word that is none of the known ones announces nothing.
func (r *remarks) announce(annotations map[string]string) (c cluster.AnnounceChoice) {
	text, given := annotations[AnnotationAnnounce]
	if !given {
		return c
	}
	c.Given = true
	words := strings.Split(text, ",")
	for _, word := range words {
		switch word = strings.TrimSpace(word); {
		case word == "ClusterIPs":
			c.ClusterIPs = true
		case word == "ExternalIPs":
			c.ExternalIPs = true
		case word == "LoadBalancerIPs":
			c.LoadBalancerIPs = true
		case word == "None" && len(words) == 1:
		default:
			r.invalid("annotation %s has %s, which announces nothing; it can be None, or some of ClusterIPs, ExternalIPs and LoadBalancerIPs with commas between them", AnnotationAnnounce, quoted(word))
		}
	}
	return c
}
