package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
)

// start is when everything in these tests begins.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const source = "FROM a\n# one\nRUN make\n# two\n# three\n"

// show prints events as a progress mode does.
func show(t *testing.T, mode string, events ...progress.Event) (string, progressOutput) {
	t.Helper()
	b, out := outputOf(t, mode)
	for _, e := range events {
		out.Send(e)
	}
	return b.String(), out
}

// outputOf returns the output of a progress mode and where it writes to.
func outputOf(t *testing.T, mode string) (*bytes.Buffer, progressOutput) {
	t.Helper()
	var b bytes.Buffer
	c := cliWith(nil)
	c.stderr = &b
	out, err := c.newProgress(progressOptions{mode: mode, title: "Building", source: []byte(source)})
	if err != nil {
		t.Fatal(err)
	}
	return &b, out
}

func started(vertex int, name string) progress.Event {
	return progress.Event{Kind: progress.StepStarted, Time: start, Vertex: vertex, Name: name, File: "Dockerfile", Line: 3}
}

func output(vertex int, after time.Duration, stream int, data string) progress.Event {
	return progress.Event{Kind: progress.StepOutput, Time: start.Add(after), Vertex: vertex, Stream: stream, Data: []byte(data)}
}

func done(vertex int, e progress.Event) progress.Event {
	e.Kind, e.Vertex, e.Time = progress.StepDone, vertex, start.Add(2*time.Second)
	return e
}

