package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/synth"
)

// A contender is one way to have service rules.
type contender struct {
	name    string
	backend lab.Backend // the iptables that the host uses
	mode    string      // --proxy-mode of kube-proxy; empty: it is fairway
}

// contenders are all that there are, in the order of the tables.
var contenders = []contender{
	{"fairway-legacy", lab.Legacy, ""},
	{"fairway-nft", lab.NFT, ""},
	{"kube-proxy-legacy", lab.Legacy, "iptables"},
	{"kube-proxy-nft", lab.NFT, "iptables"},
	{"kube-proxy-nftables", lab.NFT, "nftables"},
}

// chosen returns the contenders that a list of the command line names.
func chosen(list string) ([]contender, error) {
	var out []contender
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(contenders, func(c contender) bool { return c.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no contender %q", name)
		}
		out = append(out, contenders[i])
	}
	return out, nil
}

func allContenders() string {
	var names []string
	for _, c := range contenders {
		names = append(names, c.name)
	}
	return strings.Join(names, ",")
}

// command is how the contender is started: with its defaults, and what it must know of the cluster.
func (c contender) command(cp *controlplane.ControlPlane) (lab.Command, error) {
	common := []string{
		"--kubeconfig=" + cp.Kubeconfig,
		// The conntrack table belongs to the whole machine.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
	}
	if c.mode == "" {
		bin, err := lab.AgentBinary()
		return lab.Command{Path: bin, Args: append([]string{"agent", "--node-name=" + synth.NodeName, "--iptables-backend=" + string(c.backend),
			"--cluster-cidrs=" + clusterCIDR.String(), "--service-cidrs=" + serviceCIDR.String()}, common...)}, err
	}
	tools, err := lab.ToolFolder(cp.Path(""), c.backend)
	return lab.Command{Path: cp.Binaries.Path(controlplane.KubeProxy), Env: []string{"PATH=" + tools + ":" + os.Getenv("PATH")},
		Args: append([]string{"--hostname-override=" + synth.NodeName, "--proxy-mode=" + c.mode, "--cluster-cidr=" + clusterCIDR.String()}, common...)}, err
}
