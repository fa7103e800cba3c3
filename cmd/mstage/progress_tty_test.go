package main

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/integration/vttest"
)

func TestWhatAWorkerPrintsIsAWarning(t *testing.T) {
	var got []string
	s, err := catchStray(progress.SinkFunc(func(e progress.Event) { got = append(got, string(e.Kind)+" "+e.Message) }))
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 1<<20) // no line, and more than a pipe holds
	fmt.Fprint(s.in, "mstage: warning: the store was mended\nlevel=warning\n"+long+"\nlast")
	s.close()
	if want := []string{"warning the store was mended", "warning level=warning"}; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAFailureOnATerminalIsToldBelowThePicture(t *testing.T) {
	control, terminal, err := vttest.OpenPTY(40, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	screen, read := vttest.New(40, 10), make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(screen, control) // ends with EIO when the terminal is closed
	}()
	c := cliWith(map[string]string{"TERM": "xterm"})
	c.stderr = terminal
	out, err := c.newProgress(progressOptions{title: "Building", source: []byte(source)})
	if err != nil {
		t.Fatal(err)
	}
	if c.workerStderr == nil {
		t.Error("workers print on the terminal")
	}
	out.Send(started(1, "[1/1] RUN make"))
	for i := range 20 {
		out.Send(output(1, 0, 1, fmt.Sprintf("\x1b[32mline %d\x1b[0m\n", i)))
	}
	out.Send(done(1, progress.Event{Error: "exit code: 1"}))
	out.failed(&worker.Failure{Message: "m", Vertex: 1})
	terminal.Close()
	<-read
	want := " => ERROR [1/1] RUN make            2.0s\n------\n > [1/1] RUN make:\n"
	for i := range 20 {
		want += fmt.Sprintf("line %d\n", i)
	}
	want += "------\n   1 |     FROM a\n   2 |     # one\n   3 | >>> RUN make\n   4 |     # two\n   5 |     # three"
	if _, got, _ := strings.Cut(screen.Text(), "FINISHED\n"); got != want || screen.CursorHidden || len(screen.Complaints) > 0 {
		t.Errorf("got\n%s\nwant\n%s\ncursor hidden %v, complaints %q", got, want, screen.CursorHidden, screen.Complaints)
	}
}
