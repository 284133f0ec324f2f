package agent

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

// BGPConfiguration is the bgp section of the configuration.
type BGPConfiguration struct {
	// ASN is the nodes' autonomous system.
	ASN int `json:"asn,omitempty"`
	// RouterID is the BGP identifier, an IPv4 address; the Node's first IPv4 InternalIP when empty, which is right for a
	// configuration that many nodes share.
	RouterID string `json:"routerID,omitempty"`
	// ListenPort is the TCP port on which peers may connect. When 0, it is none, and the agent connects to them; 179 with Mesh.
	ListenPort int `json:"listenPort,omitempty"`
	// Peers are the routers, of all nodes.
	Peers []BGPPeer `json:"peers,omitempty"`
	// Mesh has nodes speak BGP with each other; they do not when it is not given.
	Mesh *BGPMesh `json:"mesh,omitempty"`
	// Announce is what they are told; the PodCIDRs when not given.
	Announce []BGPAnnouncement `json:"announce,omitempty"`
	// Import is what of the routers' routes the nodes use; none when empty.
	Import []BGPImport `json:"import,omitempty"`
	// AnnounceFromExcludedNodes announces addresses of Services from nodes with the label
	// node.kubernetes.io/exclude-from-external-load-balancers, too.
	AnnounceFromExcludedNodes bool `json:"announceFromExcludedNodes,omitempty"`
	// DrainOnTaints are taints, as key, key=value, key:effect or key=value:effect, of nodes that announce no addresses of
	// Services.
	DrainOnTaints []string `json:"drainOnTaints,omitempty"`
	// Leave says how a node takes leave of its peers.
	Leave BGPLeave `json:"leave,omitzero"`
	// KubeRouterAnnotations has the annotations of kube-router on Nodes and Services count.
	KubeRouterAnnotations bool `json:"kubeRouterAnnotations,omitempty"`
}

// BGPLeave is the leave section of the bgp section.
type BGPLeave struct {
	// NoticeTime is how long paths are announced with GRACEFUL_SHUTDOWN before they are withdrawn, when the node leaves or
	// drains; 5s when empty.
	NoticeTime Duration `json:"noticeTime,omitempty"`
	// QuietTime is how long the sessions of a node that leaves stay after that; 2s when empty.
	QuietTime Duration `json:"quietTime,omitempty"`
}

// BGPMesh is the mesh section of the bgp section: iBGP sessions between nodes.
type BGPMesh struct {
	// NodeSelector has the labels of the nodes that take part; all nodes when empty.
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// ReflectorSelector has the labels of the nodes that are route reflectors, with which alone the others have sessions; when empty, each
	// node has one with each.
	ReflectorSelector map[string]string `json:"reflectorSelector,omitempty"`
	// ClusterID is that of the reflectors (RFC 4456), an IPv4 address; each reflector's BGP identifier when empty.
	ClusterID string `json:"clusterID,omitempty"`
	// PasswordFile, HoldTime, KeepaliveTime, ConnectRetryTime, MaxPrefixes and GracefulRestart are those of the sessions, as a peer has
	// them.
	PasswordFile     string             `json:"passwordFile,omitempty"`
	HoldTime         Duration           `json:"holdTime,omitempty"`
	KeepaliveTime    Duration           `json:"keepaliveTime,omitempty"`
	ConnectRetryTime Duration           `json:"connectRetryTime,omitempty"`
	MaxPrefixes      *int               `json:"maxPrefixes,omitempty"`
	GracefulRestart  BGPGracefulRestart `json:"gracefulRestart,omitzero"`
}

// A BGPPeer is one router in the bgp section.
type BGPPeer struct {
	// Address is the router's; required, as is its ASN.
	Address string `json:"address,omitempty"`
	ASN     int    `json:"asn,omitempty"`
	// Port is 179 when not given.
	Port int `json:"port,omitempty"`
	// Families are IPv4, IPv6 or both; that of the Address when empty.
	Families []string `json:"families,omitempty"`
	// Multihop is how many hops an eBGP peer may be away; 0 for one on the link. TTLSecurity is the same, and packets that
	// come from further are refused. There can be one of the two.
	Multihop    int `json:"multihop,omitempty"`
	TTLSecurity int `json:"ttlSecurity,omitempty"`
	// LocalAddress is the node's end of the session; left to the kernel when empty.
	LocalAddress string `json:"localAddress,omitempty"`
	// PasswordFile is a file with the session's TCP-MD5 password.
	PasswordFile string `json:"passwordFile,omitempty"`
	// HoldTime, KeepaliveTime and ConnectRetryTime are 30s, a third of the HoldTime, and 5s when empty.
	HoldTime         Duration `json:"holdTime,omitempty"`
	KeepaliveTime    Duration `json:"keepaliveTime,omitempty"`
	ConnectRetryTime Duration `json:"connectRetryTime,omitempty"`
	// MaxPrefixes is how many prefixes of each family the peer may send; 20000 when not given. One that sends more loses its session
	// for a minute.
	MaxPrefixes *int `json:"maxPrefixes,omitempty"`
	// GracefulRestart asks the peer to keep the routes while the agent is restarted.
	GracefulRestart BGPGracefulRestart `json:"gracefulRestart,omitzero"`
	// NodeSelector has the labels of the nodes that have this peer; all nodes when empty.
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
}

