package main

import (
	"flag"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/source/file"
)

// version is set when a release is built: -ldflags "-X main.version=v1.2.3".
var version = ""

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "fairway",
		Short:         "Pod routes and service rules for Kubernetes nodes on your own machines",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	logs := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(logs)
	root.PersistentFlags().AddGoFlag(logs.Lookup("v"))
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(agentCommand(), renderCommand(), cleanupCommand(), versionCommand())
	return root
}

func agentCommand() *cobra.Command {
	var o agent.Options
	c := &cobra.Command{
		Use:   "agent",
		Short: "Keep this node's routes and rules in line with the cluster",
		Long: `Keep this node's routes and rules in line with the cluster.

The cluster is read from the Kubernetes API (in-cluster, or with --kubeconfig) or from a folder of manifests
(--cluster-dir). SIGTERM leaves routes and rules in place, so that a restart interrupts nothing; "fairway cleanup"
removes them.`,
		Args: cobra.NoArgs,
	}
	configured := configFlags(c.Flags())
	c.Flags().StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig `file` to reach the Kubernetes API with; in-cluster when neither this nor --cluster-dir is given")
	c.Flags().StringVar(&o.ClusterDir, "cluster-dir", "", "`folder` of Node, Service and EndpointSlice manifests to use instead of the Kubernetes API")
	c.MarkFlagsMutuallyExclusive("kubeconfig", "cluster-dir")
	initOnly := c.Flags().Bool("init-only", false, "set the sysctls that an agent needs, which takes a writable /proc/sys, and exit; needs no API")
	c.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		o.Version = versionString()
		if o.Config, err = configured(); err != nil {
			return err
		}
		if *initOnly {
			return agent.Init(cmd.Context(), o.Config)
		}
		return agent.Run(cmd.Context(), o)
	}
	return c
}

func renderCommand() *cobra.Command {
	var files []string
	format := "text"
	c := &cobra.Command{
		Use:   "render -f FILE",
		Short: "Print what the agent would do on a node, from manifests; needs no root and touches nothing",
		Args:  cobra.NoArgs,
	}
	configured := configFlags(c.Flags())
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest `file` or folder, for example from: kubectl get nodes,svc,endpointslices -A -o yaml (can be repeated)")
	c.Flags().StringVarP(&format, "output", "o", format, "one of "+strings.Join(agent.Formats[:], ", "))
	if err := c.MarkFlagRequired("filename"); err != nil {
		panic("fairway: " + err.Error())
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		config, err := configured()
		if err != nil {
			return err
		}
		s, err := file.Load(files...)
		if err != nil {
			return err
		}
		plan := agent.MakePlan(s, config, agent.Offline, nil)
		if format != "text" && format != "json" {
			printNotes(cmd.ErrOrStderr(), plan)
		}
		return plan.Write(cmd.OutOrStdout(), format)
	}
	return c
}

func printNotes(w io.Writer, p *agent.Plan) {
	for _, n := range p.Notes {
		fmt.Fprintln(w, "#", n)
	}
}

func cleanupCommand() *cobra.Command {
	backend := "auto"
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every route and rule that fairway made; safe to run twice, needs no API",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return agent.Cleanup(cmd.Context(), backend, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&backend, "iptables-backend", backend, "auto (every backend that has rules of ours), legacy or nft")
	return c
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "fairway", versionString())
			return err
		},
	}
}

