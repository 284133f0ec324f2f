package conformance_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// metrics returns the samples of a metric of the agent on n1, by their labels as they are written.
func (s *stage) metrics(name string) (map[string]float64, error) {
	status, body, err := s.n1.Get("http://127.0.0.1:10249/metrics", soon)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("metrics: status %d", status)
	}
	out := map[string]float64{}
	for line := range strings.Lines(body) {
		rest, found := strings.CutPrefix(line, name)
		if !found || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		i := strings.LastIndexByte(rest, ' ')
		if out[rest[:i]], err = strconv.ParseFloat(strings.TrimSpace(rest[i:]), 64); err != nil {
			return nil, fmt.Errorf("metric %q: %w", strings.TrimSpace(line), err)
		}
	}
	return out, nil
}

// part is the label of the rules of a family.
func part(f cluster.Family) string { return fmt.Sprintf(`{part="rules-%s"}`, f) }
