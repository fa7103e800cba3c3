// Package worker defines what crosses between the CLI's process and its worker:
// one job, then control messages in one direction and events in the other.
//
// Both ends are the same binary, so the encoding only has to tell a mix-up of
// two versions, not to bridge it.
package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/storage"
)

// Version of the protocol. A worker refuses a job of another one.
const Version = 1

// Job is what a worker does in its life. Exactly one of the pointers is set.
type Job struct {
	Version int `json:"version"`
	// Root is the store's directory.
	Root string `json:"root"`

	Build   *Build   `json:"build,omitempty"`
	Run     *Run     `json:"run,omitempty"`
	Import  *Import  `json:"import,omitempty"`
	Load    *Load    `json:"load,omitempty"`
	Save    *Save    `json:"save,omitempty"`
	Remove  *Remove  `json:"remove,omitempty"`
	Prune   *Prune   `json:"prune,omitempty"`
	Usage   *Usage   `json:"usage,omitempty"`
	Unshare *Unshare `json:"unshare,omitempty"`
	Pull    *Pull    `json:"pull,omitempty"`
	Push    *Push    `json:"push,omitempty"`
}

// Build runs a plan and delivers its outputs.
type Build struct {
	Plan    plan.Plan `json:"plan"`
	Context Context   `json:"context"`
	NoCache bool      `json:"noCache,omitempty"`
	// Runs is how many RUNs may go on at once.
	Runs    int               `json:"runs"`
	Secrets map[string][]byte `json:"secrets,omitempty"`
	Hosts   []Host            `json:"hosts,omitempty"`
	// CABundle is a host file, "" for none.
	CABundle string   `json:"caBundle,omitempty"`
	Names    []string `json:"names,omitempty"`
	// Store says whether the image goes to the local store.
	Store bool `json:"store"`
	// Outputs are further outputs, as -o has them.
	Outputs []export.Output `json:"outputs,omitempty"`
}

// Context says where the build context is and how it is filtered.
type Context struct {
	Dir string `json:"dir"`
	// Dockerfile is the path of the Dockerfile, for <Dockerfile>.dockerignore; ""
	// when it did not come from a file.
	Dockerfile string `json:"dockerfile,omitempty"`
	// StatIndex is the file that remembers digests, "" for none.
	StatIndex string `json:"statIndex,omitempty"`
}

// Host is one extra line of /etc/hosts.
type Host struct {
	Name string `json:"name"`
	Addr string `json:"addr"`
}

// Run starts a command on an image. The worker's own standard streams are the
// command's.
type Run struct {
	Image   storage.Image `json:"image"`
	Command plan.Run      `json:"command"`
	Mounts  []BindMount   `json:"mounts,omitempty"`
	Hosts   []Host        `json:"hosts,omitempty"`
	// Stdin connects standard input; else it is /dev/null.
	Stdin bool `json:"stdin,omitempty"`
	// Terminal gives the command a terminal of Rows and Columns.
	Terminal bool   `json:"terminal,omitempty"`
	Rows     uint16 `json:"rows,omitempty"`
	Columns  uint16 `json:"columns,omitempty"`
}

// BindMount shows a host directory or file in a sandbox.
type BindMount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Import makes an image of a root file system tar, read from the worker's
// standard input when Path is "".
type Import struct {
	Path     string `json:"path,omitempty"`
	Name     string `json:"name"`
	Platform string `json:"platform"`
}

// Load reads the images of an archive or a layout directory.
type Load struct {
	// Path is a file or a directory; "" is the worker's standard input.
	Path string `json:"path,omitempty"`
	// Platform is chosen where an image is there for several.
	Platform string `json:"platform"`
}

// Loaded is one image that a Load read.
type Loaded struct {
	Image storage.Digest `json:"image"`
	// Names are those that the archive gives it.
	Names []string `json:"names,omitempty"`
}

// Save writes images into one archive.
type Save struct {
	Images []Saved       `json:"images"`
	Output export.Output `json:"output"`
}

// Saved is one image of a Save with its names in the archive.
type Saved struct {
	Image storage.Digest `json:"image"`
	Names []string       `json:"names,omitempty"`
}

// Remove removes names and images and collects what nothing needs any more.
type Remove struct {
	Targets []RemoveTarget `json:"targets"`
	Force   bool           `json:"force,omitempty"`
}

// RemoveTarget is one image to remove, or one of its names.
type RemoveTarget struct {
	Image storage.Digest `json:"image"`
	// Name is set when only this name goes.
	Name string `json:"name,omitempty"`
}

// Prune collects what no image needs; All takes everything.
type Prune struct {
	All bool `json:"all,omitempty"`
}

