package ttyprogress

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
)

func TestALineIsShownAsATerminalWouldEndUpShowingIt(t *testing.T) {
	cases := map[string]struct{ line, want string }{
		"plain":                                 {"cc -c main.c", "cc -c main.c"},
		"colours":                               {"\x1b[1;31merror\x1b[0m: no", "error: no"},
		"colours with colons":                   {"\x1b[38:2::1:2:3mx", "x"},
		"a title, ended by BEL":                 {"a\x1b]0;owned\ab", "ab"},
		"a title, ended by ST":                  {"a\x1b]0;owned\x1b\\b", "ab"},
		"a link":                                {"\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\", "text"},
		"a title without an end":                {"a\x1b]0;owned", "a"},
		"a device control string":               {"a\x1bP1$r0m\x1b\\b", "ab"},
		"cursor movements":                      {"a\x1b[2J\x1b[H\x1b[10;10Hb\x1b[1Ac", "abc"},
		"private modes":                         {"\x1b[?1049h\x1b[?25lx", "x"},
		"a sequence without an end":             {"a\x1b[12", "a"},
		"a lone escape":                         {"a\x1b", "a"},
		"a character set":                       {"\x1b(0x\x1b(B", "x"},
		"a reset":                               {"a\x1bcb", "ab"},
		"8-bit controls":                        {"a\u009b2Jb\u0085c", "a2Jbc"},
		"bytes that are no UTF-8":               {"a\x9b\xffb", "a\ufffd\ufffdb"},
		"other controls":                        {"a\x00\a\v\f\x0e\x7fb", "ab"},
		"the last segment of a progress line":   {"10%\r20%\r30%", "30%"},
		"a progress line that returned":         {"10%\r20%\r", "20%"},
		"a line end of another system":          {"text\r", "text"},
		"going to the first column":             {"old\x1b[2K\x1b[1Gnew", "new"},
		"a spinner":                             {"wait |\b/\b-", "wait -"},
		"more backspaces than characters":       {"\b\ba\b\b\bb", "b"},
		"tabs":                                  {"\ta\tbcdefgh\ti", "        a       bcdefgh i"},
		"a tab after wide characters":           {"日本\tx", "日本    x"},
		"a line end within":                     {"a\nb", "a b"},
		"text that would be turned round":       {"a\u202eb\u2066c\u200b", "abc"},
		"an emoji with its selector":            {"\u2764\ufe0f!", "\u2764!"},
		"emoji that are joined":                 {"\U0001f468\u200d\U0001f469", "\U0001f468\U0001f469"},
		"a space that doesn't break":            {"a\u00a0b", "a b"},
		"an escape sequence broken by another":  {"a\x1b\x1b[31mb", "ab"},
		"a sequence in the middle of a segment": {"x\x1b[3\rm", "m"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := clean(c.line); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestTextIsClippedToColumns(t *testing.T) {
	cases := map[string]struct {
		text    string
		columns int
		want    string
	}{
		"shorter":                       {"abc", 4, "abc"},
		"as long":                       {"abcd", 4, "abcd"},
		"longer":                        {"abcde", 4, "abc…"},
		"no room":                       {"abc", 0, ""},
		"less than no room":             {"abc", -3, ""},
		"one column":                    {"abc", 1, "…"},
		"wide characters that fit":      {"日本", 4, "日本"},
		"wide characters":               {"日本語", 5, "日本…"},
		"a wide character at the limit": {"日本語", 4, "日…"},
		"marks take no column":          {"e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"},
		"a mark goes with its letter":   {"abe\u0301de\u0301", 4, "abe\u0301…"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := clip(c.text, c.columns)
			if got != c.want || cellsIn(got) > max(0, c.columns) {
				t.Errorf("got %q of %d columns, want %q", got, cellsIn(got), c.want)
			}
		})
	}
}

func TestASanitizedLogIsWholeButForCommands(t *testing.T) {
	const log = "one\r\n\x1b[31mtw\x1b]0;never ended\nthr\xe6\x97\xa5ee\t\b10%\r20%\n\x1b]0;t\aend\u202e"
	const want = "one\r\ntw\nthr日ee\t10%\r20%\nend"
	for size := 1; size <= len(log); size++ {
		var b bytes.Buffer
		w := Sanitizer(&b)
		for rest := log; rest != ""; rest = rest[min(size, len(rest)):] {
			if n, err := w.Write([]byte(rest[:min(size, len(rest))])); err != nil || n != min(size, len(rest)) {
				t.Fatalf("in pieces of %d: got %d, %v", size, n, err)
			}
		}
		if b.String() != want {
			t.Errorf("in pieces of %d: got %q, want %q", size, b.String(), want)
		}
	}
}

func FuzzCleanTextHasNoCommandsAndFits(f *testing.F) {
	for _, s := range []string{"", "a\x1b[31mb", "\x1b]0;t\a", "日本\t語\r", "e\u0301\ufe0f", "\x9b2J", strings.Repeat("\t", 40)} {
		f.Add(s, 10)
	}
	f.Fuzz(func(t *testing.T, s string, columns int) {
		columns %= 300
		cleaned := clean(s)
		for _, r := range cleaned {
			if !unicode.IsPrint(r) {
				t.Fatalf("got %q of %q", cleaned, s)
			}
		}
		if got := clip(cleaned, columns); cellsIn(got) > max(0, columns) {
			t.Errorf("got %q of %d columns, want at most %d", got, cellsIn(got), columns)
		}
		if got := timed(cleaned, columns, 0); cellsIn(got) > max(0, columns) || columns >= minTimeColumns && cellsIn(got) != columns {
			t.Errorf("got %q of %d columns with a time, want %d", got, cellsIn(got), columns)
		}
	})
}
