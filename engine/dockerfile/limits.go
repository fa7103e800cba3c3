package dockerfile

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// Limits on the text of a Dockerfile.
const (
	// maxSourceBytes bounds the memory of a parse: about 40 bytes of syntax tree
	// for one byte of text. The largest Dockerfiles seen in the field (generated,
	// with embedded files) are below 1 MiB.
	maxSourceBytes = 10 << 20
	// maxLineBytes is the longest line without its newline that BuildKit's
	// scanner takes (bufio.MaxScanTokenSize with the newline).
	maxLineBytes = 64<<10 - 1
	// maxInstructionBytes is the longest instruction, continued lines joined.
	// ONBUILD ONBUILD … recurses once per word in BuildKit's parser.
	maxInstructionBytes = 1 << 20
	// maxDollars is the number of "$" in one text that is expanded: "${a:-${b:-…"
	// recurses once per level in BuildKit's lexer, about 2 KiB of stack each.
	maxDollars = 10_000
	// maxInstructions bounds the nodes of the syntax tree, some 500 bytes each.
	// A line of a here-document counts as well.
	maxInstructions = 200_000
	// maxStages bounds the scopes that a graph holds at once.
	maxStages = 1000
)

// limiter adds up instructions while it is shown the lines of a file. It does
// not know where here-documents begin and end and takes either escape
// character for a continuation, so it counts too much rather than too little.
type limiter struct {
	instructions int
	bytes        int
	dollars      int
	open         bool // the line before was continued
}

// checkLimits returns the error for a text that is too large in any way, or
// whose instructions are not UTF-8: they could not cross to the worker
// unchanged. Comments may hold any bytes.
func (f *File) checkLimits(source []byte) *Error {
	if len(source) > maxSourceBytes {
		return f.Errorf(Position{File: f.Name}, 0, "copy large files with COPY instead of embedding them",
			"%d bytes is more than a Dockerfile may have (%d)", len(source), maxSourceBytes)
	}
	var l limiter
	for i, line := range f.lines {
		pos := Position{File: f.Name, Line: i + 1}
		if len(line) > maxLineBytes {
			return f.Errorf(pos, 0, `break the line with \`, "line of %d bytes is longer than %d", len(line), maxLineBytes)
		}
		if message := l.add(line); message != "" {
			return f.Errorf(pos, 0, "split the instruction, or COPY a script and run that", "%s", message)
		}
		if isComment(line) {
			continue
		}
		if at := badByte(line); at >= 0 {
			pos.Column = at + 1
			return f.Errorf(pos, 1, "save the file as UTF-8", "byte 0x%02x is not UTF-8 text", line[at])
		}
	}
	return nil
}

// add counts one line and returns what is wrong, or "".
func (l *limiter) add(line string) string {
	trimmed := trimSpaceRight(line)
	if isComment(line) || trimmed == "" {
		return ""
	}
	if !l.open {
		*l = limiter{instructions: l.instructions + 1}
	}
	l.bytes += len(line)
	l.dollars += bytes.Count([]byte(line), []byte("$"))
	last := trimmed[len(trimmed)-1]
	l.open = last == '\\' || last == '`'
	switch {
	case l.instructions > maxInstructions:
		return "more instructions than a Dockerfile may have"
	case l.bytes > maxInstructionBytes:
		return "instruction is longer than 1 MiB"
	case l.dollars > maxDollars:
		return "instruction has more than 10000 variables"
	}
	return ""
}

// badByte returns the offset of the first byte that is NUL or not UTF-8, -1
// when there is none.
func badByte(s string) int {
	for i, r := range s {
		if r == 0 {
			return i
		}
		if r != utf8.RuneError {
			continue
		}
		if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
			return i
		}
	}
	return -1
}

// isComment reports whether a line is a comment, as BuildKit's parser sees it.
func isComment(line string) bool {
	for _, r := range line {
		if !unicode.IsSpace(r) {
			return r == '#'
		}
	}
	return false
}
