package agent

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/proxy/netfilter"
)

// TestAskAgent: only an agent that is ready, and says in which iptables its rules are, lets others' rules be removed.
func TestAskAgent(t *testing.T) {
	for _, c := range []struct {
		name, body string
		code       int
		want       string // in the error
	}{
		{"ready", `{"ready":true,"iptables":"nft","revision":3,"parts":{"rules-IPv4":{"programmed":3}}}`, 200, ""},
		{"behind", `{"iptables":"nft","revision":3,"parts":{"rules-IPv4":{"programmed":2}}}`, 503, "not ready yet: rules-IPv4 has revision 2 of 3"},
		{"failing", `{"iptables":"nft","revision":3,"parts":{"routes":{"programmed":2,"error":"no permission"}}}`, 503, "not ready yet: routes: no permission"},
		{"blind", `{"iptables":"nft"}`, 503, "it has not seen the cluster"},
		{"kube-proxy", `404 page not found`, 404, "the answer (404 Not Found) is not fairway's"},
		{"another's JSON", `{"ready":true}`, 200, "the answer (200 OK) is not fairway's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(c.code)
				_, _ = io.WriteString(w, c.body)
			}))
			defer s.Close()
			r, err := askAgent(context.Background(), strings.TrimPrefix(s.URL, "http://"))
			switch {
			case c.want == "" && (err != nil || r.IPTables != netfilter.NFT):
				t.Errorf("%+v, %v", r, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "nothing was removed")):
				t.Errorf("error %v, expected %q", err, c.want)
			}
		})
	}
	if _, err := askAgent(context.Background(), ""); err == nil {
		t.Error("an agent that serves no health is taken for ready")
	}
}

func TestReachable(t *testing.T) {
	for listen, want := range map[string]string{"0.0.0.0:10256": "127.0.0.1:10256", ":10256": "127.0.0.1:10256", "[::]:10256": "[::1]:10256", "192.0.2.1:1": "192.0.2.1:1"} {
		if got := reachable(listen); got != want {
			t.Errorf("%s is reached at %s, expected %s", listen, got, want)
		}
	}
}
