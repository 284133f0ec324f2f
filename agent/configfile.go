package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Files are the configuration files of an agent; one whose path is empty is not given.
type Files struct {
	// Agent is the path of an AgentConfiguration, KubeProxy that of a KubeProxyConfiguration.
	Agent, KubeProxy string
}

// Configure reads the files, and checks what they say together with the flags: a flag that is given wins over the agent's
// own file, and a field that is given there over kube-proxy's file. The Remarks say what of kube-proxy's file does not count.
// Errors name the file, and what would be right.
func Configure(files Files, flags func(*AgentConfiguration)) (Config, []Remark, error) {
	_, c, remarks, err := configureFiles(files, flags)
	return c, remarks, err
}

// configureFiles is Configure, and returns also what was written: the configuration before it was checked.
func configureFiles(files Files, flags func(*AgentConfiguration)) (*AgentConfiguration, Config, []Remark, error) {
	a := &AgentConfiguration{}
	var proxy *kubeProxyFile
	if files.KubeProxy != "" {
		var err error
		if proxy, err = readKubeProxyFile(files.KubeProxy); err != nil {
			return nil, Config{}, nil, err
		}
		*a = proxy.configuration
	}
	if files.Agent != "" {
		if err := readConfiguration(files.Agent, a); err != nil {
			return nil, Config{}, nil, err
		}
	}
	flags(a)
	var remarks []Remark
	if proxy != nil {
		remarks = proxy.under(a)
	}
	config, err := a.Config()
	if err != nil && files.Agent != "" {
		err = fmt.Errorf("configuration %s: %w", files.Agent, err)
	}
	return a, config, remarks, err
}

// ReadConfiguration reads a configuration file. The error names the file, the line where it is known, and what would be
// right: an unknown field, one in other case, one given twice, a value of a wrong type and a second document are errors.
func ReadConfiguration(path string) (*AgentConfiguration, error) {
	a := &AgentConfiguration{}
	if err := readConfiguration(path, a); err != nil {
		return nil, err
	}
	return a, nil
}

// readConfiguration is ReadConfiguration on top of what is there already.
func readConfiguration(path string, a *AgentConfiguration) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	a.APIVersion, a.Kind = "", ""
	if err := decodeStrict(text, a); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	if a.APIVersion != ConfigAPIVersion || a.Kind != ConfigKind {
		return fmt.Errorf("configuration %s: it has apiVersion %q and kind %q, expected %s and %s", path, a.APIVersion, a.Kind, ConfigAPIVersion, ConfigKind)
	}
	return nil
}

// decodeStrict decodes one YAML document into the struct that into points to, and refuses fields that it does not have.
func decodeStrict(text []byte, into any) error {
	d, err := parse(text, yaml.YAMLToJSONStrict)
	if err != nil {
		return err
	}
	known := reflect.TypeOf(into).Elem()
	if unknown := takeUnknown(d.fields, known); len(unknown) > 0 {
		return fmt.Errorf("%sunknown field %q; the fields are %s", d.lineOf(unknown[0]), unknown[0], strings.Join(fieldNames(known), ", "))
	}
	return d.decode(into)
}

// A document is one YAML document.
type document struct {
	text   []byte
	fields map[string]any
}

// parse reads one document. The parsers at hand pass over what follows it.
func parse(text []byte, toJSON func([]byte) ([]byte, error)) (document, error) {
	if line := secondDocument(text); line > 0 {
		return document{}, fmt.Errorf("line %d: a second document begins; expected one", line)
	}
	data, err := toJSON(text)
	if err != nil {
		return document{}, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	d := document{text: text}
	if json.Unmarshal(data, &d.fields) != nil {
		return document{}, fmt.Errorf("it has no fields; expected lines such as \"kind: %s\"", ConfigKind)
	}
	return d, nil
}

// decode fills the struct that into points to. What the struct does not have must have been taken out: the decoder takes
// a field in any case.
func (d document) decode(into any) error {
	data, err := json.Marshal(d.fields)
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, into)
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		return fmt.Errorf("%s%s is of type %s; expected %s", d.lineOf(wrong.Field), wrong.Field, wrong.Value, wanted(wrong.Type))
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

// takeUnknown takes the fields out that a struct does not have, and returns their paths in order.
func takeUnknown(fields map[string]any, known reflect.Type) (paths []string) {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		f, ok := fieldNamed(known, name)
		if !ok {
			delete(fields, name)
			paths = append(paths, name)
			continue
		}
		for at, inner := range sections(name, fields[name], f.Type) {
			for _, path := range takeUnknown(inner, structOf(f.Type)) {
				paths = append(paths, at+"."+path)
			}
		}
	}
	return paths
}

// structOf returns the struct that a field is, points to, or is a list of; nil for any other.
func structOf(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	return t
}

// sections yields what was read for a field that is a struct, or each of a list of structs, with its path.
func sections(name string, value any, t reflect.Type) iter.Seq2[string, map[string]any] {
	return func(yield func(string, map[string]any) bool) {
		list, isList := value.([]any)
		switch {
		case structOf(t) == nil:
		case isList && t.Kind() == reflect.Slice:
			for i, element := range list {
				if section, ok := element.(map[string]any); ok && !yield(fmt.Sprintf("%s[%d]", name, i), section) {
					return
				}
			}
		case !isList && t.Kind() != reflect.Slice:
			if section, ok := value.(map[string]any); ok {
				yield(name, section)
			}
		}
	}
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

// fieldNames returns the names of a configuration's fields; those of a section, or of the sections of a list, in braces.
func fieldNames(t reflect.Type) (names []string) {
	for f := range t.Fields() {
		name := jsonName(f)
		if section := structOf(f.Type); section != nil {
			name += "{" + strings.Join(fieldNames(section), ", ") + "}"
		}
		names = append(names, name)
	}
	return names
}

// lineOf returns "line 3: " for the line of a field; "" when it can't be told.
func (d document) lineOf(path string) string {
	lines := bytes.Split(d.text, []byte("\n"))
	at := 0
	for name := range strings.SplitSeq(path, ".") {
		name, _, _ = strings.Cut(name, "[") // the place in a list
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
	if t == reflect.TypeFor[Duration]() {
		return "a duration, as in 30s or 1h30m"
	}
	switch t.Kind() {
	case reflect.String:
		return "text, in quotes where it looks like a number"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list, as in [a, b]"
	}
	return "fields of its own"
}
