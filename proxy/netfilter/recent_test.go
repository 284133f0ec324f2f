package netfilter

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClientLists(t *testing.T) {
	dir := t.TempDir()
	l := ClientLists{dir: dir, limit: filepath.Join(dir, "ip_list_tot")}
	for name, clients := range map[string]int{"KUBE-SEP-EMPTY": 0, "KUBE-SEP-NEARLY": 99, "KUBE-SEP-FULL": 100} {
		line := "src=192.0.2.1 ttl: 64 last_seen: 4295000000 oldest_pkt: 1 4295000000\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Repeat(line, clients)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"KUBE-SEP-ABSENT", "KUBE-SEP-EMPTY", "KUBE-SEP-NEARLY", "KUBE-SEP-FULL"}
	for _, c := range []struct{ limit, want string }{{"", "[KUBE-SEP-FULL] 100"}, {"99\n", "[KUBE-SEP-NEARLY KUBE-SEP-FULL] 99"}, {"1000\n", "[] 1000"}} {
		if c.limit != "" {
			if err := os.WriteFile(l.limit, []byte(c.limit), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		full, limit, err := l.Full(names)
		if got := fmt.Sprint(full, limit); err != nil || got != c.want {
			t.Errorf("limit %q: %s, %v, expected %s", c.limit, got, err, c.want)
		}
	}
	if err := os.WriteFile(l.limit, []byte("many"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Full(names); err == nil || !strings.Contains(err.Error(), l.limit) {
		t.Errorf("a limit that is no number: %v", err)
	}
}
