package layertar

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// The formats that Decompress reports.
const (
	FormatNone  = ""
	FormatGzip  = "gzip"
	FormatBzip2 = "bzip2"
	FormatXz    = "xz"
	FormatZstd  = "zstd"
)

const (
	// maxWindowBytes is the history a zstd or xz stream may ask to keep in
	// memory: that of `zstd --long=27`, twice that of `xz -9`.
	maxWindowBytes = 128 << 20
	// readAheadBytes is read from the source at once.
	readAheadBytes = 256 << 10
	// inflateBlockBytes times inflateBlocks is how far decompression runs ahead
	// of unpacking, in its own goroutine.
	inflateBlockBytes = 1 << 20
	inflateBlocks     = 4
)

// magics are the first bytes of each format.
var magics = map[string][]byte{
	FormatGzip:  {0x1f, 0x8b, 0x08},
	FormatBzip2: []byte("BZh"),
	FormatXz:    {0xfd, '7', 'z', 'X', 'Z', 0x00},
	FormatZstd:  {0x28, 0xb5, 0x2f, 0xfd},
}

// errWindow is a stream that wants more history than maxWindowBytes.
var errWindow = fmt.Errorf("dictionary of more than %d bytes: %w", maxWindowBytes, ErrLimit)

// Decompress returns the content of r uncompressed, and the format that its
// first bytes show: "gzip", "bzip2", "xz", "zstd", or "" when r is none of them
// and comes back as it is. The caller closes the result, which does not close
// r. Data after the end of the compressed stream is an error.
func Decompress(r io.Reader) (io.ReadCloser, string, error) {
	br := bufio.NewReaderSize(r, readAheadBytes)
	head, err := br.Peek(xzHeadBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	format := Format(head)
	plain, err := inflate(br, format, head)
	if err != nil {
		return nil, format, fmt.Errorf("%s stream: %w", format, err)
	}
	return plain, format, nil
}

// Format returns the format of the stream that head begins: one of the Format
// constants. Six bytes are enough.
func Format(head []byte) string {
	for format, magic := range magics {
		if bytes.HasPrefix(head, magic) {
			return format
		}
	}
	return FormatNone
}

// inflate returns a reader over the content of br.
func inflate(br *bufio.Reader, format string, head []byte) (io.ReadCloser, error) {
	switch format {
	case FormatGzip:
		return pgzip.NewReaderN(br, inflateBlockBytes, inflateBlocks)
	case FormatBzip2:
		return io.NopCloser(bzip2.NewReader(br)), nil
	case FormatXz:
		if err := checkXzDictionary(head); err != nil {
			return nil, err
		}
		xr, err := xz.NewReader(br)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(xr), nil
	case FormatZstd:
		zr, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindowBytes), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, err
		}
		return zr.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

// The layout of an xz stream's beginning. Source: The .xz File Format 1.2.1,
// sections 2.1.1 and 3.1.
const (
	xzStreamHeaderBytes = 12
	xzHeadBytes         = xzStreamHeaderBytes + 32
	xzFilterLZMA2       = 0x21
)

// checkXzDictionary refuses a first block whose dictionary is over the limit:
// the decoder allocates whatever the header says, up to 4 GiB.
func checkXzDictionary(head []byte) error {
	if len(head) <= xzStreamHeaderBytes+4 {
		return nil // the decoder says that it is cut short
	}
	block := head[xzStreamHeaderBytes:]
	// A block with one filter and no optional sizes has them at fixed places;
	// with the sizes (flags 0x40, 0x80) the filter follows two varints.
	at := 2
	for _, flag := range []byte{0x40, 0x80} {
		if block[1]&flag == 0 {
			continue
		}
		for at < len(block) && block[at]&0x80 != 0 {
			at++
		}
		at++
	}
	if at+2 >= len(block) || block[at] != xzFilterLZMA2 {
		return nil // another first filter: the decoder refuses all but LZMA2
	}
	size, err := lzma.DecodeDictCap(block[at+2])
	if err != nil {
		return err
	}
	if size > maxWindowBytes {
		return errWindow
	}
	return nil
}

// DetectTar reports whether r begins with a tar archive, compressed or not,
// that has at least one entry: what ADD unpacks instead of copying. Source:
// Dockerfile reference, ADD: by content, never by name.
func DetectTar(r io.ReaderAt) bool {
	// The largest size that a section reader takes; the end is at EOF.
	const toTheEnd = 1<<63 - 1
	plain, _, err := Decompress(io.NewSectionReader(r, 0, toTheEnd))
	if err != nil {
		return false
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
	return err == nil
}
