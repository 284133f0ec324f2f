package process

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// A filler makes up values of any type.
type filler struct{ *rand.Rand }

// fill gives v another value, and every field of it, whatever it is called. What is not carried is left alone.
func (f filler) fill(v reflect.Value) {
	switch p := v.Addr().Interface().(type) {
	case *netip.Addr:
		*p = f.addr()
		return
	case *netip.Prefix:
		a := f.addr().WithZone("")
		*p = netip.PrefixFrom(a, f.IntN(a.BitLen()+1))
		return
	case *time.Time:
		*p = time.Unix(f.Int64N(1<<32), f.Int64N(1e9)).UTC()
		return
	case *cluster.Secret:
		*p = cluster.NewSecret(fmt.Sprint(f.Uint64()))
		if f.IntN(2) == 0 {
			*p = cluster.Secret{Given: true}
		}
		return
	case **cluster.Service:
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(f.Int64() >> (64 - f.IntN(v.Type().Bits()) - 1))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(f.Uint64() >> (64 - f.IntN(v.Type().Bits()) - 1))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(float64(float32(f.Float64())))
	case reflect.String:
		v.SetString(fmt.Sprint("é\x00", f.Uint64()))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		if f.IntN(3) > 0 {
			f.fill(v.Elem()) // else what it points to is zero, which is not nil
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), f.IntN(3), 3))
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range f.IntN(3) {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(key)
			f.fill(value)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(v.Field(i))
		}
	default:
		panic(fmt.Sprintf("there is no value of %s", v.Type()))
	}
}

func (f filler) addr() netip.Addr {
	var b [16]byte
	for i := range b {
		b[i] = byte(f.Uint32())
	}
	switch f.IntN(5) {
	case 0:
		return netip.AddrFrom4([4]byte(b[:]))
	case 1:
		return netip.AddrFrom16(netip.AddrFrom4([4]byte(b[:])).As16()) // an IPv4 address in IPv6
	case 2:
		return netip.AddrFrom16(b).WithZone(strings.Repeat("z", 1+f.IntN(200)))
	case 3:
		return netip.Addr{}
	}
	return netip.AddrFrom16(b)
}

// carry has a value carried to another process and back.
func carry[T any](t *testing.T, v *T) *T {
	t.Helper()
	w := &writer{}
	w.put(v)
	r := &reader{b: w.b}
	got := new(T)
	if err := r.get(got); err != nil {
		t.Fatalf("%T: %v", v, err)
	}
	if len(r.b) > 0 {
		t.Fatalf("%T: %d bytes are left", v, len(r.b))
	}
	return got
}

// everything is all that goes from one process to the other.
type everything struct {
	Header   header
	Sync     syncCall
	Result   speaker.Result
	Sessions []speaker.Session
	Ranges   []bgp.ImportRange
	Received []bgp.Received
	Routes   []speaker.Route
	Call     routesCall
	News     news
	// What nothing of it has yet.
	Float float64
	Map   map[netip.Addr][]*uint16
}

// TestCarries: whatever is in a value, and whatever fields its type has or comes to have, arrives as it was.
func TestCarries(t *testing.T) {
	f := filler{rand.New(rand.NewPCG(1, 2))}
	for range 2000 {
		var v everything
		f.fill(reflect.ValueOf(&v).Elem())
		if got := carry(t, &v); !reflect.DeepEqual(*got, v) {
			t.Fatalf("carried was %#v, arrived is %#v", v, *got)
		}
	}
	if got := carry(t, &everything{}); !reflect.DeepEqual(*got, everything{}) {
		t.Errorf("of nothing comes %#v", got)
	}
}

