package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/progress"
)

// transcript keeps all that steps write until they succeed, for outputs that
// don't show it as it comes.
type transcript struct {
	mu    sync.Mutex
	steps map[int]*writtenStep // guarded by mu
}

// writtenStep is one step.
type writtenStep struct {
	name string
	line int

	mu  sync.Mutex
	log fullLog // guarded by mu
}

func newTranscript() *transcript { return &transcript{steps: map[int]*writtenStep{}} }

// Send takes an event.
func (t *transcript) Send(e progress.Event) {
	switch e.Kind {
	case progress.StepStarted:
		t.mu.Lock()
		t.steps[e.Vertex] = &writtenStep{name: e.Name, line: e.Line}
		t.mu.Unlock()
	case progress.StepOutput:
		if s := t.step(e.Vertex); s != nil {
			s.mu.Lock()
			s.log.write(e.Data)
			s.mu.Unlock()
		}
	case progress.StepDone:
		if s := t.step(e.Vertex); s != nil && (e.Error == "" || e.Canceled) {
			s.forget()
		}
	default: // nothing that a step wrote
	}
}

func (t *transcript) step(vertex int) *writtenStep {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.steps[vertex]
}

// explain writes the output of the step that failed and its line to w.
func (t *transcript) explain(w io.Writer, source []byte, err error) {
	f := engine.Describe(err)
	if s := t.step(f.Vertex); s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		explain(w, source, f, failedStep{name: s.name, line: s.line, log: s.log.reader()})
	}
}

// close gives back what is left.
func (t *transcript) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.steps {
		s.forget()
	}
}

func (s *writtenStep) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.forget()
}

const (
	// memoryLogBytes is how much of a log is in memory.
	memoryLogBytes = 1 << 20
	// maxLogBytes is how much of a log is kept from its beginning on: a command
	// that prints in circles must not fill the disk. Nobody reads a gigabyte.
	maxLogBytes = 1 << 30
)

// fullLog is everything that a step wrote. What memory doesn't hold is in a file
// without a name. When there is no room for more of it, what comes between that and
// the last megabyte is missing. The zero value is ready.
type fullLog struct {
	file    *os.File // nil: all is in memory
	inFile  int64    // bytes
	memory  []byte   // what follows the file, after what is missing
	missing int64    // bytes
	why     error    // of what is missing
}

// write adds output.
func (l *fullLog) write(data []byte) {
	l.memory = append(l.memory, data...)
	if len(l.memory) <= memoryLogBytes {
		return
	}
	if l.why == nil {
		l.why = l.spill()
	}
	if surplus := len(l.memory) - memoryLogBytes; surplus > memoryLogBytes {
		l.missing += int64(surplus)
		l.memory = append(l.memory[:0], l.memory[surplus:]...)
	}
}

// spill moves what is in memory to the file.
func (l *fullLog) spill() error {
	if l.inFile+int64(len(l.memory)) > maxLogBytes {
		return fmt.Errorf("more than %d bytes", int64(maxLogBytes))
	}
	if l.file == nil {
		f, err := os.CreateTemp("", "mstage-log-*")
		if err != nil {
			return err
		}
		l.file = f
		if err := os.Remove(f.Name()); err != nil {
			return err
		}
	}
	n, err := l.file.Write(l.memory)
	l.inFile += int64(n)
	l.memory = append(l.memory[:0], l.memory[n:]...)
	return err
}

// reader returns the whole log. It is good until the next write.
func (l *fullLog) reader() io.Reader {
	var parts []io.Reader
	if l.file != nil {
		parts = append(parts, io.NewSectionReader(l.file, 0, l.inFile))
	}
	if l.missing > 0 {
		parts = append(parts, strings.NewReader(fmt.Sprintf("\n[%d bytes are missing here: %v]\n", l.missing, l.why)))
	}
	return io.MultiReader(append(parts, bytes.NewReader(l.memory))...)
}

// forget frees everything.
func (l *fullLog) forget() {
	if l.file != nil {
		_ = l.file.Close() // it has no name; nothing of it is left
	}
	*l = fullLog{}
}
