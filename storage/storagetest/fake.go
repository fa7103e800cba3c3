// Package storagetest turns temporary directories and maps into a store for
// tests, and holds every implementation of package storage to its contract.
//
// The fake needs no privilege, but it can't mount. The Test functions are the
// contract: they run on the fake and on the real implementations alike.
package storagetest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/blobs"
)

// ErrNoMounts is returned by the fake's Mount.
var ErrNoMounts = errors.New("the fake store can't mount")

// Store is a fake store: its parts, each of which implements what it is named
// after.
type Store struct {
	// Layers are directories; it implements storage.Mounter too, by refusing.
	*Layers
	// Index implements storage.Steps, storage.Images and storage.Seals in memory.
	Index *Index
	// Blobs are files.
	Blobs *blobs.Store
}

// New returns an empty fake store that ends with the test.
func New(t testing.TB) *Store {
	t.Helper()
	dir := t.TempDir()
	b, err := blobs.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	l := &Layers{dir: dir, names: map[string]storage.LayerID{}, ids: map[storage.LayerID]bool{}}
	for _, sub := range []string{"layers", "staging"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &Store{Layers: l, Index: NewIndex(), Blobs: b}
}

// Layers is a fake of storage.Layers.
type Layers struct {
	dir string

	mu    sync.Mutex
	names map[string]storage.LayerID
	ids   map[storage.LayerID]bool
}

var (
	_ storage.Layers  = (*Layers)(nil)
	_ storage.Mounter = (*Layers)(nil)
)

func (l *Layers) path(id storage.LayerID) string {
	return filepath.Join(l.dir, "layers", string(id))
}

// Stage implements storage.Layers.
func (l *Layers) Stage(context.Context) (storage.Staged, error) {
	base, err := os.MkdirTemp(filepath.Join(l.dir, "staging"), "")
	if err != nil {
		return nil, err
	}
	st := &staged{layers: l, base: base}
	return st, errors.Join(os.Mkdir(st.Dir(), 0o755), os.Mkdir(st.WorkDir(), 0o700))
}

// Dir implements storage.Layers.
func (l *Layers) Dir(id storage.LayerID) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ids[id] {
		return "", fmt.Errorf("layer %s: %w", id, storage.ErrNotFound)
	}
	return l.path(id), nil
}

// Find implements storage.Layers.
func (l *Layers) Find(_ context.Context, name string) (storage.LayerID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id, ok := l.names[name]
	if !ok {
		return "", fmt.Errorf("layer %s: %w", name, storage.ErrNotFound)
	}
	return id, nil
}

// All implements storage.Layers.
func (l *Layers) All(context.Context) ([]storage.LayerID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []storage.LayerID
	for id := range l.ids {
		all = append(all, id)
	}
	return all, nil
}

// Remove implements storage.Layers.
func (l *Layers) Remove(_ context.Context, ids ...storage.LayerID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, id := range ids {
		delete(l.ids, id)
		for name, named := range l.names {
			if named == id {
				delete(l.names, name)
			}
		}
		if storage.IsHex64(string(id)) {
			errs = append(errs, os.RemoveAll(l.path(id)))
		}
	}
	return errors.Join(errs...)
}

// Mount implements storage.Mounter: it returns ErrNoMounts.
func (l *Layers) Mount(context.Context, storage.MountOptions) (func() error, error) {
	return nil, ErrNoMounts
}

// Lease returns a lease that checks what it is given; the fake collects nothing.
func (l *Layers) Lease(context.Context) (storage.Lease, error) { return lease{l}, nil }

type lease struct{ layers *Layers }

func (l lease) Hold(_ context.Context, ids ...storage.LayerID) error {
	for _, id := range ids {
		if _, err := l.layers.Dir(id); err != nil {
			return err
		}
	}
	return nil
}

func (lease) Release() error { return nil }

type staged struct {
	layers *Layers
	base   string
	over   bool
}

func (st *staged) Dir() string     { return filepath.Join(st.base, "diff") }
func (st *staged) WorkDir() string { return filepath.Join(st.base, "work") }

func (st *staged) Commit(_ context.Context, name string) (storage.LayerID, bool, error) {
	if st.over {
		return "", false, errors.New("committed or discarded before")
	}
	if name == "" || storage.IsHex64(name) {
		return "", false, fmt.Errorf("layer name %q is empty or an ID", name)
	}
	l := st.layers
	l.mu.Lock()
	defer l.mu.Unlock()
	if id, ok := l.names[name]; ok {
		return id, false, st.Discard()
	}
	b := make([]byte, 32)
	rand.Read(b)
	id := storage.LayerID(hex.EncodeToString(b))
	if err := os.Rename(st.Dir(), l.path(id)); err != nil {
		return "", false, err
	}
	l.names[name], l.ids[id] = id, true
	return id, true, st.Discard()
}

func (st *staged) Discard() error {
	if st.over {
		return nil
	}
	st.over = true
	return os.RemoveAll(st.base)
}

