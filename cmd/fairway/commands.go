package main

import (
	"flag"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
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
	root.AddCommand(agentCommand(), renderCommand(), takeoverCommand(), importKubeRouterCommand(), doctorCommand(), bgpCommand(), leaveCommand(), cleanupCommand(), versionCommand(), speakerCommand())
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
	settings := newSettings(c.Flags())
	connectionFlags(settings)
	c.Flags().StringVar(&o.ClusterDir, "cluster-dir", "", "`folder` of Node, Service and EndpointSlice manifests to use instead of the Kubernetes API")
	c.MarkFlagsMutuallyExclusive("kubeconfig", "cluster-dir")
	initOnly := c.Flags().Bool("init-only", false, "set the sysctls that an agent needs, which takes a writable /proc/sys, and exit; needs no API")
	c.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		o.Version = versionString()
		o.Files, o.Flags = settings.files, settings.given
		if o.Config, o.Remarks, err = settings.configure(); err != nil {
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
	settings := newSettings(c.Flags())
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest `file` or folder, for example from: kubectl get nodes,svc,endpointslices -A -o yaml (can be repeated)")
	c.Flags().StringVarP(&format, "output", "o", format, "one of "+strings.Join(agent.Formats[:], ", "))
	if err := c.MarkFlagRequired("filename"); err != nil {
		panic("fairway: " + err.Error())
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		config, remarks, err := settings.configure()
		if err != nil {
			return err
		}
		for _, r := range remarks {
			fmt.Fprintln(cmd.ErrOrStderr(), "# kube-proxy's configuration:", r)
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

func takeoverCommand() *cobra.Command {
	var o agent.TakeoverOptions
	var files []string
	var clusterDir string
	format := "text"
	c := &cobra.Command{
		Use:   "takeover",
		Short: "Remove what kube-proxy left on this node once fairway's rules are in place; or plan it, or hand the rules back",
		Long: `Remove what kube-proxy left on this node, in whatever mode it ran, once fairway's own rules are in the kernel. Refuses while a
kube-proxy runs, and while the agent is not ready.

With --plan it prints what starting the agent, and this command after it, would change, and changes nothing. The cluster is read
as the agent reads it, or from the files of -f.

With --back it hands the rules over to a running kube-proxy in iptables mode, after the agent has stopped.`,
		Args: cobra.NoArgs,
	}
	settings := newSettings(c.Flags())
	connectionFlags(settings)
	plan := c.Flags().Bool("plan", false, "print what would change, and change nothing")
	back := c.Flags().Bool("back", false, "hand the rules over to the kube-proxy that runs, after the agent has stopped")
	c.Flags().StringVar(&clusterDir, "cluster-dir", "", "for --plan, `folder` of Node, Service and EndpointSlice manifests instead of the Kubernetes API")
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "for --plan, manifest `file` or folder instead of the Kubernetes API (can be repeated)")
	c.Flags().StringVarP(&format, "output", "o", format, "for --plan, one of "+strings.Join(agent.TakeoverFormats[:], ", "))
	c.Flags().BoolVar(&o.Stopped, "kube-proxy-stopped", false, "you know that no kube-proxy runs, where the host's processes can't be seen")
	c.Flags().BoolVar(&o.EndIPVS, "end-ipvs-connections", false, "remove IPVS although connections still go through it")
	c.MarkFlagsMutuallyExclusive("plan", "back")
	c.MarkFlagsMutuallyExclusive("kubeconfig", "cluster-dir", "filename")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		config, remarks, err := settings.configure()
		if err != nil {
			return err
		}
		o.Config = config
		switch {
		case *back:
			return agent.GiveBack(cmd.Context(), o, cmd.OutOrStdout())
		case !*plan:
			return agent.Takeover(cmd.Context(), o, cmd.OutOrStdout())
		}
		for _, r := range remarks {
			fmt.Fprintln(cmd.ErrOrStderr(), "# kube-proxy's configuration:", r)
		}
		p, err := agent.PlanTakeover(cmd.Context(), agent.Options{Config: config, ClusterDir: clusterDir, Version: versionString()}, files)
		if err != nil {
			return err
		}
		return p.Write(cmd.OutOrStdout(), format)
	}
	return c
}

func leaveCommand() *cobra.Command {
	socket := agent.DefaultControlSocket
	var undo bool
	c := &cobra.Command{
		Use:   "leave",
		Short: "Have the running agent take leave of its BGP peers, before the node is switched off",
		Long: `Have the agent that runs on this node take leave of its BGP peers, and return when it has: everything is announced with the
community GRACEFUL_SHUTDOWN (RFC 8326), then withdrawn, then the sessions end (bgp.leave in the configuration says when). Routes and
rules stay. The node announces nothing from then on, until the agent is restarted, as it is when the node boots, or told
"fairway leave --undo".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return agent.Leave(cmd.Context(), socket, undo, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&socket, "control-socket", socket, "`path` of the agent's unix socket")
	c.Flags().BoolVar(&undo, "undo", false, "have it come back to them")
	return c
}

func cleanupCommand() *cobra.Command {
	o := agent.CleanupOptions{Backend: "auto", ControlSocket: agent.DefaultControlSocket}
	var config string
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every route and rule that fairway made; safe to run twice, needs no API",
		Long: `Remove every route and rule that fairway made. It is safe to run twice, and needs no API.

BGP peers learn first that the node is gone: an agent that still runs takes leave of them (see "fairway leave"); else, with --config,
they are told by a short session with each, also those that would keep the routes for an agent that is restarted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config != "" {
				c, _, err := agent.Configure(agent.Files{Agent: config}, func(*agent.AgentConfiguration) {})
				if err != nil {
					return err
				}
				o.BGP, o.StateDir = c.BGP, c.StateDir
				if !cmd.Flags().Changed("control-socket") {
					o.ControlSocket = c.ControlSocket
				}
			}
			return agent.Cleanup(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&o.Backend, "iptables-backend", o.Backend, "auto (every backend that has rules of ours), legacy or nft")
	c.Flags().StringVar(&o.ControlSocket, "control-socket", o.ControlSocket, "`path` of the unix socket of an agent that still runs")
	c.Flags().StringVar(&config, "config", "", "AgentConfiguration `file` of the agent, for its BGP peers")
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
