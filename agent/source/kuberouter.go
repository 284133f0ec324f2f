package source

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/agent/cluster"
)

// kubeRouterPrefix is that of kube-router's annotations (its docs/bgp.md and docs/user-guide.md, v2.11).
const kubeRouterPrefix = "kube-router.io/"

// An annotations is the map of an object, and what is remarked about those of kube-router.
type annotations struct {
	remarks
	of map[string]string
}

// kubeRouter returns nil when an object has no annotation of kube-router.
func kubeRouter(about cluster.Ref, of map[string]string) *annotations {
	for key := range of {
		if strings.HasPrefix(key, kubeRouterPrefix) {
			return &annotations{remarks: remarks{about: about}, of: of}
		}
	}
	return nil
}

// get returns an annotation by its name without the prefix.
func (a *annotations) get(name string) (value string, given bool) {
	value, given = a.of[kubeRouterPrefix+name]
	return value, given
}

// wrong remarks that an annotation is not taken over. What it says must not have a password.
func (a *annotations) wrong(name, format string, args ...any) {
	a.invalid("annotation "+kubeRouterPrefix+name+" "+format, args...)
}

// list returns the items of an annotation with commas between them, without spaces around.
func (a *annotations) list(name string) (items []string, given bool) {
	value, given := a.get(name)
	if !given {
		return nil, false
	}
	for item := range strings.SplitSeq(value, ",") {
		items = append(items, strings.TrimSpace(item))
	}
	return items, true
}

// number reads a number as kube-router does, so that 0x10 is 16; least is 0 or 1.
func (a *annotations) number(name, text string, least, most uint64) (uint64, bool) {
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil || n < least || n > most {
		a.wrong(name, "has %s, which is not a number from %d to %d", quoted(text), least, most)
		return 0, false
	}
	return n, true
}

// asn reads the number of an autonomous system.
func (a *annotations) asn(name, text string) (uint32, bool) {
	n, ok := a.number(name, text, 1, math.MaxUint32-1)
	return uint32(n), ok
}

// addr reads an address of an end of a session.
func (a *annotations) addr(name, text string) (netip.Addr, bool) {
	ip, ok := parseAddr(text)
	if !ok || special(ip) != "" {
		a.wrong(name, "has %s, which is not the address of a router or a node, such as 192.0.2.1 or 2001:db8::1", quoted(text))
		return netip.Addr{}, false
	}
	return ip, true
}

// prefixes reads networks, and passes over what is none.
func (a *annotations) prefixes(name string) (list []netip.Prefix) {
	items, _ := a.list(name)
	for _, item := range items {
		p, ok := parsePrefix(item)
		if !ok {
			a.wrong(name, "has %s, which is not a CIDR such as 192.0.2.0/24 or 2001:db8::/64", quoted(item))
			continue
		}
		list = append(list, p)
	}
	return list
}

// absent remarks on an annotation for which there is nothing here.
func (a *annotations) absent(name, why string) {
	if _, given := a.get(name); given {
		a.add(cluster.ReasonNotSupported, "annotation %s%s does not count: %s", kubeRouterPrefix, name, why)
	}
}

// kubeRouterNode reads the annotations of a Node; nil when there are none.
func kubeRouterNode(about cluster.Ref, of map[string]string) *cluster.KubeRouterNode {
	a := kubeRouter(about, of)
	if a == nil {
		return nil
	}
	n := &cluster.KubeRouterNode{Peers: a.peers(), ImportReject: a.prefixes("node.bgp.customimportreject")}
	if text, given := a.get("node.asn"); given {
		n.ASN, _ = a.asn("node.asn", text)
	}
	for _, name := range []string{"pod-cidr", "pod-cidrs"} { // the first that has a network
		if value, _ := a.get(name); value != "" && len(n.PodCIDRs) == 0 {
			n.PodCIDRs = a.prefixes(name)
		}
	}
	n.Communities = a.communities()
	n.PrependASN, n.Prepend = a.prepend()
	n.ReflectorClusterID = a.clusterID("rr.server")
	n.ReflectorClient = a.clusterID("rr.client").IsValid()
	a.absent("bgp-local-addresses", "right would be bgp.listenPort in the agent's configuration, at which the agent listens on every address")
	n.Notes = a.all()
	return n
}

