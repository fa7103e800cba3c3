package ttyprogress

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/progress"
)

// begin is when everything in these tests begins.
var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(tenths int) time.Time { return begin.Add(time.Duration(tenths) * 100 * time.Millisecond) }

func started(vertex, tenths int, name string) progress.Event {
	return progress.Event{Kind: progress.StepStarted, Time: at(tenths), Vertex: vertex, Name: name}
}

func output(vertex int, data string) progress.Event {
	return progress.Event{Kind: progress.StepOutput, Time: begin, Vertex: vertex, Stream: 1, Data: []byte(data)}
}

func moved(vertex, tenths int, item, status string, current, total int64) progress.Event {
	return progress.Event{Kind: progress.StepProgress, Time: at(tenths), Vertex: vertex, Item: item, Status: status, Current: current, Total: total}
}

func ended(vertex, tenths int, e progress.Event) progress.Event {
	e.Kind, e.Vertex, e.Time = progress.StepDone, vertex, at(tenths)
	return e
}

// numbered is lines "line 1" to "line n".
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line %d\n", i+1)
	}
	return b.String()
}

const blob = "sha256:ab12cd34ef56ab12cd34ef56ab12cd34ef56ab12cd34ef56ab12cd34ef56ab12"

// modelOf returns what is known after events.
func modelOf(events ...progress.Event) *Model {
	m := NewModel("Building")
	for _, e := range events {
		m.Add(e)
	}
	return m
}

// marks stand for styles in the pictures below.
var marks = map[Style]string{Plain: " ", Ended: "✓", Failed: "✗", Stopped: "-", Log: "|"}

// draw writes a picture as text: a mark for the style, then the line.
func draw(lines []Line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(marks[l.Style] + l.Text + "\n")
	}
	return b.String()
}

