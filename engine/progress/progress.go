// Package progress defines the events by which the engine tells what it does.
//
// Events are plain data: they cross from the worker to the CLI as JSON lines,
// and `--progress json` prints them unchanged. docs/progress.md documents them.
package progress

import "time"

// Kind says what an Event tells.
type Kind string

// The kinds.
const (
	// StepStarted: Vertex begins. Name is set.
	StepStarted Kind = "step-started"
	// StepOutput: Data is output of Vertex, Stream says of which stream.
	StepOutput Kind = "step-output"
	// StepProgress: a transfer of Vertex moved on; Item, Status, Current and Total
	// are set. Sent a few times a second for each item; the last one of an item
	// has Status TransferDone.
	StepProgress Kind = "step-progress"
	// StepDone: Vertex ended; Cached, Duration, Error and Canceled are set.
	StepDone Kind = "step-done"
	// Warning: Message, and Position when there is one.
	Warning Kind = "warning"
)

// What happens to the Item of a StepProgress.
const (
	TransferDownload = "downloading"
	TransferUnpack   = "extracting"  // after its last byte came
	TransferCompress = "compressing" // into a blob, before it goes out
	TransferUpload   = "pushing"
	TransferExists   = "already exists" // nothing is transferred; the item's only event
	TransferDone     = "done"
)

// Event is one thing that happened. The zero value of a field means that the
// kind has no such field.
type Event struct {
	Kind Kind      `json:"kind"`
	Time time.Time `json:"time"`
	// Vertex numbers the step from 1 in order of first appearance: "#5".
	Vertex int `json:"vertex,omitempty"`
	// Name is the title: "[build 2/4] RUN make".
	Name string `json:"name,omitempty"`
	// Stream is 1 for stdout and 2 for stderr.
	Stream int `json:"stream,omitempty"`
	// Data is output as bytes (base64 in JSON), cut at no particular place.
	Data []byte `json:"data,omitempty"`
	// Item names one transfer of the step: the digest of a blob, of a layer that
	// becomes one, or "archive".
	Item   string `json:"item,omitempty"`
	Status string `json:"status,omitempty"`
	// Current of Total bytes were transferred; Total is 0 when not known.
	Current  int64         `json:"current,omitempty"`
	Total    int64         `json:"total,omitempty"`
	Cached   bool          `json:"cached,omitempty"`
	Duration time.Duration `json:"duration,omitempty"` // nanoseconds
	Error    string        `json:"error,omitempty"`
	// Canceled says that the step was ended from outside: by another one's
	// failure or by the user.
	Canceled bool   `json:"canceled,omitempty"`
	Message  string `json:"message,omitempty"`
	// File and Line are where in the Dockerfile.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
}

// Sink takes events. Safe for concurrent use; it must not block for long.
type Sink interface {
	Send(Event)
}

// SinkFunc is a Sink made of a function.
type SinkFunc func(Event)

// Send calls f.
func (f SinkFunc) Send(e Event) { f(e) }