// clusterID reads a cluster ID, which is a number or an IPv4 address; the zero Addr without.
func (a *annotations) clusterID(name string) netip.Addr {
	text, given := a.get(name)
	if !given {
		return netip.Addr{}
	}
	if ip, ok := parseAddr(text); ok && ip.Is4() && !ip.IsUnspecified() {
		return ip
	}
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil || n == 0 {
		a.wrong(name, "has %s, which is not a cluster ID: a number from 1 to 4294967295, or an IPv4 address", quoted(text))
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// communities reads the communities that are added to what is announced.
func (a *annotations) communities() (list []uint32) {
	items, _ := a.list("node.bgp.communities")
	for _, item := range items {
		c, ok := community(item)
		if !ok {
			a.wrong("node.bgp.communities", "has %s, which is not a community such as 64512:100, 4294967041 or no-export", quoted(item))
			continue
		}
		list = append(list, c)
	}
	return list
}

// prepend reads what stands before the path; kube-router takes none of the two without the other.
func (a *annotations) prepend() (uint32, uint8) {
	const as, repeat = "path-prepend.as", "path-prepend.repeat-n"
	asText, hasAS := a.get(as)
	repeatText, hasRepeat := a.get(repeat)
	switch {
	case !hasAS && !hasRepeat:
		return 0, 0
	case !hasAS || !hasRepeat:
		a.invalid("annotations %s%s and %[1]s%s have no meaning without each other; nothing is prepended", kubeRouterPrefix, as, repeat)
		return 0, 0
	}
	asn, okAS := a.asn(as, asText)
	n, okRepeat := a.number(repeat, repeatText, 1, math.MaxUint8)
	if !okAS || !okRepeat {
		return 0, 0
	}
	return asn, uint8(n)
}

// kubeRouterCommunities are the well-known names that kube-router takes: gobgp's.
var kubeRouterCommunities = map[string]uint32{
	"internet":                   0,
	"planned-shut":               0xffff0000, // RFC 8326, graceful-shutdown elsewhere
	"accept-own":                 0xffff0001,
	"route-filter-translated-v4": 0xffff0002,
	"route-filter-v4":            0xffff0003,
	"route-filter-translated-v6": 0xffff0004,
	"route-filter-v6":            0xffff0005,
	"llgr-stale":                 0xffff0006,
	"no-llgr":                    0xffff0007,
	"blackhole":                  0xffff029a,
	"no-export":                  0xffffff01,
	"no-advertise":               0xffffff02,
	"no-export-subconfed":        0xffffff03,
	"no-peer":                    0xffffff04,
}

// community reads a community: a number, two with a colon between, or a name.
func community(text string) (uint32, bool) {
	if c, ok := kubeRouterCommunities[text]; ok {
		return c, true
	}
	if c, err := strconv.ParseUint(text, 10, 32); err == nil {
		return uint32(c), true
	}
	left, right, _ := strings.Cut(text, ":")
	high, errHigh := strconv.ParseUint(left, 10, 16)
	low, errLow := strconv.ParseUint(right, 10, 16)
	return uint32(high<<16 | low), errors.Join(errHigh, errLow) == nil
}

// A rawPeer is an entry of the annotation peers.
type rawPeer struct {
	RemoteIP  string          `json:"remoteip"`
	RemoteASN json.RawMessage `json:"remoteasn"`
	LocalIP   string          `json:"localip"`
	Password  json.RawMessage `json:"password"`
	Port      json.RawMessage `json:"port"`
	BFD       struct {
		Enabled bool `json:"enabled"`
	} `json:"bfd"`
}

// scalar is the text of a value that may stand in quotes or not; base64 may be a number in YAML.
func scalar(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	return string(raw)
}

// peers reads the peers, of the annotation that has all of it in YAML, or else of the ones that have a list each.
func (a *annotations) peers() []cluster.KubeRouterPeer {
	text, given := a.get("peers")
	if !given {
		return a.peerLists()
	}
	var raw []rawPeer
	if err := yaml.Unmarshal([]byte(text), &raw); err != nil {
		// The library's message may quote the text, and with it a password.
		a.wrong("peers", "is not a list in YAML of which each entry has remoteip, remoteasn and perhaps localip, port and password; there are no peers by it")
		return nil
	}
	var peers []cluster.KubeRouterPeer
	for i, r := range raw {
		entry := "peers"
		address, okAddress := a.addr(entry, r.RemoteIP)
		asn, okASN := a.asn(entry, scalar(r.RemoteASN))
		if r.BFD.Enabled {
			a.add(cluster.ReasonNotSupported, "annotation %speers asks for BFD with %s, which is not there; right would be a holdTime of a few seconds for this peer in the agent's configuration", kubeRouterPrefix, quoted(r.RemoteIP))
		}
		p := cluster.KubeRouterPeer{Address: address, ASN: asn}
		ok := okAddress && okASN && a.complete(entry, i, &p, r.LocalIP, scalar(r.Port), scalar(r.Password))
		if ok {
			peers = append(peers, p)
		}
	}
	return a.distinct(peers)
}

// complete adds what a peer may have. A peer without its password, or from another address, would be another peer: so a
// bad value leaves it out.
func (a *annotations) complete(name string, i int, p *cluster.KubeRouterPeer, local, port, password string) (ok bool) {
	ok = true
	if local != "" {
		p.LocalAddress, ok = a.addr(name, local)
		if ok && p.LocalAddress.Is4() != p.Address.Is4() {
			a.wrong(name, "has the local address %s for the peer %s, which it can't reach; an address of the same family is wanted", p.LocalAddress, p.Address)
			ok = false
		}
	}
	if port != "" {
		n, okPort := a.number(name, port, 1, math.MaxUint16)
		p.Port, ok = uint16(n), ok && okPort
	}
	if password != "" {
		text, err := base64.StdEncoding.DecodeString(password)
		if err != nil {
			a.wrong(name, "has a password (number %d) that is not in base64, so there is no session with %s", i+1, p.Address)
			return false
		}
		p.Password = cluster.NewSecret(string(text))
	}
	return ok
}

// peerLists reads the peers of annotations with a list each; kube-router calls them deprecated.
func (a *annotations) peerLists() (peers []cluster.KubeRouterPeer) {
	ips, hasIPs := a.list("peer.ips")
	asns, hasASNs := a.list("peer.asns")
	if !hasIPs && !hasASNs {
		return nil
	}
	if len(ips) != len(asns) {
		a.wrong("peer.ips", "has %d items and %speer.asns %d; as many are wanted, and there are no peers by them", len(ips), kubeRouterPrefix, len(asns))
		return nil
	}
	// Each of the others has no item, or as many.
	more := map[string][]string{}
	for _, name := range []string{"peer.localips", "peer.ports", "peer.passwords"} {
		items, given := a.list(name)
		switch {
		case !given:
			items = make([]string, len(ips))
		case len(items) != len(ips):
			a.wrong(name, "has %d items for %d peers; as many are wanted, empty where a peer has none, and there are no peers by them", len(items), len(ips))
			return nil
		}
		more[name] = items
	}
	for i := range ips {
		address, okAddress := a.addr("peer.ips", ips[i])
		asn, okASN := a.asn("peer.asns", asns[i])
		p := cluster.KubeRouterPeer{Address: address, ASN: asn}
		if okAddress && okASN && a.complete("peer.*", i, &p, more["peer.localips"][i], more["peer.ports"][i], more["peer.passwords"][i]) {
			peers = append(peers, p)
		}
	}
	return a.distinct(peers)
}

// distinct leaves out peers with the address of one before.
func (a *annotations) distinct(peers []cluster.KubeRouterPeer) (out []cluster.KubeRouterPeer) {
	for _, p := range peers {
		if slices.ContainsFunc(out, func(o cluster.KubeRouterPeer) bool { return o.Address == p.Address }) {
			a.invalid("annotations %speer… have %s twice; the first counts", kubeRouterPrefix, p.Address)
			continue
		}
		out = append(out, p)
	}
	return out
}

// kubeRouterService reads the annotations of a Service; nil when there are none.
func kubeRouterService(about cluster.Ref, of map[string]string) *cluster.KubeRouterService {
	a := kubeRouter(about, of)
	if a == nil {
		return nil
	}
	s := &cluster.KubeRouterService{
		ClusterIPs:      a.choice("service.advertise.clusterip"),
		ExternalIPs:     a.choice("service.advertise.externalip"),
		LoadBalancerIPs: a.choice("service.advertise.loadbalancerip"),
	}
	if _, skip := a.get("service.skiplbips"); skip { // whatever its value, and whatever the other one says
		s.LoadBalancerIPs = cluster.No
	}
	switch text, given := a.get("service.local"); {
	case text == "true":
		s.Local = true
	case given && text != "false":
		a.wrong("service.local", "is %s, which does not make the policy Local; it can be true or false", quoted(text))
	}
	a.absent("service.dsr", "answers go back through the node that the client asked")
	if text, _ := a.get("service.scheduler"); text != "rr" {
		a.absent("service.scheduler", "each connection gets an endpoint at random; sessionAffinity in the Service's spec keeps a client at one")
	}
	a.absent("service.schedflags", "they are of IPVS")
	s.Notes = a.all()
	return s
}

// choice reads a boolean as kube-router does: what is none means no.
func (a *annotations) choice(name string) cluster.Choice {
	text, given := a.get(name)
	if !given {
		return cluster.Unchosen
	}
	yes, err := strconv.ParseBool(text)
	switch {
	case err != nil:
		a.wrong(name, "is %s, which is neither true nor false; it is taken as false", quoted(text))
		return cluster.No
	case yes:
		return cluster.Yes
	}
	return cluster.No
}
