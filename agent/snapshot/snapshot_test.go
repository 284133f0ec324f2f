package snapshot

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/synth"
)

var then = time.Date(2026, 3, 4, 5, 6, 7, 890, time.UTC)

func encode(t testing.TB, s *cluster.Snapshot) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Encode(&b, s, "n1", then); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// arbitrary fills a value with anything that its type can hold; what can be empty sometimes is.
func arbitrary(r *rand.Rand, v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		if r.IntN(3) > 0 {
			*x = time.Unix(r.Int64N(1<<33), r.Int64N(1e9)).UTC()
		}
		return
	case *netip.Addr:
		switch r.IntN(4) {
		case 0:
		case 1:
			*x = netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), 3, 4})
		default:
			*x = netip.AddrFrom16([16]byte{0xfd, byte(r.Uint32()), 15: byte(r.Uint32())})
		}
		return
	case *cluster.Secret:
		x.Given = r.IntN(2) == 0 // its text is not written
		return
	case *netip.Prefix:
		if r.IntN(4) > 0 {
			*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), 3, 4}), r.IntN(33))
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			arbitrary(r, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		arbitrary(r, v.Elem())
	case reflect.Slice:
		for range r.IntN(4) {
			v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
			arbitrary(r, v.Index(v.Len()-1))
		}
	case reflect.String:
		v.SetString(strings.Repeat(string(rune(r.IntN(0xd800))), r.IntN(5)))
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(r.Uint64() & 0xff)
	case reflect.Int64:
		v.SetInt(r.Int64())
	default:
		panic("a Snapshot has a " + v.Kind().String() + ", which this test does not know")
	}
}

func roundTrip(t *testing.T, s *cluster.Snapshot) {
	t.Helper()
	got, err := Decode(bytes.NewReader(encode(t, s)), "n1")
	if err != nil {
		t.Fatal(err)
	}
	want := *s
	want.Saved, want.Host = then, nil
	if !reflect.DeepEqual(got, &want) {
		t.Fatalf("got\n%+v\nwant\n%+v", got, &want)
	}
}

// What is read is what was written, whatever a Snapshot holds.
func FuzzRoundTrip(f *testing.F) {
	for i := range uint64(200) {
		f.Add(i)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		s := &cluster.Snapshot{}
		arbitrary(rand.New(rand.NewPCG(seed, 1)), reflect.ValueOf(&s.Nodes).Elem())
		arbitrary(rand.New(rand.NewPCG(seed, 2)), reflect.ValueOf(&s.Services).Elem())
		arbitrary(rand.New(rand.NewPCG(seed, 3)), reflect.ValueOf(&s.ServiceCIDRs).Elem())
		arbitrary(rand.New(rand.NewPCG(seed, 4)), reflect.ValueOf(&s.Notes).Elem())
		s.Host = &cluster.Host{}
		roundTrip(t, s)
	})
}

