package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
)

func TestTheQuietOutputTellsTheWholeLogOfAFailure(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	b, out := outputOf(t, "quiet")
	out.Send(started(1, "first"))
	out.Send(output(1, 0, 1, "of no interest\n"))
	out.Send(done(1, progress.Event{}))
	out.Send(started(2, "[1/1] RUN make"))
	var want strings.Builder
	for i := range 300_000 { // more than memory holds
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		out.Send(output(2, 0, 1+i%2, line))
	}
	out.Send(output(2, 0, 1, "the end"))
	out.Send(done(2, progress.Event{Error: "exit code: 1"}))
	out.failed(&worker.Failure{Message: "m", Rendered: "r", Vertex: 2})
	if got, want := b.String(), "------\n > [1/1] RUN make:\n"+want.String()+"the end\n------\n"; got != want {
		t.Errorf("got %d bytes, %.60q…, want %d, the whole log", len(got), got, len(want))
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestALogThatThereIsNoRoomForIsKeptFromItsEnd(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	var l fullLog
	for i := range 1_000_000 {
		l.write(fmt.Appendf(nil, "line %d\n", i))
	}
	if len(l.memory) > 3*memoryLogBytes {
		t.Errorf("got %d bytes in memory, want about %d", len(l.memory), memoryLogBytes)
	}
	b, err := io.ReadAll(l.reader())
	if err != nil || !bytes.HasSuffix(b, []byte("line 999999\n")) || !bytes.Contains(b, []byte("bytes are missing here: open ")) {
		t.Errorf("got %.200q…, %v, want the end and what is missing", b, err)
	}
}

func TestALogThatSucceededOrWasCanceledIsForgotten(t *testing.T) {
	tr := newTranscript()
	for vertex, e := range map[int]progress.Event{1: {}, 2: {Error: "x", Canceled: true}, 3: {Error: "x"}} {
		tr.Send(started(vertex, "x"))
		tr.Send(output(vertex, time.Second, 1, strings.Repeat("x", 2*memoryLogBytes)))
		tr.Send(done(vertex, e))
		kept := tr.step(vertex).log.file != nil
		if want := vertex == 3; kept != want {
			t.Errorf("step %d: kept %v, want %v", vertex, kept, want)
		}
	}
	tr.close()
	if tr.step(3).log.file != nil {
		t.Error("closed: a log is still there")
	}
}
