package kuberouter

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

const (
	defaultASN = 64512 // --cluster-asn, when it is 0
	bridge     = "kube-bridge"
	// passwords is where the files with passwords are expected, each of a name that the key of a Secret can have.
	passwords    = "/etc/fairway/bgp/"
	hostname     = "kubernetes.io/hostname"
	multihopFrom = 2 // a smaller --peer-router-multihop-ttl means none
	// mostPrepend is that of bgp.announce.
	mostPrepend = 10
)

// An Import is what was made of kube-router's flags and annotations.
type Import struct {
	Configuration agent.AgentConfiguration
	// Commands are for the operator, in order: what of the cluster, Services and Nodes, takes the place of annotations.
	Commands []string
	// Remarks say what has no equivalent, and what to look at.
	Remarks []string
}

// New makes the configuration of kube-router's flags, as on its command line, and of a cluster's annotations. The peers are those of
// nodes with the labels of only, besides what they are like themselves.
func New(args []string, s *cluster.Snapshot, only map[string]string) *Import {
	i := &importer{flags: parseFlags(args), snapshot: s, only: only}
	i.Configuration = agent.AgentConfiguration{APIVersion: agent.ConfigAPIVersion, Kind: agent.ConfigKind}
	i.services()
	if i.flags.on("run-router") {
		i.bgp()
	} else {
		i.remark("--run-router=false: there is no section bgp. fairway makes the routes to other nodes' pods all the same, unless somebody else's are there, which stay.")
	}
	i.absent()
	i.annotatedServices()
	i.notes()
	i.Remarks = append(i.Remarks, i.flags.remarks...)
	if _, err := i.Configuration.Config(); err != nil {
		i.remark("The agent refuses this configuration until it is mended: %v.", err)
	}
	return &i.Import
}

// An importer is the working state of New.
type importer struct {
	Import
	flags    *flags
	snapshot *cluster.Snapshot
	only     map[string]string
}

func (i *importer) remark(format string, args ...any) {
	i.Remarks = append(i.Remarks, fmt.Sprintf(format, args...))
}

// services sets what is not about BGP.
func (i *importer) services() {
	c, f := &i.Configuration, i.flags
	c.MasqueradeAll = f.on("masquerade-all")
	if f.on("enable-cni") {
		c.DetectLocal = agent.DetectLocal{Mode: "BridgeInterface", BridgeInterface: bridge}
	}
	if c.ServiceCIDRs = f.list("service-cluster-ip-range"); c.ServiceCIDRs == nil && len(i.snapshot.ServiceCIDRs) == 0 {
		i.remark("serviceCIDRs: kube-router takes 10.96.0.0/12 when --service-cluster-ip-range is not given. Add what kube-apiserver's --service-cluster-ip-range is, as the cluster has no ServiceCIDR objects.")
	}
	if !f.on("strict-external-ip-validation") {
		c.ExternalIPs.AllowAll = true
		i.remark("externalIPs.allowAll: as --strict-external-ip-validation=false has it, whoever may write a Service can draw the traffic to any address (CVE-2020-8554). Better are externalIPs.ranges.")
		return
	}
	c.ExternalIPs.Ranges = f.list("service-external-ip-range")
	if c.LoadBalancerIPs.Ranges = f.list("loadbalancer-ip-range"); c.LoadBalancerIPs.Ranges == nil {
		i.remark("loadBalancerIPs: kube-router 2.8 and later serves none without --loadbalancer-ip-range; fairway serves all that are not part of the cluster, unless loadBalancerIPs.ranges says which.")
	}
}

// bgp sets the section bgp.
func (i *importer) bgp() {
	b, f := &i.Configuration.BGP, i.flags
	b.ASN = f.number("cluster-asn", 0)
	if b.ASN == 0 {
		b.ASN = defaultASN
	}
	switch id := f.given["router-id"]; id {
	case "generate":
		i.remark("--router-id=generate: the BGP identifier is the Node's IPv4 InternalIP; nodes that have none need a configuration each with bgp.routerID.")
	default:
		b.RouterID = id
	}
	i.announce(b)
	b.Peers = i.globalPeers()
	i.annotatedNodes(b)
	i.mesh(b)
	if len(b.Peers) == 0 && b.Mesh == nil && !b.KubeRouterAnnotations {
		i.Configuration.BGP = agent.BGPConfiguration{}
		i.remark("There is no section bgp: no flag and no annotation names a router, and between nodes fairway needs no BGP.")
		return
	}
	if f.on("enable-ibgp") && b.Mesh == nil {
		i.remark("The iBGP mesh (--enable-ibgp, --nodes-full-mesh) is not needed: each node makes the routes to the others' podCIDRs from the Node objects. If something else learns from it, add bgp.mesh.")
	}
	if port := f.number("bgp-port", 179); len(b.Peers) > 0 && b.Mesh == nil {
		i.remark("fairway connects to the routers. If one of them is set to connect to the nodes alone, add bgp.listenPort: %d.", port)
	}
}

