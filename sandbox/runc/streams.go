package runc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/runc/libcontainer/utils"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

// streams connects a command's standard descriptors with a Spec's. Output goes
// through pipes always: the command's user owns them, so it can open
// /dev/stdout, and it never owns a file of the caller's.
type streams struct {
	child        [3]*os.File // the command's ends; nil with a terminal
	consoleChild *os.File    // the command's end of the console socket
	console      *os.File
	chown        uint32 // bit n: child[n] was made here

	stdin    *os.File // the end that is written; nil when there is nothing to write
	spec     sandbox.Spec
	outputs  []output
	copies   errgroup.Group
	resizing sync.WaitGroup
	ended    chan struct{}
}

type output struct {
	from *os.File
	to   io.Writer
}

func openStreams(s sandbox.Spec) (*streams, error) {
	st := &streams{spec: s, ended: make(chan struct{})}
	var err error
	if s.Terminal != nil {
		st.chown = 0b111
		st.console, st.consoleChild, err = utils.NewSockPair("console")
	} else {
		err = errors.Join(st.openInput(), st.openOutputs())
	}
	if err != nil {
		st.closeChild()
		st.close()
		return nil, fmt.Errorf("open streams: %w", err)
	}
	return st, nil
}

func (s *streams) openInput() error {
	var err error
	switch in := s.spec.Stdin.(type) {
	case nil:
		s.child[0], err = os.Open(os.DevNull)
	case *os.File:
		// A copy, because the child's ends are closed here.
		var fd int
		if fd, err = unix.FcntlInt(in.Fd(), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			s.child[0] = os.NewFile(uintptr(fd), in.Name())
		}
	default:
		s.child[0], s.stdin, err = os.Pipe()
		s.chown |= 1
	}
	return err
}

func (s *streams) openOutputs() error {
	for i, w := range []io.Writer{s.spec.Stdout, s.spec.Stderr} {
		fd := i + 1
		if fd == 2 && w != nil && same(w, s.spec.Stdout) {
			s.child[2] = s.child[1] // one pipe keeps the order
			continue
		}
		var err error
		if w == nil {
			s.child[fd], err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		} else {
			var r *os.File
			r, s.child[fd], err = os.Pipe()
			s.outputs = append(s.outputs, output{r, w})
			s.chown |= 1 << fd
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// same reports whether two writers are one; some can't be compared.
func same(a, b io.Writer) (equal bool) {
	defer func() { _ = recover() }() // uncomparable types are not the same
	return a == b
}

func (s *streams) in() io.Reader  { return readerOf(s.child[0]) }
func (s *streams) out() io.Writer { return writerOf(s.child[1]) }
func (s *streams) err() io.Writer { return writerOf(s.child[2]) }

// A nil *os.File in an interface is not nil.
func readerOf(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}

func writerOf(f *os.File) io.Writer {
	if f == nil {
		return nil
	}
	return f
}

// start copies until the command's ends are closed. Call it once the command
// was started.
func (s *streams) start() error {
	if s.spec.Terminal != nil {
		if err := s.openTerminal(); err != nil {
			return err
		}
	}
	for _, o := range s.outputs {
		s.copies.Go(func() error { return copyOutput(o) })
	}
	if s.stdin != nil && s.spec.Stdin != nil {
		// Not waited for: the reader may block for ever, as a terminal does.
		go copyInput(s.stdin, s.spec.Stdin, s.spec.Terminal == nil)
	}
	return nil
}

func copyInput(to *os.File, from io.Reader, closeAtEnd bool) {
	_, _ = io.Copy(to, from) // the command may close its end when it likes
	if closeAtEnd {
		to.Close()
	}
}

func copyOutput(o output) error {
	_, err := io.Copy(o.to, o.from)
	if errors.Is(err, unix.EIO) {
		err = nil // a terminal's way to say that nobody has it open any more
	}
	if errors.Is(err, unix.EPIPE) {
		// Who reads has gone: the command learns it as it would without us.
		return fmt.Errorf("write output: %w", errors.Join(err, o.from.Close()))
	}
	if err != nil {
		// The command must not block on a full pipe.
		_, _ = io.Copy(io.Discard, o.from)
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// openTerminal receives the terminal that libcontainer made in the sandbox.
func (s *streams) openTerminal() error {
	received, err := receiveFile(s.console)
	if err != nil {
		return fmt.Errorf("receive terminal: %w", err)
	}
	defer received.Close()
	// A descriptor of its own in non-blocking mode can be closed under a read.
	fd, err := unix.FcntlInt(received.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	master := os.NewFile(uintptr(fd), "terminal")
	s.stdin = master
	to := s.spec.Stdout
	if to == nil {
		to = io.Discard
	}
	s.outputs = []output{{master, to}}
	s.resizing.Go(func() { s.resize(master) })
	return nil
}

func (s *streams) resize(master *os.File) {
	raw, err := master.SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case <-s.ended:
			return
		case size, ok := <-s.spec.Terminal.Resize:
			if !ok {
				return
			}
			_ = raw.Control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size[0], Col: size[1]})
			}) // a size is advice
		}
	}
}

// wait returns when all output was written.
func (s *streams) wait() error {
	err := s.copies.Wait()
	close(s.ended)
	s.resizing.Wait()
	return err
}

func (s *streams) closeChild() {
	for _, f := range []*os.File{s.child[0], s.child[1], s.child[2], s.consoleChild} {
		if f != nil {
			f.Close() // twice for a shared pipe, and the second is harmless
		}
	}
}

func (s *streams) close() {
	for _, o := range s.outputs {
		o.from.Close()
	}
	for _, f := range []*os.File{s.stdin, s.console} {
		if f != nil {
			f.Close()
		}
	}
}

// receiveFile receives one descriptor over a Unix socket. Source: unix(7),
// SCM_RIGHTS.
func receiveFile(socket *os.File) (*os.File, error) {
	name := make([]byte, unix.PathMax)
	rights := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oobn])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages, want 1", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors, want 1", len(fds))
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}
