package file

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// An Error tells what is wrong with a file, and where.
type Error struct {
	// File is the path as it was opened.
	File string
	// Line counts from 1; 0 when the file could not be read at all. It is the line of the fault where that is known,
	// else that of the object or document that has it.
	Line int
	// Document counts a file's YAML documents from 1.
	Document int
	Err      error
}

// Error returns "file:line: document N: what".
func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: document %d: %v", e.File, e.Line, e.Document, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

var (
	yamlLine   = regexp.MustCompile(`line (\d+): `)
	wholeError = regexp.MustCompile(`^json: cannot unmarshal (\S+) into Go value of type file\.`)
	typeError  = regexp.MustCompile(`^json: cannot unmarshal (.+) into Go struct field [^.\s]*\.(\S+) of type (\S+)$`)
)

// yamlFault takes the YAML library's error apart: the line within the text (from 1; 0 when it does not say), and the
// message without it. The library reports several faults in one error; the first is enough.
func yamlFault(err error) (line int, msg string) {
	msg = err.Error()
	for _, prefix := range []string{"error converting YAML to JSON: ", "yaml: ", "unmarshal errors:\n"} {
		msg = strings.TrimPrefix(msg, prefix)
	}
	msg, _, _ = strings.Cut(strings.TrimSpace(msg), "\n")
	m := yamlLine.FindStringSubmatchIndex(msg)
	if m == nil {
		return 0, msg
	}
	line, _ = strconv.Atoi(msg[m[2]:m[3]]) // only digits; out of range gives the largest int, which no file has
	return line, strings.TrimSpace(msg[:m[0]] + msg[m[1]:])
}

// typeFault says in the manifest's words what the JSON library says in Go's. field is the last part of the field's
// path, empty when the error is of another sort.
func typeFault(err error) (field string, plain error) {
	if m := wholeError.FindStringSubmatch(err.Error()); m != nil {
		return "", fmt.Errorf("this is of type %s; an object with apiVersion and kind is wanted", m[1])
	}
	m := typeError.FindStringSubmatch(err.Error())
	if m == nil {
		return "", err
	}
	path := m[2]
	return path[strings.LastIndexByte(path, '.')+1:], fmt.Errorf("%s is of type %s; wanted is %s", path, m[1], wanted(m[3]))
}

func wanted(goType string) string {
	switch {
	case strings.HasPrefix(goType, "int"), strings.HasPrefix(goType, "uint"):
		return "a whole number"
	case goType == "bool":
		return "true or false"
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case goType == "string", strings.HasPrefix(goType, "v1.") && strings.HasSuffix(goType, "Type"):
		return "a string (put it in quotes)"
	}
	return "a " + goType
}
