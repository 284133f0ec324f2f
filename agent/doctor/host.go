package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// networkdFix is what makes systemd-networkd leave routes alone. It reads networkd.conf when it starts. It takes its own addresses from a link
// without a carrier all the same, and routes with them; against that is IgnoreCarrierLoss= of systemd.network(5).
const networkdFix = `mkdir -p /etc/systemd/networkd.conf.d
printf '[Network]\nManageForeignRoutes=no\n' >/etc/systemd/networkd.conf.d/50-fairway.conf
systemctl restart systemd-networkd
and IgnoreCarrierLoss=yes in the [Network] section of the link's .network file, so that it keeps its addresses over a lost carrier`

// checkRouteOwner judges whether systemd-networkd takes the agent's routes for its own to remove (networkd.conf(5)).
func checkRouteOwner(f *Facts) []Finding {
	const name = "route-owner"
	taken, last := f.routesTaken()
	n := f.Networkd
	switch {
	case !n.Seen && taken > 0:
		return []Finding{{Warn, name, fmt.Sprintf("routes of the agent's were taken away, or lost with a link's addresses, %s, last %s; whether systemd-networkd did it can't be seen from here: %s", times(taken), ago(f.Now, last), n.Unseen), FromFile,
			"on the host: systemd-analyze cat-config systemd/networkd.conf; ManageForeignRoutes should be no where systemd-networkd runs"}}
	case !n.Seen:
		return []Finding{{OK, name, "no route of the agent's was taken away; whether systemd-networkd would can't be seen from here: " + n.Unseen, FromFile, ""}}
	case !n.Runs:
		return []Finding{{OK, name, "systemd-networkd does not run", FromFile, ""}}
	}
	setting := "ManageForeignRoutes=no (" + n.File + ")"
	switch {
	case n.ManageForeignRoutes && n.File == "":
		setting = "ManageForeignRoutes=yes (its default)"
	case n.ManageForeignRoutes:
		setting = "ManageForeignRoutes=yes (" + n.File + ")"
	}
	switch {
	case !n.ManageForeignRoutes && n.Newer:
		return []Finding{{Warn, name, "systemd-networkd has " + setting + ", which it has not read: it started before", FromFile, "systemctl restart systemd-networkd"}}
	case !n.ManageForeignRoutes:
		return []Finding{{OK, name, "systemd-networkd has " + setting, FromFile, ""}}
	case taken > 0 && f.Now.Sub(last) <= day:
		return []Finding{{Fail, name, fmt.Sprintf("systemd-networkd has %s, and routes of the agent's were taken away, or lost with a link's addresses, %s, last %s", setting, times(taken), ago(f.Now, last)), FromFile, networkdFix}}
	}
	return []Finding{{Warn, name, "systemd-networkd has " + setting + ": it removes routes that it has not made from a link that it sets up", FromFile, networkdFix}}
}

// routesTaken tells how often routes were taken away since the agent's start, and when last.
func (f *Facts) routesTaken() (occasions int, last time.Time) {
	if f.Agent == nil {
		return 0, last
	}
	for _, r := range f.Agent.Repairs {
		if r.ofRoutes() {
			occasions += r.Occasions
			for _, t := range r.Times {
				if t.After(last) {
					last = t
				}
			}
		}
	}
	return occasions, last
}

// The sysctls that are judged, by their names below /proc/sys.
const (
	SysctlIPForward    = "net/ipv4/ip_forward"
	SysctlForwarding6  = "net/ipv6/conf/all/forwarding"
	SysctlBridgeNF     = "net/bridge/bridge-nf-call-iptables"
	SysctlBridgeNF6    = "net/bridge/bridge-nf-call-ip6tables"
	SysctlTCPBeLiberal = "net/netfilter/nf_conntrack_tcp_be_liberal"
)

// checkSysctls judges the kernel's settings that pods and Services need.
func checkSysctls(f *Facts) []Finding {
	const name = "sysctls"
	var list []Finding
	set := func(file, value string) string {
		dotted := strings.ReplaceAll(file, "/", ".")
		return fmt.Sprintf("sysctl -w %s=%s, and the line %s=%s in a file below /etc/sysctl.d, or it is lost with the next boot", dotted, value, dotted, value)
	}
	ipv4, ipv6 := f.podFamilies()
	for _, s := range []struct {
		file, family string
		needed       bool
	}{{SysctlIPForward, "IPv4", ipv4}, {SysctlForwarding6, "IPv6", ipv6}} {
		if v, ok := f.Kernel.Sysctls[s.file]; ok && v == "0" && s.needed {
			list = append(list, Finding{Fail, name, "/proc/sys/" + s.file + " is 0: the node forwards no " + s.family + ", so no pod reaches another node", FromKernel, set(s.file, "1")})
		}
	}
	for _, s := range []struct {
		file   string
		needed bool
	}{{SysctlBridgeNF, ipv4}, {SysctlBridgeNF6, ipv6}} {
		v, ok := f.Kernel.Sysctls[s.file]
		if len(f.Kernel.Bridges) == 0 || !s.needed || ok && v != "0" {
			continue
		}
		is := "is 0"
		do := set(s.file, "1")
		if !ok {
			is, do = "is not there", "modprobe br_netfilter, and the line br_netfilter in a file below /etc/modules-load.d"
		}
		list = append(list, Finding{Fail, name, fmt.Sprintf("/proc/sys/%s %s, and pods hang on the bridge %s: a pod does not reach a Service whose endpoint is on the same node", s.file, is, strings.Join(f.Kernel.Bridges, ", ")), FromKernel, do})
	}
	if n := f.Kernel.ReversePathDrops; n > 0 && len(f.Kernel.Strict) > 0 {
		list = append(list, Finding{Warn, name, fmt.Sprintf("the reverse path filter has dropped %s since boot, and is strict (rp_filter 1) on %s: what comes in by another link than its answer would leave by is lost", packets(n), few(f.Kernel.Strict)), FromKernel,
			"where packets may come by several links, 2 (loose) in net.ipv4.conf.LINK.rp_filter; the larger of it and that of \"all\" counts"})
	}
	if list == nil {
		list = []Finding{{OK, name, "forwarding is on, and nothing else stands in the way of pods", FromKernel, ""}}
	}
	return list
}

