package ttyprogress

import (
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// tabCells is how far apart a terminal's tab stops are.
const tabCells = 8

// emojiSelector asks for the wide form of the character before it, which
// terminals disagree about: without it all draw the narrow one.
const emojiSelector = '\ufe0f'

// escapes leaves out what a terminal would take for a command. The zero value is
// ready; a sequence ends with its line at the latest.
// Source: ECMA-48 5.4 (CSI) and 5.6 (command strings), as xterm reads them.
type escapes struct{ state escapeState }

type escapeState int

const (
	inText       escapeState = iota
	afterEscape              // ESC was read
	inSequence               // ESC [, up to a final byte
	inString                 // ESC ] and its like, up to BEL or ESC \
	stringEscape             // ESC in such a string
)

// columnOne is what keep returns for a sequence that goes back to the first
// column, as "\r" does.
const columnOne = '\r'

// keep returns the characters that r adds to the text: r itself, a space, or -1
// for none. Line ends, carriage returns, tabs and backspaces are the caller's.
func (e *escapes) keep(r rune) rune {
	if r == '\n' {
		e.state = inText
		return r
	}
	switch e.state {
	case afterEscape:
		e.state = afterEscapeIs(r)
		return -1
	case inSequence:
		if r < 0x40 || r > 0x7e { // parameters
			return -1
		}
		e.state = inText
		if r == 'G' { // to a column, which is the first one unless somebody draws pictures
			return columnOne
		}
		return -1
	case inString:
		switch r {
		case '\a':
			e.state = inText
		case '\x1b':
			e.state = stringEscape
		}
		return -1
	case stringEscape:
		e.state = inText // ESC \ ends the string, any other ESC breaks it off
		return -1
	default:
		return e.text(r)
	}
}

// afterEscapeIs returns what the character after ESC begins.
func afterEscapeIs(r rune) escapeState {
	switch {
	case r == '[':
		return inSequence
	case strings.ContainsRune("]PX^_", r):
		return inString
	case r == '\x1b' || r >= 0x20 && r <= 0x2f: // intermediate bytes
		return afterEscape
	default:
		return inText
	}
}

// text returns what a character outside of sequences stands for.
func (e *escapes) text(r rune) rune {
	switch {
	case r == '\x1b':
		e.state = afterEscape
		return -1
	case r == '\r' || r == '\t' || r == '\b':
		return r
	case r == emojiSelector:
		return -1
	case unicode.IsPrint(r):
		return r
	case unicode.Is(unicode.Zs, r):
		return ' '
	default:
		return -1
	}
}

// clean returns a line as a terminal would end up showing it: without escape
// sequences, tabs as spaces, what stands after the last carriage return only.
// Line ends within it are spaces.
func clean(line string) string {
	line = lastSegment(line)
	if isPlain(line) {
		return line
	}
	var e escapes
	var out []rune
	cells := 0
	for _, r := range line {
		switch r = e.keep(r); r {
		case -1:
		case columnOne:
			out, cells = out[:0], 0
		case '\b':
			if len(out) > 0 {
				cells -= cellsOf(out[len(out)-1])
				out = out[:len(out)-1]
			}
		case '\t':
			for first := true; first || cells%tabCells != 0; first = false {
				out = append(out, ' ')
				cells++
			}
		case '\n':
			out, cells = append(out, ' '), cells+1
		default:
			out, cells = append(out, r), cells+cellsOf(r)
		}
	}
	return string(out)
}

// lastSegment returns what stands after the last carriage return, the ones at
// the end aside.
func lastSegment[T string | []byte](line T) T {
	end := len(line)
	for end > 0 && line[end-1] == '\r' {
		end--
	}
	begin := end
	for begin > 0 && line[begin-1] != '\r' {
		begin--
	}
	return line[begin:end]
}

// isPlain reports whether a line is printable ASCII, as most are.
func isPlain(line string) bool {
	for i := range len(line) {
		if line[i] < 0x20 || line[i] > 0x7e {
			return false
		}
	}
	return true
}

// cellsOf returns how many columns a printable character takes: 0, 1 or 2.
// Source: Unicode Standard Annex 11; marks take the column of what they mark.
func cellsOf(r rune) int {
	if r < 0x300 {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	default:
		return 1
	}
}

// cellsIn returns how many columns a cleaned text takes.
func cellsIn(text string) int {
	n := 0
	for _, r := range text {
		n += cellsOf(r)
	}
	return n
}

// clip shortens a cleaned text to at most the given columns. What is cut off is
// marked by "…".
func clip(text string, columns int) string {
	if columns <= 0 {
		return ""
	}
	cells, fits := 0, 0 // fits is where "…" would have to stand
	for i, r := range text {
		n := cellsOf(r)
		if cells+n > columns {
			return text[:fits] + "…"
		}
		cells += n
		if cells < columns {
			fits = i + utf8.RuneLen(r)
		}
	}
	return text
}

// Sanitizer returns a writer that hands on to w what is written to it without
// the commands to a terminal in it. Line ends, tabs and carriage returns stay.
func Sanitizer(w io.Writer) io.Writer { return &sanitizer{w: w} }

type sanitizer struct {
	w       io.Writer
	escapes escapes
	cut     []byte // a character that is not complete
	out     []byte
}

// Write implements io.Writer.
func (s *sanitizer) Write(b []byte) (int, error) {
	s.out = s.out[:0]
	rest := append(s.cut, b...)
	for len(rest) > 0 && utf8.FullRune(rest) {
		r, size := utf8.DecodeRune(rest)
		rest = rest[size:]
		switch r = s.escapes.keep(r); r {
		case -1, '\b':
		default:
			s.out = utf8.AppendRune(s.out, r)
		}
	}
	s.cut = append([]byte(nil), rest...)
	if _, err := s.w.Write(s.out); err != nil {
		return 0, err
	}
	return len(b), nil
}
