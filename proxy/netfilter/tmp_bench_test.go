package netfilter
import ("testing";"time";"context";"github.com/fairway-net/fairway/agent/cluster";"github.com/fairway-net/fairway/proxy";"github.com/fairway-net/fairway/proxy/iptables")
func TestTmpBench(t *testing.T) {
	onBackends(t, func(t *testing.T, b *Backend) {
		w := &world{family: cluster.IPv4}
		for i := range 10000 { s := w.service(i, 5); if i%2==0 { for j := range s.Ports { s.Ports[j].NodePort=0 } }; if s.Ports[0].NodePort>0 {s.Ports[0].NodePort=uint16(20000+i)}; w.services = append(w.services, s) }
		o := iptables.Options{MasqueradeBit:14, Large:true}
		d := desired(w.table(proxy.Config{ClusterCIDRs: podCIDRs}), o)
		rules := NewRules(b)
		rep := mustSync(t, rules, d)[0]
		t.Logf("first %+v", rep)
		s0 := time.Now(); x, err := rules.Verify(context.Background(), cluster.IPv4); t.Log("verify", time.Since(s0), x.Empty(), err)
		s0 = time.Now(); mustSync(t, rules, d); t.Log("noop", time.Since(s0))
		w.services[5000] = w.service(5000, 3); w.services[5000].Ports[0].NodePort=0
		d2 := desired(w.table(proxy.Config{ClusterCIDRs: podCIDRs}), o)
		rep = mustSync(t, rules, d2)[0]
		t.Logf("one %+v", rep)
		s0 = time.Now(); rep = mustSync(t, NewRules(b), d2)[0]; t.Log("adopt", time.Since(s0), rep.Written)
		s0 = time.Now(); c, err := Cleanup(context.Background(), Auto); t.Log("cleanup", time.Since(s0), c, err)
	})
}
