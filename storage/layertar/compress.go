package layertar

import (
	"io"
	"runtime"

	"github.com/klauspost/pgzip"
)

// gzipBlockBytes is fixed because the compressed bytes depend on it; they don't
// depend on how many blocks are compressed at once.
const gzipBlockBytes = 1 << 20

// NewGzipWriter returns a writer that compresses to w on all cores, with the
// same bytes on every machine. Close must be called, also after an error: it
// ends the compressor's goroutines.
func NewGzipWriter(w io.Writer) (io.WriteCloser, error) {
	zw := pgzip.NewWriter(w)
	return zw, zw.SetConcurrency(gzipBlockBytes, runtime.NumCPU()+1)
}