const (
	reflectorLabel = "fairway.dev/reflector"
	// meshPort is where nodes listen while some of them still have kube-router, which has the other port.
	meshPort = 1790
)

// mesh has nodes speak BGP with each other where somebody has asked kube-router for that by name, or annotations make nodes route reflectors.
func (i *importer) mesh(b *agent.BGPConfiguration) {
	f := i.flags
	ids := map[netip.Addr]bool{}
	var labels []string
	for _, n := range i.snapshot.Nodes {
		if n.KubeRouter != nil && n.KubeRouter.ReflectorClusterID.IsValid() {
			ids[n.KubeRouter.ReflectorClusterID] = true
			labels = append(labels, fmt.Sprintf("kubectl label node %s %s=true", n.Name, reflectorLabel))
		}
	}
	_, asked := f.given["nodes-full-mesh"]
	if !f.on("enable-ibgp") || len(ids) == 0 && !(asked && f.on("nodes-full-mesh")) {
		return
	}
	b.Mesh = &agent.BGPMesh{NodeSelector: maps.Clone(i.only), HoldTime: agent.Duration(f.duration("bgp-holdtime"))}
	b.ListenPort = f.number("bgp-port", 0)
	if len(i.only) > 0 {
		b.ListenPort = meshPort
		i.remark("bgp.listenPort: kube-router has port %d as long as it is there, so nodes with fairway have their sessions with each other at %d. Another port has all sessions begin anew.", f.number("bgp-port", 179), meshPort)
	}
	if len(ids) == 0 {
		return
	}
	b.Mesh.ReflectorSelector = map[string]string{reflectorLabel: "true"}
	maps.Copy(b.Mesh.ReflectorSelector, i.only)
	i.Commands = append(i.Commands, labels...)
	if len(ids) > 1 {
		i.remark("bgp.mesh.clusterID: the annotations kube-router.io/rr.server have several; here each reflector has its BGP identifier, and all other nodes are clients of all reflectors.")
		return
	}
	for id := range ids {
		b.Mesh.ClusterID = id.String()
	}
	i.remark("bgp.mesh: all nodes but the reflectors are their clients, with kube-router.io/rr.client or without.")
}

// announce sets what routers are told.
func (i *importer) announce(b *agent.BGPConfiguration) {
	var a agent.BGPAnnouncement
	for _, k := range []struct {
		flag string
		kind bgp.Kind
	}{{"advertise-pod-cidr", bgp.PodCIDRs}, {"advertise-cluster-ip", bgp.ClusterIPs}, {"advertise-external-ip", bgp.ExternalIPs}, {"advertise-loadbalancer-ip", bgp.LoadBalancerIPs}} {
		if i.flags.on(k.flag) {
			a.Addresses = append(a.Addresses, k.kind.String())
		}
	}
	if a.Addresses == nil {
		i.remark("By the flags kube-router announces nothing; a configuration without bgp.announce has the podCIDRs announced. Filter them in the router, or announce what a Service asks for with fairway.dev/announce.")
		return
	}
	b.Announce = []agent.BGPAnnouncement{a}
}

// globalPeers are those of the flags.
func (i *importer) globalPeers() (peers []agent.BGPPeer) {
	f := i.flags
	ips, asns, ports := f.list("peer-router-ips"), f.list("peer-router-asns"), f.list("peer-router-ports")
	if len(ips) != len(asns) || len(ports) != 0 && len(ports) != len(ips) {
		i.remark("--peer-router-ips has %d items, --peer-router-asns %d, --peer-router-ports %d: as many are wanted, and these peers are left out.", len(ips), len(asns), len(ports))
		return nil
	}
	secrets := f.list("peer-router-passwords")
	for n, ip := range ips {
		address, err := netip.ParseAddr(ip)
		asn, errASN := strconv.ParseUint(asns[n], 10, 32)
		if err != nil || errASN != nil {
			i.remark("--peer-router-ips has %q with the ASN %q: an address and a number are wanted, and this peer is left out.", ip, asns[n])
			continue
		}
		p := i.peer(address.Unmap(), uint32(asn))
		if len(ports) > 0 {
			p.Port = i.port(ports[n])
		}
		if n < len(secrets) && secrets[n] != "" || f.given["peer-router-passwords-file"] != "" {
			i.password(&p, "")
		}
		peers = append(peers, p)
	}
	return peers
}

