package test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent"
)

// TestConfigurationExample: the complete file of the manual is accepted, and is complete.
func TestConfigurationExample(t *testing.T) {
	text := read(t, "../docs/configuration.md")
	m := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(text)
	if m == nil {
		t.Fatal("docs/configuration.md has no example")
	}
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(m[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := agent.ReadConfiguration(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Config(); err != nil {
		t.Fatal(err)
	}
	fields(reflect.TypeOf(*c), "", func(path string) {
		name := path[strings.LastIndex(path, ".")+1:]
		if !regexp.MustCompile(`(?m)^\s*`+name+`:`).MatchString(m[1]) && name != "bridgeInterface" {
			t.Errorf("the example of docs/configuration.md lacks %s", path)
		}
		if !strings.Contains(text, "`"+path+"`") && path != "apiVersion" && path != "kind" {
			t.Errorf("docs/configuration.md does not name the flag of %s", path)
		}
	})
}

func fields(t reflect.Type, above string, visit func(path string)) {
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if t.Field(i).Type.Kind() == reflect.Struct {
			fields(t.Field(i).Type, above+name+".", visit)
			continue
		}
		visit(above + name)
	}
}

// TestLinks: what the documents link to exists.
func TestLinks(t *testing.T) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(documents, "../README.md", "../CHANGELOG.md") {
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`).FindAllStringSubmatch(read(t, d), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(d), m[1])); err != nil {
				t.Errorf("%s links to %s, which does not exist", d, m[1])
			}
		}
	}
}