// TestEveryField: no field of a Table is lost, or of a peer or a path in it, but for whose a path is.
func TestEveryField(t *testing.T) {
	f := filler{rand.New(rand.NewPCG(3, 4))}
	var fields int
	var visit func(path string, at, root reflect.Value)
	visit = func(path string, at, root reflect.Value) {
		for i := range at.NumField() {
			name := path + "." + at.Type().Field(i).Name
			old := reflect.New(at.Field(i).Type()).Elem()
			old.Set(at.Field(i))
			for j := 0; at.Field(i).IsZero() && j < 100; j++ {
				f.fill(at.Field(i))
			}
			fields++
			got := carry(t, root.Addr().Interface().(*bgp.Table))
			switch zero := at.Field(i).IsZero(); {
			case zero && name != ".Paths.Service" && name != ".Draining.Service":
				t.Errorf("%s can't be filled", name)
			case !reflect.DeepEqual(got, root.Addr().Interface()):
				t.Errorf("%s is lost", name)
			}
			if list := at.Field(i); list.Kind() == reflect.Slice && list.Type().Elem().Kind() == reflect.Struct && list.Type().Elem().PkgPath() == reflect.TypeFor[bgp.Table]().PkgPath() {
				list.Set(reflect.MakeSlice(list.Type(), 1, 1))
				visit(name, list.Index(0), root)
			}
			at.Field(i).Set(old)
		}
	}
	root := reflect.ValueOf(&bgp.Table{}).Elem()
	if visit("", root, root); fields < 30 {
		t.Errorf("only %d fields were looked at", fields)
	}
}

// TestSharing: what several paths share arrives once, and shared.
func TestSharing(t *testing.T) {
	a, b := &bgp.Attributes{LocalPref: 1}, &bgp.Attributes{LocalPref: 1}
	got := *carry(t, &[]bgp.Path{{Attributes: a}, {Attributes: b}, {Attributes: a}, {}})
	if got[0].Attributes != got[2].Attributes || got[0].Attributes == got[1].Attributes || got[3].Attributes != nil {
		t.Errorf("%v", got)
	}
	// Pointers to different types may have the same value.
	type outer struct{ Inner bgp.Attributes }
	type both struct {
		Outer *outer
		Inner *bgp.Attributes
	}
	o := &outer{bgp.Attributes{MED: 1}}
	if got := carry(t, &both{o, &o.Inner}); got.Outer.Inner.MED != 1 || got.Inner.MED != 1 {
		t.Errorf("%v", got)
	}
}

// TestTimes: how long ago something was stays, by the monotonic clock, whatever becomes of that on the wall.
func TestTimes(t *testing.T) {
	now := time.Now()
	got := *carry(t, &now)
	if d := got.Sub(now); d > time.Millisecond || d < -time.Millisecond || got == got.Round(0) {
		t.Errorf("%s became %s, which is %s away", now, got, d)
	}
	// With another clock on the wall, the one that was measured is as long ago as it was.
	if d := time.Since(*carry(t, &got)) - time.Since(now); d > time.Second || d < -time.Second {
		t.Errorf("it is %s longer ago", d)
	}
	local := time.Now().Round(0)
	if got := *carry(t, &local); got != local {
		t.Errorf("%s became %s", local, got)
	}
}

// TestRefusedTypes: what can't be carried exactly is found when it is first met.
func TestRefusedTypes(t *testing.T) {
	type hidden struct{ hidden int }
	for _, v := range []any{new(any), new(func()), new(chan int), &hidden{1}, new([]map[string]error)} {
		func() {
			defer func() {
				if what := fmt.Sprint(recover()); !strings.Contains(what, "can't be carried") {
					t.Errorf("%T: %s", v, what)
				}
			}()
			(&writer{}).put(v)
		}()
	}
}

// TestFailures: an error keeps its words, and which of the known ones it is.
func TestFailures(t *testing.T) {
	_, notThere := os.ReadFile("/nonexistent")
	for _, err := range []error{fmt.Errorf("%w with 192.0.2.1", speaker.ErrNoSession), notThere, errors.New("so"), errors.Join(notThere, speaker.ErrNoSession)} {
		h := carry(t, &header{Failure: newFailure(err)})
		got := h.Failure.err()
		if got.Error() != err.Error() || errors.Is(got, speaker.ErrNoSession) != errors.Is(err, speaker.ErrNoSession) || errors.Is(got, fs.ErrNotExist) != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v became %v", err, got)
		}
	}
	if got := carry(t, &header{Failure: newFailure(nil)}).Failure.err(); got != nil {
		t.Errorf("of no error came %v", got)
	}
}

