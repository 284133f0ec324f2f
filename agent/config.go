package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp"
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
	// NodePortAddresses are the networks that the addresses are from at which node ports are served, or "primary" alone for the
	// addresses of the Node's status; every address when empty.
	NodePortAddresses []string `json:"nodePortAddresses,omitempty"`
	// LocalhostNodePorts serves IPv4 node ports at 127.0.0.0/8 too, if NodePortAddresses allow it; true when not given.
	LocalhostNodePorts *bool `json:"localhostNodePorts,omitempty"`
	// BindAddress is this node's address of its family instead of that in the Node's status. Nothing is bound to it; the name
	// is kube-proxy's.
	BindAddress string `json:"bindAddress,omitempty"`
	// KeepJumpsFirst puts the jumps to Services' rules first again in nat when somebody else's rule comes before them; true when
	// not given.
	KeepJumpsFirst *bool `json:"keepJumpsFirst,omitempty"`
	// UnknownServices is Reject (the default) or Forward: what happens to packets for the service range that are for no port
	// of a Service.
	UnknownServices string `json:"unknownServices,omitempty"`
	// IPTablesBackend is auto, legacy or nft; auto when empty.
	IPTablesBackend string `json:"iptablesBackend,omitempty"`
	// SyncPeriod is how often the kernel is compared with the plan although nothing seems to have changed; 30s when empty.
	SyncPeriod Duration `json:"syncPeriod,omitempty"`
	// MinSyncPeriod is the least time between two changes of one family's rules; 100ms when empty, "0s" for none.
	MinSyncPeriod Duration `json:"minSyncPeriod,omitempty"`
	// Conntrack is what is set of the kernel's connection tracking.
	Conntrack ConntrackConfiguration `json:"conntrack,omitzero"`
	// HealthzBindAddress is where /healthz, /livez and /readyz are served, or "none"; 0.0.0.0:10256 when empty, [::]:10256 if
	// BindAddress is an IPv6 address.
	HealthzBindAddress string `json:"healthzBindAddress,omitempty"`
	// MetricsBindAddress is where /metrics is served, or "none"; 127.0.0.1:10249 when empty, [::1]:10249 if BindAddress is an
	// IPv6 address.
	MetricsBindAddress string `json:"metricsBindAddress,omitempty"`
	// ControlSocket is the path of the unix socket at which fairway's other commands ask the running agent, or "none";
	// /run/fairway/agent.sock when empty.
	ControlSocket string `json:"controlSocket,omitempty"`
	// BindAddressHardFail ends the agent when one of these addresses can't be bound, instead of trying again.
	BindAddressHardFail bool `json:"bindAddressHardFail,omitempty"`
	// EnableProfiling serves /debug/pprof/ and /debug/flags/v beside /metrics.
	EnableProfiling bool `json:"enableProfiling,omitempty"`
	// OOMScoreAdj makes the kernel spare the agent when memory is short, -1000 to 1000; -999 when not given.
	OOMScoreAdj *int `json:"oomScoreAdj,omitempty"`
	// StateDir is a directory of the host in which what was last programmed is kept, for a start at which the API does not answer;
	// nothing is kept when empty.
	StateDir string `json:"stateDir,omitempty"`
	// ClientConnection is how the Kubernetes API is reached.
	ClientConnection ClientConnection `json:"clientConnection,omitzero"`
	// BGP is what routers are told; nothing when it is not given.
	BGP BGPConfiguration `json:"bgp,omitzero"`
}

// A Duration is a length of time as a person writes it: 30s, 1h30m.
type Duration string

// ConntrackConfiguration is the conntrack section of the configuration.
type ConntrackConfiguration struct {
	// MaxPerCore is the number of connections to track for each CPU; 32768 when not given, 0 leaves the kernel's limit as it is.
	MaxPerCore *int `json:"maxPerCore,omitempty"`
	// Min is the least number of connections to track, whatever MaxPerCore makes; 131072 when not given.
	Min *int `json:"min,omitempty"`
	// TCPEstablishedTimeout and TCPCloseWaitTimeout are how long idle connections in these states are remembered; 24h and 1h
	// when empty, "0s" leaves the kernel's value as it is.
	TCPEstablishedTimeout Duration `json:"tcpEstablishedTimeout,omitempty"`
	TCPCloseWaitTimeout   Duration `json:"tcpCloseWaitTimeout,omitempty"`
	// TCPBeLiberal takes packets outside of their connection's window for valid.
	TCPBeLiberal bool `json:"tcpBeLiberal,omitempty"`
	// UDPTimeout and UDPStreamTimeout are how long idle flows are remembered that were not, or were, answered; when empty the
	// kernel's values stay as they are.
	UDPTimeout       Duration `json:"udpTimeout,omitempty"`
	UDPStreamTimeout Duration `json:"udpStreamTimeout,omitempty"`
}

