package ttyprogress

import (
	"fmt"
	"strings"
	"time"

	"github.com/mstage/mstage/engine/progress"
)

// Size is a terminal's size in character cells.
type Size struct{ Columns, Rows int }

// Style is what a line is meant to look like.
type Style int

// The styles.
const (
	Plain   Style = iota
	Ended         // a step that is over
	Failed        // a step that failed
	Stopped       // a step that was canceled, and warnings
	Log           // what a step printed
)

// Line is one line of the picture: text without control characters.
type Line struct {
	Text  string
	Style Style
}

// styles are the lines' styles by the step's state.
var styles = map[state]Style{done: Ended, cached: Ended, failed: Failed, canceled: Stopped}

// minTimeColumns is how wide a terminal has to be to show how long steps take.
const minTimeColumns = 16

// Frame is the picture of this moment: at most size.Rows-1 lines, because the
// cursor stands below it, none wider than size.Columns. When there are more
// steps than rows, the ones that run come first, then what they print, then the
// latest of those that are over.
func (m *Model) Frame(size Size, now time.Time) []Line {
	lines := []Line{m.header(size.Columns, now, "")}
	for _, c := range m.choose(size.Rows - len(lines) - 1) {
		lines = append(lines, c.step.line(size.Columns, now))
		lines = append(lines, c.lines(size.Columns, now)...)
	}
	return lines
}

// Final is the picture that stays: every step in one line, however many there
// are. Steps that are not over count as canceled. Without a step there is none.
func (m *Model) Final(columns int, now time.Time) []Line {
	if len(m.steps) == 0 {
		return nil
	}
	lines := []Line{m.header(columns, now, " FINISHED")}
	for _, s := range m.steps {
		if s.state == running {
			s.end(progress.Event{Canceled: true, Time: now})
		}
		lines = append(lines, s.line(columns, now))
	}
	return lines
}

// Warnings is what stands below the last picture, in lines of any width: how
// many warnings there were, and each of them.
func (m *Model) Warnings() []Line {
	if len(m.warnings) == 0 {
		return nil
	}
	count := "1 warning:"
	if len(m.warnings) > 1 {
		count = fmt.Sprintf("%d warnings:", len(m.warnings))
	}
	lines := []Line{{}, {Text: " " + count, Style: Stopped}}
	for _, w := range m.warnings {
		lines = append(lines, Line{Text: " - " + w})
	}
	return lines
}

// header says how long it takes and how many of the known steps are done; what is
// going on, too, where there is room for it.
func (m *Model) header(columns int, now time.Time, end string) Line {
	succeeded := 0
	for _, s := range m.steps {
		if s.state == done || s.state == cached {
			succeeded++
		}
	}
	figures := fmt.Sprintf("%s (%d/%d)", seconds(now.Sub(m.begun)), succeeded, len(m.steps))
	text := "[+] " + m.Title + " " + figures + end
	if cellsIn(text) > columns {
		text = "[+] " + figures
	}
	return Line{Text: clip(text, columns)}
}

// seconds is "12.3s"; a clock that was set back gives none below zero.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", max(d, 0).Seconds()) }

// chosen is a step with how many lines below it are to be shown.
type chosen struct {
	step    *step
	printed []string
	details int // -1: not even the step
}

// choose returns the steps to show in their order, in at most rows lines.
func (m *Model) choose(rows int) []chosen {
	var all, active, over []*chosen
	for _, s := range m.steps {
		c := &chosen{step: s, printed: s.tail.text(), details: -1}
		all = append(all, c)
		if s.state == running || s.state == failed {
			active = append(active, c)
		} else {
			over = append(over, c)
		}
	}
	rows -= showLast(active, rows)
	rows -= shareOut(active, rows)
	showLast(over, rows)
	var shown []chosen
	for _, c := range all {
		if c.details >= 0 {
			shown = append(shown, *c)
		}
	}
	return shown
}

// showLast marks the last steps as shown, at most n, and returns how many.
func showLast(steps []*chosen, n int) int {
	n = min(max(n, 0), len(steps))
	for _, c := range steps[len(steps)-n:] {
		c.details = 0
	}
	return n
}

// shareOut gives the shown steps lines in turn until all have what they want,
// or rows are given out. It returns how many were.
func shareOut(steps []*chosen, rows int) int {
	given := 0
	for again := true; again; {
		again = false
		for _, c := range steps {
			if given < rows && c.details >= 0 && c.details < len(c.step.items)+len(c.printed) {
				c.details++
				given++
				again = true
			}
		}
	}
	return given
}

// line is the step itself: " => [build 2/4] RUN make      1.2s".
func (s *step) line(columns int, now time.Time) Line {
	return Line{timed(" => "+prefixes[s.state]+s.name, columns, s.elapsed(now)), styles[s.state]}
}

// timed puts a time at the right end of a text.
func timed(text string, columns int, d time.Duration) string {
	if columns < minTimeColumns {
		return clip(text, columns)
	}
	right := seconds(d)
	text = clip(text, columns-len(right)-1)
	return text + strings.Repeat(" ", columns-cellsIn(text)-len(right)) + right
}

// lines are the ones below the step: what it transfers, and the end of what it
// printed.
func (c *chosen) lines(columns int, now time.Time) []Line {
	var lines []Line
	for _, t := range c.step.items[:min(c.details, len(c.step.items))] {
		lines = append(lines, Line{Text: timed(" => => "+t.text(), columns, now.Sub(t.started))})
	}
	for _, text := range c.printed[len(c.printed)-min(c.details-len(lines), len(c.printed)):] {
		lines = append(lines, Line{clip(" => => # "+text, columns), Log})
	}
	return lines
}

// shortDigest is how many characters of a digest are shown: the algorithm and 12
// of the rest, as in image IDs.
const shortDigest = len("sha256:") + 12

// text is "sha256:0123456789ab… 12.58MB / 40.13MB", with what happens before it
// unless it is the download.
func (t *transfer) text() string {
	item := oneLine(t.item)
	if len(item) > shortDigest && strings.HasPrefix(item, "sha256:") {
		item = item[:shortDigest] + "…"
	}
	if t.status != progress.TransferDownload {
		item = oneLine(t.status) + " " + item
	}
	switch {
	case t.total > 0:
		return item + " " + byteSize(t.current) + " / " + byteSize(t.total)
	case t.current > 0:
		return item + " " + byteSize(t.current)
	default:
		return item
	}
}

// byteSize is a size with two decimals, so that it doesn't dance: "12.58MB".
func byteSize(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	value := float64(n)
	for _, unit := range []string{"kB", "MB", "GB"} {
		if value /= 1000; value < 1000 {
			return fmt.Sprintf("%.2f%s", value, unit)
		}
	}
	return fmt.Sprintf("%.2fTB", value/1000)
}