// Usage measures what the store takes on the disk.
type Usage struct{}

// Unshare runs a host command in the worker's namespaces.
type Unshare struct {
	Args []string `json:"args"`
}

// Pull brings images from a source into the store, under their references.
type Pull struct {
	Images []plan.Image `json:"images"`
}

// Push seals an image and asks for it to be sent away under each of the names.
type Push struct {
	Image storage.Image `json:"image"`
	Names []string      `json:"names"`
}

// Result is what a job that succeeded came to.
type Result struct {
	// Image is what a build or an import made.
	Image *storage.Image `json:"image,omitempty"`
	// ExitCode is that of a Run's or Unshare's command.
	ExitCode int `json:"exitCode,omitempty"`
	// Removed are lines for the user: "Untagged: …", "Deleted: …".
	Removed []string `json:"removed,omitempty"`
	// FreedBytes is what a Prune or Remove freed.
	FreedBytes int64 `json:"freedBytes,omitempty"`
	// Loaded are the images that a Load read, in the archive's order.
	Loaded []Loaded `json:"loaded,omitempty"`
	// Usage is what a Usage measured.
	Usage *storage.Usage `json:"usage,omitempty"`
	// Exports describe the outputs besides the store, in order.
	Exports []Export `json:"exports,omitempty"`
	// Images are what a Pull brought, in order.
	Images []storage.Image `json:"images,omitempty"`
}

// Export is one finished output.
type Export struct {
	Type   string         `json:"type"`
	Dest   string         `json:"dest"`
	Digest storage.Digest `json:"digest,omitempty"` // of the manifest
}

// Failure is an error that crossed the socket.
type Failure struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	// Code is the exit code that the failure asks for.
	Code int `json:"code"`
	// Rendered is the message with the source line, "" when there is none.
	Rendered string `json:"rendered,omitempty"`
	// Vertex is the step that failed, 0 for none.
	Vertex int `json:"vertex,omitempty"`
	// Pos is the instruction that failed, nil for none.
	Pos *dockerfile.Position `json:"pos,omitempty"`
}

func (f *Failure) Error() string { return f.Message }

// Control is what the CLI sends after the job.
type Control struct {
	Cancel bool `json:"cancel,omitempty"`
	// Resize is a terminal's new size {rows, columns}.
	Resize *[2]uint16 `json:"resize,omitempty"`
	Answer *Answer    `json:"answer,omitempty"`
}

// Report is what the worker sends. Exactly one field is set; Done or Failure is
// the last.
type Report struct {
	Event   *progress.Event `json:"event,omitempty"`
	Ask     *Ask            `json:"ask,omitempty"`
	Drop    *Drop           `json:"drop,omitempty"`
	Done    *Result         `json:"done,omitempty"`
	Failure *Failure        `json:"failure,omitempty"`
}

// Launcher starts worker processes.
type Launcher interface {
	Launch(o LaunchOptions) (Process, error)
}

// LaunchOptions say what a job needs of its worker.
type LaunchOptions struct {
	// Terminal says that the job reads the caller's terminal.
	Terminal bool
	// NoStore says that the job works without a store.
	NoStore bool
	// Streams is the worker's end of the socket for open files. It stays the
	// caller's.
	Streams *os.File
}

// Process is one worker process with the socket to it.
type Process interface {
	io.ReadWriteCloser
	// Notice is what this host keeps the worker from, "" for nothing.
	Notice() string
	// Kill ends the worker and everything in it at once.
	Kill() error
	// Wait returns when the process is gone.
	Wait() error
}

// errNoAnswer says that the worker died without a word.
var errNoAnswer = errors.New("the worker process ended without an answer")

// Caller is who hands a job to a worker.
type Caller struct {
	// Sink gets the worker's events. Required.
	Sink progress.Sink
	// Resize delivers sizes of the terminal; may be nil.
	Resize <-chan [2]uint16
	// Help does what the worker asks for; nil for jobs that ask for nothing.
	Help Helper
}

// Client is the CLI's end.
type Client struct {
	Caller

	proc    Process
	streams *Streams
	helping sync.WaitGroup

	mu  sync.Mutex
	enc *json.Encoder // guarded by mu
	// drops end what is done for an Ask.
	drops map[int]context.CancelCauseFunc // guarded by mu
}