// BGPGracefulRestart is the gracefulRestart section of a peer.
type BGPGracefulRestart struct {
	// Enabled is true when not given.
	Enabled *bool `json:"enabled,omitempty"`
	// RestartTime is for how long the peer keeps the routes; 120s when empty.
	RestartTime Duration `json:"restartTime,omitempty"`
}

// A BGPImport is a range of prefixes in the bgp section.
type BGPImport struct {
	// Prefixes are networks: they and everything inside them.
	Prefixes []string `json:"prefixes,omitempty"`
	// GE and LE bound the lengths of what is inside, as in routers' prefix lists; that of the network, and the most that there is,
	// when not given.
	GE int `json:"ge,omitempty"`
	LE int `json:"le,omitempty"`
}

// A BGPAnnouncement says what is announced, and how.
type BGPAnnouncement struct {
	// Addresses are some of PodCIDRs, ServiceCIDRs, ClusterIPs, ExternalIPs and LoadBalancerIPs.
	Addresses []string `json:"addresses,omitempty"`
	// Communities are standard ones (64512:100), large ones (64512:1:2) and well-known names (no-export).
	Communities []string `json:"communities,omitempty"`
	// LocalPref goes to iBGP peers; 100 when not given.
	LocalPref *int `json:"localPref,omitempty"`
	// MED is none when 0.
	MED int `json:"med,omitempty"`
	// ASPathPrepend is how many more times the path has the nodes' ASN, for eBGP peers.
	ASPathPrepend int `json:"asPathPrepend,omitempty"`
}

const (
	bgpPort                 = 179
	defaultHoldTime         = 30 * time.Second
	leastHoldTime           = 3 * time.Second // RFC 4271, section 4.2
	mostHoldTime            = math.MaxUint16 * time.Second
	defaultConnectRetryTime = 5 * time.Second
	defaultRestartTime      = 2 * time.Minute
	mostRestartTime         = 4095 * time.Second // 12 bits, RFC 4724
	mostPrepend             = 10
	defaultNoticeTime       = 5 * time.Second
	defaultQuietTime        = 2 * time.Second
	mostLeaveTime           = 10 * time.Minute
)

// given tells whether the section asks for BGP. How to leave says nothing by itself: the manifests have its defaults.
func (b BGPConfiguration) given() bool {
	return b.ASN != 0 || b.RouterID != "" || b.ListenPort != 0 || b.Mesh != nil || len(b.Peers)+len(b.Announce)+len(b.Import)+len(b.DrainOnTaints) > 0 || b.AnnounceFromExcludedNodes || b.KubeRouterAnnotations
}

