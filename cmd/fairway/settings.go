package main

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/fairway-net/fairway/agent"
)

// settings are the flags of the configuration: each stands for a field of it.
type settings struct {
	flags *pflag.FlagSet
	files agent.Files
	// merge has, for each flag, what carries its value over.
	merge map[string]func(*agent.AgentConfiguration)
}

// newSettings adds the flags of everything that a plan depends on, and of how an agent runs.
func newSettings(flags *pflag.FlagSet) *settings {
	s := &settings{flags: flags, merge: map[string]func(*agent.AgentConfiguration){}}
	flags.StringVar(&s.files.Agent, "config", "", "AgentConfiguration `file`; flags win over it")
	flags.StringVar(&s.files.KubeProxy, "kube-proxy-config", "", "KubeProxyConfiguration `file`, or the ConfigMap that holds one; --config and flags win over it")
	planFlags(s)
	runFlags(s)
	return s
}

// configure returns what the files and the flags say together.
func (s *settings) configure() (agent.Config, []agent.Remark, error) {
	return agent.Configure(s.files, s.given)
}

// given carries over the flags that were given.
func (s *settings) given(c *agent.AgentConfiguration) {
	s.flags.Visit(func(f *pflag.Flag) {
		if carry := s.merge[f.Name]; carry != nil {
			carry(c)
		}
	})
}

// planFlags are the flags that say what routes and rules there are.
func planFlags(s *settings) {
	type c = *agent.AgentConfiguration
	s.text("node-name", "name of this machine's Node; else $NODE_NAME, else the host's name", func(c c) *string { return &c.NodeName })
	s.list("cluster-cidrs", "pods' networks, one per family; podCIDRs outside of them are refused", func(c c) *[]string { return &c.ClusterCIDRs })
	s.list("service-cidrs", "ClusterIPs' networks; podCIDRs that overlap them are refused", func(c c) *[]string { return &c.ServiceCIDRs })
	s.text("detect-local-mode", "how pods' traffic is told: ClusterCIDR (the default), NodeCIDR, BridgeInterface or InterfaceNamePrefix", func(c c) *string { return &c.DetectLocal.Mode })
	s.text("pod-bridge-interface", "`name` of the pods' bridge, for BridgeInterface", func(c c) *string { return &c.DetectLocal.BridgeInterface })
	s.text("pod-interface-name-prefix", "beginning of the `names` of pods' interfaces, for InterfaceNamePrefix", func(c c) *string { return &c.DetectLocal.InterfaceNamePrefix })
	s.list("external-ip-ranges", "networks from which Services' externalIPs are served; none without", func(c c) *[]string { return &c.ExternalIPs.Ranges })
	s.boolean("allow-all-external-ips", "serve every external IP, as kube-proxy does; see CVE-2020-8554", func(c c) *bool { return &c.ExternalIPs.AllowAll })
	s.list("load-balancer-ip-ranges", "networks from which load balancer IPs are served; all that are not part of the cluster without", func(c c) *[]string { return &c.LoadBalancerIPs.Ranges })
	s.boolean("allow-all-load-balancer-ips", "serve every load balancer IP, as kube-proxy does", func(c c) *bool { return &c.LoadBalancerIPs.AllowAll })
	s.boolean("masquerade-all", "replace the source of everything sent to a ClusterIP", func(c c) *bool { return &c.MasqueradeAll })
	s.optional("masquerade-bit", 14, "bit of the packet mark for traffic to masquerade, 0 to 31", func(c c) **int { return &c.MasqueradeBit })
	s.list("nodeport-addresses", "networks that the addresses are from at which node ports are served, or primary; every address without", func(c c) *[]string { return &c.NodePortAddresses })
	s.switched("keep-jumps-first", true, "put the jumps to Services' rules first again in nat when somebody else's rule comes before them", func(c c) **bool { return &c.KeepJumpsFirst })
	s.switched("iptables-localhost-nodeports", true, "serve IPv4 node ports at 127.0.0.0/8 too", func(c c) **bool { return &c.LocalhostNodePorts })
	s.text("bind-address", "this node's own `address` instead of that in the Node's status; nothing is bound to it", func(c c) *string { return &c.BindAddress })
	s.text("unknown-services", "what happens to packets to the service range that are for no service: Reject (the default) or Forward", func(c c) *string { return &c.UnknownServices })
}

