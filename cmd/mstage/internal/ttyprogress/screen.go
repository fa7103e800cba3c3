package ttyprogress

import (
	"slices"
	"strconv"
)

// What is said to the terminal. Wrapping is off while a picture is drawn: a
// character that is wider than Unicode says must not shift the lines.
// Source: ECMA-48 and DEC private modes 7 and 25, which every terminal has but "dumb".
const (
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	noWrap     = "\x1b[?7l"
	wrap       = "\x1b[?7h"
	clearLine  = "\x1b[2K"
	clearBelow = "\x1b[J"
	resetStyle = "\x1b[0m"
)

// sgr are docker's colours.
var sgr = map[Style]string{Ended: "\x1b[34m", Failed: "\x1b[31m", Stopped: "\x1b[33m", Log: "\x1b[2m"}

// screen is what was drawn last, and turns the next picture into what has to be
// written. The cursor stands below the picture, in the first column.
type screen struct {
	colour bool
	hidden bool // the cursor
	drawn  []Line
	size   Size // the terminal's when it was drawn
}

// paint appends to b what changes the last picture into lines.
func (s *screen) paint(b []byte, lines []Line, size Size) []byte {
	if !s.hidden {
		b = append(b, hideCursor...)
		s.hidden = true
	}
	b = append(b, noWrap...)
	b = s.home(b, size)
	for i, line := range lines {
		if i >= len(s.drawn) || s.drawn[i] != line {
			b = append(b, clearLine...)
			b = s.text(b, line)
		}
		b = append(b, '\n')
	}
	b = append(b, clearBelow...)
	b = append(b, wrap...)
	s.drawn, s.size = slices.Clone(lines), size
	return b
}

// home goes to the beginning of the last picture. In a terminal of another size
// every line is drawn again: one that became narrower has wrapped them, one that
// became lower has moved the first ones out of sight.
func (s *screen) home(b []byte, size Size) []byte {
	rows := len(s.drawn)
	if size.Columns < s.size.Columns {
		rows = 0
		for _, line := range s.drawn {
			rows += max(1, (cellsIn(line.Text)+size.Columns-1)/size.Columns)
		}
	}
	b = append(b, '\r')
	if rows > 0 {
		b = append(b, "\x1b["...)
		b = strconv.AppendInt(b, int64(rows), 10)
		b = append(b, 'A')
	}
	if size != s.size {
		b = append(b, clearBelow...)
		s.drawn = nil
	}
	return b
}

// text appends one line in its style.
func (s *screen) text(b []byte, line Line) []byte {
	style := sgr[line.Style]
	if !s.colour || style == "" {
		return append(b, line.Text...)
	}
	b = append(b, style...)
	b = append(b, line.Text...)
	return append(b, resetStyle...)
}

// leave appends what gives the cursor back. The next picture begins where the
// cursor is then.
func (s *screen) leave(b []byte) []byte {
	if s.hidden {
		b = append(b, showCursor...)
	}
	s.hidden, s.drawn, s.size = false, nil, Size{}
	return b
}