func (i *importer) port(text string) int {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		i.remark("--peer-router-ports has %q: a port is wanted, and 179 is taken.", text)
	}
	return int(n)
}

// peer returns a peer with what the flags say about all of them.
func (i *importer) peer(address netip.Addr, asn uint32) agent.BGPPeer {
	f := i.flags
	p := agent.BGPPeer{Address: address.String(), ASN: int(asn), NodeSelector: maps.Clone(i.only), HoldTime: agent.Duration(f.duration("bgp-holdtime"))}
	for _, family := range cluster.Families {
		if f.on("enable-" + strings.ToLower(family.String())) {
			p.Families = append(p.Families, family.String())
		}
	}
	if len(p.Families) == 1 && p.Families[0] == cluster.FamilyOf(address).String() {
		p.Families = nil
	}
	if ttl := f.number("peer-router-multihop-ttl", 0); ttl >= multihopFrom && p.ASN != i.Configuration.BGP.ASN {
		p.Multihop = ttl
	}
	restart := f.on("bgp-graceful-restart")
	p.GracefulRestart.Enabled = &restart
	if restart {
		p.GracefulRestart.RestartTime = agent.Duration(f.duration("bgp-graceful-restart-time"))
	}
	return p
}

// password has the peer's password come from a file, whose name has the node's where the peer is of one node.
func (i *importer) password(p *agent.BGPPeer, node string) {
	key := strings.ReplaceAll(p.Address, ":", "-")
	if node != "" {
		key = node + "_" + key
	}
	p.PasswordFile = passwords + key
	i.remark("The password of %s is not printed: put it, not in base64, as the key %s into a Secret that is mounted at %s.", p.Address, key, strings.TrimSuffix(passwords, "/"))
}

// annotatedNodes adds what the Nodes' annotations say: where all say the same it is in the configuration, where they don't the
// annotations go on to count. kube-router reads peers of annotations only when no flag names any.
func (i *importer) annotatedNodes(b *agent.BGPConfiguration) {
	var all []*cluster.KubeRouterNode
	for _, n := range i.snapshot.Nodes {
		kr := cluster.KubeRouterNode{}
		if n.KubeRouter != nil {
			kr = *n.KubeRouter
		}
		if i.flags.on("nodes-full-mesh") {
			if kr.ASN != 0 && int(kr.ASN) != b.ASN {
				i.remark("Node %s: annotation kube-router.io/node.asn does not count with --nodes-full-mesh=true, and the ASN is %d; remove it, as bgp.kubeRouterAnnotations would have it count.", n.Name, b.ASN)
			}
			kr.ASN = 0
		}
		all = append(all, &kr)
	}
	if len(all) == 0 {
		return
	}
	first := all[0]
	var kept []string
	for what, differs := range map[string]func(*cluster.KubeRouterNode) bool{
		"kube-router.io/node.asn":             func(n *cluster.KubeRouterNode) bool { return n.ASN != first.ASN },
		"kube-router.io/node.bgp.communities": func(n *cluster.KubeRouterNode) bool { return !slices.Equal(n.Communities, first.Communities) },
		"kube-router.io/path-prepend.*": func(n *cluster.KubeRouterNode) bool {
			return n.Prepend != first.Prepend || n.PrependASN != first.PrependASN
		},
		"kube-router.io/pod-cidr(s)": func(n *cluster.KubeRouterNode) bool { return len(n.PodCIDRs) > 0 },
	} {
		if slices.ContainsFunc(all, differs) {
			kept = append(kept, what)
		}
	}
	if len(kept) > 0 {
		slices.Sort(kept)
		b.KubeRouterAnnotations = true
		i.remark("bgp.kubeRouterAnnotations: Nodes say different things by %s, which one configuration can't; so their annotations go on to count. Keep them.", strings.Join(kept, ", "))
		if len(i.only) > 0 {
			i.remark("Peers that annotations name are also those of nodes without the label that was asked for.")
		}
		if first.ASN != 0 {
			b.ASN = int(first.ASN)
		}
		return
	}
	if first.ASN != 0 {
		b.ASN = int(first.ASN)
	}
	if len(b.Peers) == 0 {
		i.annotatedPeers(b)
	}
	i.attributes(b, first)
}

