package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// ReadConfiguration reads a configuration file. The error names the file, the line where it is known, and what would be
// right: an unknown field, one in other case, one given twice, a value of a wrong type and a second document are errors.
func ReadConfiguration(path string) (*AgentConfiguration, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c := &AgentConfiguration{}
	if err := decodeStrict(text, c); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	if c.APIVersion != ConfigAPIVersion || c.Kind != ConfigKind {
		return nil, fmt.Errorf("configuration %s: it has apiVersion %q and kind %q, expected %s and %s", path, c.APIVersion, c.Kind, ConfigAPIVersion, ConfigKind)
	}
	return c, nil
}

// decodeStrict decodes one YAML document. The decoders at hand pass over what follows it, and take a field in any case.
func decodeStrict(text []byte, c *AgentConfiguration) error {
	if line := secondDocument(text); line > 0 {
		return fmt.Errorf("line %d: a second document begins; expected one", line)
	}
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var fields map[string]any
	if json.Unmarshal(data, &fields) != nil {
		return fmt.Errorf("it has no fields; expected lines such as \"kind: %s\"", ConfigKind)
	}
	known := reflect.TypeFor[AgentConfiguration]()
	if path := unknownField(fields, known); path != "" {
		return fmt.Errorf("%sunknown field %q; the fields are %s", lineOf(text, path), path, strings.Join(fieldNames(known), ", "))
	}
	err = json.Unmarshal(data, c)
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		return fmt.Errorf("%s%s is of type %s; expected %s", lineOf(text, wrong.Field), wrong.Field, wrong.Value, wanted(wrong.Type))
	}
	return err
}

// secondDocument returns the line, counted from 1, at which a second document begins; 0 when there is one.
func secondDocument(text []byte) int {
	begun := false
	for i, line := range bytes.Split(text, []byte("\n")) {
		switch {
		case bytes.HasPrefix(line, []byte("---")) && begun:
			return i + 1
		case len(bytes.TrimSpace(line)) > 0 && !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")):
			begun = true
		}
	}
	return 0
}

// unknownField returns the path of a field that a struct does not have, or "".
func unknownField(fields map[string]any, known reflect.Type) string {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		f, ok := fieldNamed(known, name)
		if !ok {
			return name
		}
		inner, isObject := fields[name].(map[string]any)
		if !isObject || f.Type.Kind() != reflect.Struct {
			continue
		}
		if path := unknownField(inner, f.Type); path != "" {
			return name + "." + path
		}
	}
	return ""
}

func fieldNamed(t reflect.Type, name string) (reflect.StructField, bool) {
	for f := range t.Fields() {
		if jsonName(f) == name {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// fieldNames returns the names of a configuration's fields; those of a section in braces.
func fieldNames(t reflect.Type) (names []string) {
	for f := range t.Fields() {
		name := jsonName(f)
		if f.Type.Kind() == reflect.Struct {
			name += "{" + strings.Join(fieldNames(f.Type), ", ") + "}"
		}
		names = append(names, name)
	}
	return names
}

// lineOf returns "line 3: " for the line of a field; "" when it can't be told.
func lineOf(text []byte, path string) string {
	lines := bytes.Split(text, []byte("\n"))
	at := 0
	for name := range strings.SplitSeq(path, ".") {
		key := regexp.MustCompile(`^[^#]*(^|[\s{,"'])` + regexp.QuoteMeta(name) + `["']?\s*:`)
		i := slices.IndexFunc(lines[at:], key.Match)
		if i < 0 {
			return ""
		}
		at += i
	}
	return fmt.Sprintf("line %d: ", at+1)
}

// wanted words the type of a field.
func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text, in quotes where it looks like a number"
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list, as in [a, b]"
	}
	return "fields of its own"
}
