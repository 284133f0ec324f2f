package source

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1":                   "10.0.0.1",
		"10.0.0.041":                 "10.0.0.41",
		"010.000.00.0":               "10.0.0.0",
		"0010.0.0.1":                 "10.0.0.1",
		"2001:DB8::0001":             "2001:db8::1",
		"::ffff:10.0.0.1":            "10.0.0.1",
		"::ffff:010.0.0.01":          "10.0.0.1",
		"64:ff9b::192.0.2.033":       "64:ff9b::c000:221",
		"":                           "",
		"10.0.0":                     "",
		"10.0.0.256":                 "",
		"10.0.0.0256":                "",
		" 10.0.0.1":                  "",
		"10.0.0.1/32":                "",
		"10.0.0.0x1":                 "",
		"fe80::1%eth0":               "",
		"10.0.0.1 -j ACCEPT":         "",
		"10.0.0.1\n-A INPUT":         "",
		"1.2.3.4.5":                  "",
		"host.example":               "",
		"0...0":                      "",
		strings.Repeat("0", 9) + ".": "",
	} {
		got, ok := parseAddr(in)
		if ok != (want != "") || ok && got != netip.MustParseAddr(want) {
			t.Errorf("parseAddr(%q) = %v, %v; want %q", in, got, ok, want)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/8":           "10.0.0.0/8",
		"10.1.2.3/8":           "10.0.0.0/8",
		"010.1.0.0/016":        "10.1.0.0/16",
		"0.0.0.0/0":            "0.0.0.0/0",
		"2001:db8::1/64":       "2001:db8::/64",
		"::/0":                 "::/0",
		"10.0.0.0/33":          "",
		"10.0.0.0/+8":          "",
		"10.0.0.0/-1":          "",
		"10.0.0.0/":            "",
		"10.0.0.0":             "",
		"::/129":               "",
		"::ffff:10.0.0.0/104":  "",
		"::ffff:10.0.0.0/8":    "",
		"fe80::1%eth0/64":      "",
		"10.0.0.0/8/8":         "",
		"10.0.0.0/255.0.0.0":   "",
		"10.0.0.0/99999999999": "",
	} {
		got, ok := parsePrefix(in)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("parsePrefix(%q) = %v, %v; want %q", in, got, ok, want)
		}
	}
}

func TestSpecial(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1":        "",
		"100.64.0.1":      "",
		"240.0.0.1":       "", // clouds number pods from class E
		"fd00::1":         "",
		"127.1.2.3":       "a loopback address",
		"::1":             "a loopback address",
		"169.254.169.254": "a link-local address",
		"fe80::1":         "a link-local address",
		"224.0.0.251":     "a multicast address",
		"ff02::1":         "a multicast address",
		"0.0.0.0":         "the unspecified address",
		"::":              "the unspecified address",
		"0.1.2.3":         "an address of 0.0.0.0/8",
		"255.255.255.255": "the broadcast address",
	} {
		if got := special(netip.MustParseAddr(in)); got != want {
			t.Errorf("special(%s) = %q, want %q", in, got, want)
		}
	}
}

// The name rules are Kubernetes' own.
func TestNamesAgreeWithKubernetes(t *testing.T) {
	names := []string{
		"", "a", "0", "-", ".", "a-", "-a", "a-b", "A", "a.b", "a..b", "a.b.", ".a", "a.-b", "a_b", "a b", "a\n", "a/b", "ä", "a\x00",
		"-j", "--", "a--b", "Zone_1", "eu-west-1a", "_a", "a_", "a.B", strings.Repeat("a", 63), strings.Repeat("a", 64),
		strings.Repeat("a", 253), strings.Repeat("a", 254), strings.Repeat("a.", 126) + "a", strings.Repeat("a.", 127) + "a",
	}
	for _, s := range names {
		if got, want := isLabel(s), len(validation.IsDNS1123Label(s)) == 0; got != want {
			t.Errorf("isLabel(%q) = %v, Kubernetes says %v", s, got, want)
		}
		if got, want := isSubdomain(s), len(validation.IsDNS1123Subdomain(s)) == 0; got != want {
			t.Errorf("isSubdomain(%q) = %v, Kubernetes says %v", s, got, want)
		}
		if got, want := isLabelValue(s), s != "" && len(validation.IsValidLabelValue(s)) == 0; got != want {
			t.Errorf("isLabelValue(%q) = %v, Kubernetes says %v", s, got, want)
		}
	}
}
