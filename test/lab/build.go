package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A setting is one sysctl of a namespace. It is optional where a kernel without IPv6 or br_netfilter lacks it.
type setting struct {
	name, value string
	optional    bool
}

// commonSettings hold in every namespace, before it has links: new links inherit them. The package comment says why.
var commonSettings = []setting{
	{"net.ipv4.conf.all.accept_redirects", "0", false},
	{"net.ipv4.conf.default.accept_redirects", "0", false},
	{"net.ipv4.conf.all.rp_filter", "0", false},
	{"net.ipv4.conf.default.rp_filter", "0", false},
	{"net.ipv4.icmp_ratemask", "0", false},
	{"net.ipv4.icmp_msgs_per_sec", "1000000", true}, // IPv6 counts against it as well
	{"net.ipv4.icmp_msgs_burst", "1000000", true},
	{"net.ipv6.conf.all.disable_ipv6", "0", true},
	{"net.ipv6.conf.default.disable_ipv6", "0", true},
	{"net.ipv6.conf.all.accept_dad", "0", true},
	{"net.ipv6.conf.default.accept_dad", "0", true},
	{"net.ipv6.conf.all.accept_ra", "0", true},
	{"net.ipv6.conf.default.accept_ra", "0", true},
	{"net.ipv6.conf.all.accept_redirects", "0", true},
	{"net.ipv6.conf.default.accept_redirects", "0", true},
	{"net.ipv6.icmp.ratelimit", "0", true},
}

var forwardingSettings = []setting{
	{"net.ipv4.ip_forward", "1", false},
	{"net.ipv6.conf.all.forwarding", "1", true},
}

func bridgeNetfilter(value string) []setting {
	return []setting{
		{"net.bridge.bridge-nf-call-iptables", value, true},
		{"net.bridge.bridge-nf-call-ip6tables", value, true},
	}
}

func (ns *Namespace) apply(settings []setting) error {
	return ns.Do(func() error {
		for _, s := range settings {
			err := writeSysctl(s.name, s.value)
			if err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
				return err
			}
		}
		return nil
	})
}

// build makes everything that the Topology has. What was made before an error is in l, for Close.
func (l *Lab) build() error {
	if err := l.reserve(); err != nil {
		return err
	}
	if err := l.makeSpaces(); err != nil {
		return err
	}
	if err := l.buildSwitch(); err != nil {
		return err
	}
	jobs := []func() error{l.buildRouter}
	for _, spec := range l.Topology.Nodes {
		n := &Node{Namespace: l.spaces[spec.Name], NodeSpec: spec}
		l.nodes[spec.Name] = n
		for _, pod := range spec.Pods {
			l.pods[pod.Name] = &Pod{Namespace: l.spaces[pod.Name], PodSpec: pod, Node: n}
		}
		jobs = append(jobs, func() error { return l.buildNode(n) })
	}
	for _, spec := range l.Topology.Clients {
		c := &Client{Namespace: l.spaces[spec.Name], ClientSpec: spec}
		l.clients[spec.Name] = c
		jobs = append(jobs, func() error { return l.buildClient(c) })
	}
	if err := together(jobs); err != nil {
		return err
	}
	return Eventually(5*time.Second, l.carrier)
}