// FuzzRead: whatever a process that has gone mad sends is an error or a value, and takes memory in proportion.
func FuzzRead(f *testing.F) {
	fill := filler{rand.New(rand.NewPCG(5, 6))}
	for range 20 {
		var v everything
		fill.fill(reflect.ValueOf(&v).Elem())
		w := &writer{}
		w.put(&v)
		f.Add(w.b)
		f.Add(w.b[:len(w.b)/2])
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		var v everything
		_ = (&reader{b: b}).get(&v)
	})
}

// paths makes up a list in the order of a Table, of numbers below n, or in no order.
func (f filler) paths(n int, ordered bool) []bgp.Path {
	var list []bgp.Path
	shared := []*bgp.Attributes{{LocalPref: 1}, {LocalPref: 1}, {LocalPref: 2}}
	for i := range n {
		if f.IntN(3) > 0 {
			list = append(list, bgp.Path{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32), Attributes: shared[f.IntN(len(shared))], Kind: bgp.Kind(f.IntN(2))})
		}
	}
	if !ordered {
		f.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	return list
}

// TestDifference: from any list of paths to any other. One change among many is a small difference.
func TestDifference(t *testing.T) {
	f := filler{rand.New(rand.NewPCG(7, 8))}
	var have, got []bgp.Path
	for i := range 5000 {
		want := f.paths(f.IntN(20), i%2 == 0)
		steps := difference(have, want)
		if slices.EqualFunc(have, want, func(a, b bgp.Path) bool { return reflect.DeepEqual(a, b) }) != (steps == nil) {
			t.Fatalf("from %v to %v: %v", have, want, steps)
		}
		followed, err := follow(got, *carry(t, &steps))
		if err != nil || len(followed) != len(want) || len(want) > 0 && !reflect.DeepEqual(followed, want) {
			t.Fatalf("from %v to %v leads %v: to %v, %v", have, want, steps, followed, err)
		}
		have, got = want, followed
	}
	have = f.paths(250, true)
	want := slices.Concat(have[:50], have[51:100], f.paths(1, true), have[100:])
	if steps := difference(have, want); len(steps) > 3 {
		t.Errorf("two changes are %d steps", len(steps))
	}
	for _, bad := range [][]step{{{Keep: 1}}, {{Keep: -1}}, {{Skip: len(have) + 1}}, {{Keep: len(have)}, {Keep: 1}}, {{Keep: int(^uint(0) >> 1), Skip: 1}}} {
		if _, err := follow(have, bad); err == nil {
			t.Errorf("%v leads somewhere", bad)
		}
	}
}

// The paths of 10,000 Services, sent to a process that has none of them, and when 40 of them have changed.
func BenchmarkSync(b *testing.B) {
	shared := &bgp.Attributes{LocalPref: 100, Communities: []bgp.Community{1, 2}}
	var paths []bgp.Path
	for i := range 10_000 {
		paths = append(paths, bgp.Path{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 32), Attributes: shared, Kind: bgp.ClusterIPs, Service: &cluster.Service{}})
	}
	some := slices.DeleteFunc(slices.Clone(paths), func(p bgp.Path) bool { return p.Prefix.Addr().As4()[3] == 7 })
	for _, c := range []struct {
		name       string
		have, want []bgp.Path
	}{{"all", nil, paths}, {"40 of them", some, paths}, {"none", paths, paths}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w := &writer{}
				q := syncCall{Table: bgp.Table{ASN: 64512}, Paths: difference(c.have, c.want)}
				w.put(&q)
				var got syncCall
				if err := (&reader{b: w.b}).get(&got); err != nil {
					b.Fatal(err)
				}
				if _, err := follow(c.have, got.Paths); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(w.b)), "bytes")
			}
		})
	}
}