// attributes sets how prefixes are announced, as all Nodes say it.
func (i *importer) attributes(b *agent.BGPConfiguration, n *cluster.KubeRouterNode) {
	prepend := int(n.Prepend)
	switch {
	case prepend == 0:
	case slices.ContainsFunc(b.Peers, func(p agent.BGPPeer) bool { return p.ASN == b.ASN }):
		i.remark("kube-router.io/path-prepend.as: a router of the nodes' own ASN %d would refuse the path, so nothing is prepended.", b.ASN)
		prepend = 0
	case int(n.PrependASN) != b.ASN:
		i.remark("kube-router.io/path-prepend.as is %d; fairway prepends the nodes' own ASN %d, as many times.", n.PrependASN, b.ASN)
	}
	if prepend > mostPrepend {
		i.remark("kube-router.io/path-prepend.repeat-n is %d; bgp.announce takes %d at most.", prepend, mostPrepend)
		prepend = mostPrepend
	}
	for a := range b.Announce {
		for _, c := range n.Communities {
			b.Announce[a].Communities = append(b.Announce[a].Communities, bgp.Community(c).String())
		}
		b.Announce[a].ASPathPrepend = prepend
	}
}

// annotatedPeers adds the peers of annotations: once when every Node has the same, or else for each Node.
func (i *importer) annotatedPeers(b *agent.BGPConfiguration) {
	nodes := i.snapshot.Nodes
	peersOf := func(n *cluster.Node) []cluster.KubeRouterPeer {
		if n.KubeRouter == nil {
			return nil
		}
		return n.KubeRouter.Peers
	}
	for _, n := range nodes {
		for _, kp := range peersOf(n) {
			everywhere := !kp.LocalAddress.IsValid() && !slices.ContainsFunc(nodes, func(o *cluster.Node) bool { return !slices.Contains(peersOf(o), kp) })
			if everywhere && n != nodes[0] {
				continue // it is there already
			}
			p := i.peer(kp.Address, kp.ASN)
			if kp.Port != 179 {
				p.Port = int(kp.Port)
			}
			owner := ""
			if kp.LocalAddress.IsValid() {
				p.LocalAddress = kp.LocalAddress.String()
			}
			if !everywhere {
				owner = n.Name
				if p.NodeSelector == nil {
					p.NodeSelector = map[string]string{}
				}
				p.NodeSelector[hostname] = i.hostname(n)
			}
			if kp.Password.Given {
				i.password(&p, owner)
			}
			b.Peers = append(b.Peers, p)
		}
	}
}

// hostname returns the label by which a peer is the Node's alone.
func (i *importer) hostname(n *cluster.Node) string {
	for _, l := range n.Labels {
		if value, found := strings.CutPrefix(l, hostname+"="); found {
			return value
		}
	}
	i.remark("Node %s has no label %s, by which its peers are told; kubelet sets it.", n.Name, hostname)
	return n.Name
}

// absent tells what of the flags has no equivalent.
func (i *importer) absent() {
	for _, a := range []struct {
		flag string
		when bool
		text string
	}{
		{"run-firewall", true, "fairway has no NetworkPolicy: another program has to enforce it, or nobody does when kube-router is gone"},
		{"enable-overlay", true, "there is no overlay: nodes have to reach each other without a router between them that does not know the podCIDRs; a node that is on no link of ours is the Note NextHopUnreachable"},
		{"enable-cni", true, "fairway writes no CNI configuration: the file with the bridge " + bridge + " stays, and each new node needs one (/etc/cni/net.d/10-kuberouter.conflist) with its podCIDR"},
		{"enable-pod-egress", true, "fairway does not replace the source of pods' traffic out of the cluster: set ipMasq in the CNI configuration of the bridge, or route the pods' networks"},
		{"run-loadbalancer", true, "fairway assigns no LoadBalancer IPs; another program has to"},
		{"run-service-proxy", false, "fairway serves Services; if kube-proxy does now, see docs/takeover.md"},
		{"enable-bfd", true, "there is no BFD; a holdTime of a few seconds comes near"},
		{"use-nftables-for-netpol", true, "there is no NetworkPolicy"},
		{"netpol-default-deny", true, "there is no NetworkPolicy"},
	} {
		if i.flags.on(a.flag) == a.when {
			i.remark("--%s=%v: %s.", a.flag, a.when, a.text)
		}
	}
	for _, name := range []string{"runtime-endpoint", "excluded-cidrs", "ipvs-sync-period", "ipvs-graceful-period", "service-tcp-timeout", "service-tcpfin-timeout", "service-udp-timeout"} {
		if _, given := i.flags.given[name]; given {
			i.remark("--%s: it is about IPVS or direct server return, which are not there.", name)
		}
	}
}

