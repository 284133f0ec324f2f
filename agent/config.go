package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/routes"
)

// The apiVersion and kind of the configuration file.
const (
	ConfigAPIVersion = "fairway.dev/v1alpha1"
	ConfigKind       = "AgentConfiguration"
)

// An AgentConfiguration is the configuration as a person writes it: in the file, or as flags, which are the same
// fields. It holds text; [AgentConfiguration.Config] checks it.
type AgentConfiguration struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// NodeName is the name of the Node object of this machine.
	NodeName string `json:"nodeName,omitempty"`
	// ClusterCIDRs are the networks that pods have their addresses from, one per family at most. Node podCIDRs outside
	// of them are refused.
	ClusterCIDRs []string `json:"clusterCIDRs,omitempty"`
	// ServiceCIDRs are the networks that ClusterIPs are from. Node podCIDRs that overlap them are refused.
	ServiceCIDRs []string `json:"serviceCIDRs,omitempty"`
	// DetectLocal tells how pods' traffic is recognised.
	DetectLocal DetectLocal `json:"detectLocal,omitzero"`
	// ExternalIPs says which spec.externalIPs are served; none when empty. Whoever may write a Service could draw the
	// traffic to any of them to pods of his own (CVE-2020-8554).
	ExternalIPs AddressRanges `json:"externalIPs,omitzero"`
	// LoadBalancerIPs says which status.loadBalancer.ingress addresses are served; when empty, all that are not part of the
	// cluster.
	LoadBalancerIPs AddressRanges `json:"loadBalancerIPs,omitzero"`
	// MasqueradeAll replaces the source of everything sent to a ClusterIP.
	MasqueradeAll bool `json:"masqueradeAll,omitempty"`
	// MasqueradeBit is the bit of the packet mark for traffic to masquerade, 0 to 31; 14 when not given.
	MasqueradeBit *int `json:"masqueradeBit,omitempty"`
	// IPTablesBackend is auto, legacy or nft; auto when empty.
	IPTablesBackend string `json:"iptablesBackend,omitempty"`
	// HealthzBindAddress is where /healthz, /livez and /readyz are served; 0.0.0.0:10256 when empty.
	HealthzBindAddress string `json:"healthzBindAddress,omitempty"`
	// MetricsBindAddress is where /metrics is served; 127.0.0.1:10249 when empty.
	MetricsBindAddress string `json:"metricsBindAddress,omitempty"`
}

// AddressRanges is a section that says from where Services may have addresses.
type AddressRanges struct {
	// Ranges are the networks that the addresses must be from. Addresses of nodes, pods and Services are refused all the same.
	Ranges []string `json:"ranges,omitempty"`
	// AllowAll serves every address, as kube-proxy does.
	AllowAll bool `json:"allowAll,omitempty"`
}

// DetectLocal is the detectLocal section of the configuration.
type DetectLocal struct {
	// Mode is ClusterCIDR (the default), NodeCIDR, BridgeInterface or InterfaceNamePrefix.
	Mode string `json:"mode,omitempty"`
	// BridgeInterface is the name of the pods' bridge, for that mode.
	BridgeInterface string `json:"bridgeInterface,omitempty"`
	// InterfaceNamePrefix begins the names of the pods' interfaces, for that mode.
	InterfaceNamePrefix string `json:"interfaceNamePrefix,omitempty"`
}

// A Config is the checked configuration. It does not change while the agent runs.
type Config struct {
	NodeName           string
	ClusterCIDRs       []netip.Prefix
	ServiceCIDRs       []netip.Prefix
	Detect             proxy.DetectMode
	DetectInterface    string
	Addresses          *proxy.AddressPolicy
	MasqueradeAll      bool
	MasqueradeBit      uint8
	IPTablesBackend    string
	HealthzBindAddress string
	MetricsBindAddress string
}

