package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/storage"
)

// Ask is a question of the worker to the CLI, which has the credentials, the
// sources and the network. Exactly one of the pointers is set.
type Ask struct {
	// ID tells questions apart; the answer and the streams for it carry it.
	ID    int    `json:"id"`
	Fetch *Fetch `json:"fetch,omitempty"`
	Send  *Send  `json:"send,omitempty"`
}

// Fetch asks for the content that a source answered with: each part comes as a
// stream.
type Fetch struct {
	Resolved pluginapi.Resolved `json:"resolved"`
	// Layers are the digests of the blobs that the store lacks.
	Layers []string `json:"layers"`
}

// Send asks for an image in the store, whose blobs are there, to be sent away.
type Send struct {
	// Output is the index of an output in Build.Outputs, or of a name in
	// Push.Names.
	Output int           `json:"output"`
	Image  storage.Image `json:"image"`
	// Blobs are the layers, lowest first.
	Blobs []storage.Blob `json:"blobs"`
	// Vertex is the step in whose name progress is told.
	Vertex int `json:"vertex"`
}

// Drop says that of an Ask only the answer is still wanted.
type Drop struct {
	Ask int `json:"ask"`
}

// Answer ends an Ask.
type Answer struct {
	ID      int      `json:"id"`
	Failure *Failure `json:"failure,omitempty"`
	// Left says that the worker stopped first: it knows the reason.
	Left bool `json:"left,omitempty"`
	// Digest is the manifest's after a Send to a registry; Lines tell about a Send.
	Digest storage.Digest `json:"digest,omitempty"`
	Lines  []string       `json:"lines,omitempty"`
	// Streams is how many were opened: they come over another socket, perhaps
	// later than this.
	Streams int `json:"streams,omitempty"`
}

// StreamHeader says what an open file is.
type StreamHeader struct {
	Ask int `json:"ask"`
	// Layer is the digest of a blob; "" for a root file system.
	Layer string `json:"layer,omitempty"`
	// MediaType is the layer's, "" when not known.
	MediaType string `json:"mediaType,omitempty"`
}

// maxHeaderBytes is the largest message with a StreamHeader.
const maxHeaderBytes = 4096

// ErrReaderLeft is the error of a write to a stream that the worker has closed.
var ErrReaderLeft = errors.New("the worker stopped reading")

// socketPair makes the socket over which open files go to the worker.
func socketPair() (cli, worker *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket for streams: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "streams"), os.NewFile(uintptr(fds[1]), "worker-streams"), nil
}

// packetConn is the socket as the net package has it; f is closed.
func packetConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("streams come over a unix socket only"), c.Close())
	}
	return u, nil
}

// Streams is the CLI's end: it hands open files to the worker.
type Streams struct {
	conn *net.UnixConn

	mu     sync.Mutex
	opened map[int]int // guarded by mu: how many by question
}

func newStreams(conn *net.UnixConn) *Streams { return &Streams{conn: conn, opened: map[int]int{}} }

// count returns how many streams a question got.
func (s *Streams) count(ask int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened[ask]
}

// pipeBytes is how far a download may run ahead of unpacking. Source: the
// default of /proc/sys/fs/pipe-max-size.
const pipeBytes = 1 << 20

// Open returns where the content that h names is written. A worker that has had
// enough makes a write fail with ErrReaderLeft.
func (s *Streams) Open(h StreamHeader) (*StreamWriter, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	// Less is slower and no fault: a user's pipes are limited in sum.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeBytes)
	// A blocking file's Close would wait for a Write that waits for the worker.
	if err := unix.SetNonblock(fds[1], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	w := os.NewFile(uintptr(fds[1]), "stream")
	err := s.hand(h, fds[0])
	unix.Close(fds[0])
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &StreamWriter{file: w}, nil
}

// hand sends one open file.
func (s *Streams) hand(h StreamHeader, fd int) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(b) > maxHeaderBytes {
		return fmt.Errorf("header of a stream has %d bytes, the limit is %d", len(b), maxHeaderBytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, _, err := s.conn.WriteMsgUnix(b, unix.UnixRights(fd), nil); err != nil {
		return fmt.Errorf("%w: %s", ErrReaderLeft, err.Error())
	}
	s.opened[h.Ask]++
	return nil
}

// StreamWriter is one stream to the worker.
type StreamWriter struct{ file *os.File }

func (w *StreamWriter) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		err = ErrReaderLeft
	}
	return n, err
}

