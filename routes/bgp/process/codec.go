package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
)

// errMalformed is the error of what can't be decoded.
var errMalformed = errors.New("malformed")

// A writer encodes values.
type writer struct {
	b []byte
	// seen numbers the pointers that were written: what several share is written once.
	seen map[any]uint64
}

// put encodes what p points to.
func (w *writer) put(p any) {
	v := reflect.ValueOf(p).Elem()
	carrierOf(v.Type()).put(w, v)
}

func (w *writer) number(n uint64) { w.b = binary.AppendUvarint(w.b, n) }

func (w *writer) bytes(b []byte) {
	w.number(uint64(len(b)))
	w.b = append(w.b, b...)
}

// A reader decodes values. After the first error it has nothing more.
type reader struct {
	b    []byte
	err  error
	seen []reflect.Value
}

// get decodes into what p points to.
func (r *reader) get(p any) error {
	v := reflect.ValueOf(p).Elem()
	carrierOf(v.Type()).get(r, v)
	return r.err
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", errMalformed, what)
	}
	r.b = nil
}

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.fail("a number is cut off")
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) bytes() []byte {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.fail("a text is cut off")
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// A carrier encodes and decodes the values of one type, which are addressable.
type carrier struct {
	put func(w *writer, v reflect.Value)
	get func(r *reader, v reflect.Value)
	// least is the least number of bytes that a value takes.
	least int
}

var (
	carriersMu sync.Mutex
	// carriers are those of all types met so far; guarded by carriersMu.
	carriers = map[reflect.Type]*carrier{
		reflect.TypeFor[netip.Addr]():     marshaled[netip.Addr](),
		reflect.TypeFor[netip.Prefix]():   marshaled[netip.Prefix](),
		reflect.TypeFor[time.Time]():      times,
		reflect.TypeFor[cluster.Secret](): secrets,
		// It is the agent that knows the Services; see doc.go.
		reflect.TypeFor[*cluster.Service](): {put: func(*writer, reflect.Value) {}, get: func(*reader, reflect.Value) {}},
	}
)

// carrierOf returns the carrier of a type. A type that can't be carried exactly is a fault of the program.
func carrierOf(t reflect.Type) *carrier {
	carriersMu.Lock()
	defer carriersMu.Unlock()
	return carrierLocked(t)
}

func carrierLocked(t reflect.Type) *carrier {
	if c := carriers[t]; c != nil {
		return c
	}
	c := &carrier{}
	carriers[t] = c // before it is complete: a type may have itself inside
	switch t.Kind() {
	case reflect.Bool:
		*c = carrier{put: putBool, get: getBool, least: 1}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		*c = carrier{put: putInt, get: getInt, least: 1}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		*c = carrier{put: putUint, get: getUint, least: 1}
	case reflect.Float32, reflect.Float64:
		*c = carrier{put: putFloat, get: getFloat, least: 1}
	case reflect.String:
		*c = carrier{put: putString, get: getString, least: 1}
	case reflect.Pointer:
		*c = pointers(t, carrierLocked(t.Elem()))
	case reflect.Slice:
		*c = lists(t, carrierLocked(t.Elem()))
	case reflect.Array:
		*c = arrays(t, carrierLocked(t.Elem()))
	case reflect.Map:
		*c = tables(t, carrierLocked(t.Key()), carrierLocked(t.Elem()))
	case reflect.Struct:
		*c = structs(t)
	default:
		panic(fmt.Sprintf("process: a %s can't be carried to another process", t))
	}
	return c
}

func putBool(w *writer, v reflect.Value) {
	if v.Bool() {
		w.number(1)
		return
	}
	w.number(0)
}

func getBool(r *reader, v reflect.Value) { v.SetBool(r.number() != 0) }

func putInt(w *writer, v reflect.Value) { w.b = binary.AppendVarint(w.b, v.Int()) }

func getInt(r *reader, v reflect.Value) {
	n, size := binary.Varint(r.b)
	if size <= 0 || v.OverflowInt(n) {
		r.fail("a number is cut off or too large")
		return
	}
	r.b = r.b[size:]
	v.SetInt(n)
}

func putUint(w *writer, v reflect.Value) { w.number(v.Uint()) }

func getUint(r *reader, v reflect.Value) {
	n := r.number()
	if v.OverflowUint(n) {
		r.fail("a number is too large")
		return
	}
	v.SetUint(n)
}

func putFloat(w *writer, v reflect.Value) { w.number(math.Float64bits(v.Float())) }

func getFloat(r *reader, v reflect.Value) { v.SetFloat(math.Float64frombits(r.number())) }

func putString(w *writer, v reflect.Value) {
	w.number(uint64(v.Len()))
	w.b = append(w.b, v.String()...)
}

func getString(r *reader, v reflect.Value) { v.SetString(string(r.bytes())) }

// The forms of a pointer. A higher number is that of one which came before.
const (
	pointerNil = iota
	pointerNew
	pointerSeen
)

func pointers(t reflect.Type, to *carrier) carrier {
	put := func(w *writer, v reflect.Value) {
		if v.IsNil() {
			w.number(pointerNil)
			return
		}
		p := v.Interface()
		if n, ok := w.seen[p]; ok {
			w.number(pointerSeen + n)
			return
		}
		if w.seen == nil {
			w.seen = map[any]uint64{}
		}
		w.seen[p] = uint64(len(w.seen))
		w.number(pointerNew)
		to.put(w, v.Elem())
	}
	get := func(r *reader, v reflect.Value) {
		switch n := r.number(); n {
		case pointerNil:
			v.SetZero()
		case pointerNew:
			p := reflect.New(t.Elem())
			r.seen = append(r.seen, p)
			to.get(r, p.Elem())
			v.Set(p)
		default:
			if n -= pointerSeen; n >= uint64(len(r.seen)) || r.seen[n].Type() != t {
				r.fail("a pointer leads nowhere")
				return
			}
			v.Set(r.seen[n])
		}
	}
	return carrier{put, get, 1}
}

// lists are slices: 0 for nil, else one more than the length.
func lists(t reflect.Type, of *carrier) carrier {
	put := func(w *writer, v reflect.Value) {
		if v.IsNil() {
			w.number(0)
			return
		}
		w.number(uint64(v.Len()) + 1)
		for i := range v.Len() {
			of.put(w, v.Index(i))
		}
	}
	get := func(r *reader, v reflect.Value) {
		n := r.number()
		switch {
		case n == 0:
			v.SetZero()
			return
		case n > math.MaxInt32 || (n-1)*uint64(max(of.least, 1)) > uint64(len(r.b)):
			r.fail("a list is cut off")
			return
		}
		v.Set(reflect.MakeSlice(t, int(n-1), int(n-1)))
		for i := range v.Len() {
			of.get(r, v.Index(i))
		}
	}
	return carrier{put, get, 1}
}

func arrays(t reflect.Type, of *carrier) carrier {
	put := func(w *writer, v reflect.Value) {
		for i := range t.Len() {
			of.put(w, v.Index(i))
		}
	}
	get := func(r *reader, v reflect.Value) {
		for i := range t.Len() {
			of.get(r, v.Index(i))
		}
	}
	return carrier{put, get, t.Len() * of.least}
}

// tables are maps: like lists of keys and values.
func tables(t reflect.Type, key, value *carrier) carrier {
	put := func(w *writer, v reflect.Value) {
		if v.IsNil() {
			w.number(0)
			return
		}
		w.number(uint64(v.Len()) + 1)
		k, e := reflect.New(t.Key()).Elem(), reflect.New(t.Elem()).Elem()
		for i := v.MapRange(); i.Next(); {
			k.Set(i.Key())
			e.Set(i.Value())
			key.put(w, k)
			value.put(w, e)
		}
	}
	get := func(r *reader, v reflect.Value) {
		n := r.number()
		if n == 0 {
			v.SetZero()
			return
		}
		v.Set(reflect.MakeMap(t))
		for ; n > 1 && r.err == nil; n-- {
			k, e := reflect.New(t.Key()).Elem(), reflect.New(t.Elem()).Elem()
			key.get(r, k)
			value.get(r, e)
			if r.err == nil {
				v.SetMapIndex(k, e)
			}
		}
	}
	return carrier{put, get, 1}
}

func structs(t reflect.Type) (c carrier) {
	fields := make([]*carrier, t.NumField())
	for i := range fields {
		if f := t.Field(i); !f.IsExported() {
			panic(fmt.Sprintf("process: a %s can't be carried to another process, its field %s is hidden", t, f.Name))
		}
		fields[i] = carrierLocked(t.Field(i).Type)
		c.least += fields[i].least
	}
	c.put = func(w *writer, v reflect.Value) {
		for i, f := range fields {
			f.put(w, v.Field(i))
		}
	}
	c.get = func(r *reader, v reflect.Value) {
		for i, f := range fields {
			f.get(r, v.Field(i))
		}
	}
	return c
}

// marshaled carries a type of netip's, the zero value included.
func marshaled[T interface {
	AppendBinary([]byte) ([]byte, error)
}, P interface {
	*T
	UnmarshalBinary([]byte) error
}]() *carrier {
	return &carrier{
		put: func(w *writer, v reflect.Value) {
			start := len(w.b)
			b, err := (*v.Addr().Interface().(*T)).AppendBinary(append(w.b, 0))
			if err != nil {
				panic(fmt.Sprintf("process: encode a %s: %v", v.Type(), err))
			}
			if n := len(b) - start - 1; n < 0x80 {
				b[start] = byte(n) // as writer.bytes has it, without a copy
				w.b = b
				return
			}
			w.bytes(slices.Clone(b[start+1:])) // an address with a long zone
		},
		get: func(r *reader, v reflect.Value) {
			if err := v.Addr().Interface().(P).UnmarshalBinary(r.bytes()); err != nil {
				r.fail(err.Error())
			}
		},
		least: 1,
	}
}

// secrets carries what else is written nowhere.
var secrets = &carrier{
	put: func(w *writer, v reflect.Value) {
		s := v.Addr().Interface().(*cluster.Secret)
		given := uint64(0)
		if s.Given {
			given = 1
		}
		w.number(given)
		w.bytes([]byte(s.Reveal()))
	},
	get: func(r *reader, v reflect.Value) {
		given := r.number() != 0
		s := cluster.NewSecret(string(r.bytes()))
		s.Given = given
		v.Set(reflect.ValueOf(s))
	},
	least: 2,
}

// times carries a time that was measured (time.Now) by the monotonic clock, so that how long ago it was stays right when the clock on
// the wall is set; and any other as it is.
var times = &carrier{
	put: func(w *writer, v reflect.Value) {
		t := *v.Addr().Interface().(*time.Time)
		if t != t.Round(0) {
			w.number(1)
			w.number(uint64(monotonic() - time.Since(t)))
			return
		}
		w.number(0)
		b, err := t.MarshalBinary()
		if err != nil {
			panic(fmt.Sprintf("process: encode the time %s: %v", t, err))
		}
		w.bytes(b)
	},
	get: func(r *reader, v reflect.Value) {
		t := v.Addr().Interface().(*time.Time)
		if r.number() == 1 {
			*t = time.Now().Add(time.Duration(r.number()) - monotonic())
			return
		}
		if b := r.bytes(); r.err == nil {
			if err := t.UnmarshalBinary(b); err != nil {
				r.fail(err.Error())
			}
		}
	},
	least: 2,
}

// monotonic is the time by the clock that package time has beside that on the wall. All processes of a machine have the same.
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("process: there is no monotonic clock: " + err.Error()) // every Linux has it
	}
	return time.Duration(t.Nano())
}