// Index is a fake of storage.Steps, storage.Images and storage.Seals.
type Index struct {
	mu     sync.Mutex
	steps  map[storage.Digest]storage.StepRecord
	images map[storage.Digest]storage.Image
	names  map[string]storage.Digest
	seals  map[storage.LayerID]storage.Seal
}

var (
	_ storage.Steps  = (*Index)(nil)
	_ storage.Images = (*Index)(nil)
	_ storage.Seals  = (*Index)(nil)
)

// NewIndex returns an empty index in memory.
func NewIndex() *Index {
	return &Index{
		steps:  map[storage.Digest]storage.StepRecord{},
		images: map[storage.Digest]storage.Image{},
		names:  map[string]storage.Digest{},
		seals:  map[storage.LayerID]storage.Seal{},
	}
}

// Step implements storage.Steps.
func (ix *Index) Step(_ context.Context, key storage.Digest) (storage.StepRecord, bool, error) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	rec, ok := ix.steps[key]
	return rec, ok, nil
}

// RecordSteps implements storage.Steps.
func (ix *Index) RecordSteps(_ context.Context, rec storage.StepRecord, keys ...storage.Digest) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for _, k := range keys {
		ix.steps[k] = rec
	}
	return nil
}

// ForgetSteps implements storage.Steps.
func (ix *Index) ForgetSteps(_ context.Context, keys ...storage.Digest) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for _, k := range keys {
		delete(ix.steps, k)
	}
	return nil
}

// Touch does nothing: the fake collects nothing.
func (ix *Index) Touch(context.Context, ...storage.Digest) error { return nil }

// Seal implements storage.Seals.
func (ix *Index) Seal(_ context.Context, id storage.LayerID) (storage.Seal, bool, error) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	s, ok := ix.seals[id]
	return s, ok, nil
}

// PutSeal implements storage.Seals.
func (ix *Index) PutSeal(_ context.Context, id storage.LayerID, s storage.Seal) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.seals[id] = s
	return nil
}

// Image implements storage.Images.
func (ix *Index) Image(_ context.Context, id storage.Digest) (storage.Image, error) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for _, img := range ix.images {
		if img.ID == id || img.Sealed != nil && img.Sealed.ConfigDigest == id {
			return img, nil
		}
	}
	return storage.Image{}, fmt.Errorf("image %s: %w", id, storage.ErrNotFound)
}

// ByName implements storage.Images.
func (ix *Index) ByName(_ context.Context, name string) (storage.Image, error) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	id, ok := ix.names[name]
	if !ok {
		return storage.Image{}, fmt.Errorf("image %s: %w", name, storage.ErrNotFound)
	}
	return ix.images[id], nil
}

// ByPrefix implements storage.Images.
func (ix *Index) ByPrefix(_ context.Context, prefix string) (storage.Image, error) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	var found []storage.Image
	for _, img := range ix.images {
		if strings.HasPrefix(img.ID.Hex(), prefix) || img.Sealed != nil && strings.HasPrefix(img.Sealed.ConfigDigest.Hex(), prefix) {
			found = append(found, img)
		}
	}
	switch len(found) {
	case 0:
		return storage.Image{}, fmt.Errorf("image %s: %w", prefix, storage.ErrNotFound)
	case 1:
		return found[0], nil
	}
	var ids []string
	for _, img := range found {
		ids = append(ids, img.ID.Short())
	}
	slices.Sort(ids)
	return storage.Image{}, fmt.Errorf("%w: %s is one of %s", storage.ErrAmbiguous, prefix, strings.Join(ids, ", "))
}

// AllImages implements storage.Images.
func (ix *Index) AllImages(context.Context) ([]storage.TaggedImage, error) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	var all []storage.TaggedImage
	for _, img := range ix.images {
		tagged := storage.TaggedImage{Image: img}
		for name, id := range ix.names {
			if id == img.ID {
				tagged.Names = append(tagged.Names, name)
			}
		}
		slices.Sort(tagged.Names)
		all = append(all, tagged)
	}
	slices.SortFunc(all, func(a, b storage.TaggedImage) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}

// PutImage implements storage.Images.
func (ix *Index) PutImage(_ context.Context, img storage.Image, names ...string) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if img.Sealed == nil {
		img.Sealed = ix.images[img.ID].Sealed
	}
	ix.images[img.ID] = img
	for _, n := range names {
		ix.names[n] = img.ID
	}
	return nil
}

// Untag implements storage.Images.
func (ix *Index) Untag(_ context.Context, name string) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if _, ok := ix.names[name]; !ok {
		return fmt.Errorf("image %s: %w", name, storage.ErrNotFound)
	}
	delete(ix.names, name)
	return nil
}

// RemoveImage implements storage.Images.
func (ix *Index) RemoveImage(ctx context.Context, id storage.Digest) error {
	img, err := ix.Image(ctx, id)
	if err != nil {
		return err
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	delete(ix.images, img.ID)
	for name, named := range ix.names {
		if named == img.ID {
			delete(ix.names, name)
		}
	}
	return nil
}