// Close ends the stream.
func (w *StreamWriter) Close() error { return w.file.Close() }

// Helper does what the worker asks for. streams is for a Fetch.
type Helper func(ctx context.Context, a Ask, streams *Streams) Answer

// asks are the worker's open questions.
type asks struct {
	mu   sync.Mutex
	next int                   // guarded by mu
	open map[int]*openQuestion // guarded by mu
	over bool                  // guarded by mu: no answer can come any more
}

type openQuestion struct {
	answer  chan Answer // of capacity 1
	streams func(h StreamHeader, f *os.File)
	taken   int
	// early is an answer that came before its last stream.
	early *Answer
}

// errNoHelp says that the CLI is gone.
var errNoHelp = errors.New("mstage has gone while the worker was waiting for it")

// Take says what becomes of the streams that an Ask brings. The zero value is for
// questions that bring none.
type Take struct {
	// Stream is called for each stream, one after another, and has to close it.
	Stream func(h StreamHeader, f *os.File)
	// Enough, when it is closed, makes the CLI stop. Ask still returns its
	// answer: that may have the reason why a stream broke off.
	Enough <-chan struct{}
}

// Ask asks the CLI and returns its answer; a Failure is the error. No stream comes
// after Ask has returned. The end of ctx makes the CLI stop too: the streams that
// came end soon after it.
func (s *Server) Ask(ctx context.Context, a Ask, t Take) (Answer, error) {
	q := &openQuestion{answer: make(chan Answer, 1), streams: t.Stream}
	var err error
	if a.ID, err = s.asks.add(q); err != nil {
		return Answer{}, err
	}
	defer s.asks.remove(a.ID)
	if err := s.Report(Report{Ask: &a}); err != nil {
		return Answer{}, fmt.Errorf("%w: %s", errNoHelp, err.Error())
	}
	for {
		select {
		case answer, ok := <-q.answer:
			switch {
			case !ok:
				return answer, errNoHelp
			case answer.Failure != nil:
				return answer, answer.Failure
			}
			return answer, nil
		case <-t.Enough:
			t.Enough = nil
			_ = s.Report(Report{Drop: &Drop{Ask: a.ID}}) // a CLI that is gone ends q.answer
		case <-ctx.Done():
			_ = s.Report(Report{Drop: &Drop{Ask: a.ID}}) // what a CLI did that is gone has ended
			return Answer{}, context.Cause(ctx)
		}
	}
}

func (a *asks) add(q *openQuestion) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return 0, errNoHelp
	}
	if a.open == nil {
		a.open = map[int]*openQuestion{}
	}
	a.next++
	a.open[a.next] = q
	return a.next, nil
}

// remove waits for a stream that is being handed over.
func (a *asks) remove(id int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.open, id)
}

// answered hands an answer to who asked, when all streams for it are there.
func (a *asks) answered(answer Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.open[answer.ID]
	switch {
	case q == nil:
	case q.taken < answer.Streams && answer.Failure == nil:
		q.early = &answer
	default:
		q.answer <- answer
		delete(a.open, answer.ID)
	}
}

// end tells everybody that no answer will come.
func (a *asks) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	for id, q := range a.open {
		close(q.answer)
		delete(a.open, id)
	}
}

// stream hands a file to who asked for it.
func (a *asks) stream(h StreamHeader, f *os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.open[h.Ask]
	if q == nil || q.streams == nil {
		f.Close()
		return
	}
	q.streams(h, f)
	q.taken++
	if q.early != nil && q.taken == q.early.Streams {
		q.answer <- *q.early
		delete(a.open, h.Ask)
	}
}

// receiveStreams takes open files until the CLI is gone.
func (s *Server) receiveStreams(conn *net.UnixConn) {
	defer conn.Close()
	buf, oob := make([]byte, maxHeaderBytes), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		f := receivedFile(oob[:oobn])
		var h StreamHeader
		if err := json.Unmarshal(buf[:n], &h); err != nil || flags&unix.MSG_TRUNC != 0 || f == nil {
			if f != nil {
				f.Close()
			}
			continue // both ends are the same program: this does not happen
		}
		s.asks.stream(h, f)
	}
}

// receivedFile returns the one file of a message.
func receivedFile(oob []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "stream")
}