// ClientConnection is the clientConnection section of the configuration.
type ClientConnection struct {
	// Kubeconfig is the path of a kubeconfig file; when empty, the API is that of the cluster that the agent runs in.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// QPS and Burst bound the requests to the API, per second and at once; 5 and 10 when zero. A negative QPS is no bound.
	QPS   float64 `json:"qps,omitempty"`
	Burst int     `json:"burst,omitempty"`
	// ContentType is the encoding of requests; application/vnd.kubernetes.protobuf when empty.
	ContentType string `json:"contentType,omitempty"`
	// AcceptContentTypes are the encodings of answers; when empty, ContentType or else JSON.
	AcceptContentTypes string `json:"acceptContentTypes,omitempty"`
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

// A Config is the checked configuration. While the agent runs, another one may come to be in force that differs in BGP.
type Config struct {
	NodeName        string
	ClusterCIDRs    []netip.Prefix
	ServiceCIDRs    []netip.Prefix
	Detect          proxy.DetectMode
	DetectInterface string
	Addresses       *proxy.AddressPolicy
	MasqueradeAll   bool
	MasqueradeBit   uint8
	NodePorts       *proxy.NodePortPolicy
	// NodeIPs replace the addresses of the Node's status, by family as in cluster.Families; the zero Addr does not.
	NodeIPs         [2]netip.Addr
	KeepJumpsFirst  bool
	ForwardUnknown  bool
	IPTablesBackend string
	// SyncPeriod is positive, MinSyncPeriod at most as long.
	SyncPeriod    time.Duration
	MinSyncPeriod time.Duration
	Conntrack     netfilter.ConntrackSettings
	// HealthzBindAddress and MetricsBindAddress are an address and port each, or empty for a server that there is not to be.
	HealthzBindAddress string
	MetricsBindAddress string
	// ControlSocket is an absolute path, or empty for no socket.
	ControlSocket       string
	BindAddressHardFail bool
	EnableProfiling     bool
	OOMScoreAdj         int
	StateDir            string
	ClientConnection    ClientConnection
	// BGP is nil when there is no BGP. It is not changed.
	BGP *bgp.Config
}

// refuse is told everything that is wrong: the field's path, and what would be right.
type refuse func(path, format string, args ...any)

// Config checks the configuration and fills in what is not given. The error lists everything that is wrong, each with
// the field's path and what would be right. The node's name is, in this order: the configuration's, the environment's
// NODE_NAME, the host's name; trimmed and in lower case, as a kubelet names its Node.
func (a *AgentConfiguration) Config() (Config, error) {
	var errs []error
	c := a.check(func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
	})
	return c, errors.Join(errs...)
}

func (a *AgentConfiguration) check(refuse refuse) Config {
	c := Config{
		NodeName:            a.nodeName(refuse),
		ClusterCIDRs:        cidrs("clusterCIDRs", a.ClusterCIDRs, refuse),
		ServiceCIDRs:        cidrs("serviceCIDRs", a.ServiceCIDRs, refuse),
		MasqueradeAll:       a.MasqueradeAll,
		MasqueradeBit:       uint8(number("masqueradeBit", a.MasqueradeBit, 14, 0, 31, refuse)),
		NodePorts:           a.nodePorts(refuse),
		NodeIPs:             a.nodeIPs(refuse),
		KeepJumpsFirst:      a.KeepJumpsFirst == nil || *a.KeepJumpsFirst,
		ForwardUnknown:      oneOf("unknownServices", a.UnknownServices, refuse, "Reject", "Forward") == "Forward",
		IPTablesBackend:     oneOf("iptablesBackend", a.IPTablesBackend, refuse, "auto", "legacy", "nft"),
		Conntrack:           a.Conntrack.check(refuse),
		BindAddressHardFail: a.BindAddressHardFail,
		EnableProfiling:     a.EnableProfiling,
		OOMScoreAdj:         number("oomScoreAdj", a.OOMScoreAdj, defaultOOMScoreAdj, -1000, 1000, refuse),
		StateDir:            a.StateDir,
		ClientConnection:    a.ClientConnection.check(refuse),
	}
	a.checkCIDRs(&c, refuse)
	c.Addresses = a.addresses(c.ServiceCIDRs, refuse)
	a.detect(&c, refuse)
	a.periods(&c, refuse)
	a.servers(&c, refuse)
	c.BGP = a.BGP.check(&c, refuse)
	absolute("stateDir", c.StateDir, refuse)
	absolute("controlSocket", c.ControlSocket, refuse)
	return c
}

// absolute refuses a path that depends on where the agent is started; an empty one is none.
func absolute(field, path string, refuse refuse) {
	if path != "" && !filepath.IsAbs(path) {
		refuse(field, "%q depends on where the agent is started; expected an absolute path", path)
	}
}

// nodeNames are the names that a Node can have: RFC 1123 subdomains.
var nodeNames = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// nodeName returns the name of this machine's Node.
func (a *AgentConfiguration) nodeName(refuse refuse) string {
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

// checkCIDRs refuses contradictions between the networks.
func (a *AgentConfiguration) checkCIDRs(c *Config, refuse refuse) {
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

func (a *AgentConfiguration) addresses(services []netip.Prefix, refuse refuse) *proxy.AddressPolicy {
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

func (a *AgentConfiguration) detect(c *Config, refuse refuse) {
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
func checkInterface(path, name string, longest int, refuse refuse) {
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
		Interface: c.DetectInterface, MasqueradeAll: c.MasqueradeAll, Addresses: c.Addresses,
		NodePorts: c.NodePorts, NodeIPs: c.NodeIPs, ForwardUnknown: c.ForwardUnknown}
}

// routes returns the part of the configuration that routes depend on.
func (c *Config) routes() routes.Config {
	return routes.Config{NodeName: c.NodeName, ClusterCIDRs: c.ClusterCIDRs, ServiceCIDRs: c.ServiceCIDRs}
}

// rules returns the properties of all rules of a family.
func (c *Config) rules(facts Facts, large bool) iptables.Options {
	return iptables.Options{MasqueradeBit: c.MasqueradeBit, RandomFully: facts.RandomFully, DropInvalid: facts.DropInvalid,
		Counters: facts.Counters, Large: large}
}
