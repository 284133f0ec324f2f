package netfilter

import (
	"fmt"
	"os"
	"strings"
)

// routeLocalnet is documented in the kernel's Documentation/networking/ip-sysctl.rst. "all" opens every interface.
const routeLocalnet = "/proc/sys/net/ipv4/conf/all/route_localnet"

// EnableRouteLocalnet lets packets with addresses of 127.0.0.0/8 pass between this host and others
// (net.ipv4.conf.all.route_localnet), without which a translated connection from 127.0.0.1 has no way out. It writes only
// when need be. That opens the host's loopback services to its neighbours (CVE-2020-8558), unless the rules are there that
// iptables.Ruleset.Guarded speaks of: call it after them.
func EnableRouteLocalnet() error { return enableFile(routeLocalnet) }

func enableFile(file string) error {
	value, err := os.ReadFile(file)
	if err == nil && strings.TrimSpace(string(value)) == "1" {
		return nil
	}
	if err == nil {
		err = os.WriteFile(file, []byte("1"), 0o644)
	}
	if err != nil {
		return fmt.Errorf("set %s to 1: %w", file, err)
	}
	return nil
}
