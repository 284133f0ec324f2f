package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A printer writes the demo's text. Colours are for terminals.
type printer struct {
	mu     sync.Mutex // guards the fields below
	w      io.Writer
	colour bool
	muted  bool
	err    error
	step   int
}

func newPrinter(f *os.File) *printer {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &printer{w: f, colour: err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// The text attributes that are used, as ECMA-48 has them.
const (
	bold  = "1"
	dim   = "2"
	green = "32"
)

func (p *printer) paint(attribute, text string) string {
	if !p.colour {
		return text
	}
	return "\x1b[" + attribute + "m" + text + "\x1b[0m"
}

// line writes a line, unless the printer is muted. The first error stays, see failed.
func (p *printer) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.muted || p.err != nil {
		return
	}
	_, p.err = fmt.Fprintln(p.w, text)
}

// mute drops everything that is written from now on.
func (p *printer) mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted = true
}

// unmute undoes mute.
func (p *printer) unmute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted = false
}

// failed returns the first error of writing.
func (p *printer) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// title begins the next step.
func (p *printer) title(text string) {
	p.step++
	p.line("")
	p.line(p.paint(bold, fmt.Sprintf("%d  %s", p.step, text)))
}

// command shows a prompt with a command, and what that printed.
func (p *printer) command(prompt, command, output string) {
	p.line("   " + p.paint(dim, prompt+" ") + command)
	p.indented("     ", output)
}

// fact says what was found to hold.
func (p *printer) fact(format string, args ...any) {
	p.line("   " + p.paint(green, "→") + " " + fmt.Sprintf(format, args...))
}

// text writes lines of plain text.
func (p *printer) text(format string, args ...any) {
	p.indented("   ", fmt.Sprintf(format, args...))
}

func (p *printer) indented(by, text string) {
	for line := range strings.Lines(text) {
		p.line(strings.TrimRight(by+line, " \n"))
	}
}
