package speaker

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
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
	if password == "" {
		return "", fmt.Errorf("the password in %s is empty", file)
	}
	return password, short("in "+file, password)
}

// short is nil for a password that the kernel takes.
func short(where, password string) error {
	if len(password) > longestPassword {
		return fmt.Errorf("the password %s has %d bytes, expected at most %d", where, len(password), longestPassword)
	}
	return nil
}

// passwordOf returns a peer's password; empty for a peer without one. read reads its file.
func passwordOf(p bgp.Peer, read func() (string, error)) (string, error) {
	switch {
	case p.PasswordFile != "":
		return read()
	case p.Password.Given && p.Password.Reveal() == "":
		return "", errors.New("the password is in an annotation of the Node, and is not saved; it is there when the API server answers")
	}
	return p.Password.Reveal(), short("in the annotation", p.Password.Reveal())
}

// unlock returns the peers that can be started, with their passwords, and keeps why others can't be. One that has been started
// keeps the password that it has while there is none to be read.
func (s *Speaker) unlock(peers []bgp.Peer) (able []bgp.Peer, passwords map[netip.Addr]string) {
	passwords = map[netip.Addr]string{}
	files := map[string]func() (string, error){} // which many peers may share
	clear(s.locked)
	clear(s.unread)
	for _, p := range peers {
		read := files[p.PasswordFile]
		if read == nil {
			read = sync.OnceValues(func() (string, error) { return readPassword(p.PasswordFile) })
			files[p.PasswordFile] = read
		}
		password, err := passwordOf(p, read)
		if r := s.records[p.Address]; err != nil && r != nil && r.password != "" {
			s.unread[p.Address] = err
			password, err = r.password, nil
		}
		if err != nil {
			s.locked[p.Address] = err
			continue
		}
		passwords[p.Address] = password
		able = append(able, p)
	}
	return able, passwords
}

// CheckListen is nil if peers could connect at a TCP port of this host now; 0 stands for none, where none need to.
func CheckListen(port uint16) error {
	_, err := listenAddresses(port)
	return err
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