// check returns what the section means together with the rest of the configuration; nil when it says nothing.
func (b BGPConfiguration) check(c *Config, refuse refuse) *bgp.Config {
	if !b.given() {
		return nil
	}
	out := &bgp.Config{
		NodeName:     c.NodeName,
		ASN:          asn("bgp.asn", b.ASN, refuse),
		ListenPort:   uint16(number("bgp.listenPort", &b.ListenPort, 0, 0, math.MaxUint16, refuse)),
		FromExcluded: b.AnnounceFromExcludedNodes,
		ServiceCIDRs: c.ServiceCIDRs,
		NoticeTime:   upTo("bgp.leave.noticeTime", b.Leave.NoticeTime, defaultNoticeTime, mostLeaveTime, refuse),
		QuietTime:    upTo("bgp.leave.quietTime", b.Leave.QuietTime, defaultQuietTime, mostLeaveTime, refuse),
	}
	if b.RouterID != "" {
		out.RouterID = address("bgp.routerID", b.RouterID, refuse)
		if out.RouterID.IsValid() && (!out.RouterID.Is4() || out.RouterID.IsUnspecified()) {
			refuse("bgp.routerID", "%q is no BGP identifier, expected an IPv4 address other than 0.0.0.0, also where there is only IPv6", b.RouterID)
		}
	}
	for i, text := range b.DrainOnTaints {
		match, err := bgp.ParseTaint(text)
		if err != nil {
			refuse(fmt.Sprintf("bgp.drainOnTaints[%d]", i), "%v", err)
		}
		out.DrainTaints = append(out.DrainTaints, match)
	}
	for i, p := range b.Peers {
		out.Peers = append(out.Peers, p.check(fmt.Sprintf("bgp.peers[%d]", i), b.ASN, refuse))
	}
	switch {
	case b.KubeRouterAnnotations:
		// Whose address and ASN are those of the annotation.
		like := BGPPeer{Address: "192.0.2.1", ASN: b.ASN}.check("bgp.kubeRouterAnnotations", b.ASN, func(string, string, ...any) {})
		out.KubeRouter = &like.Peer
	case len(b.Peers) == 0 && b.Mesh == nil:
		refuse("bgp.peers", "are none, expected the routers to announce to, or mesh, or no bgp at all")
	}
	if b.Mesh != nil {
		out.ListenPort = defaultTo(out.ListenPort, bgpPort)
		out.Mesh = b.Mesh.check("bgp.mesh", out, c, refuse)
	}
	if len(b.Announce) == 0 {
		b.Announce = []BGPAnnouncement{{Addresses: []string{bgp.PodCIDRs.String()}}}
	}
	for i, a := range b.Announce {
		path := fmt.Sprintf("bgp.announce[%d]", i)
		out.Announce = append(out.Announce, a.check(path, out, refuse))
		if slices.Contains(out.Announce[i].Kinds, bgp.ServiceCIDRs) && c.ForwardUnknown {
			refuse(path+".addresses", "ServiceCIDRs lead traffic here for which there is no Service, and unknownServices: Forward would send it back to the router; expected unknownServices: Reject, or ClusterIPs")
		}
	}
	for i, r := range b.Import {
		out.Import = append(out.Import, r.check(fmt.Sprintf("bgp.import[%d]", i), refuse)...)
	}
	return out
}

// check returns a range for each of the prefixes.
func (b BGPImport) check(path string, refuse refuse) (ranges []bgp.ImportRange) {
	if len(b.Prefixes) == 0 {
		refuse(path+".prefixes", "are none, expected networks such as 172.16.0.0/12")
	}
	for _, p := range networks(path+".prefixes", b.Prefixes, refuse) {
		r := bgp.ImportRange{Prefix: p, Least: uint8(p.Bits()), Most: uint8(p.Addr().BitLen())}
		for _, bound := range []struct {
			name  string
			given int
			to    *uint8
		}{{"ge", b.GE, &r.Least}, {"le", b.LE, &r.Most}} {
			if bound.given != 0 {
				*bound.to = uint8(number(path+"."+bound.name, &bound.given, int(*bound.to), p.Bits(), p.Addr().BitLen(), refuse))
			}
		}
		if r.Least > r.Most {
			refuse(path+".le", "%d is less than ge, which is %d; expected as much or more", r.Most, r.Least)
		}
		ranges = append(ranges, r)
	}
	return ranges
}

func (p BGPPeer) check(path string, own int, refuse refuse) bgp.PeerConfig {
	out := bgp.PeerConfig{Peer: bgp.Peer{
		Address:      peerAddress(path+".address", p.Address, refuse),
		ASN:          asn(path+".asn", p.ASN, refuse),
		Port:         uint16(number(path+".port", &p.Port, 0, 0, math.MaxUint16, refuse)),
		Multihop:     uint8(number(path+".multihop", &p.Multihop, 0, 0, 254, refuse)),
		TTLSecurity:  uint8(number(path+".ttlSecurity", &p.TTLSecurity, 0, 0, 254, refuse)),
		PasswordFile: p.PasswordFile,
		MaxPrefixes:  uint32(number(path+".maxPrefixes", p.MaxPrefixes, bgp.DefaultMaxPrefixes, 1, math.MaxUint32, refuse)),
	}}
	out.Port = defaultTo(out.Port, bgpPort)
	if p.Multihop != 0 && p.TTLSecurity != 0 {
		refuse(path+".ttlSecurity", "contradicts multihop, which accepts packets from anywhere; expected one of the two")
	}
	if p.Multihop != 0 && p.ASN == own {
		refuse(path+".multihop", "has no meaning for an iBGP peer (its asn is the nodes' own), which may be any number of hops away; expected none")
	}
	if p.LocalAddress != "" {
		out.LocalAddress = peerAddress(path+".localAddress", p.LocalAddress, refuse)
		if out.LocalAddress.IsValid() && out.Address.IsValid() && out.LocalAddress.Is4() != out.Address.Is4() {
			refuse(path+".localAddress", "%s can't reach the peer's address %s, expected one of the same family", out.LocalAddress, out.Address)
		}
	}
	out.Families = p.families(path+".families", out.Address, refuse)
	p.times(path, &out.Peer, refuse)
	out.NodeSelector = labels(path+".nodeSelector", p.NodeSelector, refuse)
	return out
}

