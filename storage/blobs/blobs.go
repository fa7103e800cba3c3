// Package blobs turns a stream of bytes into a file named by its digest, and
// hands such files out again.
//
// It implements storage.Blobs with files DIR/sha256/HEX. A blob in the making
// is a locked file in DIR/tmp: the lock tells it from what a killed process
// left behind.
package blobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layout"
)

// MaxBytes is the default limit of one blob. The largest layers in public
// registries (machine learning images) are some 20 GB; a registry that sends
// without end must not fill the disk.
const MaxBytes = 64 << 30

// tmpPrefix begins the names of blobs in the making.
const tmpPrefix = "blob-"

// ErrTooLarge is wrapped by a write beyond the limit.
var ErrTooLarge = errors.New("blob is over the size limit")

// MismatchError says that the bytes are not those that were asked for.
type MismatchError struct{ Want, Got storage.Digest }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("digest is %s, want %s", e.Got, e.Want)
}

// Store is a directory of blobs. Safe for concurrent use, also by several
// processes. A missing directory is an empty store for look-ups.
type Store struct {
	dir string
	// LimitBytes is the largest blob that Create takes; Open sets MaxBytes.
	LimitBytes int64
}

var _ storage.Blobs = (*Store)(nil)

// Open returns the store in dir, an absolute path. Nothing is made yet.
func Open(dir string) (*Store, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("blob store %q: not an absolute path", dir)
	}
	return &Store{dir: dir, LimitBytes: MaxBytes}, nil
}

func (s *Store) blobDir() string { return filepath.Join(s.dir, "sha256") }
func (s *Store) tmpDir() string  { return filepath.Join(s.dir, "tmp") }

// path returns the file of a digest, which comes from outside.
func (s *Store) path(d storage.Digest) (string, error) {
	if _, err := storage.ParseDigest(string(d)); err != nil {
		return "", err
	}
	return filepath.Join(s.blobDir(), d.Hex()), nil
}

// Open implements storage.Blobs. The reader is an *os.File.
func (s *Store) Open(_ context.Context, d storage.Digest) (io.ReadCloser, int64, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob %s: %w", d, storage.ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("blob: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("blob %s: %w", d, err), f.Close())
	}
	return f, fi.Size(), nil
}

// Create implements storage.Blobs.
func (s *Store) Create(context.Context) (storage.BlobWriter, error) {
	for _, dir := range []string{s.blobDir(), s.tmpDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("new blob: %w", err)
		}
	}
	f, err := layout.CreateLocked(s.tmpDir(), tmpPrefix)
	if err != nil {
		return nil, fmt.Errorf("new blob: %w", err)
	}
	return &writer{store: s, file: f, hash: sha256.New()}, nil
}

// Remove implements storage.Blobs. Who has a blob open can read it to its end.
func (s *Store) Remove(_ context.Context, ds ...storage.Digest) error {
	var errs []error
	for _, d := range ds {
		path, err := s.path(d)
		if err == nil {
			if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Blob is one blob of the store.
type Blob struct {
	Digest    storage.Digest
	SizeBytes int64
	// Written is when it was last committed, by the file system's clock.
	Written time.Time
}

// All lists the blobs. Files that are not named by a digest are left out.
func (s *Store) All(context.Context) ([]Blob, error) {
	entries, err := os.ReadDir(s.blobDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	var all []Blob
	for _, e := range entries {
		d, err := storage.ParseDigest("sha256:" + e.Name())
		if err != nil {
			continue
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		all = append(all, Blob{Digest: d, SizeBytes: fi.Size(), Written: fi.ModTime()})
	}
	return all, nil
}

// RemoveAbandoned removes what killed processes had begun to write, and
// returns how many files that were.
func (s *Store) RemoveAbandoned() (int, error) {
	return layout.RemoveAbandoned(s.tmpDir(), tmpPrefix)
}

// writer hashes while it writes.
type writer struct {
	store *Store
	file  *os.File // nil after Commit or Close
	hash  hash.Hash
	size  int64
}

// Write implements io.Writer; the error wraps ErrTooLarge beyond the limit.
func (w *writer) Write(p []byte) (int, error) {
	if w.file == nil {
		return 0, fs.ErrClosed
	}
	if w.size+int64(len(p)) > w.store.LimitBytes {
		return 0, fmt.Errorf("%w of %d bytes", ErrTooLarge, w.store.LimitBytes)
	}
	n, err := w.file.Write(p)
	w.hash.Write(p[:n]) // a hash never fails
	w.size += int64(n)
	return n, err
}

// Sum implements storage.BlobWriter.
func (w *writer) Sum() storage.Digest {
	return storage.Digest("sha256:" + hex.EncodeToString(w.hash.Sum(nil)))
}

// Commit implements storage.BlobWriter. A blob that is there already counts as
// written again: garbage collection sees that it is wanted. The bytes are on
// the disk before the blob has its name, so a blob is whole or not there.
func (w *writer) Commit(want storage.Digest) (storage.Digest, int64, error) {
	if w.file == nil {
		return "", 0, fs.ErrClosed
	}
	got := w.Sum()
	if want != "" && want != got {
		return "", 0, &MismatchError{Want: want, Got: got}
	}
	if err := os.Chmod(w.file.Name(), 0o400); err != nil {
		return "", 0, fmt.Errorf("commit blob: %w", err)
	}
	if err := w.file.Sync(); err != nil {
		return "", 0, fmt.Errorf("commit blob: %w", err)
	}
	// rename replaces an equal blob: the new file has today's time.
	if err := os.Rename(w.file.Name(), filepath.Join(w.store.blobDir(), got.Hex())); err != nil {
		return "", 0, fmt.Errorf("commit blob: %w", err)
	}
	err := w.file.Close()
	w.file = nil
	if err != nil {
		return "", 0, fmt.Errorf("commit blob %s: %w", got, err)
	}
	return got, w.size, nil
}

// Close implements storage.BlobWriter.
func (w *writer) Close() error {
	if w.file == nil {
		return nil
	}
	err := errors.Join(os.Remove(w.file.Name()), w.file.Close())
	w.file = nil
	return err
}