// Call launches a worker, hands it the job, forwards its events, helps it and
// returns its answer. The end of ctx cancels the job; the worker answers all the
// same.
func Call(ctx context.Context, l Launcher, job Job, caller Caller) (*Result, error) {
	job.Version = Version
	c := &Client{Caller: caller, drops: map[int]context.CancelCauseFunc{}}
	if err := c.launch(l, job); err != nil {
		return nil, err
	}
	helpCtx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	defer func() {
		close(over)
		cancel()
		_ = c.streams.conn.Close()
		c.helping.Wait()
		_ = c.proc.Close()
		_ = c.proc.Wait() // its answer has come, or errNoAnswer says that none did
	}()
	if err := c.send(job); err != nil {
		// Its text only: a socket that broke must not look like a closed output.
		return nil, fmt.Errorf("%w: %s", errNoAnswer, err.Error())
	}
	go c.forward(ctx.Done(), over)
	return c.receive(helpCtx)
}

// launch starts the worker.
func (c *Client) launch(l Launcher, job Job) error {
	own, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	conn, err := packetConn(own)
	if err != nil {
		return err
	}
	c.streams = newStreams(conn)
	c.proc, err = l.Launch(LaunchOptions{
		Terminal: job.Run != nil || job.Unshare != nil, NoStore: job.Unshare != nil, Streams: theirs,
	})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	c.enc = json.NewEncoder(c.proc)
	if notice := c.proc.Notice(); notice != "" {
		c.Sink.Send(progress.Event{Kind: progress.Warning, Time: time.Now(), Message: notice})
	}
	return nil
}

// forward sends control messages until the job is over.
func (c *Client) forward(stop, over <-chan struct{}) {
	for {
		select {
		case <-stop:
			stop = nil
			_ = c.send(Control{Cancel: true}) // a worker that is gone needs no cancel
		case size := <-c.Resize:
			_ = c.send(Control{Resize: &size})
		case <-over:
			return
		}
	}
}

func (c *Client) send(v any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enc.Encode(v)
}

func (c *Client) receive(ctx context.Context) (*Result, error) {
	dec := json.NewDecoder(c.proc)
	for {
		var r Report
		if err := dec.Decode(&r); err != nil {
			return nil, errNoAnswer
		}
		switch {
		case r.Event != nil:
			c.Sink.Send(*r.Event)
		case r.Ask != nil:
			c.help(ctx, *r.Ask)
		case r.Drop != nil:
			c.drop(r.Drop.Ask)
		case r.Failure != nil:
			return nil, r.Failure
		case r.Done != nil:
			return r.Done, nil
		}
	}
}

// help does what the worker asks for, beside everything else.
func (c *Client) help(ctx context.Context, a Ask) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	c.drops[a.ID] = cancel
	c.mu.Unlock()
	c.helping.Go(func() {
		defer c.drop(a.ID)
		answer := Answer{Failure: &Failure{Message: "nobody here can help the worker", Code: 1}}
		if c.Help != nil {
			answer = c.Help(ctx, a, c.streams)
		}
		answer.ID, answer.Streams = a.ID, c.streams.count(a.ID)
		_ = c.send(Control{Answer: &answer}) // a worker that is gone needs no answer
	})
}

// drop ends what is done for an Ask, if anything is.
func (c *Client) drop(id int) {
	c.mu.Lock()
	cancel := c.drops[id]
	delete(c.drops, id)
	c.mu.Unlock()
	if cancel != nil {
		cancel(ErrReaderLeft)
	}
}

// Server is the worker's end.
type Server struct {
	dec  *json.Decoder
	asks asks

	mu  sync.Mutex
	enc *json.Encoder // guarded by mu
}

// NewServer speaks over conn, and takes open files over streams, which it
// closes.
func NewServer(conn, streams *os.File) (*Server, error) {
	s := &Server{dec: json.NewDecoder(conn), enc: json.NewEncoder(conn)}
	files, err := packetConn(streams)
	if err != nil {
		return nil, fmt.Errorf("take streams: %w", err)
	}
	go s.receiveStreams(files)
	return s, nil
}

// Job receives the job.
func (s *Server) Job() (Job, error) {
	var j Job
	if err := s.dec.Decode(&j); err != nil {
		return j, fmt.Errorf("receive job: %w", err)
	}
	if j.Version != Version {
		return j, fmt.Errorf("job of protocol %d, this worker speaks %d", j.Version, Version)
	}
	return j, nil
}

// Control receives the next control message; answers go to who asked. io.EOF
// means that the CLI is gone.
func (s *Server) Control() (Control, error) {
	for {
		var c Control
		if err := s.dec.Decode(&c); err != nil {
			s.asks.end()
			return c, err
		}
		if c.Answer == nil {
			return c, nil
		}
		s.asks.answered(*c.Answer)
	}
}

// Send tells an event. It implements progress.Sink. A CLI that is gone is
// noticed by Control, so a failed write is not told here.
func (s *Server) Send(e progress.Event) { _ = s.Report(Report{Event: &e}) }

// Report sends one report.
func (s *Server) Report(r Report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enc.Encode(r)
}
