package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/kuberouter"
)

func importKubeRouterCommand() *cobra.Command {
	var files []string
	var clusterDir string
	var only map[string]string
	c := &cobra.Command{
		Use:   "import-kube-router [-- FLAGS of kube-router]",
		Short: "Print the configuration that is equivalent to kube-router's flags and annotations; touches nothing",
		Long: `Print the configuration that is equivalent to kube-router's flags and annotations, with a list of what has no equivalent.

The flags stand behind --, or are those of kube-router's DaemonSet when it is among the manifests of -f. The annotations are
those of Nodes and Services, from the files of -f or else read as the agent reads the cluster. No password is printed.`,
		Example: `  fairway import-kube-router -f kube-router.yaml -f cluster.yaml
  fairway import-kube-router --kubeconfig admin.conf -- --cluster-asn=64512 --advertise-cluster-ip`,
	}
	settings := newSettings(c.Flags())
	connectionFlags(settings)
	c.Flags().StringVar(&clusterDir, "cluster-dir", "", "`folder` of Node, Service and EndpointSlice manifests instead of the Kubernetes API")
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest `file` or folder instead of the Kubernetes API, for example from: kubectl get daemonsets,nodes,svc,endpointslices -A -o yaml (can be repeated)")
	c.Flags().StringToStringVar(&only, "node-selector", nil, "`label=value` of the nodes that are to have the peers, for a migration node by node")
	c.MarkFlagsMutuallyExclusive("kubeconfig", "cluster-dir", "filename")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if c.ArgsLenAtDash() > 0 {
			return errors.New("kube-router's flags stand behind --, and nothing else before it")
		}
		config, _, err := settings.configure()
		if err != nil {
			return err
		}
		if len(args) == 0 {
			found := false
			if args, found, err = kuberouter.FlagsIn(files...); err != nil {
				return err
			}
			if !found && c.ArgsLenAtDash() < 0 {
				return errors.New("kube-router's flags are not known: no manifest of -f has its DaemonSet, and none stand behind --; for a kube-router without flags, end the line with --")
			}
		}
		s, err := agent.ReadCluster(cmd.Context(), agent.Options{Config: config, ClusterDir: clusterDir, Version: versionString()}, files)
		if err != nil {
			return err
		}
		return kuberouter.New(args, s, only).Write(cmd.OutOrStdout())
	}
	return c
}
