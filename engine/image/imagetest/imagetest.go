// Package imagetest is a small store for the tests of packages that make and
// export images: directories, maps and overlay mounts, nothing kept.
package imagetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/storage"
)

// Store is every part of a store. Safe for concurrent use.
type Store struct {
	dir string

	mu     sync.Mutex
	seals  map[storage.LayerID]storage.Seal
	images map[storage.Digest]storage.Image
	reads  map[storage.LayerID]int
}

// New returns an empty store below a directory of the test.
func New(tb testing.TB) *Store {
	tb.Helper()
	s := &Store{
		dir:   tb.TempDir(),
		seals: map[storage.LayerID]storage.Seal{}, images: map[storage.Digest]storage.Image{},
		reads: map[storage.LayerID]int{},
	}
	for _, d := range []string{"layers", "blobs"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	return s
}

// Stores returns the store as the struct that the engine takes.
func (s *Store) Stores() image.Stores {
	return image.Stores{Layers: layers{s: s}, Mounter: s, Seals: s, Blobs: s, Images: images{s: s}}
}

// AddLayer makes a layer of what fill puts into its diff directory.
func (s *Store) AddLayer(tb testing.TB, name string, fill func(dir string)) storage.Layer {
	tb.Helper()
	id := storage.LayerID(storage.DigestBytes([]byte(name)).Hex())
	dir := filepath.Join(s.dir, "layers", string(id))
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	fill(dir)
	return storage.Layer{ID: id, Identity: storage.DigestBytes([]byte("identity of " + name))}
}

// Reads returns how often the directory of a layer was asked for.
func (s *Store) Reads(id storage.LayerID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[id]
}

// layers is the part for layers; the tests only read them.
type layers struct {
	storage.Layers
	s *Store
}

// Dir returns the diff directory.
func (l layers) Dir(id storage.LayerID) (string, error) {
	l.s.mu.Lock()
	l.s.reads[id]++
	l.s.mu.Unlock()
	dir := filepath.Join(l.s.dir, "layers", string(id))
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("layer %s: %w", id, storage.ErrNotFound)
	}
	return dir, nil
}

// Mount mounts layers read-only.
func (s *Store) Mount(_ context.Context, o storage.MountOptions) (func() error, error) {
	var lowers []string
	for _, id := range slices.Backward(o.Layers) {
		lowers = append(lowers, filepath.Join(s.dir, "layers", string(id)))
	}
	empty := filepath.Join(s.dir, "empty")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return nil, err
	}
	opts := "userxattr,index=off,lowerdir=" + strings.Join(append(lowers, empty), ":")
	if err := unix.Mount("overlay", o.Target, "overlay", unix.MS_RDONLY, opts); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	return func() error { return unix.Unmount(o.Target, 0) }, nil
}

// Seal returns the seal of a layer.
func (s *Store) Seal(_ context.Context, id storage.LayerID) (storage.Seal, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seal, ok := s.seals[id]
	return seal, ok, nil
}

// PutSeal keeps the seal of a layer.
func (s *Store) PutSeal(_ context.Context, id storage.LayerID, seal storage.Seal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seals[id] = seal
	return nil
}

// images is the part for images that sealing writes to.
type images struct {
	storage.Images
	s *Store
}

// PutImage keeps an image.
func (i images) PutImage(_ context.Context, img storage.Image, _ ...string) error {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	i.s.images[img.ID] = img
	return nil
}

// Image returns an image.
func (i images) Image(_ context.Context, id storage.Digest) (storage.Image, error) {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	img, ok := i.s.images[id]
	if !ok {
		return img, fmt.Errorf("image %s: %w", id, storage.ErrNotFound)
	}
	return img, nil
}

// Open opens a blob.
func (s *Store) Open(_ context.Context, d storage.Digest) (io.ReadCloser, int64, error) {
	f, err := os.Open(filepath.Join(s.dir, "blobs", d.Hex()))
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob %s: %w", d, storage.ErrNotFound)
	}
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	return f, st.Size(), err
}

// Create begins a blob.
func (s *Store) Create(context.Context) (storage.BlobWriter, error) {
	f, err := os.CreateTemp(s.dir, "blob-")
	return &blobWriter{f: f, s: s, sum: sha256.New()}, err
}

// Remove deletes blobs.
func (s *Store) Remove(_ context.Context, ds ...storage.Digest) error {
	for _, d := range ds {
		if err := os.RemoveAll(filepath.Join(s.dir, "blobs", d.Hex())); err != nil {
			return err
		}
	}
	return nil
}

type blobWriter struct {
	f   *os.File
	s   *Store
	sum hash.Hash
	n   int64
}

func (b *blobWriter) Write(p []byte) (int, error) {
	n, err := b.f.Write(p)
	b.sum.Write(p[:n])
	b.n += int64(n)
	return n, err
}

func (b *blobWriter) Sum() storage.Digest {
	return storage.Digest("sha256:" + hex.EncodeToString(b.sum.Sum(nil)))
}

func (b *blobWriter) Commit(want storage.Digest) (storage.Digest, int64, error) {
	d := b.Sum()
	if want != "" && want != d {
		return "", 0, fmt.Errorf("blob is %s instead of %s", d, want)
	}
	return d, b.n, os.Rename(b.f.Name(), filepath.Join(b.s.dir, "blobs", d.Hex()))
}

func (b *blobWriter) Close() error {
	if err := os.Remove(b.f.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return b.f.Close()
}