// configFlags adds the flags of the configuration. The returned function gives what the file and the flags say
// together; a flag that is given wins over the file.
func configFlags(flags *pflag.FlagSet) func() (agent.Config, error) {
	var f agent.AgentConfiguration
	bit := 14
	path := flags.String("config", "", "AgentConfiguration `file`; flags win over it")
	merge := map[string]func(*agent.AgentConfiguration){}
	text := func(at func(*agent.AgentConfiguration) *string, name, usage string) {
		flags.StringVar(at(&f), name, "", usage)
		merge[name] = func(c *agent.AgentConfiguration) { *at(c) = *at(&f) }
	}
	list := func(at func(*agent.AgentConfiguration) *[]string, name, usage string) {
		flags.StringSliceVar(at(&f), name, nil, usage)
		merge[name] = func(c *agent.AgentConfiguration) { *at(c) = *at(&f) }
	}
	boolean := func(at func(*agent.AgentConfiguration) *bool, name, usage string) {
		flags.BoolVar(at(&f), name, false, usage)
		merge[name] = func(c *agent.AgentConfiguration) { *at(c) = *at(&f) }
	}
	text(func(c *agent.AgentConfiguration) *string { return &c.NodeName }, "node-name", "name of this machine's Node; else $NODE_NAME, else the host's name")
	list(func(c *agent.AgentConfiguration) *[]string { return &c.ClusterCIDRs }, "cluster-cidrs", "pods' networks, one per family; podCIDRs outside of them are refused")
	list(func(c *agent.AgentConfiguration) *[]string { return &c.ServiceCIDRs }, "service-cidrs", "ClusterIPs' networks; podCIDRs that overlap them are refused")
	text(func(c *agent.AgentConfiguration) *string { return &c.DetectLocal.Mode }, "detect-local-mode", "how pods' traffic is told: ClusterCIDR (the default), NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	text(func(c *agent.AgentConfiguration) *string { return &c.DetectLocal.BridgeInterface }, "pod-bridge-interface", "`name` of the pods' bridge, for BridgeInterface")
	text(func(c *agent.AgentConfiguration) *string { return &c.DetectLocal.InterfaceNamePrefix }, "pod-interface-name-prefix", "beginning of the `names` of pods' interfaces, for InterfaceNamePrefix")
	list(func(c *agent.AgentConfiguration) *[]string { return &c.ExternalIPs.Ranges }, "external-ip-ranges", "networks from which Services' externalIPs are served; none without")
	boolean(func(c *agent.AgentConfiguration) *bool { return &c.ExternalIPs.AllowAll }, "allow-all-external-ips", "serve every external IP, as kube-proxy does; see CVE-2020-8554")
	list(func(c *agent.AgentConfiguration) *[]string { return &c.LoadBalancerIPs.Ranges }, "load-balancer-ip-ranges", "networks from which load balancer IPs are served; all that are not part of the cluster without")
	boolean(func(c *agent.AgentConfiguration) *bool { return &c.LoadBalancerIPs.AllowAll }, "allow-all-load-balancer-ips", "serve every load balancer IP, as kube-proxy does")
	boolean(func(c *agent.AgentConfiguration) *bool { return &c.MasqueradeAll }, "masquerade-all", "replace the source of everything sent to a ClusterIP")
	flags.IntVar(&bit, "masquerade-bit", bit, "bit of the packet mark for traffic to masquerade, 0 to 31")
	merge["masquerade-bit"] = func(c *agent.AgentConfiguration) { c.MasqueradeBit = &bit }
	text(func(c *agent.AgentConfiguration) *string { return &c.IPTablesBackend }, "iptables-backend", "auto (what the host uses; the default), legacy or nft")
	text(func(c *agent.AgentConfiguration) *string { return &c.HealthzBindAddress }, "healthz-bind-address", "`address` of /healthz, /livez and /readyz (default 0.0.0.0:10256)")
	text(func(c *agent.AgentConfiguration) *string { return &c.MetricsBindAddress }, "metrics-bind-address", "`address` of /metrics (default 127.0.0.1:10249)")
	return func() (agent.Config, error) {
		c := &agent.AgentConfiguration{}
		if *path != "" {
			var err error
			if c, err = agent.ReadConfiguration(*path); err != nil {
				return agent.Config{}, err
			}
		}
		flags.Visit(func(g *pflag.Flag) {
			if m := merge[g.Name]; m != nil {
				m(c)
			}
		})
		config, err := c.Config()
		if err != nil && *path != "" {
			err = fmt.Errorf("configuration %s: %w", *path, err)
		}
		return config, err
	}
}
