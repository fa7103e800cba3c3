// Package ttyprogress turns progress events into a picture on a terminal that is
// drawn over while they come.
//
// A Model is events and what they come to, a Frame is its picture at one moment
// for one size of terminal; both are plain values. Display is the thin part that
// owns the terminal.
package ttyprogress

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/mstage/mstage/engine/progress"
)

// Model is what is known of the steps so far. Not safe for concurrent use.
type Model struct {
	// Title is what the header says is going on: "Building".
	Title string

	begun    time.Time // of the first event
	steps    []*step   // in order of appearance
	byVertex map[int]*step
	warnings []string
}

// step is one vertex.
type step struct {
	name    string
	started time.Time
	took    time.Duration // when it ended
	state   state
	tail    tail
	items   []*transfer // in order of appearance, the ones that are over left out
}

type state int

const (
	running state = iota
	done
	cached
	failed
	canceled
)

// prefixes stand before the names of steps that ended in a way to be told.
var prefixes = map[state]string{cached: "CACHED ", failed: "ERROR ", canceled: "CANCELED "}

// transfer is one item of a step.
type transfer struct {
	item, status   string
	current, total int64
	started        time.Time
}

// maxTextBytes is how much of a step's name is kept, which can be a whole
// here-document, and of other texts.
const maxTextBytes = 4 << 10

// NewModel returns a model that knows nothing.
func NewModel(title string) *Model {
	return &Model{Title: title, byVertex: map[int]*step{}}
}

// Empty reports whether no event has come.
func (m *Model) Empty() bool { return m.begun.IsZero() }

// Add takes an event. Events of steps that never started are dropped.
func (m *Model) Add(e progress.Event) {
	if m.begun.IsZero() {
		m.begun = e.Time
	}
	if e.Kind == progress.StepStarted {
		s := &step{name: oneLine(e.Name), started: e.Time}
		m.steps, m.byVertex[e.Vertex] = append(m.steps, s), s
		return
	}
	if e.Kind == progress.Warning {
		m.warnings = append(m.warnings, oneLine(place(e)+e.Message))
		return
	}
	s := m.byVertex[e.Vertex]
	if s == nil || s.state != running {
		return
	}
	switch e.Kind {
	case progress.StepOutput:
		s.tail.write(e.Stream, e.Data)
	case progress.StepProgress:
		s.transfer(e)
	case progress.StepDone:
		s.end(e)
	default: // a kind that is newer than this picture
	}
}

// place is "Dockerfile:3: " for an event that has one.
func place(e progress.Event) string {
	if e.Line == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d: ", e.File, e.Line)
}

// oneLine is a text that is no output, on one line.
func oneLine(s string) string {
	return clean(strings.ReplaceAll(s[:min(len(s), maxTextBytes)], "\r", " "))
}

// transfer keeps the state of one item, or forgets it when it is over.
func (s *step) transfer(e progress.Event) {
	over := e.Status == progress.TransferDone || e.Status == progress.TransferExists
	for i, t := range s.items {
		if t.item != e.Item {
			continue
		}
		if over {
			s.items = append(s.items[:i], s.items[i+1:]...)
			return
		}
		t.status, t.current, t.total = e.Status, e.Current, e.Total
		return
	}
	if !over {
		s.items = append(s.items, &transfer{item: e.Item, status: e.Status, current: e.Current, total: e.Total, started: e.Time})
	}
}

// end collapses a step.
func (s *step) end(e progress.Event) {
	s.took = cmp.Or(e.Duration, e.Time.Sub(s.started))
	s.tail, s.items = tail{}, nil
	switch {
	case e.Canceled:
		s.state = canceled
	case e.Error != "":
		s.state = failed
	case e.Cached:
		s.state = cached
	default:
		s.state = done
	}
}

// elapsed is how long a step has been going on, or took.
func (s *step) elapsed(now time.Time) time.Duration {
	if s.state == running {
		return now.Sub(s.started)
	}
	return s.took
}