// podFamilies tells which families the pods of this node have; IPv4 while it is not known, as the agent assumes.
func (f *Facts) podFamilies() (ipv4, ipv6 bool) {
	if f.Agent == nil || len(f.Agent.PodCIDRs) == 0 {
		return true, false
	}
	for _, p := range f.Agent.PodCIDRs {
		if p.Addr().Is4() {
			ipv4 = true
		} else {
			ipv6 = true
		}
	}
	return ipv4, ipv6
}

// How full conntrack's table may be, in percent.
const (
	conntrackWarn = 80
	conntrackFail = 95
)

// checkConntrack judges how full the table of connections is, what was lost for it, and what becomes of packets that it calls INVALID.
func checkConntrack(f *Facts) []Finding {
	const name = "conntrack"
	c := f.Kernel.Conntrack
	if c.Max == 0 {
		return []Finding{{Unknown, name, "/proc/sys/net/netfilter/nf_conntrack_max could not be read", FromKernel, "modprobe nf_conntrack; without it no Service works"}}
	}
	percent := c.Count * 100 / c.Max
	saw := fmt.Sprintf("%d of %d entries (%d %%)", c.Count, c.Max, percent)
	for _, n := range []struct {
		what  string
		count uint64
	}{{"insert_failed", c.InsertFailed}, {"drop", c.Drop}, {"early_drop", c.EarlyDrop}} {
		if n.count > 0 {
			saw += fmt.Sprintf(", %s %d since boot", n.what, n.count)
		}
	}
	level, do := OK, ""
	switch {
	case percent >= conntrackFail:
		level = Fail
	case percent >= conntrackWarn:
		level = Warn
	case c.Drop+c.EarlyDrop > 0:
		level = Warn
	}
	if level != OK {
		do = "raise conntrack.maxPerCore or conntrack.min in the agent's configuration (or net.netfilter.nf_conntrack_max), and see who has so many: conntrack -L | grep -o 'src=[^ ]*' | sort | uniq -c | sort -rn | head"
	}
	return []Finding{{level, name, saw + f.invalid(), FromKernel, do}}
}

// invalid says what becomes of packets that conntrack calls INVALID.
func (f *Facts) invalid() string {
	switch {
	case f.Kernel.Sysctls[SysctlTCPBeLiberal] == "1" && f.Agent != nil && f.Agent.DropsInvalid:
		return "; TCP segments out of window are valid (tcp_be_liberal 1), though the agent's rules still drop INVALID ones, until it is restarted"
	case f.Kernel.Sysctls[SysctlTCPBeLiberal] == "1":
		return "; TCP segments out of window are valid (tcp_be_liberal 1), nothing is dropped for that"
	case f.Agent != nil && f.Agent.DropsInvalid:
		return "; forwarded packets that are INVALID are dropped (tcp_be_liberal 0)"
	}
	return ""
}

// mostDown is how many sessions that are down are told one by one: a route reflector has one with every node.
const mostDown = 3

// checkBGP judges the sessions with routers and nodes.
func checkBGP(f *Facts) []Finding {
	const name = "bgp"
	if f.Agent == nil {
		return nil
	}
	b := f.Agent.BGP
	switch {
	case !b.Configured:
		return []Finding{{OK, name, "not configured", FromAgent, ""}}
	case b.Waiting != "":
		return []Finding{{Warn, name, b.Waiting, FromAgent, "wait; when it stays, see the finding agent and notes/BGPHeldBack"}}
	}
	var list []Finding
	up := 0
	for _, p := range b.Peers {
		if p.Up {
			up++
		}
	}
	level := Warn
	if up == 0 {
		level = Fail
	}
	var forgets []string
	down := len(b.Peers) - up
	for _, p := range b.Peers {
		switch {
		case !p.Up && len(list) == mostDown:
			list = append(list, Finding{level, name, fmt.Sprintf("%d further sessions are down", down-mostDown), FromAgent, "fairway bgp lists them all"})
		case !p.Up && len(list) > mostDown:
		case !p.Up:
			saw := fmt.Sprintf("%d of %d sessions are up; that with %s is %s, since %s", up, len(b.Peers), p.Address, p.State, span(f.Now, p.Since))
			if p.LastError != "" {
				saw += ": " + p.LastError
			}
			list = append(list, Finding{level, name, saw, FromAgent, "on the router: is there a neighbour with this node's address, with the AS number and the password of both sides (fairway bgp, fairway render -o bgp show this side's)? and does TCP port 179 get through?"})
		case p.AskedToKeep && !p.Keeps:
			forgets = append(forgets, p.Address.String())
		}
	}
	if len(forgets) > 0 {
		slices.Sort(forgets)
		list = append(list, Finding{Warn, name, "will not keep this node's routes while the agent is restarted: " + few(forgets), FromAgent, "turn on graceful restart (as a helper) for this neighbour on the router"})
	}
	if list == nil {
		list = []Finding{{OK, name, fmt.Sprintf("%d of %d sessions are up", up, len(b.Peers)), FromAgent, ""}}
	}
	return list
}