// together runs functions at the same time and joins their errors.
func together(jobs []func() error) error {
	errs := make([]error, len(jobs))
	var wg sync.WaitGroup
	for i, job := range jobs {
		wg.Go(func() { errs[i] = job() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// makeSpaces makes all namespaces, with their settings and lo up.
func (l *Lab) makeSpaces() error {
	names := l.Topology.names()
	made := make([]*Namespace, len(names))
	jobs := make([]func() error, len(names))
	for i, name := range names {
		jobs[i] = func() (err error) {
			if made[i], err = newNamespace(l, l.prefix+"-"+name); err != nil {
				return err
			}
			return made[i].prepare()
		}
	}
	err := together(jobs)
	for i, ns := range made {
		if ns != nil {
			l.spaces[names[i]] = ns
		}
	}
	return err
}

func (ns *Namespace) prepare() error {
	if err := ns.apply(commonSettings); err != nil {
		return fmt.Errorf("%s: %w", ns.name, err)
	}
	return ns.up("lo")
}

// up brings a link up.
func (ns *Namespace) up(name string) error {
	link, err := ns.handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: link %s: %w", ns.name, name, err)
	}
	if err := ns.handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: bring up %s: %w", ns.name, name, err)
	}
	return nil
}

func (l *Lab) buildSwitch() error {
	sw := l.Switch()
	if err := sw.apply(bridgeNetfilter("0")); err != nil {
		return err
	}
	for _, n := range l.Topology.Networks {
		if err := sw.addBridge(networkBridge(n.Name)); err != nil {
			return err
		}
	}
	return nil
}

// networkBridge is the name of a network's bridge in the switch, cut to what a link name may have.
func networkBridge(network string) string {
	name := "br-" + network
	return name[:min(len(name), unix.IFNAMSIZ-1)]
}

func (ns *Namespace) addBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.Flags = net.FlagUp
	if err := ns.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("%s: add bridge %s: %w", ns.name, name, err)
	}
	return nil
}

func (l *Lab) buildRouter() error {
	r := l.Router()
	if err := r.apply(forwardingSettings); err != nil {
		return err
	}
	for i, n := range l.Topology.Networks {
		port := fmt.Sprintf("%s%d", l.Topology.Router, i)
		if err := l.plug(r, fmt.Sprintf("eth%d", i), port, n, n.Gateways); err != nil {
			return err
		}
	}
	for _, f := range []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")} {
		if !l.hasFamily(cluster.FamilyOf(f.Addr())) {
			continue
		}
		hole := &netlink.Route{Dst: ipNet(f), Type: unix.RTN_BLACKHOLE, Priority: 1 << 20}
		if err := r.handle.RouteAdd(hole); err != nil {
			return fmt.Errorf("%s: blackhole %s: %w", r.name, f, err)
		}
	}
	return r.addRoutes(l.Topology.RouterRoutes)
}

// hasFamily tells whether any network has the family.
func (l *Lab) hasFamily(f cluster.Family) bool {
	for _, n := range l.Topology.Networks {
		for _, p := range n.Prefixes {
			if cluster.FamilyOf(p.Addr()) == f {
				return true
			}
		}
	}
	return false
}

func (l *Lab) buildClient(c *Client) error {
	network := *l.Topology.network(c.Network)
	if err := l.plug(c.Namespace, "eth0", c.Name, network, c.Addrs); err != nil {
		return err
	}
	return c.addRoutes(append(defaults(network.Gateways, c.Addrs), c.Routes...))
}

func (l *Lab) buildNode(n *Node) error {
	settings := bridgeNetfilter("1")
	if !n.NoForwarding {
		settings = append(settings, forwardingSettings...)
	}
	if err := n.apply(settings); err != nil {
		return err
	}
	network := l.Topology.Networks[0]
	if err := l.plug(n.Namespace, "eth0", n.Name, network, n.Addrs); err != nil {
		return err
	}
	if err := n.addRoutes(defaults(network.Gateways, n.Addrs)); err != nil {
		return err
	}
	bridge := l.Topology.podBridge()
	if err := n.addBridge(bridge); err != nil {
		return err
	}
	for _, pod := range n.NodeSpec.Pods {
		if err := l.buildPod(n, l.pods[pod.Name], bridge); err != nil {
			return err
		}
	}
	return n.addAddrs(bridge, gateways(n.PodCIDRs), n.PodCIDRs)
}

// gateways returns the first address of each podCIDR.
func gateways(podCIDRs []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range podCIDRs {
		out = append(out, p.Masked().Addr().Next())
	}
	return out
}