// labels reads a selector.
func labels(path string, selector map[string]string, refuse refuse) (labels []string) {
	for _, key := range slices.Sorted(maps.Keys(selector)) {
		if key == "" || strings.Contains(key, "=") {
			refuse(path, "%q is no key of a label, expected for example topology.kubernetes.io/zone", key)
		}
		labels = append(labels, key+"="+selector[key])
	}
	return labels
}

func (m BGPMesh) check(path string, b *bgp.Config, c *Config, refuse refuse) *bgp.MeshConfig {
	out := &bgp.MeshConfig{
		NodeSelector:      labels(path+".nodeSelector", m.NodeSelector, refuse),
		ReflectorSelector: labels(path+".reflectorSelector", m.ReflectorSelector, refuse),
		Session: bgp.Peer{Port: b.ListenPort, PasswordFile: m.PasswordFile,
			MaxPrefixes: uint32(number(path+".maxPrefixes", m.MaxPrefixes, bgp.DefaultMaxPrefixes, 1, math.MaxUint32, refuse))},
	}
	if m.ClusterID != "" {
		out.ClusterID = address(path+".clusterID", m.ClusterID, refuse)
		switch {
		case len(m.ReflectorSelector) == 0 && b.KubeRouter == nil:
			refuse(path+".clusterID", "has no meaning without reflectors, expected reflectorSelector besides, or none")
		case out.ClusterID.IsValid() && (!out.ClusterID.Is4() || out.ClusterID.IsUnspecified()):
			refuse(path+".clusterID", "%q is no cluster ID, expected an IPv4 address other than 0.0.0.0, also where there is only IPv6", m.ClusterID)
		}
	}
	BGPPeer{HoldTime: m.HoldTime, KeepaliveTime: m.KeepaliveTime, ConnectRetryTime: m.ConnectRetryTime, GracefulRestart: m.GracefulRestart}.times(path, &out.Session, refuse)
	if c.Addresses != nil {
		out.ServiceRanges = map[bgp.Kind][]netip.Prefix{bgp.ExternalIPs: c.Addresses.ExternalIPs, bgp.LoadBalancerIPs: c.Addresses.LoadBalancerIPs}
	}
	return out
}

// families reads which families a session carries: by default that of the peer's address.
func (p BGPPeer) families(path string, peer netip.Addr, refuse refuse) (families [2]bool) {
	for i, f := range cluster.Families {
		families[i] = len(p.Families) == 0 && cluster.FamilyOf(peer) == f || slices.Contains(p.Families, f.String())
	}
	for i, word := range p.Families {
		oneOf(fmt.Sprintf("%s[%d]", path, i), word, refuse, cluster.IPv4.String(), cluster.IPv6.String())
	}
	return families
}

func (p BGPPeer) times(path string, out *bgp.Peer, refuse refuse) {
	out.HoldTime = seconds(path+".holdTime", p.HoldTime, defaultHoldTime, leastHoldTime, mostHoldTime, refuse)
	out.KeepaliveTime = seconds(path+".keepaliveTime", p.KeepaliveTime, (out.HoldTime / 3).Truncate(time.Second), time.Second, mostHoldTime, refuse)
	if out.KeepaliveTime >= out.HoldTime {
		refuse(path+".keepaliveTime", "%s is not shorter than the holdTime of %s, expected a third of it", out.KeepaliveTime, out.HoldTime)
	}
	out.ConnectRetryTime = seconds(path+".connectRetryTime", p.ConnectRetryTime, defaultConnectRetryTime, time.Second, mostHoldTime, refuse)
	restart := seconds(path+".gracefulRestart.restartTime", p.GracefulRestart.RestartTime, defaultRestartTime, time.Second, mostRestartTime, refuse)
	switch enabled := p.GracefulRestart.Enabled; {
	case enabled == nil || *enabled:
		out.RestartTime = restart
	case p.GracefulRestart.RestartTime != "":
		refuse(path+".gracefulRestart.restartTime", "has no meaning with enabled: false, expected one of them")
	}
}

