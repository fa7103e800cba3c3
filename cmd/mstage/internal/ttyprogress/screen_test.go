package ttyprogress

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/integration/vttest"
)

func lines(texts ...string) []Line {
	var l []Line
	for i, text := range texts {
		l = append(l, Line{text, Style(i % 5)})
	}
	return l
}

func TestPicturesAreDrawnOverEachOther(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	size := Size{Columns: 20, Rows: 10}
	vt := vttest.New(size.Columns, size.Rows)
	fmt.Fprint(vt, "$ mstage build\r\n")
	s := screen{colour: true}
	for range 200 {
		var texts []string
		for range 1 + random.IntN(size.Rows-1) {
			texts = append(texts, strings.Repeat(string(rune('a'+random.IntN(3))), random.IntN(size.Columns)+1))
		}
		// A terminal makes "\r\n" of a line end.
		vt.Write(bytes.ReplaceAll(s.paint(nil, lines(texts...), size), []byte("\n"), []byte("\r\n")))
		if got := vt.Lines(); !slices.Equal(got[len(got)-len(texts):], texts) || got[0] != "$ mstage build" {
			t.Fatalf("got\n%s\nwant\n%s", vt.Text(), strings.Join(texts, "\n"))
		}
		if !vt.CursorHidden || vt.WrapOff {
			t.Fatalf("cursor hidden %v, wrapping off %v", vt.CursorHidden, vt.WrapOff)
		}
	}
	vt.Write(s.leave(nil))
	if vt.CursorHidden || len(vt.Complaints) > 0 {
		t.Errorf("cursor hidden %v, complaints %q", vt.CursorHidden, vt.Complaints)
	}
	if got := s.leave(nil); len(got) > 0 {
		t.Errorf("leaving again: got %q, want nothing", got)
	}
}

func TestOnlyWhatChangedIsWritten(t *testing.T) {
	size := Size{Columns: 20, Rows: 10}
	s := screen{}
	s.paint(nil, lines("a", "b", "c"), size)
	const want = noWrap + "\r\x1b[3A" + "\n" + clearLine + "B\n" + "\n" + clearBelow + wrap
	if got := string(s.paint(nil, lines("a", "B", "c"), size)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAResizedTerminalIsDrawnAnew(t *testing.T) {
	cases := map[string]struct {
		size   Size
		wantUp string
	}{
		"narrower, so that lines were wrapped": {Size{Columns: 7, Rows: 10}, "\x1b[5A"}, // 3 rows, 1, 1
		"wider":                                {Size{Columns: 80, Rows: 10}, "\x1b[3A"},
		"lower":                                {Size{Columns: 20, Rows: 5}, "\x1b[3A"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := screen{}
			picture := lines(strings.Repeat("x", 20), "b", "")
			s.paint(nil, picture, Size{Columns: 20, Rows: 10})
			want := noWrap + "\r" + c.wantUp + clearBelow + clearLine + "y\n" + clearBelow + wrap
			if got := string(s.paint(nil, lines("y"), c.size)); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestStylesAreLeftOutWithoutColour(t *testing.T) {
	for _, colour := range []bool{true, false} {
		vt := vttest.New(20, 10)
		s := screen{colour: colour}
		vt.Write(s.paint(nil, lines("a", "b", "c", "d", "e"), Size{20, 10}))
		if got := len(vt.Styles) > 0; got != colour {
			t.Errorf("colour %v: got styles %q", colour, vt.Styles)
		}
	}
}

func TestADisplayLeavesTheLastPicture(t *testing.T) {
	control, terminal, err := vttest.OpenPTY(40, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	vt := vttest.New(40, 10)
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(vt, control) // ends with EIO when the terminal is closed
	}()
	d := New(terminal, Options{Title: "Building", Colour: true})
	d.Send(started(1, 0, "RUN make"))
	d.Send(output(1, numbered(100)))
	d.Send(ended(1, 5, progress.Event{Duration: 1}))
	d.Send(progress.Event{Kind: progress.Warning, Message: "odd"})
	d.Close()
	d.Close()
	d.Send(progress.Event{Kind: progress.Warning, Message: "late"})
	terminal.Close()
	<-read
	want := []string{"", " => RUN make" + strings.Repeat(" ", 24) + "0.0s", "", " 1 warning:", " - odd"}
	got := vt.Lines()
	if len(got) != len(want) || !strings.HasSuffix(got[0], "(1/1) FINISHED") || !slices.Equal(got[1:], want[1:]) {
		t.Errorf("got\n%s\nwant\n%s", vt.Text(), strings.Join(want, "\n"))
	}
	if vt.CursorHidden || vt.WrapOff || len(vt.Complaints) > 0 {
		t.Errorf("cursor hidden %v, wrapping off %v, complaints %q", vt.CursorHidden, vt.WrapOff, vt.Complaints)
	}
}

func TestADisplayWithoutEventsWritesNothing(t *testing.T) {
	control, terminal, err := vttest.OpenPTY(40, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	New(terminal, Options{Title: "Building"}).Close()
	terminal.Close()
	if got, _ := io.ReadAll(control); len(got) > 0 {
		t.Errorf("got %q, want nothing", got)
	}
}
