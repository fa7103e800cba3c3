package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
)

// progressOutput shows what a command does.
type progressOutput interface {
	progress.Sink
	// failed tells what the step that failed had to say. One of failed and finish
	// is called, once, after the last event.
	failed(err error)
	// finish tells that everything is done.
	finish()
}

// showing does what out shows, and ends out.
func showing(out progressOutput, do func() error) error {
	err := do()
	if err != nil {
		out.failed(err)
		return err
	}
	out.finish()
	return nil
}

// progressFlag describes --progress.
const progressFlag = "auto, tty, plain, json or quiet (default $MSTAGE_PROGRESS, $BUILDKIT_PROGRESS, or auto)"

// progressOptions say how a command shows what it does.
type progressOptions struct {
	mode   string // --progress; "" when it was not given
	quiet  bool   // -q
	title  string // what is going on: "Building"
	source []byte // the Dockerfile, nil where there is none
}

// progressVariables are where --progress comes from when it is not given: ours,
// then the one that docker has.
var progressVariables = []string{"MSTAGE_PROGRESS", "BUILDKIT_PROGRESS"}

// newProgress returns the output that --progress and -q, or the environment, ask
// for.
func (c *cli) newProgress(o progressOptions) (progressOutput, error) {
	mode, from := o.mode, "--progress"
	for _, name := range progressVariables {
		if mode == "" {
			mode, from = c.getenv(name), name
		}
	}
	if o.quiet {
		mode = "quiet"
	}
	switch mode {
	case "auto", "":
		if c.hasPicture() {
			return newTTYOutput(c, o), nil
		}
		return newPlainOutput(c.stderr, o.source), nil
	case "plain":
		return newPlainOutput(c.stderr, o.source), nil
	case "tty":
		if !isTerminal(c.stderr) {
			return nil, &usageError{message: from + " tty: standard error is not a terminal", hint: "auto, plain, json or quiet"}
		}
		return newTTYOutput(c, o), nil
	case "json", "rawjson":
		return &jsonOutput{enc: json.NewEncoder(c.stderr)}, nil
	case "quiet", "none":
		return &quietOutput{transcript: newTranscript(), w: c.stderr, source: o.source}, nil
	default:
		return nil, usagef("%s %s: auto, plain, tty, json or quiet", from, mode)
	}
}

// hasPicture reports whether standard error can show a picture, and nothing
// else: what libraries log would tear it.
func (c *cli) hasPicture() bool {
	return isTerminal(c.stderr) && c.getenv("TERM") != "dumb" && !c.debug
}

// plainOutput prints lines as docker's plain progress does.
type plainOutput struct {
	source []byte

	mu       sync.Mutex
	w        io.Writer             // guarded by mu
	vertices map[int]*vertexOutput // guarded by mu
	current  int                   // guarded by mu: the step whose lines are being printed
}

// keptBytes is how much output of a step is printed again when it fails. The
// rest stands above; it is never clipped there.
const keptBytes = 64 << 10

// maxLineBytes is how long a line is waited for: a longer one is printed in
// pieces, because it may never end.
const maxLineBytes = 1 << 20

func newPlainOutput(w io.Writer, source []byte) *plainOutput {
	return &plainOutput{w: w, source: source, vertices: map[int]*vertexOutput{}}
}

// vertexOutput is one step.
type vertexOutput struct {
	name    string
	line    int
	started time.Time
	partial [3]bytes.Buffer // the unfinished line of each stream
	kept    []byte
	clipped bool
	// told is when a line of each transfer was printed; nil before the first.
	told map[string]time.Time
}

// transferEvery is how often plain lines tell about one transfer that goes on.
const transferEvery = 5 * time.Second

// transfer prints a line when a transfer ends, and now and then before.
func (p *plainOutput) transfer(e progress.Event) {
	v := p.vertices[e.Vertex]
	if v == nil {
		return
	}
	if v.told == nil {
		v.told = map[string]time.Time{}
	}
	last, known := v.told[e.Item]
	if !known {
		v.told[e.Item] = e.Time
	}
	ended := e.Status == progress.TransferDone || e.Status == progress.TransferExists
	if !ended && (!known || e.Time.Sub(last) < transferEvery) {
		return
	}
	v.told[e.Item] = e.Time
	text := fmt.Sprintf("%s %s", printable(e.Item), humanSize(e.Current))
	if e.Total > 0 && e.Current != e.Total {
		text += " / " + humanSize(e.Total)
	}
	p.line(e.Vertex, e.Time, text+" "+e.Status)
}

// Send prints one event.
func (p *plainOutput) Send(e progress.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e.Kind {
	case progress.StepStarted:
		p.vertices[e.Vertex] = &vertexOutput{name: e.Name, line: e.Line, started: e.Time}
		p.header(e.Vertex)
	case progress.StepOutput:
		p.output(e)
	case progress.StepDone:
		p.done(e)
	case progress.Warning:
		fmt.Fprintf(p.w, "WARNING: %s%s\n", place(e), printable(e.Message))
	case progress.StepProgress:
		p.transfer(e)
	default:
	}
}

// place is "Dockerfile:3: " for an event that has one.
func place(e progress.Event) string {
	if e.Line == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d: ", e.File, e.Line)
}

// header says which step the following lines belong to.
func (p *plainOutput) header(n int) {
	if p.current != 0 {
		fmt.Fprintln(p.w)
	}
	p.current = n
	fmt.Fprintf(p.w, "#%d %s\n", n, printable(p.vertices[n].name))
}

