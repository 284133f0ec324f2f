package rtnl

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// EnsureForwarding makes the kernel forward packets of the given families between links: net.ipv4.ip_forward and
// net.ipv6.conf.all.forwarding are 1 afterwards, or the error names the file and what would be right. A value that is
// right already is not written, so a read-only /proc/sys is no error then. The values are those of the calling
// thread's network namespace.
//
// A host that forwards IPv6 ignores router advertisements on links whose accept_ra is 1, and Linux drops the default
// route that it had from them the moment that forwarding is turned on (ip-sysctl: accept_ra, forwarding). On a node
// whose way out is such a route that would cut the node off. So then IPv6 forwarding is not turned on, and the error
// names the link's accept_ra, which must be 2. It is not set here: whom to take routes from is the operator's decision,
// and never one for the links of pods.
func EnsureForwarding(families ...cluster.Family) error {
	return ensureForwarding("/proc", families)
}

func ensureForwarding(proc string, families []cluster.Family) error {
	var errs []error
	for _, f := range families {
		var err error
		switch f {
		case cluster.IPv4:
			err = ensureOne(filepath.Join(proc, "sys/net/ipv4/ip_forward"), func() error { return nil })
		case cluster.IPv6:
			err = ensureOne(filepath.Join(proc, "sys/net/ipv6/conf/all/forwarding"), func() error { return keepsUplink(proc) })
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("turn on %s forwarding: %w", f, err))
		}
	}
	return errors.Join(errs...)
}

// ensureOne makes the file contain 1, if harmless agrees.
func ensureOne(file string, harmless func() error) error {
	switch is, err := readValue(file); {
	case err != nil:
		return err
	case is == "1":
		return nil
	}
	if err := harmless(); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte("1\n"), 0); err != nil {
		return fmt.Errorf("%w; right would be a writable /proc/sys, or 1 in this file", err)
	}
	switch is, err := readValue(file); {
	case err != nil:
		return err
	case is != "1":
		return fmt.Errorf("%s is %s after 1 was written; something else sets it", file, is)
	}
	return nil
}

func readValue(file string) (string, error) {
	b, err := os.ReadFile(file)
	return string(bytes.TrimSpace(b)), err
}

// Flags of struct in6_rtmsg as /proc/net/ipv6_route shows them (linux/ipv6_route.h).
const (
	rtfDefault  = 0x00010000 // RTF_DEFAULT: learned by neighbour discovery
	rtfAddrconf = 0x00040000 // RTF_ADDRCONF
)

// keepsUplink returns an error when a default route of the node would be dropped by forwarding.
func keepsUplink(proc string) error {
	file := filepath.Join(proc, "thread-self/net/ipv6_route")
	b, err := os.ReadFile(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no IPv6, no route
		}
		return err
	}
	for line := range strings.Lines(string(b)) {
		link := advertisedDefault(line)
		if link == "" {
			continue
		}
		accept := filepath.Join(proc, "sys/net/ipv6/conf", link, "accept_ra")
		is, err := readValue(accept)
		if err != nil {
			return err
		}
		if is == "1" {
			return fmt.Errorf("the default route on %s is from a router advertisement and would be lost; "+
				"%s is 1, right would be 2", link, accept)
		}
	}
	return nil
}

// advertisedDefault returns the link of a default route that was learned from a router advertisement, for one line of
// ipv6_route; else "". The columns are destination, length, source, length, gateway, metric, references, use, flags
// and link (net/ipv6/route.c, rt6_proc).
func advertisedDefault(line string) string {
	columns := strings.Fields(line)
	if len(columns) != 10 || columns[1] != "00" {
		return ""
	}
	flags, err := strconv.ParseUint(columns[8], 16, 32)
	if err != nil || flags&rtfDefault == 0 || flags&rtfAddrconf == 0 {
		return ""
	}
	return columns[9]
}
