// Package vttest turns what is written to a terminal into what stands on its
// screen, for tests.
package vttest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Screen is a terminal of a fixed size. It knows the sequences that mstage may
// send and keeps a complaint about every other. Characters are one cell wide.
type Screen struct {
	Columns, Rows int
	// CursorHidden and WrapOff are the terminal's modes.
	CursorHidden, WrapOff bool
	// Hidden counts how often the cursor was hidden.
	Hidden int
	// Styles are the SGR parameters seen: "31", "0".
	Styles []string
	// Complaints are unknown sequences, and lines that were wider than the
	// terminal while wrapping was off.
	Complaints []string

	scrolled []string // what left the screen at its top
	cells    [][]rune
	row, col int
	rest     []byte // of a character or sequence
}

// New returns an empty screen.
func New(columns, rows int) *Screen {
	s := &Screen{Columns: columns, Rows: rows}
	for range rows {
		s.cells = append(s.cells, nil)
	}
	return s
}

// Write implements io.Writer.
func (s *Screen) Write(b []byte) (int, error) {
	data := append(s.rest, b...)
	for len(data) > 0 {
		n := s.next(data)
		if n == 0 {
			break
		}
		data = data[n:]
	}
	s.rest = slices.Clone(data)
	return len(b), nil
}

// Lines are what scrolled away and what is on the screen, without trailing
// spaces and empty lines.
func (s *Screen) Lines() []string {
	lines := slices.Clone(s.scrolled)
	for _, cells := range s.cells {
		lines = append(lines, strings.TrimRight(string(cells), " "))
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// Text is Lines as one text.
func (s *Screen) Text() string { return strings.Join(s.Lines(), "\n") }

// next handles the first character or sequence and returns its bytes, 0 when it
// is not complete.
func (s *Screen) next(b []byte) int {
	if b[0] == '\x1b' {
		return s.sequence(b)
	}
	if !utf8.FullRune(b) {
		return 0
	}
	r, n := utf8.DecodeRune(b)
	switch {
	case r == '\r':
		s.col = 0
	case r == '\n':
		s.down()
	case r == '\t':
		s.col = min((s.col/8+1)*8, s.Columns-1)
	case r < 0x20 || r == 0x7f || r == utf8.RuneError:
		s.complain("character %q", r)
	default:
		s.put(r)
	}
	return n
}

// put writes a character where the cursor is.
func (s *Screen) put(r rune) {
	if s.col >= s.Columns {
		if s.WrapOff {
			s.complain("line %q is wider than the terminal", string(s.cells[s.row]))
			return
		}
		s.col = 0
		s.down()
	}
	line := s.cells[s.row]
	for len(line) <= s.col {
		line = append(line, ' ')
	}
	line[s.col] = r
	s.cells[s.row] = line
	s.col++
}

func (s *Screen) down() {
	if s.row < s.Rows-1 {
		s.row++
		return
	}
	s.scrolled = append(s.scrolled, strings.TrimRight(string(s.cells[0]), " "))
	s.cells = append(s.cells[1:], nil)
}

// sequence handles ESC [ parameters final.
func (s *Screen) sequence(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	if b[1] != '[' {
		s.complain("sequence ESC %q", b[1])
		return 2
	}
	end := 2
	for end < len(b) && (b[end] < 0x40 || b[end] > 0x7e) {
		end++
	}
	if end == len(b) {
		return 0
	}
	s.control(string(b[2:end]), b[end])
	return end + 1
}

func (s *Screen) control(parameters string, final byte) {
	switch {
	case final == 'A':
		n, err := strconv.Atoi(parameters)
		if err != nil || n > s.row {
			s.complain("the cursor goes up %s from row %d", parameters, s.row)
		}
		s.row = max(0, s.row-n)
	case final == 'K' && parameters == "2":
		s.cells[s.row] = nil
	case final == 'J' && parameters == "":
		s.cells[s.row] = s.cells[s.row][:min(s.col, len(s.cells[s.row]))]
		for i := s.row + 1; i < s.Rows; i++ {
			s.cells[i] = nil
		}
	case final == 'm':
		s.Styles = append(s.Styles, parameters)
	case parameters == "?25" && final == 'l':
		s.CursorHidden = true
		s.Hidden++
	case parameters == "?25" && final == 'h':
		s.CursorHidden = false
	case parameters == "?7" && (final == 'l' || final == 'h'):
		s.WrapOff = final == 'l'
	default:
		s.complain("sequence ESC [ %s %c", parameters, final)
	}
}

func (s *Screen) complain(format string, args ...any) {
	s.Complaints = append(s.Complaints, fmt.Sprintf(format, args...))
}