// switchTo makes n the step whose lines are printed.
func (p *plainOutput) switchTo(n int) {
	if p.current != n {
		p.header(n)
	}
}

// output prints the lines that are complete.
func (p *plainOutput) output(e progress.Event) {
	v := p.vertices[e.Vertex]
	if v == nil {
		return
	}
	v.keep(e.Data)
	buf := &v.partial[e.Stream%len(v.partial)]
	for part := range bytes.Lines(e.Data) { // what stands in buf was looked through before
		line, whole := bytes.CutSuffix(part, []byte("\n"))
		buf.Write(line)
		if whole || buf.Len() >= maxLineBytes {
			p.line(e.Vertex, e.Time, buf.String())
			buf.Reset()
		}
	}
}

// line prints one line of a step's output with its time.
func (p *plainOutput) line(n int, at time.Time, text string) {
	p.switchTo(n)
	fmt.Fprintf(p.w, "#%d %.3f %s\n", n, at.Sub(p.vertices[n].started).Seconds(), strings.TrimSuffix(text, "\r"))
}

// keep remembers the end of the output.
func (v *vertexOutput) keep(data []byte) {
	v.kept = append(v.kept, data...)
	if len(v.kept) > 2*keptBytes {
		v.kept = append([]byte(nil), v.kept[len(v.kept)-keptBytes:]...)
		v.clipped = true
	}
}

// done prints how a step ended.
func (p *plainOutput) done(e progress.Event) {
	v := p.vertices[e.Vertex]
	if v == nil {
		return
	}
	for i := range v.partial {
		if v.partial[i].Len() > 0 {
			p.line(e.Vertex, e.Time, v.partial[i].String())
			v.partial[i].Reset()
		}
	}
	p.switchTo(e.Vertex)
	switch {
	case e.Canceled:
		fmt.Fprintf(p.w, "#%d CANCELED\n", e.Vertex)
	case e.Error != "":
		fmt.Fprintf(p.w, "#%d ERROR: %s\n", e.Vertex, printable(e.Error))
	case e.Cached:
		fmt.Fprintf(p.w, "#%d CACHED\n", e.Vertex)
	default:
		fmt.Fprintf(p.w, "#%d DONE %.1fs\n", e.Vertex, e.Duration.Seconds())
	}
}

// failed prints the failed step's output again, and its line.
func (p *plainOutput) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := engine.Describe(err)
	v := p.vertices[f.Vertex]
	if v == nil {
		return
	}
	log := bytes.NewReader(v.kept)
	s := failedStep{name: v.name, line: v.line, log: log}
	if v.clipped {
		s.log = io.MultiReader(strings.NewReader("[earlier output stands above]\n"), log)
	}
	explain(p.w, p.source, f, s)
}

// failedStep is what is told again of a step that failed.
type failedStep struct {
	name string
	line int
	log  io.Reader
}

// explain writes the output of the step that failed and its line to w. A failure
// that comes with its line and without output says it all itself.
func explain(w io.Writer, source []byte, f *worker.Failure, s failedStep) {
	log := bufio.NewReader(s.log)
	if _, err := log.Peek(1); err != nil && f.Rendered != "" {
		return
	}
	fmt.Fprintf(w, "------\n > %s:\n", printable(s.name))
	lines := &lineWriter{w: w}
	if _, err := io.Copy(lines, log); err != nil {
		fmt.Fprintf(lines, "\n[the rest can't be shown: %v]", err)
	}
	lines.end()
	fmt.Fprintln(w, "------")
	if f.Rendered == "" {
		excerpt(w, source, s.line)
	}
}

// lineWriter knows whether the last line written to w has its end.
type lineWriter struct {
	w    io.Writer
	open bool
}

// Write implements io.Writer.
func (l *lineWriter) Write(b []byte) (int, error) {
	if len(b) > 0 {
		l.open = b[len(b)-1] != '\n'
	}
	return l.w.Write(b)
}

// end ends the last line.
func (l *lineWriter) end() {
	if l.open {
		fmt.Fprintln(l)
	}
}

// excerpt prints the failed line between its neighbours.
func excerpt(w io.Writer, source []byte, line int) {
	lines := strings.Split(string(source), "\n")
	if line < 1 || line > len(lines) {
		return
	}
	for i := max(1, line-2); i <= min(len(lines), line+2); i++ {
		if i == len(lines) && lines[i-1] == "" {
			continue
		}
		mark := "   "
		if i == line {
			mark = ">>>"
		}
		fmt.Fprintf(w, "%4d | %s %s\n", i, mark, printable(strings.TrimSuffix(lines[i-1], "\r")))
	}
}

// finish has nothing to add: the image ID goes to standard output.
func (p *plainOutput) finish() {}

// jsonOutput prints one event on a line.
type jsonOutput struct {
	mu  sync.Mutex
	enc *json.Encoder // guarded by mu
}

// Send prints one event.
func (j *jsonOutput) Send(e progress.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.enc.Encode(e); err != nil {
		fmt.Fprintf(os.Stderr, "mstage: progress: %v\n", err)
	}
}

func (j *jsonOutput) failed(error) {}
func (j *jsonOutput) finish()      {}

// quietOutput tells about a failure only.
type quietOutput struct {
	*transcript
	w      io.Writer
	source []byte
}

func (q *quietOutput) failed(err error) {
	q.explain(q.w, q.source, err)
	q.close()
}

func (q *quietOutput) finish() { q.close() }