func TestPlainProgressIsAsDockers(t *testing.T) {
	cases := map[string]struct {
		events []progress.Event
		want   string
	}{
		"a step": {
			[]progress.Event{started(1, "[1/2] RUN make"), output(1, 1500*time.Millisecond, 1, "hello\n"), done(1, progress.Event{Duration: 2 * time.Second})},
			"#1 [1/2] RUN make\n#1 1.500 hello\n#1 DONE 2.0s\n",
		},
		"a cached step":            {[]progress.Event{started(1, "[1/2] RUN make"), done(1, progress.Event{Cached: true})}, "#1 [1/2] RUN make\n#1 CACHED\n"},
		"a step that failed":       {[]progress.Event{started(1, "x"), done(1, progress.Event{Error: "exit code: 1"})}, "#1 x\n#1 ERROR: exit code: 1\n"},
		"a step that was canceled": {[]progress.Event{started(1, "x"), done(1, progress.Event{Error: "other", Canceled: true})}, "#1 x\n#1 CANCELED\n"},
		"lines that come in pieces": {
			[]progress.Event{started(1, "x"), output(1, 0, 1, "one\ntw"), output(1, time.Second, 2, "err"), output(1, time.Second, 1, "o\r\n\nlast"), done(1, progress.Event{})},
			"#1 x\n#1 0.000 one\n#1 1.000 two\n#1 1.000 \n#1 2.000 last\n#1 2.000 err\n#1 DONE 0.0s\n",
		},
		"steps by turns": {
			[]progress.Event{started(1, "a"), started(2, "b"), output(1, 0, 1, "1\n"), output(2, 0, 1, "2\n"), done(2, progress.Event{}), done(1, progress.Event{})},
			"#1 a\n\n#2 b\n\n#1 a\n#1 0.000 1\n\n#2 b\n#2 0.000 2\n#2 DONE 0.0s\n\n#1 a\n#1 DONE 0.0s\n",
		},
		"a warning with its place":      {[]progress.Event{{Kind: progress.Warning, Message: "odd", File: "Dockerfile", Line: 4}, {Kind: progress.Warning, Message: "more"}}, "WARNING: Dockerfile:4: odd\nWARNING: more\n"},
		"a title can't move the cursor": {[]progress.Event{started(1, "RUN \x1b[2J")}, "#1 RUN \\x1b[2J\n"},
		"an event of no known step":     {[]progress.Event{output(7, 0, 1, "x\n"), done(7, progress.Event{})}, ""},
		"a stream of no known number":   {[]progress.Event{started(1, "x"), output(1, 0, 5, "y\n")}, "#1 x\n#1 0.000 y\n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got, _ := show(t, "plain", c.events...); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestALogIsNeverClippedButItsRepetitionIs(t *testing.T) {
	line := strings.Repeat("x", 99) + "\n"
	events := []progress.Event{started(1, "x")}
	for range 5000 {
		events = append(events, output(1, 0, 1, line))
	}
	b, out := outputOf(t, "auto")
	for _, e := range events {
		out.Send(e)
	}
	if got := strings.Count(b.String(), line); got != 5000 {
		t.Errorf("got %d lines, want 5000", got)
	}
	b.Reset()
	out.failed(&worker.Failure{Vertex: 1})
	if got := b.String(); !strings.Contains(got, "[earlier output stands above]") || len(got) < keptBytes || len(got) > 3*keptBytes {
		t.Errorf("got %d bytes again, want the end of the log", len(got))
	}
}

func TestAFailureRepeatsTheOutputAndShowsTheLine(t *testing.T) {
	events := []progress.Event{started(1, "[1/1] RUN make"), output(1, 0, 2, "oh no"), done(1, progress.Event{Error: "exit code: 1"})}
	const want = "------\n > [1/1] RUN make:\noh no\n------\n   1 |     FROM a\n   2 |     # one\n   3 | >>> RUN make\n   4 |     # two\n   5 |     # three\n"
	for _, mode := range []string{"plain", "quiet"} {
		b, out := outputOf(t, mode)
		for _, e := range events {
			out.Send(e)
		}
		if mode == "quiet" && b.Len() > 0 {
			t.Errorf("quiet: got %q before the failure, want nothing", b.String())
		}
		b.Reset()
		out.failed(&worker.Failure{Message: "m", Code: engine.ExitRun, Vertex: 1})
		if b.String() != want {
			t.Errorf("%s: got\n%s\nwant\n%s", mode, b.String(), want)
		}
		b.Reset()
		out.failed(&worker.Failure{Message: "m"})
		if b.Len() != 0 {
			t.Errorf("%s: a failure of no step: got %q, want nothing", mode, b.String())
		}
	}
}

func TestJSONProgressIsOneEventOnALine(t *testing.T) {
	want := []progress.Event{started(1, "x"), output(1, time.Second, 2, "\xff\n"), done(1, progress.Event{Canceled: true, Error: "e"})}
	got, out := show(t, "json", want...)
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != len(want) {
		t.Fatalf("got %d lines, want %d", len(lines), len(want))
	}
	for i, line := range lines {
		var e progress.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Kind != want[i].Kind || e.Vertex != 1 || !bytes.Equal(e.Data, want[i].Data) || e.Canceled != want[i].Canceled {
			t.Errorf("line %d: got %s, %v, want %+v", i, line, err, want[i])
		}
	}
	out.failed(&worker.Failure{Vertex: 1})
	out.finish()
}

func TestTheFlagThenTheEnvironmentChoosesTheProgress(t *testing.T) {
	cases := map[string]struct {
		env  map[string]string
		o    progressOptions
		want string // the type, or a part of the message
	}{
		"nothing":                             {nil, progressOptions{}, "*main.plainOutput"},
		"the flag":                            {nil, progressOptions{mode: "json"}, "*main.jsonOutput"},
		"docker's word":                       {nil, progressOptions{mode: "rawjson"}, "*main.jsonOutput"},
		"our variable":                        {map[string]string{"MSTAGE_PROGRESS": "json", "BUILDKIT_PROGRESS": "quiet"}, progressOptions{}, "*main.jsonOutput"},
		"docker's variable":                   {map[string]string{"BUILDKIT_PROGRESS": "quiet"}, progressOptions{}, "*main.quietOutput"},
		"an empty variable":                   {map[string]string{"MSTAGE_PROGRESS": "", "BUILDKIT_PROGRESS": "quiet"}, progressOptions{}, "*main.quietOutput"},
		"the flag wins":                       {map[string]string{"MSTAGE_PROGRESS": "fancy"}, progressOptions{mode: "plain"}, "*main.plainOutput"},
		"-q wins":                             {map[string]string{"MSTAGE_PROGRESS": "fancy"}, progressOptions{mode: "tty", quiet: true}, "*main.quietOutput"},
		"an unknown word":                     {nil, progressOptions{mode: "fancy"}, "--progress fancy"},
		"an unknown word in a variable":       {map[string]string{"BUILDKIT_PROGRESS": "fancy"}, progressOptions{}, "BUILDKIT_PROGRESS fancy"},
		"tty without a terminal":              {nil, progressOptions{mode: "tty"}, "--progress tty: standard error is not a terminal"},
		"tty in a variable and no terminal":   {map[string]string{"MSTAGE_PROGRESS": "tty"}, progressOptions{}, "MSTAGE_PROGRESS tty: standard error is not a terminal"},
		"auto in a variable and no terminal":  {map[string]string{"BUILDKIT_PROGRESS": "auto"}, progressOptions{}, "*main.plainOutput"},
		"the flag asks for what the rest has": {map[string]string{"MSTAGE_PROGRESS": "json"}, progressOptions{mode: "auto"}, "*main.plainOutput"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			out, err := cliWith(c.env).newProgress(c.o)
			if strings.HasPrefix(c.want, "*") {
				if got := fmt.Sprintf("%T", out); err != nil || got != c.want {
					t.Errorf("got %s, %v, want %s", got, err, c.want)
				}
				return
			}
			wantUsage(t, err, c.want)
		})
	}
}

func TestALineWithoutAnEndIsPrintedInPieces(t *testing.T) {
	var printed bytes.Buffer
	out := &plainOutput{w: &printed, vertices: map[int]*vertexOutput{}}
	out.Send(started(1, "step"))
	piece := strings.Repeat("x", 64<<10)
	for range 3 * maxLineBytes / len(piece) {
		out.Send(output(1, 0, 1, piece))
		if held := out.vertices[1].partial[1].Len(); held >= maxLineBytes {
			t.Fatalf("got %d bytes waiting for the end of the line, want less than %d", held, maxLineBytes)
		}
	}
	out.Send(output(1, 0, 1, "end\nafter\n"))
	if got, want := strings.Count(printed.String(), "x"), 3*maxLineBytes; got != want {
		t.Errorf("got %d bytes of the line, want all %d", got, want)
	}
	if got, want := printed.String()[printed.Len()-len("#1 0.000 end\n#1 0.000 after\n"):], "#1 0.000 end\n#1 0.000 after\n"; got != want {
		t.Errorf("got the end %q, want %q", got, want)
	}
}
