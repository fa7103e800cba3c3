package ttyprogress

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestTheTailIsTheLastLines(t *testing.T) {
	type chunk struct {
		stream int
		data   string
	}
	cases := map[string]struct {
		chunks []chunk
		want   []string
	}{
		"nothing":                        {nil, nil},
		"less than there is room for":    {[]chunk{{1, "a\nb\n"}}, []string{"a", "b"}},
		"more":                           {[]chunk{{1, "1\n2\n3\n4\n5\n6\n7\n8\n"}}, []string{"3", "4", "5", "6", "7", "8"}},
		"more, in pieces":                {[]chunk{{1, "1\n2\n3"}, {1, "\n4\n5\n6"}, {1, "\n7\n"}, {1, "8\n"}}, []string{"3", "4", "5", "6", "7", "8"}},
		"a line that is not complete":    {[]chunk{{1, "a\nb"}, {1, "c"}}, []string{"a", "bc"}},
		"it takes a place, too":          {[]chunk{{1, "1\n2\n3\n4\n5\n6\n7"}}, []string{"2", "3", "4", "5", "6", "7"}},
		"streams don't mix within lines": {[]chunk{{1, "out"}, {2, "err"}, {1, "put\n"}, {2, "or\n"}}, []string{"output", "error"}},
		"a flood ends a line before it":  {[]chunk{{1, "never seen"}, {1, strings.Repeat("x\n", 10)}}, []string{"x", "x", "x", "x", "x", "x"}},
		"a first line with its end":      {[]chunk{{1, "be"}, {1, "gin\nb\n"}}, []string{"begin", "b"}},
		"progress":                       {[]chunk{{1, "10%"}, {1, "\r20%"}, {1, "\r"}}, []string{"20%"}},
		"progress, then its line end":    {[]chunk{{1, "10%\r20%\r"}, {1, "\nok"}}, []string{"20%", "ok"}},
		"a stream of no known number":    {[]chunk{{5, "a\n"}}, []string{"a"}},
		"empty lines":                    {[]chunk{{1, "\n\na\n"}}, []string{"", "", "a"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var tail tail
			for _, chunk := range c.chunks {
				tail.write(chunk.stream, []byte(chunk.data))
			}
			if got := tail.text(); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestALineWithoutAnEndTakesLittleMemory(t *testing.T) {
	var tail tail
	for i := range 1000 {
		tail.write(1, bytes.Repeat([]byte("x"), 10_000))
		if i%2 == 1 {
			tail.write(1, fmt.Appendf(nil, "\r%d%%", i/10))
		}
	}
	if got := cap(tail.partial[1]); got > 10*maxLineBytes {
		t.Errorf("got %d bytes kept, want a few times %d at most", got, maxLineBytes)
	}
	if got := tail.text(); len(got) != 1 || !strings.HasPrefix(got[0], "99%") {
		t.Errorf("got %.40q, want what stands after the last carriage return", got)
	}
	tail.write(1, []byte("\r"+strings.Repeat("y", 3*maxLineBytes)+"\r"))
	tail.write(1, []byte("last"))
	if got := tail.text(); len(got) != 1 || got[0] != "last" {
		t.Errorf("got %.40q, want what was written over the long line", got)
	}
}

func BenchmarkAMegabyteOfLines(b *testing.B) {
	data := bytes.Repeat([]byte("compiling one more line\n"), 1<<20/24)
	b.SetBytes(int64(len(data)))
	var tail tail
	for b.Loop() {
		tail.write(1, data)
	}
}
