package file

import (
	"bytes"
	"encoding/json"
	"regexp"

	"sigs.k8s.io/yaml"
)

// A document is one YAML document of a file.
type document struct {
	number int // from 1
	line   int // the line of the file at which text begins, from 1
	text   []byte
	json   bool // it must be JSON
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// split cuts a file into its documents. A line that begins with "---" begins a document wherever it stands (YAML 1.2
// §9.1.2 forbids such a line even within a block scalar), and content after the mark belongs to it.
func split(data []byte) []document {
	data = bytes.TrimPrefix(data, byteOrderMark)
	var docs []document
	begin, beginLine := 0, 1
	end := func(at int) {
		if text := data[begin:at]; !blank(text) {
			docs = append(docs, document{number: len(docs) + 1, line: beginLine, text: text})
		}
	}
	line := 1
	for at := 0; at < len(data); line++ {
		next := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			next = at + i + 1
		}
		if isMark(data[at:next], "---") {
			end(at)
			begin, beginLine = at, line
		}
		at = next
	}
	end(len(data))
	return docs
}

func isMark(line []byte, mark string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(mark))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// blank reports whether a document has nothing but its mark, comments and white space.
func blank(text []byte) bool {
	for i, l := range bytes.Split(text, []byte("\n")) {
		if i == 0 && isMark(l, "---") {
			l = l[len("---"):]
		}
		l = bytes.TrimSpace(l)
		if len(l) > 0 && l[0] != '#' && !isMark(l, "...") {
			return false
		}
	}
	return true
}

// toJSON returns the document as JSON; verbatim is true when it was that already. Repeated keys are refused in YAML. A
// *json.SyntaxError counts its offset in d.text.
func (d document) toJSON() (out []byte, verbatim bool, err error) {
	if d.json || looksLikeJSON(d.text) && json.Valid(d.text) {
		var raw json.RawMessage
		return d.text, true, json.Unmarshal(d.text, &raw)
	}
	out, err = yaml.YAMLToJSONStrict(d.text)
	return out, false, err
}

func looksLikeJSON(text []byte) bool {
	text = bytes.TrimSpace(text)
	return len(text) > 0 && text[0] == '{'
}

// A span is a range of lines of a document, counted from 0: [from, to).
type span struct{ from, to int }

// itemSpans finds the lines of the n entries of a List's items, in the block style that kubectl prints: after the line
// "items:", an entry begins at each line that has a hyphen at the indentation of the first. Nothing within an entry can
// stand at that indentation. For other styles it returns nil, and a fault is reported at the document's line.
func itemSpans(text []byte, n int) []span {
	lines := bytes.Split(text, []byte("\n"))
	var spans []span
	inside, indent := false, -1
	for i, l := range lines {
		content := bytes.TrimLeft(l, " ")
		depth := len(l) - len(content)
		switch {
		case !inside:
			inside = bytes.Equal(bytes.TrimSpace(l), []byte("items:")) && depth == 0
		case isMark(content, "-") && (indent < 0 || depth == indent):
			indent = depth
			spans = append(spans, span{i, len(lines)})
		case depth == 0 && len(bytes.TrimSpace(l)) > 0 && content[0] != '#':
			spans = endSpan(spans, i)
			inside = false
		}
		if k := len(spans); k > 1 && spans[k-1].from == i {
			spans[k-2].to = i
		}
	}
	if len(spans) != n {
		return nil
	}
	return spans
}

func endSpan(spans []span, at int) []span {
	if len(spans) > 0 {
		spans[len(spans)-1].to = at
	}
	return spans
}

// rawSpans finds the entries of a JSON List, which are verbatim parts of it.
func rawSpans(text []byte, items []json.RawMessage) []span {
	var spans []span
	at, line := 0, 0
	for _, raw := range items {
		i := bytes.Index(text[at:], raw)
		if i < 0 {
			return nil
		}
		line += bytes.Count(text[at:at+i], []byte("\n"))
		height := bytes.Count(raw, []byte("\n"))
		spans = append(spans, span{line, line + height + 1})
		at += i + len(raw)
		line += height
	}
	return spans
}

// fieldLine returns the line of a span that has a field, or the span's first line when there are several or none.
func fieldLine(text []byte, s span, field string) int {
	key := regexp.MustCompile(`(^|[\s{,"])` + regexp.QuoteMeta(field) + `"?\s*:`)
	lines := bytes.Split(text, []byte("\n"))
	found, count := s.from, 0
	for i := s.from; i < min(s.to, len(lines)); i++ {
		if n := len(key.FindAllIndex(lines[i], 2)); n > 0 {
			found, count = i, count+n
		}
	}
	if count != 1 {
		return s.from
	}
	return found
}
