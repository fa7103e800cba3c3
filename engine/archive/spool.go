package archive

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/layertar"
)

const (
	// copyBytes is copied between two looks at the context.
	copyBytes = 1 << 20
	// pollMillis is how soon a cancel is noticed while a pipe has nothing.
	pollMillis = 200
)

// seekable returns the uncompressed tar in f: f itself from where it stands, or
// a temporary file.
func seekable(ctx context.Context, f *os.File, dir string) (*io.SectionReader, io.Closer, error) {
	rest, isFile, err := section(f)
	if err != nil {
		return nil, nil, err
	}
	packed := &counter{r: &patientReader{ctx: ctx, f: f}}
	if isFile {
		packed.r = rest
	}
	plain, format, err := layertar.Decompress(packed)
	if err != nil {
		return nil, nil, badStream(ctx, err)
	}
	defer plain.Close()
	if isFile && format == layertar.FormatNone {
		return io.NewSectionReader(rest, 0, rest.Size()), io.NopCloser(nil), nil
	}
	temp, err := tempFile(dir)
	if err != nil {
		return nil, nil, err
	}
	n, err := spool(ctx, temp, plain, packed)
	if err != nil {
		return nil, nil, errors.Join(err, temp.Close())
	}
	return io.NewSectionReader(temp, 0, n), temp, nil
}

// section returns what is left of a regular file.
func section(f *os.File) (rest *io.SectionReader, isFile bool, err error) {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, false, err
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, false, err
	}
	return io.NewSectionReader(f, at, max(0, st.Size()-at)), true, nil
}

// tempFile returns a file without a name.
func tempFile(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil {
		return f, nil
	}
	name := filepath.Join(dir, "archive-"+rand.Text())
	if f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err := os.Remove(name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// spool copies a stream to its end, within limits.
func spool(ctx context.Context, to io.Writer, plain io.Reader, packed *counter) (n int64, err error) {
	buf := make([]byte, copyBytes)
	for {
		read, err := plain.Read(buf)
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		if n += int64(read); n > MaxSpoolBytes {
			return n, errorf("archive of more than %d bytes: %w", int64(MaxSpoolBytes), layertar.ErrLimit)
		}
		if n > ratioSlackBytes && n/layertar.DefaultMaxRatio > packed.n {
			return n, errorf("more than %d bytes for each compressed byte: %w", layertar.DefaultMaxRatio, layertar.ErrLimit)
		}
		if _, err := to.Write(buf[:read]); err != nil {
			return n, fmt.Errorf("keep the archive: %w", err)
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, badStream(ctx, err)
		}
	}
}

// ratioSlackBytes may come out before the ratio is looked at.
const ratioSlackBytes = 1 << 30

// badStream says that a stream is broken, unless reading it failed.
func badStream(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.As(err, new(unix.Errno)) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errorf("archive is cut short: %w", err)
	}
	return errorf("archive: %w", err)
}

// counter counts what was read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// patientReader reads a pipe whose writer may take its time, and stops waiting
// when the context ends.
type patientReader struct {
	ctx context.Context
	f   *os.File
}

func (p *patientReader) Read(b []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(p.f.Fd()), Events: unix.POLLIN}}
	for {
		if p.ctx.Err() != nil {
			return 0, context.Cause(p.ctx)
		}
		n, err := unix.Poll(fds, pollMillis)
		if errors.Is(err, unix.EINTR) || err == nil && n == 0 {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("poll", err)
		}
		return p.f.Read(b)
	}
}
