package main

import (
	"bufio"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mstage/mstage/cmd/mstage/internal/ttyprogress"
	"github.com/mstage/mstage/engine/progress"
)

// ttyOutput shows a picture, and below it what a failure has to tell.
type ttyOutput struct {
	*transcript
	cli     *cli
	display *ttyprogress.Display
	w       io.Writer
	source  []byte
	stray   *strayText
}

// newTTYOutput returns an output on standard error, which is a terminal. What
// workers of engines that are opened from now on print there is shown as warnings,
// until the output ends.
func newTTYOutput(c *cli, o progressOptions) *ttyOutput {
	tty, _ := c.stderr.(*os.File) // or it would be no terminal
	t := &ttyOutput{
		cli: c, transcript: newTranscript(), w: c.stderr, source: o.source,
		display: ttyprogress.New(tty, ttyprogress.Options{Title: o.title, Colour: c.getenv("NO_COLOR") == ""}),
	}
	if stray, err := catchStray(t.display); err == nil { // else it tears the picture, no more
		t.stray, c.workerStderr = stray, stray.in
	}
	return t
}

// Send takes one event.
func (t *ttyOutput) Send(e progress.Event) {
	t.transcript.Send(e)
	t.display.Send(e)
}

// failed leaves the picture and prints the failed step's whole output below it.
func (t *ttyOutput) failed(err error) {
	t.leave()
	t.explain(ttyprogress.Sanitizer(t.w), t.source, err)
	t.close()
}

// finish leaves the picture.
func (t *ttyOutput) finish() {
	t.leave()
	t.close()
}

// leave draws the last picture, when all is said.
func (t *ttyOutput) leave() {
	if t.stray != nil {
		t.cli.workerStderr = nil
		t.stray.close()
	}
	t.display.Close()
}

// strayText is a file whose lines become warnings.
type strayText struct {
	in   *os.File
	done chan struct{}
}

// catchStray returns a file for a worker to write to.
func catchStray(sink progress.Sink) (*strayText, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &strayText{in: in, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer out.Close()
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			text := strings.TrimPrefix(lines.Text(), "mstage: warning: ")
			sink.Send(progress.Event{Kind: progress.Warning, Time: time.Now(), Message: text})
		}
		_, _ = io.Copy(io.Discard, out) // what is no line must not make the writer wait
	}()
	return s, nil
}

// strayWait is how long a process that outlives its worker may keep the file open.
const strayWait = time.Second

// close waits for the last line. The worker must be gone.
func (s *strayText) close() {
	_ = s.in.Close()
	select {
	case <-s.done:
	case <-time.After(strayWait):
	}
}