// A password is in no file: who reads one finds that there was one.
func TestNoSecrets(t *testing.T) {
	s := &cluster.Snapshot{Nodes: []*cluster.Node{{Name: "n1", KubeRouter: &cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{{Password: cluster.NewSecret("hunter2")}}}}}}
	z, err := gzip.NewReader(bytes.NewReader(encode(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil || strings.Contains(string(text), "hunter") || !strings.Contains(string(text), `"Password":{"Given":true}`) {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestRoundTripOfClusters(t *testing.T) {
	roundTrip(t, &cluster.Snapshot{})
	roundTrip(t, synth.Even(10, 100, 5))
}

// A file of which one bit is another, or which ends too soon, is refused or says the same; and nothing is made of arbitrary bytes.
func TestDamage(t *testing.T) {
	s := synth.Even(2, 3, 2)
	good := encode(t, s)
	whole, err := Decode(bytes.NewReader(good), "n1")
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		if got, err := Decode(bytes.NewReader(good[:i]), "n1"); err == nil {
			t.Fatalf("cut off at %d of %d it is taken for whole: %v", i, len(good), got)
		}
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			// The header of gzip has bytes that mean nothing.
			if got, err := Decode(bytes.NewReader(bad), "n1"); err == nil && !reflect.DeepEqual(got, whole) {
				t.Fatalf("with bit %d of byte %d changed it is believed", bit, i)
			}
		}
	}
	if _, err := Decode(bytes.NewReader(append(bytes.Clone(good), good...)), "n1"); err == nil {
		t.Error("two in one are believed")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(f, synth.Even(2, 3, 2)))
	f.Fuzz(func(t *testing.T, file []byte) {
		for _, data := range [][]byte{file, packed(t, string(file))} {
			if s, err := Decode(bytes.NewReader(data), "n1"); (s == nil) == (err == nil) {
				t.Errorf("%v, %v", s, err)
			}
		}
	})
}

func packed(t testing.TB, text string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What is well-formed and yet not to be used says why.
func TestRefused(t *testing.T) {
	const head = `{"header":{"Kind":"fairway-snapshot","Version":1,"NodeName":"n1","Saved":"2026-03-04T05:06:07Z"}}` + "\n"
	const tail = `{"end":{"Nodes":0,"Services":0}}` + "\n"
	if _, err := Decode(bytes.NewReader(packed(t, head+tail)), "n1"); err != nil {
		t.Fatalf("the smallest: %v", err)
	}
	for _, c := range []struct{ text, want string }{
		{"", "EOF"},
		{`{"kind":"List"}`, "unknown field"},
		{tail, "no snapshot"},
		{strings.Replace(head, "fairway-snapshot", "other", 1) + tail, "no snapshot"},
		{strings.Replace(head, `"Version":1`, `"Version":2`, 1) + tail, "version 2"},
		{strings.Replace(head, `"n1"`, `"n2"`, 1) + tail, `of node "n2"`},
		{strings.Replace(head, "2026-03-04T05:06:07Z", "0001-01-01T00:00:00Z", 1) + tail, "when it was saved"},
		{head, "unexpected EOF"},
		{head + "{}\n" + tail, "means nothing"},
		{head + `{"end":{"Nodes":1}}`, "fewer lines"},
		{head + `{"node":{"Name":"a","Color":"blue"}}` + tail, "unknown field"},
		{head + `{"node":{"PodCIDRs":["everything"]}}` + tail, "everything"},
		{head + tail + tail, "behind its end"},
	} {
		if _, err := Decode(bytes.NewReader(packed(t, c.text)), "n1"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

// A new field of the vocabulary needs a new version of the form: an agent of another version would read it as zero, or refuse it.
func TestFormHasThisVersion(t *testing.T) {
	var shape strings.Builder
	seen := map[reflect.Type]bool{}
	var describe func(reflect.Type)
	describe = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ.PkgPath() == "time" || typ.PkgPath() == "net/netip" || seen[typ] {
			return
		}
		seen[typ] = true
		fmt.Fprintf(&shape, "%s:", typ.Name())
		for i := range typ.NumField() {
			fmt.Fprintf(&shape, " %s %s", typ.Field(i).Name, typ.Field(i).Type)
		}
		shape.WriteByte('\n')
		for i := range typ.NumField() {
			describe(typ.Field(i).Type)
		}
	}
	describe(reflect.TypeFor[line]())
	golden := filepath.Join("testdata", fmt.Sprintf("version%d.txt", version))
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatalf("%v; the form of this version is:\n%s", err, &shape)
	}
	if shape.String() != string(want) {
		t.Errorf("the form changed without a new version; it is now:\n%s", &shape)
	}
}

// Saving replaces what was there as a whole, or leaves it.
func TestFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := Load(dir, "n1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing saved yet: %v", err)
	}
	first, second := synth.Even(2, 3, 2), synth.Even(3, 4, 2)
	for _, s := range []*cluster.Snapshot{first, second} {
		if err := Save(dir, s, "n1", then); err != nil {
			t.Fatal(err)
		}
		if got, err := Load(dir, "n1"); err != nil || len(got.Services) != len(s.Services) {
			t.Fatalf("%v, %v", got, err)
		}
	}
	// The next one can't be written: its name is a directory's.
	if err := os.Mkdir(filepath.Join(dir, newName), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, newName, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Save(dir, first, "n1", then); err == nil {
		t.Error("no error")
	}
	if got, err := Load(dir, "n1"); err != nil || len(got.Services) != len(second.Services) {
		t.Errorf("after a failure: %v, %v", got, err)
	}
	if _, err := Load(dir, "n2"); err == nil || !strings.Contains(err.Error(), fileName) {
		t.Errorf("of another node: %v", err)
	}
}

func BenchmarkSave(b *testing.B) {
	s := synth.Even(100, 10000, 5)
	dir := b.TempDir()
	b.ReportAllocs()
	for b.Loop() {
		if err := Save(dir, s, "n1", then); err != nil {
			b.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size()), "file-bytes")
}

func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	if err := Save(dir, synth.Even(100, 10000, 5), "n1", then); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(dir, "n1"); err != nil {
			b.Fatal(err)
		}
	}
}