func (a BGPAnnouncement) check(path string, c *bgp.Config, refuse refuse) (out bgp.Announcement) {
	words := make([]string, len(bgp.Kinds))
	for i, k := range bgp.Kinds {
		words[i] = k.String()
	}
	if len(a.Addresses) == 0 {
		refuse(path+".addresses", "are none, expected some of %s", strings.Join(words, ", "))
	}
	for i, word := range a.Addresses {
		at := fmt.Sprintf("%s.addresses[%d]", path, i)
		k := slices.Index(words, word)
		switch {
		case k < 0:
			refuse(at, "%q is unknown, expected one of %s", word, strings.Join(words, ", "))
			continue
		case slices.Contains(out.Kinds, bgp.Kinds[k]) || slices.ContainsFunc(c.Announce, func(o bgp.Announcement) bool { return slices.Contains(o.Kinds, bgp.Kinds[k]) }):
			refuse(at, "%s is there twice, expected each once", word)
		}
		out.Kinds = append(out.Kinds, bgp.Kinds[k])
	}
	for i, text := range a.Communities {
		if err := out.Attributes.AddCommunity(text); err != nil {
			refuse(fmt.Sprintf("%s.communities[%d]", path, i), "%v", err)
		}
	}
	out.Attributes.LocalPref = uint32(number(path+".localPref", a.LocalPref, bgp.DefaultLocalPref, 0, math.MaxUint32, refuse))
	out.Attributes.MED = uint32(number(path+".med", &a.MED, 0, 0, math.MaxUint32, refuse))
	out.Attributes.Prepend = uint8(number(path+".asPathPrepend", &a.ASPathPrepend, 0, 0, mostPrepend, refuse))
	if i := slices.IndexFunc(c.Peers, func(p bgp.PeerConfig) bool { return p.ASN == c.ASN }); i >= 0 && a.ASPathPrepend > 0 {
		refuse(path+".asPathPrepend", "can't be told to the iBGP peer bgp.peers[%d], which refuses a path with its own ASN; expected localPref, or peers of other ASNs alone", i)
	} else if c.Mesh != nil && a.ASPathPrepend > 0 {
		refuse(path+".asPathPrepend", "can't be told to other nodes (bgp.mesh), which refuse a path with their own ASN; expected localPref, or no mesh")
	}
	return out
}

// asn reads the number of an autonomous system.
func asn(path string, given int, refuse refuse) uint32 {
	switch {
	case given == 0:
		refuse(path, "is not given, expected the number of an autonomous system, for example 64512")
	case given < 0 || given >= math.MaxUint32 || given == 23456: // RFC 7607, 7300, 6793
		refuse(path, "%d is no autonomous system's, expected 1 to 4294967294 but for 23456", given)
	default:
		return uint32(given)
	}
	return 0
}

// address reads an address; the zero Addr when it is refused.
func address(path, text string, refuse refuse) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil {
		refuse(path, "%q is no address, expected for example 192.0.2.1 or 2001:db8::1", text)
	}
	return a.Unmap()
}

// peerAddress reads an address of an end of a session.
func peerAddress(path, text string, refuse refuse) netip.Addr {
	if text == "" {
		refuse(path, "is not given, expected an address such as 192.0.2.1 or 2001:db8::1")
		return netip.Addr{}
	}
	a := address(path, text, refuse)
	if a.IsValid() && (!a.IsGlobalUnicast() || a.Zone() != "") {
		refuse(path, "%s is no address to have a session with, expected a unicast address that is not link-local", text)
	}
	return a
}

// seconds reads a time in whole seconds.
func seconds(path string, given Duration, otherwise, least, most time.Duration, refuse refuse) time.Duration {
	d := duration(path, given, otherwise, refuse)
	if d < least || d > most || d%time.Second != 0 {
		refuse(path, "%s is out of range, expected whole seconds from %s to %s", d, least, most)
		return otherwise
	}
	return d
}

// upTo reads a time from nothing to the most.
func upTo(path string, given Duration, otherwise, most time.Duration, refuse refuse) time.Duration {
	d := duration(path, given, otherwise, refuse)
	if d > most {
		refuse(path, "%s is out of range, expected at most %s", d, most)
		return otherwise
	}
	return d
}
