package agent

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// configz is the answer of /configz: a configuration under the name of its API group, as kube-proxy's is.
func configz(c any) map[string]any {
	return map[string]any{"fairway.dev": readable(reflect.ValueOf(c))}
}

// readable turns a value into what JSON shows to people: fields begin with a small letter as in the configuration file, and
// addresses and durations are text.
func readable(v reflect.Value) any {
	if v.CanInterface() {
		switch x := v.Interface().(type) {
		case encoding.TextMarshaler:
			if text, err := x.MarshalText(); err == nil {
				return string(text)
			}
		case time.Duration:
			return x.String()
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return readable(v.Elem())
	case reflect.Struct:
		out := map[string]any{}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				out[small(f.Name)] = readable(v.Field(i))
			}
		}
		return out
	case reflect.Slice, reflect.Array:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = readable(v.Index(i))
		}
		return out
	}
	return v.Interface()
}

// small makes the first word of a Go name small: clusterCIDRs, oomScoreAdj.
func small(name string) string {
	runes := []rune(name)
	for i := range runes {
		if i > 0 && (unicode.IsLower(runes[i]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			break
		}
		runes[i] = unicode.ToLower(runes[i])
	}
	return string(runes)
}

// statusz is the answer of /statusz.
func statusz(m *metrics, now time.Time) string {
	v := m.status.view()
	var b strings.Builder
	fmt.Fprintf(&b, "fairway agent\n\n")
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "Version:\t%s\n", m.version)
	fmt.Fprintf(t, "Go version:\t%s\n", runtime.Version())
	fmt.Fprintf(t, "Started:\t%s\n", m.start.UTC().Format(time.RFC3339))
	fmt.Fprintf(t, "Up:\t%s\n", now.Sub(m.start).Round(time.Second))
	fmt.Fprintf(t, "Revision:\t%d\n", v.revision)
	fmt.Fprintf(t, "\nPart\tProgrammed\tLast success\tError\n")
	for _, name := range slices.Sorted(maps.Keys(v.parts)) {
		p := v.parts[name]
		last, problem := "never", "none"
		if !p.updated.IsZero() {
			last = p.updated.UTC().Format(time.RFC3339)
		}
		if p.err != nil {
			problem = fmt.Sprintf("%q", p.err)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\n", name, p.programmed, last, problem)
	}
	_ = t.Flush() // a strings.Builder takes everything
	return b.String()
}

// quarantinez is the answer of /debug/quarantine.
func quarantinez(v view) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(v.parts)) {
		for _, q := range v.parts[name].quarantined {
			fmt.Fprintf(&b, "%s\n\n%s\n\n%s\n\n", q.Note, q.Stderr, q.Input)
		}
	}
	return b.String()
}