// runFlags are the flags that say how an agent runs.
func runFlags(s *settings) {
	type c = *agent.AgentConfiguration
	s.text("iptables-backend", "auto (what the host uses; the default), legacy or nft", func(c c) *string { return &c.IPTablesBackend })
	s.duration("iptables-sync-period", 30*time.Second, "how often the kernel is compared with the plan although nothing seems to have changed", func(c c) *agent.Duration { return &c.SyncPeriod })
	s.duration("iptables-min-sync-period", 100*time.Millisecond, "least time between two changes of one family's rules; 0 for none", func(c c) *agent.Duration { return &c.MinSyncPeriod })
	s.optional("conntrack-max-per-core", 32768, "connections to track for each CPU; 0 leaves the kernel's limit, whatever --conntrack-min", func(c c) **int { return &c.Conntrack.MaxPerCore })
	s.optional("conntrack-min", 131072, "least number of connections to track", func(c c) **int { return &c.Conntrack.Min })
	s.duration("conntrack-tcp-timeout-established", 24*time.Hour, "how long idle TCP connections are tracked; 0 leaves the kernel's value", func(c c) *agent.Duration { return &c.Conntrack.TCPEstablishedTimeout })
	s.duration("conntrack-tcp-timeout-close-wait", time.Hour, "how long idle TCP connections in CLOSE_WAIT are tracked; 0 leaves the kernel's value", func(c c) *agent.Duration { return &c.Conntrack.TCPCloseWaitTimeout })
	s.boolean("conntrack-tcp-be-liberal", "take TCP packets outside of their connection's window for valid", func(c c) *bool { return &c.Conntrack.TCPBeLiberal })
	s.duration("conntrack-udp-timeout", 0, "how long idle UDP flows that were not answered are tracked; 0 leaves the kernel's value", func(c c) *agent.Duration { return &c.Conntrack.UDPTimeout })
	s.duration("conntrack-udp-timeout-stream", 0, "how long idle UDP flows that were answered are tracked; 0 leaves the kernel's value", func(c c) *agent.Duration { return &c.Conntrack.UDPStreamTimeout })
	s.text("healthz-bind-address", "`address` of /healthz, /livez and /readyz, or none (default 0.0.0.0:10256)", func(c c) *string { return &c.HealthzBindAddress })
	s.text("metrics-bind-address", "`address` of /metrics, or none (default 127.0.0.1:10249)", func(c c) *string { return &c.MetricsBindAddress })
	s.text("control-socket", "`path` of the unix socket at which fairway's other commands ask the running agent, or none (default "+agent.DefaultControlSocket+")", func(c c) *string { return &c.ControlSocket })
	s.boolean("bind-address-hard-fail", "end when one of these addresses can't be bound, instead of trying again", func(c c) *bool { return &c.BindAddressHardFail })
	s.boolean("profiling", "serve /debug/pprof/ and /debug/flags/v beside /metrics", func(c c) *bool { return &c.EnableProfiling })
	s.text("state-dir", "`directory` in which what was last programmed is kept, for a start without the API; nothing is kept without", func(c c) *string { return &c.StateDir })
	s.optional("oom-score-adj", -999, "how the kernel is to spare the agent when memory is short, -1000 to 1000", func(c c) **int { return &c.OOMScoreAdj })
}

// connectionFlags are the flags that say how the Kubernetes API is reached.
func connectionFlags(s *settings) {
	type c = *agent.AgentConfiguration
	s.text("kubeconfig", "kubeconfig `file` to reach the Kubernetes API with; in-cluster when neither this nor --cluster-dir is given", func(c c) *string { return &c.ClientConnection.Kubeconfig })
	qps := s.flags.Float64("kube-api-qps", 5, "requests to the API per second; negative for no bound")
	s.merge["kube-api-qps"] = func(c c) { c.ClientConnection.QPS = *qps }
	burst := s.flags.Int("kube-api-burst", 10, "requests to the API at once")
	s.merge["kube-api-burst"] = func(c c) { c.ClientConnection.Burst = *burst }
	s.text("kube-api-content-type", "encoding of requests to the API (default application/vnd.kubernetes.protobuf)", func(c c) *string { return &c.ClientConnection.ContentType })
}

func (s *settings) text(name, usage string, at func(*agent.AgentConfiguration) *string) {
	value := s.flags.String(name, "", usage)
	s.merge[name] = func(c *agent.AgentConfiguration) { *at(c) = *value }
}

func (s *settings) list(name, usage string, at func(*agent.AgentConfiguration) *[]string) {
	value := s.flags.StringSlice(name, nil, usage)
	s.merge[name] = func(c *agent.AgentConfiguration) { *at(c) = *value }
}

func (s *settings) boolean(name, usage string, at func(*agent.AgentConfiguration) *bool) {
	value := s.flags.Bool(name, false, usage)
	s.merge[name] = func(c *agent.AgentConfiguration) { *at(c) = *value }
}

// switched is a boolean whose default is not false.
func (s *settings) switched(name string, otherwise bool, usage string, at func(*agent.AgentConfiguration) **bool) {
	value := s.flags.Bool(name, otherwise, usage)
	s.merge[name] = func(c *agent.AgentConfiguration) { *at(c) = value }
}

// optional is a number whose default is not 0.
func (s *settings) optional(name string, otherwise int, usage string, at func(*agent.AgentConfiguration) **int) {
	value := s.flags.Int(name, otherwise, usage)
	s.merge[name] = func(c *agent.AgentConfiguration) { *at(c) = value }
}

func (s *settings) duration(name string, otherwise time.Duration, usage string, at func(*agent.AgentConfiguration) *agent.Duration) {
	value := s.flags.Duration(name, otherwise, usage)
	s.merge[name] = func(c *agent.AgentConfiguration) { *at(c) = agent.Duration(value.String()) }
}