// annotatedServices has the Services say to fairway what they say to kube-router.
func (i *importer) annotatedServices() {
	announced := map[string]bool{}
	for _, kind := range []string{"ClusterIPs", "ExternalIPs", "LoadBalancerIPs"} {
		for _, a := range i.Configuration.BGP.Announce {
			announced[kind] = announced[kind] || slices.Contains(a.Addresses, kind)
		}
	}
	for _, s := range i.snapshot.Services {
		kr := s.KubeRouter
		if kr == nil {
			continue
		}
		if kr.Local && s.ExternalTrafficPolicy != cluster.PolicyLocal {
			i.Commands = append(i.Commands, fmt.Sprintf(`kubectl -n %s patch service %s -p '{"spec":{"externalTrafficPolicy":"Local"}}'`, s.Namespace, s.Name))
		}
		if s.Announce.Given || kr.ClusterIPs == cluster.Unchosen && kr.ExternalIPs == cluster.Unchosen && kr.LoadBalancerIPs == cluster.Unchosen {
			continue
		}
		var words []string
		for _, c := range []struct {
			kind   string
			choice cluster.Choice
		}{{"ClusterIPs", kr.ClusterIPs}, {"ExternalIPs", kr.ExternalIPs}, {"LoadBalancerIPs", kr.LoadBalancerIPs}} {
			if c.choice == cluster.Yes || c.choice == cluster.Unchosen && announced[c.kind] {
				words = append(words, c.kind)
			}
		}
		if words == nil {
			words = []string{"None"}
		}
		i.Commands = append(i.Commands, fmt.Sprintf("kubectl -n %s annotate service %s fairway.dev/announce=%s", s.Namespace, s.Name, strings.Join(words, ",")))
	}
}

// notes adds what could not be read of the annotations, or has no equivalent, each once with the objects that have it.
func (i *importer) notes() {
	objects := map[string][]string{}
	var order []string
	add := func(notes []cluster.Note) {
		for _, n := range notes {
			if objects[n.Detail] == nil {
				order = append(order, n.Detail)
			}
			objects[n.Detail] = append(objects[n.Detail], n.Object.String())
		}
	}
	for _, n := range i.snapshot.Nodes {
		if n.KubeRouter != nil {
			add(n.KubeRouter.Notes)
			if len(n.KubeRouter.ImportReject) > 0 {
				add([]cluster.Note{{Object: n.Ref(), Detail: "annotation kube-router.io/node.bgp.customimportreject needs nothing in its place: nothing is imported unless bgp.import asks for it"}})
			}
		}
	}
	for _, s := range i.snapshot.Services {
		if s.KubeRouter != nil {
			add(s.KubeRouter.Notes)
		}
	}
	for _, detail := range order {
		i.remark("%s: %s.", few(objects[detail]), detail)
	}
}

// few names the first of several.
func few(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// Write writes the configuration, with everything else as comments before it.
func (i *Import) Write(w io.Writer) error {
	text, err := yaml.Marshal(i.Configuration)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("# The equivalent of kube-router's flags and annotations for fairway.\n")
	section := func(title string, lines []string) {
		if len(lines) > 0 {
			b.WriteString("#\n# " + title + "\n")
		}
		for _, line := range lines {
			b.WriteString("# - " + strings.ReplaceAll(line, "\n", " ") + "\n")
		}
	}
	section("What Services and Nodes say by annotations, in fairway's words; once it counts, kube-router's annotations can go:", i.Commands)
	section("What has no equivalent, and what to look at:", i.Remarks)
	b.Write(text)
	_, err = io.WriteString(w, b.String())
	return err
}