// Config checks the configuration and fills in what is not given. The error lists everything that is wrong, each with
// the field's path and what would be right. The node's name is, in this order: the configuration's, the environment's
// NODE_NAME, the host's name; trimmed and in lower case, as a kubelet names its Node.
func (a *AgentConfiguration) Config() (Config, error) {
	var errs []error
	refuse := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
	}
	c := Config{
		NodeName:           a.nodeName(refuse),
		MasqueradeAll:      a.MasqueradeAll,
		MasqueradeBit:      14,
		IPTablesBackend:    defaultTo(a.IPTablesBackend, "auto"),
		HealthzBindAddress: defaultTo(a.HealthzBindAddress, "0.0.0.0:10256"),
		MetricsBindAddress: defaultTo(a.MetricsBindAddress, "127.0.0.1:10249"),
	}
	c.ClusterCIDRs = cidrs("clusterCIDRs", a.ClusterCIDRs, refuse)
	c.ServiceCIDRs = cidrs("serviceCIDRs", a.ServiceCIDRs, refuse)
	a.checkCIDRs(&c, refuse)
	c.Addresses = a.addresses(c.ServiceCIDRs, refuse)
	a.detect(&c, refuse)
	if b := a.MasqueradeBit; b != nil {
		if *b < 0 || *b > 31 {
			refuse("masqueradeBit", "%d is no bit of a 32-bit mark, expected 0 to 31", *b)
		}
		c.MasqueradeBit = uint8(*b)
	}
	if !slices.Contains([]string{"auto", "legacy", "nft"}, c.IPTablesBackend) {
		refuse("iptablesBackend", "%q is unknown, expected auto, legacy or nft", c.IPTablesBackend)
	}
	for _, at := range [...]struct{ path, addr string }{{"healthzBindAddress", c.HealthzBindAddress}, {"metricsBindAddress", c.MetricsBindAddress}} {
		if _, err := netip.ParseAddrPort(at.addr); err != nil {
			refuse(at.path, "%q is no address and port, expected for example 127.0.0.1:10249 or [::]:10256", at.addr)
		}
	}
	return c, errors.Join(errs...)
}

// nodeNames are the names that a Node can have: RFC 1123 subdomains.
var nodeNames = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// nodeName returns the name of this machine's Node.
func (a *AgentConfiguration) nodeName(refuse func(string, string, ...any)) string {
	plain := func(s string) string { return strings.ToLower(strings.TrimSpace(s)) }
	name, from := plain(a.NodeName), "given"
	if name == "" {
		name, from = plain(os.Getenv("NODE_NAME")), "the environment's NODE_NAME"
	}
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			refuse("nodeName", "is not given, and the host's name can't be read: %v", err)
			return ""
		}
		name, from = plain(host), "the host's name"
	}
	if len(name) > 253 || !nodeNames.MatchString(name) {
		refuse("nodeName", "%q (%s) can't be the name of a Node: expected up to 253 letters, digits, dashes and dots", name, from)
	}
	return name
}

