package dockerfile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Error is what is wrong in a Dockerfile, with the place and a way out.
type Error struct {
	// Pos is where; Line 0 means the file as a whole, Column 0 the whole line.
	Pos Position
	// Width is the number of bytes to underline, at least 1 when Column is set.
	Width int
	// Line is the source line at Pos without its newline, "" when not known.
	Line    string
	Message string
	// Hint says what to do about it, "" for none.
	Hint string
	// Err is the cause, nil for none.
	Err error
}

// Error returns "file:line:col: message", without the parts that are not known.
func (e *Error) Error() string {
	if place := e.Pos.String(); place != "" {
		return place + ": " + e.Message
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// String returns "file:line:col" without the parts that are not known, "" for
// the zero Position.
func (p Position) String() string {
	s := p.File
	for _, n := range []int{p.Line, p.Column} {
		if n <= 0 {
			break
		}
		if s != "" {
			s += ":"
		}
		s += strconv.Itoa(n)
	}
	return s
}

// Render returns the error on several lines without a newline at the end: what
// Error says, the source line with the place underlined, and the hint. Control
// characters of the source can't reach a terminal.
func (e *Error) Render() string {
	var b strings.Builder
	b.WriteString(printable(e.Error()))
	if e.Line != "" && e.Pos.Line > 0 {
		number := strconv.Itoa(e.Pos.Line)
		before, marked, after := e.excerpt()
		fmt.Fprintf(&b, "\n  %s | %s%s%s", number, before, marked, after)
		if e.Pos.Column > 0 {
			fmt.Fprintf(&b, "\n  %s | %s%s", strings.Repeat(" ", len(number)), spaces(before),
				strings.Repeat("^", max(1, utf8.RuneCountInString(marked))))
		}
	}
	if e.Hint != "" {
		b.WriteString("\n  hint: " + printable(e.Hint))
	}
	return b.String()
}

// maxExcerptRunes is how much of a line is shown on either side of the marked
// part, and of the marked part itself.
const maxExcerptRunes = 80

// excerpt splits the line at the marked part and shortens the pieces.
func (e *Error) excerpt() (before, marked, after string) {
	start := min(max(e.Pos.Column-1, 0), len(e.Line))
	end := min(start+max(e.Width, 1), len(e.Line))
	if e.Pos.Column <= 0 {
		end = start
	}
	before, marked, after = printable(e.Line[:start]), printable(e.Line[start:end]), printable(e.Line[end:])
	if r := []rune(before); len(r) > maxExcerptRunes {
		before = "…" + string(r[len(r)-maxExcerptRunes:])
	}
	if r := []rune(marked); len(r) > maxExcerptRunes {
		marked, after = string(r[:maxExcerptRunes]), "…"
	}
	if r := []rune(after); len(r) > maxExcerptRunes {
		after = string(r[:maxExcerptRunes]) + "…"
	}
	return before, marked, after
}

// spaces returns as much white space as s is wide; tabs stay tabs.
func spaces(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, s)
}

// printable replaces what could control a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// Errorf returns an error at a place of the file, with the line quoted. width
// is in bytes; the cause is the operand of a %w in format, if there is one.
func (f *File) Errorf(pos Position, width int, hint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{
		Pos: pos, Width: width, Line: f.line(pos),
		Message: printable(err.Error()), Hint: hint, Err: errors.Unwrap(err),
	}
}

// Quote returns err with the source line added when err is, or wraps, an
// *Error of this file that has none; any other error comes back unchanged.
func (f *File) Quote(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Line == "" && e.Pos.File == f.Name {
		e.Line = f.line(e.Pos)
	}
	return err
}

// line returns the source line at pos, "" when there is none.
func (f *File) line(pos Position) string {
	lines := f.lines
	if lines == nil {
		lines = splitLines(f.Source)
	}
	if pos.File != f.Name || pos.Line < 1 || pos.Line > len(lines) {
		return ""
	}
	return strings.TrimRight(lines[pos.Line-1], "\r")
}

// splitLines returns the lines without their "\n".
func splitLines(source []byte) []string {
	lines := strings.Split(string(source), "\n")
	if n := len(lines); lines[n-1] == "" {
		lines = lines[:n-1]
	}
	return lines
}

// trimSpaceRight removes white space at the end.
func trimSpaceRight(s string) string { return strings.TrimRightFunc(s, unicode.IsSpace) }
