package dockerfile

import (
	"sort"
	"strings"
	"unicode"
)

// logical is one instruction with its continued lines joined, as BuildKit's
// parser joins them, and the way back from an offset to a place in the file.
type logical struct {
	file string
	text string
	// segments are the pieces that text is made of, by rising offset.
	segments []segment
	endLine  int
	// keyword is text's part from key; args is where the first byte after the
	// keyword's white space stands.
	key, args int
}

// segment says where a piece of a logical line stands in the file.
type segment struct{ offset, line, column int }

// blank are the characters that end a keyword and separate arguments in
// BuildKit's parser.
const blank = "\t\v\f\r "

// joinAt returns the instruction that begins at a line, counted from 1.
// Source: docker/dockerfile reference, "Format" and "escape".
func joinAt(file string, lines []string, line int, escape rune) *logical {
	l := &logical{file: file, endLine: line}
	var b strings.Builder
	for n := line; n >= 1 && n <= len(lines); n++ {
		text := strings.TrimRight(lines[n-1], "\r\n")
		column := 1
		if n == line {
			trimmed := strings.TrimLeftFunc(text, unicode.IsSpace)
			column += len(text) - len(trimmed)
			text = trimmed
		} else if isComment(text) || strings.TrimLeftFunc(text, unicode.IsSpace) == "" {
			continue
		}
		text, continued := cutContinuation(text, byte(escape))
		l.segments = append(l.segments, segment{b.Len(), n, column})
		b.WriteString(text)
		l.endLine = n
		if !continued {
			break
		}
	}
	l.text = b.String()
	l.key, l.args = splitKeyword(l.text, 0)
	return l
}

// cutContinuation removes an escape character at the end of a line. One that
// follows another is no continuation.
func cutContinuation(line string, escape byte) (string, bool) {
	body, ok := strings.CutSuffix(strings.TrimRight(line, " \t"), string(escape))
	if !ok || strings.HasSuffix(body, string(escape)) {
		return line, false
	}
	return body, true
}

// splitKeyword returns the offsets of the first word at or after from, and of
// what follows the blanks after it.
func splitKeyword(text string, from int) (key, args int) {
	key = len(text) - len(strings.TrimLeftFunc(text[from:], unicode.IsSpace))
	end := strings.IndexAny(text[key:], blank)
	if end < 0 {
		return key, len(text)
	}
	end += key
	return key, len(text) - len(strings.TrimLeft(text[end:], blank))
}

// word returns the word at an offset: up to the next white space.
func (l *logical) word(offset int) string {
	rest := l.text[min(offset, len(l.text)):]
	if end := strings.IndexFunc(rest, unicode.IsSpace); end >= 0 {
		return rest[:end]
	}
	return rest
}

// keyword returns the instruction's name as written.
func (l *logical) keyword() string { return l.word(l.key) }

// pos returns the place in the file of an offset in text.
func (l *logical) pos(offset int) Position {
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].offset > offset }) - 1
	if i < 0 {
		return Position{File: l.file}
	}
	s := l.segments[i]
	return Position{File: l.file, Line: s.line, Column: s.column + offset - s.offset, EndLine: l.endLine}
}

// trigger returns the line as seen from the instruction after ONBUILD.
func (l *logical) trigger() *logical {
	t := *l
	t.key, t.args = splitKeyword(l.text, l.args)
	return &t
}

// flagSpan is one --name[=value] between the keyword and the arguments.
type flagSpan struct {
	// offset and end delimit the flag in the text, value is where the text after
	// "=" begins (the end without one).
	offset, end, value int
	name               string // "--from"
}

// flags finds the flags. rest is the offset of the first argument. Quotes and
// escapes are BuildKit's: both hide white space.
func (l *logical) flags(escape rune) (found []flagSpan, rest int) {
	pos := l.args
	for {
		pos = len(l.text) - len(strings.TrimLeftFunc(l.text[pos:], unicode.IsSpace))
		if !strings.HasPrefix(l.text[pos:], "--") {
			return found, pos
		}
		end := wordEnd(l.text, pos, byte(escape))
		raw := l.text[pos:end]
		if raw == "--" {
			return found, len(l.text) - len(strings.TrimLeftFunc(l.text[end:], unicode.IsSpace))
		}
		name, _, hasValue := strings.Cut(raw, "=")
		f := flagSpan{offset: pos, end: end, value: end, name: name}
		if hasValue {
			f.value = pos + len(name) + 1
			if f.value+1 < end && strings.ContainsRune(`"'`, rune(l.text[f.value])) {
				f.value++
			}
		}
		found = append(found, f)
		pos = end
	}
}

// wordEnd returns where the word that begins at from ends.
func wordEnd(text string, from int, escape byte) int {
	var quote byte
	for i := from; i < len(text); i++ {
		c := text[i]
		switch {
		case c == escape:
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case unicode.IsSpace(rune(c)):
			return i
		}
	}
	return len(text)
}
