package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// The defaults that are kube-proxy's (its config/v1alpha1 and kubelet/qos packages), but for what pace.go and parts.go say.
const (
	defaultSyncPeriod  = 30 * time.Second
	defaultOOMScoreAdj = -999
	defaultQPS         = 5
	defaultBurst       = 10
	healthzPort        = 10256
	metricsPort        = 10249
)

// The encodings that a Kubernetes API speaks.
const (
	contentProtobuf = "application/vnd.kubernetes.protobuf"
	contentJSON     = "application/json"
)

const (
	// primary stands for the addresses of the Node's status among nodePortAddresses.
	primary = "primary"
	// nowhere stands for no address of a server, and no socket.
	nowhere = "none"
)

func defaultTo[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// cidrs reads networks that are in use somewhere, which is why none can be everything.
func cidrs(path string, texts []string, refuse refuse) []netip.Prefix {
	list := networks(path, texts, refuse)
	for i, text := range texts {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil && p.Bits() == 0 {
			refuse(fmt.Sprintf("%s[%d]", path, i), "%q is every address there is, expected the network in use", text)
		}
	}
	return list
}

func networks(path string, texts []string, refuse refuse) (list []netip.Prefix) {
	for i, text := range texts {
		at := fmt.Sprintf("%s[%d]", path, i)
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		switch {
		case err != nil:
			refuse(at, "%q is no CIDR, expected for example 10.244.0.0/16", text)
		case p.Addr().Is4In6():
			refuse(at, "%q is an IPv4-mapped IPv6 network, write it as IPv4", text)
		case p != p.Masked():
			refuse(at, "%q has bits set behind its prefix, did you mean %s?", text, p.Masked())
		default:
			list = append(list, p)
		}
	}
	return list
}

// number reads a number within bounds.
func number(path string, given *int, otherwise, least, most int, refuse refuse) int {
	if given == nil {
		return otherwise
	}
	if *given < least || *given > most {
		refuse(path, "%d is out of range, expected %d to %d", *given, least, most)
		return otherwise
	}
	return *given
}

// count reads a number that may be anything but negative.
func count(path string, given *int, otherwise int, refuse refuse) int {
	if given == nil {
		return otherwise
	}
	if *given < 0 {
		refuse(path, "%d is negative, expected 0 or more", *given)
		return otherwise
	}
	return *given
}

// oneOf reads one of several words, the first of which is the default.
func oneOf(path, given string, refuse refuse, words ...string) string {
	if given == "" {
		return words[0]
	}
	if !slices.Contains(words, given) {
		refuse(path, "%q is unknown, expected %s or %s", given, strings.Join(words[:len(words)-1], ", "), words[len(words)-1])
	}
	return given
}

// duration reads a time that may be 0 but not negative.
func duration(path string, given Duration, otherwise time.Duration, refuse refuse) time.Duration {
	if given == "" {
		return otherwise
	}
	d, err := time.ParseDuration(string(given))
	switch {
	case err != nil:
		refuse(path, "%q is no duration, expected for example 30s or 1h30m", given)
		return otherwise
	case d < 0:
		refuse(path, "%q is negative, expected 0s or more", given)
		return otherwise
	}
	return d
}

func (a *AgentConfiguration) periods(c *Config, refuse refuse) {
	c.SyncPeriod = duration("syncPeriod", a.SyncPeriod, defaultSyncPeriod, refuse)
	if c.SyncPeriod == 0 {
		refuse("syncPeriod", "%q is no period, expected more than 0s", a.SyncPeriod)
	}
	c.MinSyncPeriod = duration("minSyncPeriod", a.MinSyncPeriod, min(rulesInterval, c.SyncPeriod), refuse)
	if c.MinSyncPeriod > c.SyncPeriod {
		refuse("minSyncPeriod", "%q is longer than the syncPeriod of %s, expected at most that", a.MinSyncPeriod, c.SyncPeriod)
	}
}

func (s ConntrackConfiguration) check(refuse refuse) netfilter.ConntrackSettings {
	def := netfilter.DefaultConntrackSettings
	return netfilter.ConntrackSettings{
		MaxPerCore:            count("conntrack.maxPerCore", s.MaxPerCore, def.MaxPerCore, refuse),
		Min:                   count("conntrack.min", s.Min, def.Min, refuse),
		TCPEstablishedTimeout: duration("conntrack.tcpEstablishedTimeout", s.TCPEstablishedTimeout, def.TCPEstablishedTimeout, refuse),
		TCPCloseWaitTimeout:   duration("conntrack.tcpCloseWaitTimeout", s.TCPCloseWaitTimeout, def.TCPCloseWaitTimeout, refuse),
		TCPBeLiberal:          s.TCPBeLiberal,
		UDPTimeout:            duration("conntrack.udpTimeout", s.UDPTimeout, 0, refuse),
		UDPStreamTimeout:      duration("conntrack.udpStreamTimeout", s.UDPStreamTimeout, 0, refuse),
	}
}

func (c ClientConnection) check(refuse refuse) ClientConnection {
	c.QPS = defaultTo(c.QPS, defaultQPS)
	if c.Burst < 0 {
		refuse("clientConnection.burst", "%d is negative, expected 1 or more, or 0 for %d", c.Burst, defaultBurst)
	}
	c.Burst = defaultTo(c.Burst, defaultBurst)
	c.ContentType = oneOf("clientConnection.contentType", c.ContentType, refuse, contentProtobuf, contentJSON)
	if c.AcceptContentTypes == "" {
		c.AcceptContentTypes = contentProtobuf + "," + contentJSON
		if c.ContentType == contentJSON {
			c.AcceptContentTypes = contentJSON
		}
	}
	for word := range strings.SplitSeq(c.AcceptContentTypes, ",") {
		word, _, _ = strings.Cut(word, ";") // a parameter such as q=0.9
		oneOf("clientConnection.acceptContentTypes", strings.TrimSpace(word), refuse, contentProtobuf, contentJSON)
	}
	return c
}

// nodePorts says at which addresses node ports are served.
func (a *AgentConfiguration) nodePorts(refuse refuse) *proxy.NodePortPolicy {
	p := &proxy.NodePortPolicy{Localhost: a.LocalhostNodePorts == nil || *a.LocalhostNodePorts}
	switch {
	case !slices.Contains(a.NodePortAddresses, primary):
		p.CIDRs = networks("nodePortAddresses", a.NodePortAddresses, refuse)
	case len(a.NodePortAddresses) > 1:
		refuse("nodePortAddresses", "%q are both %s and something else; expected [%s] alone, or networks", a.NodePortAddresses, primary, primary)
	default:
		p.Primary = true
	}
	return p
}

// bindAddress returns the bindAddress; the zero Addr when there is none.
func (a *AgentConfiguration) bindAddress() netip.Addr {
	addr, _ := netip.ParseAddr(a.BindAddress)
	return addr.Unmap()
}

// nodeIPs returns what replaces the addresses of the Node's status. The unspecified address replaces nothing.
func (a *AgentConfiguration) nodeIPs(refuse refuse) (ips [2]netip.Addr) {
	addr := a.bindAddress()
	switch {
	case a.BindAddress == "":
	case !addr.IsValid() || addr.Zone() != "":
		refuse("bindAddress", "%q is no address, expected for example 192.0.2.10 or 2001:db8::10", a.BindAddress)
	case !addr.IsUnspecified():
		ips[slices.Index(cluster.Families[:], cluster.FamilyOf(addr))] = addr
	}
	return ips
}

// servers says where the agent is asked for its health and metrics. The defaults are of the bindAddress's family.
func (a *AgentConfiguration) servers(c *Config, refuse refuse) {
	everywhere, here := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if a.bindAddress().Is6() {
		everywhere, here = netip.IPv6Unspecified(), netip.IPv6Loopback()
	}
	c.HealthzBindAddress = serverAddress("healthzBindAddress", a.HealthzBindAddress, netip.AddrPortFrom(everywhere, healthzPort), refuse)
	if c.ControlSocket = defaultTo(a.ControlSocket, DefaultControlSocket); c.ControlSocket == nowhere {
		c.ControlSocket = ""
	}
	c.MetricsBindAddress = serverAddress("metricsBindAddress", a.MetricsBindAddress, netip.AddrPortFrom(here, metricsPort), refuse)
}

// serverAddress reads an address, with the port that a default has or one of its own.
func serverAddress(path, given string, otherwise netip.AddrPort, refuse refuse) string {
	switch given {
	case "":
		return otherwise.String()
	case nowhere:
		return ""
	}
	if addr, err := netip.ParseAddr(given); err == nil {
		return netip.AddrPortFrom(addr, otherwise.Port()).String()
	}
	if _, err := netip.ParseAddrPort(given); err != nil {
		refuse(path, "%q is no address and port, expected for example 127.0.0.1:10249 or [::]:10256, or %s", given, nowhere)
	}
	return given
}
