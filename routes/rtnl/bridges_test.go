package rtnl

import (
	"context"
	"reflect"
	"testing"
)

// TestBridges: of all links, the bridges; not the ports of one.
func TestBridges(t *testing.T) {
	ns := newNamespace(t).network()
	c, _ := ns.open()
	ns.ip("link add cni0 type bridge")
	ns.ip("link set far0 master cni0")
	got, err := c.Bridges(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"cni0"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
