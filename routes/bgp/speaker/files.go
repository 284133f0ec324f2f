package speaker

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/fairway-net/fairway/routes/bgp"
)

// longestPassword is what the kernel takes for TCP-MD5, in bytes (TCP_MD5SIG_MAXKEYLEN).
const longestPassword = 80

// readPassword reads a password: the file's text without the end of the line.
func readPassword(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	password := strings.TrimRight(string(text), "\r\n")
	switch {
	case password == "":
		return "", fmt.Errorf("the password in %s is empty", file)
	case len(password) > longestPassword:
		return "", fmt.Errorf("the password in %s has %d bytes, expected at most %d", file, len(password), longestPassword)
	}
	return password, nil
}

// unlock returns the peers that can be started, with their passwords, and keeps why others can't be. One that has been started
// keeps the password that it has while there is none to be read.
func (s *Speaker) unlock(peers []bgp.Peer) (able []bgp.Peer, passwords map[netip.Addr]string) {
	passwords = map[netip.Addr]string{}
	clear(s.locked)
	clear(s.unread)
	for _, p := range peers {
		if p.PasswordFile != "" {
			password, err := readPassword(p.PasswordFile)
			r := s.records[p.Address]
			switch {
			case err == nil:
				passwords[p.Address] = password
			case r != nil && r.password != "":
				passwords[p.Address], s.unread[p.Address] = r.password, err
			default:
				s.locked[p.Address] = err
				continue
			}
		}
		able = append(able, p)
	}
	return able, passwords
}

// listenAddresses returns the unspecified addresses at which a port can be bound, each family where the host has it. gobgp
// leaves its sockets open when one of them can't be bound, so that is found out before.
func listenAddresses(port uint16) (addresses []string, err error) {
	if port == 0 {
		return nil, nil
	}
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		network := map[bool]string{true: "tcp4", false: "tcp6"}[a.Is4()]
		l, err := net.Listen(network, net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
		switch {
		case errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL):
			continue
		case err != nil:
			return nil, fmt.Errorf("listen for BGP peers: %w", err)
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("listen for BGP peers: %w", err)
		}
		addresses = append(addresses, a.String())
	}
	return addresses, nil
}
