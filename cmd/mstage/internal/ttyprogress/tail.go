package ttyprogress

import "bytes"

// tailLines is how many lines of a running step's output are shown, as docker
// shows.
const tailLines = 6

// maxLineBytes is how much of one line is kept: more than a terminal is wide,
// escape sequences included.
const maxLineBytes = 4 << 10

// tail is the end of a step's output. Most of a flood of output is never looked
// at: a megabyte costs a few searches for line ends, from its end.
type tail struct {
	lines   [][]byte  // at most tailLines, without their ends
	partial [3][]byte // the unfinished line of each stream
}

// write takes output of one stream.
func (t *tail) write(stream int, data []byte) {
	stream %= len(t.partial)
	whole := bytes.LastIndexByte(data, '\n') + 1
	if whole > 0 {
		begin := lastLines(data[:whole], tailLines)
		if begin > 0 {
			t.partial[stream] = t.partial[stream][:0] // the end of a line that scrolled by
		}
		for line := range bytes.Lines(data[begin:whole]) {
			t.extend(stream, line[:len(line)-1])
			t.push(t.partial[stream])
			t.partial[stream] = t.partial[stream][:0]
		}
	}
	t.extend(stream, data[whole:])
}

// lastLines returns where the last n of some whole lines begin.
func lastLines(data []byte, n int) int {
	end := len(data) - 1
	for range n {
		if end = bytes.LastIndexByte(data[:end], '\n'); end < 0 {
			return 0
		}
	}
	return end + 1
}

// extend adds to the unfinished line.
func (t *tail) extend(stream int, data []byte) {
	p := append(t.partial[stream], data...)
	if len(p) > maxLineBytes {
		returned := p[len(p)-1] == '\r' // what comes next replaces the line
		segment := lastSegment(p)
		p = append(p[:0], segment[:min(len(segment), maxLineBytes)]...)
		if returned {
			p = append(p, '\r')
		}
	}
	t.partial[stream] = p
}

// push adds a line that is complete.
func (t *tail) push(line []byte) {
	if len(t.lines) < tailLines {
		t.lines = append(t.lines, append([]byte(nil), line...))
		return
	}
	oldest := t.lines[0]
	copy(t.lines, t.lines[1:])
	t.lines[tailLines-1] = append(oldest[:0], line...)
}

// text returns the last lines, at most tailLines, as a terminal shows them.
func (t *tail) text() []string {
	var lines []string
	for _, line := range t.lines {
		lines = append(lines, clean(string(line)))
	}
	for _, line := range t.partial {
		if len(line) > 0 {
			lines = append(lines, clean(string(line)))
		}
	}
	return lines[max(0, len(lines)-tailLines):]
}
