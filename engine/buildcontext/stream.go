package buildcontext

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
)

// tarBlockBytes is a tar header's size.
const tarBlockBytes = 512

// Decompress returns a reader of the inflated stream. It is called with a
// stream that begins with a known magic number.
type Decompress func(io.Reader) (io.ReadCloser, error)

// Input is what standard input turned out to be: exactly one field is set.
type Input struct {
	// Dockerfile is the text when the stream is no archive. The context is empty.
	Dockerfile []byte
	// Dir is the directory that the archive was unpacked into: Options.Root.
	Dir string
}

// ReadStream reads what `build -` was given: a tar, compressed or not, is
// unpacked into dir, an empty directory of the caller, who removes it; anything
// else is a Dockerfile. What is compressed is always taken for a tar. A nil
// decompress knows gzip and bzip2.
func ReadStream(ctx context.Context, r io.Reader, dir string, decompress Decompress) (Input, error) {
	br := bufio.NewReaderSize(contextReader{ctx: ctx, r: r}, 64<<10)
	head, err := br.Peek(tarBlockBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return Input{}, fmt.Errorf("standard input: %w", err)
	}
	if name := compressionOf(head); name != "" {
		return unpackCompressed(ctx, br, dir, name, decompress)
	}
	if !isTar(head) {
		data, err := readLimited(br, maxDockerfileBytes)
		if err != nil {
			return Input{}, fmt.Errorf("dockerfile from standard input: %w", err)
		}
		return Input{Dockerfile: data}, nil
	}
	return Input{Dir: dir}, unpack(ctx, br, dir)
}

// unpackCompressed inflates and unpacks.
func unpackCompressed(ctx context.Context, r io.Reader, dir, name string, decompress Decompress) (in Input, err error) {
	if decompress == nil {
		decompress = standardDecompress
	}
	inflated, err := decompress(r)
	if err != nil {
		return Input{}, fmt.Errorf("build context from standard input, %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, inflated.Close()) }()
	return Input{Dir: dir}, unpack(ctx, inflated, dir)
}

// magics are the first bytes of compressed streams. Sources: RFC 1952, bzip2's
// and xz's format descriptions, RFC 8878.
var magics = []struct {
	name  string
	bytes string
}{
	{"gzip", "\x1f\x8b\x08"},
	{"bzip2", "BZh"},
	{"xz", "\xfd7zXZ\x00"},
	{"zstd", "\x28\xb5\x2f\xfd"},
}

// compressionOf returns the compression's name, "" for none.
func compressionOf(head []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.bytes)) {
			return m.name
		}
	}
	return ""
}

// standardDecompress knows what the standard library does.
func standardDecompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReader(r)
	head, err := br.Peek(tarBlockBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch name := compressionOf(head); name {
	case "gzip":
		return gzip.NewReader(br)
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(br)), nil
	default:
		return nil, fmt.Errorf("compression %q is not supported here", name)
	}
}

// isTar reports whether head is a tar header with a right checksum, or the
// block of zeros that an empty tar begins with.
func isTar(head []byte) bool {
	if len(head) < tarBlockBytes {
		return false
	}
	if len(bytes.Trim(head, "\x00")) == 0 {
		return true
	}
	// A header can announce more than the one block holds; the checksum is what counts.
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF)
}

// contextReader fails with the cause when its context ends.
type contextReader struct {
	ctx context.Context // a reader has no other way to learn of a cancel
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
