package netfilter

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ClientLists are the lists in which the kernel's xt_recent remembers clients, of this network namespace. Each list keeps as
// many as the module was loaded to keep (its parameter ip_list_tot, 100 by default, which can't be changed later), and forgets
// the one that was quiet for longest for each one more.
type ClientLists struct {
	dir, limit string
}

// OpenClientLists returns the lists that the kernel shows.
func OpenClientLists() ClientLists {
	return ClientLists{dir: "/proc/net/xt_recent", limit: "/sys/module/xt_recent/parameters/ip_list_tot"}
}

// defaultClients is ip_list_tot where the module does not show it (net/netfilter/xt_recent.c).
const defaultClients = 100

// Full returns those of the named lists that have no room for another client, and how many a list keeps. A list that does not
// exist is not full.
func (l ClientLists) Full(names []string) (full []string, limit int, err error) {
	if limit, err = l.most(); err != nil {
		return nil, 0, err
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(l.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("read the clients of an endpoint: %w", err)
		}
		if bytes.Count(text, []byte{'\n'}) >= limit { // a line for each
			full = append(full, name)
		}
	}
	return full, limit, nil
}

func (l ClientLists) most() (int, error) {
	text, err := os.ReadFile(l.limit)
	if errors.Is(err, fs.ErrNotExist) {
		return defaultClients, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read how many clients of an endpoint are remembered: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", l.limit, err)
	}
	return n, nil
}
