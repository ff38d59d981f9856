package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/socketpath"
)

// schema is the version of every JSON document. Fields are only ever added within one version.
const schema = 1

func (a *app) json() bool { return a.output == "json" }

// emit writes a document to standard output.
func (a *app) emit(v any) error { return writeJSON(a.stdout, v) }

// talk writes a line for people to standard error.
func (a *app) talk(format string, args ...any) {
	fmt.Fprintln(a.stderr, clean(fmt.Sprintf(format, args...)))
}

// zcctl is how to call this program for the same daemon, for hints.
func (a *app) zcctl() string {
	if a.socket == socketpath.Default() {
		return "zcctl"
	}
	return "zcctl --socket " + a.socket
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// stamp is a moment in JSON: RFC 3339, or null when the daemon does not know it.
func stamp(unixMilli int64) *time.Time {
	if unixMilli <= 0 {
		return nil
	}
	t := time.UnixMilli(unixMilli).UTC()
	return &t
}

// some is s, or an empty list: JSON lists are never null.
func some[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// clean makes text from elsewhere safe for a terminal: one line, nothing that is not printed.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// cut shortens text to n columns.
func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:max(0, n-3)]) + "..."
}

// span writes a duration for people: 850ms, 12s, 5m, 3h, 4d.
func span(d time.Duration) string {
	switch d = max(0, d); {
	case d > 0 && d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// age is how long ago a moment was; "-" when it is not known.
func age(unixMilli int64) string {
	if unixMilli <= 0 {
		return "-"
	}
	return span(time.Since(time.UnixMilli(unixMilli)).Truncate(time.Second))
}

// grid writes columns for people.
type grid struct {
	tw     *tabwriter.Writer
	indent string
}

func newGrid(w io.Writer, indent string, head ...string) *grid {
	g := &grid{tw: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), indent: indent}
	if len(head) > 0 {
		g.line(head)
	}
	return g
}

func (g *grid) row(cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = clean(fmt.Sprint(c))
	}
	g.line(text)
}

func (g *grid) line(cells []string) { fmt.Fprintln(g.tw, g.indent+strings.Join(cells, "\t")) }

func (g *grid) flush() error { return g.tw.Flush() }

// terminal gives the columns of w; ok is false when it is none.
func terminal(w io.Writer) (columns int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, false
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	if ws.Col == 0 {
		return 80, true
	}
	return int(ws.Col), true
}