func TestAFrameShowsWhatGoesOn(t *testing.T) {
	parallel := []progress.Event{
		started(1, 0, "[build 1/3] FROM busybox"), ended(1, 0, progress.Event{Cached: true}),
		started(2, 0, "[build 2/3] RUN make"), output(2, numbered(8)),
		started(3, 1, "[docs 1/2] FROM busybox"), ended(3, 3, progress.Event{Cached: true}),
		started(4, 2, "[docs 2/2] RUN mkdocs"), output(4, "\x1b[32mreading\x1b[0m\n10%\r20%"),
	}
	cases := map[string]struct {
		events []progress.Event
		size   Size
		now    int
		want   string
	}{
		"steps side by side": {parallel, Size{40, 24}, 123, `
 [+] Building 12.3s (2/4)
✓ => CACHED [build 1/3] FROM busybox 0.0s
  => [build 2/3] RUN make           12.3s
| => => # line 3
| => => # line 4
| => => # line 5
| => => # line 6
| => => # line 7
| => => # line 8
✓ => CACHED [docs 1/2] FROM busybox  0.2s
  => [docs 2/2] RUN mkdocs          12.1s
| => => # reading
| => => # 20%
`},
		"fewer rows: the logs share what there is": {parallel, Size{40, 9}, 20, `
 [+] Building 2.0s (2/4)
  => [build 2/3] RUN make            2.0s
| => => # line 6
| => => # line 7
| => => # line 8
  => [docs 2/2] RUN mkdocs           1.8s
| => => # reading
| => => # 20%
`},
		"a few more: the latest that is over has room": {parallel, Size{40, 13}, 20, `
 [+] Building 2.0s (2/4)
  => [build 2/3] RUN make            2.0s
| => => # line 3
| => => # line 4
| => => # line 5
| => => # line 6
| => => # line 7
| => => # line 8
✓ => CACHED [docs 1/2] FROM busybox  0.2s
  => [docs 2/2] RUN mkdocs           1.8s
| => => # reading
| => => # 20%
`},
		"hardly any": {parallel, Size{20, 5}, 20, `
 [+] 2.0s (2/4)
  => [build 2/3… 2.0s
| => => # line 8
  => [docs 2/2]… 1.8s
`},
		"less than there are steps": {parallel, Size{20, 3}, 20, "\n [+] 2.0s (2/4)\n  => [docs 2/2]… 1.8s\n"},
		"two rows":                  {parallel, Size{20, 2}, 20, "\n [+] 2.0s (2/4)\n"},
		"one row":                   {parallel, Size{20, 1}, 20, "\n [+] 2.0s (2/4)\n"},
		"too narrow for times":      {parallel[:3], Size{12, 24}, 20, "\n [+] 2.0s (1…\n✓ => CACHED …\n  => [build …\n"},
		"one column":                {parallel[:3], Size{1, 24}, 20, "\n …\n✓…\n …\n"},
		"steps that came to nothing": {[]progress.Event{started(1, 0, "a"), started(2, 0, "b"), started(3, 0, "c"), ended(2, 10, progress.Event{Error: "exit code: 1"}), ended(1, 11, progress.Event{Error: "exit code: 1", Canceled: true}), ended(3, 12, progress.Event{Duration: 700 * time.Millisecond})}, Size{29, 24}, 12, `
 [+] Building 1.2s (1/3)
- => CANCELED a           1.1s
✗ => ERROR b              1.0s
✓ => c                    0.7s
`},
		"a failed step stays in sight": {[]progress.Event{started(1, 0, "a"), ended(1, 1, progress.Event{Error: "x"}), started(2, 0, "b"), ended(2, 1, progress.Event{}), started(3, 0, "c"), ended(3, 1, progress.Event{})}, Size{29, 4}, 12, `
 [+] Building 1.2s (2/3)
✗ => ERROR a              0.1s
✓ => c                    0.1s
`},
		"a log collapses when its step is over": {append(parallel[:4:4], ended(2, 5, progress.Event{Duration: time.Second})), Size{40, 24}, 20, `
 [+] Building 2.0s (2/2)
✓ => CACHED [build 1/3] FROM busybox 0.0s
✓ => [build 2/3] RUN make            1.0s
`},
		"transfers": {[]progress.Event{
			started(1, 0, "[1/2] FROM debian"),
			moved(1, 1, blob, progress.TransferDownload, 12_580_000, 40_130_000),
			moved(1, 2, "sha256:done", progress.TransferDownload, 5, 10), moved(1, 3, "sha256:done", progress.TransferDone, 10, 10),
			moved(1, 3, "sha256:there", progress.TransferExists, 0, 0),
			moved(1, 4, "sha256:unpacked", progress.TransferDownload, 999, 1000), moved(1, 5, "sha256:unpacked", progress.TransferUnpack, 1000, 1000),
			moved(1, 6, "sha256:pushed", progress.TransferUpload, 2_500_000_000, 0), moved(1, 6, "config", "signing\x1b[2J", 0, 0),
			output(1, "text\n"),
		}, Size{59, 24}, 13, `
 [+] Building 1.3s (0/1)
  => [1/2] FROM debian                                  1.3s
  => => sha256:ab12cd34ef56… 12.58MB / 40.13MB          1.2s
  => => extracting sha256:unpacked 1.00kB / 1.00kB      0.9s
  => => pushing sha256:pushed 2.50GB                    0.7s
  => => signing config                                  0.7s
| => => # text
`},
		"transfers come before the log when rows are few": {[]progress.Event{
			started(1, 0, "FROM debian"), output(1, numbered(3)), moved(1, 0, "config", progress.TransferDownload, 1, 2),
		}, Size{40, 5}, 10, `
 [+] Building 1.0s (0/1)
  => FROM debian                     1.0s
  => => config 1B / 2B               1.0s
| => => # line 3
`},
		"transfers collapse when the step is over": {[]progress.Event{
			started(1, 0, "FROM debian"), moved(1, 0, "config", progress.TransferDownload, 1, 2), ended(1, 10, progress.Event{}), moved(1, 0, "config", progress.TransferDownload, 2, 2),
		}, Size{40, 5}, 10, "\n [+] Building 1.0s (1/1)\n✓ => FROM debian                     1.0s\n"},
		"a title is one line of text": {[]progress.Event{started(1, 0, "RUN <<EOF\r\n\x1b]0;owned\aecho 日本\rx\nEOF")}, Size{59, 24}, 10, `
 [+] Building 1.0s (0/1)
  => RUN <<EOF  echo 日本 x EOF                         1.0s
`},
		"events of no known step":   {[]progress.Event{started(1, 0, "a"), output(7, "x\n"), moved(7, 0, "x", progress.TransferDownload, 1, 2), ended(7, 1, progress.Event{})}, Size{29, 24}, 10, "\n [+] Building 1.0s (0/1)\n  => a                    1.0s\n"},
		"a clock that was set back": {[]progress.Event{started(1, 10, "a")}, Size{29, 24}, 0, "\n [+] Building 0.0s (0/1)\n  => a                    0.0s\n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got, want := draw(modelOf(c.events...).Frame(c.size, at(c.now))), c.want[1:]; got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestTheLastPictureHasAllStepsAndTheWarnings(t *testing.T) {
	var events []progress.Event
	want := " [+] Building 3.0s (30/31) FINISHED\n"
	for i := range 30 {
		name := fmt.Sprintf("step %d", i+1)
		events = append(events, started(i+1, 0, name), ended(i+1, 5, progress.Event{}))
		want += fmt.Sprintf("✓%-40s0.5s\n", " => "+name)
	}
	events = append(events, started(31, 10, "never done"), output(31, "x\n"),
		progress.Event{Kind: progress.Warning, Message: "odd\x1b[2J", File: "Dockerfile", Line: 4}, progress.Event{Kind: progress.Warning, Message: "more"})
	want += "- => CANCELED never done                 2.0s\n"
	m := modelOf(events...)
	if got := draw(m.Final(44, at(30))); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got, want := draw(m.Warnings()), " \n- 2 warnings:\n  - Dockerfile:4: odd\n  - more\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	one := modelOf(progress.Event{Kind: progress.Warning, Message: "odd"})
	if got, want := draw(append(one.Final(44, at(1)), one.Warnings()...)), " \n- 1 warning:\n  - odd\n"; got != want {
		t.Errorf("a warning and no step: got\n%swant\n%s", got, want)
	}
	if got := modelOf(started(1, 0, "a")).Warnings(); got != nil {
		t.Errorf("no warning: got %v, want none", got)
	}
}

func TestNoFrameIsLargerThanTheTerminal(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		m := NewModel("Building")
		for v := range random.IntN(40) {
			m.Add(started(v, 0, strings.Repeat("日本 step ", random.IntN(30))))
			m.Add(output(v, strings.Repeat("e\u0301\t\x1b[31m語x", random.IntN(40))+"\n"+numbered(random.IntN(10))))
			for i := range random.IntN(5) {
				m.Add(moved(v, 0, fmt.Sprint(blob, i), progress.TransferDownload, 1, 2))
			}
			if random.IntN(2) == 0 {
				m.Add(ended(v, 1, progress.Event{}))
			}
		}
		size := Size{1 + random.IntN(120), 1 + random.IntN(60)}
		lines := m.Frame(size, at(5))
		if len(lines) > max(1, size.Rows-1) {
			t.Fatalf("%v: got %d lines", size, len(lines))
		}
		for _, l := range lines {
			if cellsIn(l.Text) > size.Columns {
				t.Fatalf("%v: got the line %q of %d columns", size, l.Text, cellsIn(l.Text))
			}
		}
	}
}

func BenchmarkAFrameOf100Steps(b *testing.B) {
	m := NewModel("Building")
	for v := range 100 {
		m.Add(started(v, 0, "[stage 1/2] RUN make all and everything"))
		m.Add(output(v, strings.Repeat("\x1b[32mcc\x1b[0m -c main.c -o main.o\n", 10)))
	}
	for b.Loop() {
		m.Frame(Size{120, 60}, at(10))
	}
}
