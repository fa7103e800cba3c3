package main

import (
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
)

// buildOutput shows what a build does.
type buildOutput interface {
	progress.Sink
	// failed tells why the build ended, with the output of the step that failed.
	failed(err error)
	// finish tells that everything is done.
	finish(res *engine.BuildResult)
}

// newProgress returns the output that --progress and -q ask for.
func newProgress(w io.Writer, mode string, quiet bool, source []byte) (buildOutput, error) {
	if quiet {
		mode = "quiet"
	}
	switch mode {
	case "auto", "plain":
		return &plainOutput{w: w, source: source, vertices: map[int]*vertexOutput{}}, nil
	case "json", "rawjson":
		return &jsonOutput{enc: json.NewEncoder(w)}, nil
	case "quiet", "none":
		quiet := &plainOutput{w: io.Discard, source: source, vertices: map[int]*vertexOutput{}}
		return &quietOutput{plainOutput: quiet, w: w}, nil
	default:
		return nil, usagef("--progress %s: auto, plain, json or quiet", mode)
	}
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

// vertexOutput is one step.
type vertexOutput struct {
	name    string
	line    int
	started time.Time
	partial [3]bytes.Buffer // the unfinished line of each stream
	kept    []byte
	clipped bool
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
func (p *plainOutput) failed(err error) { p.explain(p.w, err) }

// explain writes the output of the step that failed and its line to w.
func (p *plainOutput) explain(w io.Writer, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := engine.Describe(err)
	v := p.vertices[f.Vertex]
	if v == nil || (f.Rendered != "" && len(v.kept) == 0) {
		return
	}
	fmt.Fprintf(w, "------\n > %s:\n", printable(v.name))
	if v.clipped {
		fmt.Fprintf(w, "[earlier output stands above]\n")
	}
	fmt.Fprintf(w, "%s", v.kept)
	if len(v.kept) > 0 && v.kept[len(v.kept)-1] != '\n' {
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "------")
	if f.Rendered == "" {
		p.excerpt(w, v.line)
	}
}

// excerpt prints the failed line between its neighbours.
func (p *plainOutput) excerpt(w io.Writer, line int) {
	lines := strings.Split(string(p.source), "\n")
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
func (p *plainOutput) finish(*engine.BuildResult) {}

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

func (j *jsonOutput) failed(error)               {}
func (j *jsonOutput) finish(*engine.BuildResult) {}

// quietOutput tells about a failure only.
type quietOutput struct {
	*plainOutput
	w io.Writer
}

func (q *quietOutput) failed(err error) { q.explain(q.w, err) }