func (l *Lab) buildPod(n *Node, p *Pod, bridge string) error {
	port := "veth" + p.Name
	if err := connectLinks(n.Namespace, port, bridge, p.Namespace, "eth0"); err != nil {
		return err
	}
	if !l.Topology.NoHairpin {
		link, err := n.handle.LinkByName(port)
		if err != nil {
			return fmt.Errorf("%s: link %s: %w", n.name, port, err)
		}
		if err := n.handle.LinkSetHairpin(link, true); err != nil {
			return fmt.Errorf("%s: hairpin mode of %s: %w", n.name, port, err)
		}
	}
	if err := p.addAddrs("eth0", p.Addrs, n.PodCIDRs); err != nil {
		return err
	}
	return p.addRoutes(defaults(gateways(n.PodCIDRs), p.Addrs))
}

// plug puts a namespace on a network: a link in the namespace, a port of the network's bridge in the switch.
func (l *Lab) plug(ns *Namespace, link, port string, network NetworkSpec, list []netip.Addr) error {
	if err := connectLinks(l.Switch(), port, networkBridge(network.Name), ns, link); err != nil {
		return err
	}
	return ns.addAddrs(link, list, network.Prefixes)
}

// connectLinks makes a veth pair with each end where it belongs from the start: moving a link to another namespace
// waits for an RCU grace period. The port joins the bridge; both ends are up afterwards.
func connectLinks(sw *Namespace, port, bridge string, ns *Namespace, name string) error {
	master, err := sw.handle.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("%s: bridge %s: %w", sw.name, bridge, err)
	}
	there, err := os.Open(filepath.Join(netnsDir, ns.name))
	if err != nil {
		return err
	}
	defer there.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	attrs.MasterIndex = master.Attrs().Index
	attrs.Flags = net.FlagUp
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(there.Fd())}
	if err := sw.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s in %s with port %s in %s: %w", name, ns.name, port, sw.name, err)
	}
	return ns.up(name)
}

// addAddrs gives a link its addresses, each with the length of the subnet that it is in. The last IPv6 address added
// is the one that the kernel prefers as a source, so the first of the list comes last.
func (ns *Namespace) addAddrs(name string, list []netip.Addr, subnets []netip.Prefix) error {
	link, err := ns.handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: link %s: %w", ns.name, name, err)
	}
	var v4, v6 []netip.Addr
	for _, a := range list {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	slices.Reverse(v6)
	for _, a := range append(v4, v6...) {
		addr := &netlink.Addr{IPNet: ipNet(subnetOf(a, subnets))}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := ns.handle.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("%s: add %s to %s: %w", ns.name, a, name, err)
		}
	}
	return nil
}

// defaults are the default routes by the given gateways, for the families of which there is an address.
func defaults(via, have []netip.Addr) []Route {
	var out []Route
	for _, gw := range via {
		if first(have, cluster.FamilyOf(gw)).IsValid() {
			any := netip.IPv4Unspecified()
			if gw.Is6() {
				any = netip.IPv6Unspecified()
			}
			out = append(out, Route{Dst: netip.PrefixFrom(any, 0), Via: gw})
		}
	}
	return out
}

func (ns *Namespace) addRoutes(routes []Route) error {
	for _, r := range routes {
		if err := ns.AddRoute(r); err != nil {
			return err
		}
	}
	return nil
}

// carrier is nil when all links of the Lab run: the kernel reports the carrier of a new link a moment later.
func (l *Lab) carrier() error {
	for _, ns := range l.spaces {
		links, err := ns.handle.LinkList()
		if err != nil {
			return fmt.Errorf("%s: list links: %w", ns.name, err)
		}
		for _, link := range links {
			_, bridge := link.(*netlink.Bridge) // a bridge without ports has no carrier
			if a := link.Attrs(); !bridge && a.RawFlags&unix.IFF_RUNNING == 0 && a.RawFlags&unix.IFF_UP != 0 {
				return fmt.Errorf("%s: link %s has no carrier", ns.name, a.Name)
			}
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