func defaultTo(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func cidrs(path string, texts []string, refuse func(string, string, ...any)) (list []netip.Prefix) {
	for i, text := range texts {
		at := fmt.Sprintf("%s[%d]", path, i)
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		switch {
		case err != nil:
			refuse(at, "%q is no CIDR, expected for example 10.244.0.0/16", text)
		case p.Addr().Is4In6():
			refuse(at, "%q is an IPv4-mapped IPv6 network, write it as IPv4", text)
		case p.Bits() == 0:
			refuse(at, "%q is every address there is, expected the network in use", text)
		case p != p.Masked():
			refuse(at, "%q has bits set behind its prefix, did you mean %s?", text, p.Masked())
		default:
			list = append(list, p)
		}
	}
	return list
}

// checkCIDRs refuses contradictions between the networks.
func (a *AgentConfiguration) checkCIDRs(c *Config, refuse func(string, string, ...any)) {
	seen := map[cluster.Family]netip.Prefix{}
	for _, p := range c.ClusterCIDRs {
		f := cluster.FamilyOf(p.Addr())
		if first, ok := seen[f]; ok {
			refuse("clusterCIDRs", "has two %s networks, %s and %s; expected one per family", f, first, p)
		}
		seen[f] = p
		for _, s := range c.ServiceCIDRs {
			if s.Overlaps(p) {
				refuse("serviceCIDRs", "%s overlaps the pods' network %s (clusterCIDRs); expected separate networks", s, p)
			}
		}
	}
}

func (a *AgentConfiguration) addresses(services []netip.Prefix, refuse func(string, string, ...any)) *proxy.AddressPolicy {
	for _, section := range [...]struct {
		path string
		AddressRanges
	}{{"externalIPs", a.ExternalIPs}, {"loadBalancerIPs", a.LoadBalancerIPs}} {
		if section.AllowAll && len(section.Ranges) > 0 {
			refuse(section.path, "allowAll and ranges contradict each other; expected one of them")
		}
	}
	return &proxy.AddressPolicy{
		ExternalIPs:        cidrs("externalIPs.ranges", a.ExternalIPs.Ranges, refuse),
		AllExternalIPs:     a.ExternalIPs.AllowAll,
		LoadBalancerIPs:    cidrs("loadBalancerIPs.ranges", a.LoadBalancerIPs.Ranges, refuse),
		AllLoadBalancerIPs: a.LoadBalancerIPs.AllowAll,
		ServiceCIDRs:       services,
	}
}

func (a *AgentConfiguration) detect(c *Config, refuse func(string, string, ...any)) {
	c.Detect = proxy.DetectMode(defaultTo(a.DetectLocal.Mode, string(proxy.DetectClusterCIDR)))
	bridge, prefix := a.DetectLocal.BridgeInterface, a.DetectLocal.InterfaceNamePrefix
	switch c.Detect {
	case proxy.DetectClusterCIDR, proxy.DetectNodeCIDR:
	case proxy.DetectBridgeInterface:
		c.DetectInterface, bridge = bridge, ""
		checkInterface("detectLocal.bridgeInterface", c.DetectInterface, 15, refuse)
	case proxy.DetectInterfaceNamePrefix:
		c.DetectInterface, prefix = prefix, ""
		checkInterface("detectLocal.interfaceNamePrefix", c.DetectInterface, 14, refuse)
	default:
		refuse("detectLocal.mode", "%q is unknown, expected ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", c.Detect)
	}
	if bridge != "" {
		refuse("detectLocal.bridgeInterface", "%q has no meaning with mode %s; expected mode BridgeInterface, or no bridge", bridge, c.Detect)
	}
	if prefix != "" {
		refuse("detectLocal.interfaceNamePrefix", "%q has no meaning with mode %s; expected mode InterfaceNamePrefix, or no prefix", prefix, c.Detect)
	}
}

var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// checkInterface refuses what is no name of an interface (up to 15 bytes, IFNAMSIZ) or no beginning of one. The name
// goes into rules as it is, so nothing but plain characters is let in.
func checkInterface(path, name string, longest int, refuse func(string, string, ...any)) {
	switch {
	case name == "":
		refuse(path, "is not given, but the detectLocal mode needs it")
	case len(name) > longest || !interfaceName.MatchString(name):
		refuse(path, "%q can't be the name of an interface: expected up to %d letters, digits, dots, dashes and underscores", name, longest)
	}
}

// proxy returns the part of the configuration that services depend on.
func (c *Config) proxy() proxy.Config {
	return proxy.Config{NodeName: c.NodeName, Detect: c.Detect, ClusterCIDRs: proxy.PairOf(c.ClusterCIDRs),
		Interface: c.DetectInterface, MasqueradeAll: c.MasqueradeAll, Addresses: c.Addresses}
}

// routes returns the part of the configuration that routes depend on.
func (c *Config) routes() routes.Config {
	return routes.Config{NodeName: c.NodeName, ClusterCIDRs: c.ClusterCIDRs, ServiceCIDRs: c.ServiceCIDRs}
}

// rules returns the properties of all rules of a family.
func (c *Config) rules(facts Facts, large bool) iptables.Options {
	return iptables.Options{MasqueradeBit: c.MasqueradeBit, RandomFully: facts.RandomFully, DropInvalid: facts.DropInvalid, Large: large}
}
