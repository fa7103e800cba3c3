package overlay

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	cstorage "go.podman.io/storage"
	graphdriver "go.podman.io/storage/drivers"
	"go.podman.io/storage/pkg/archive"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layout"
)

// driverDir is where the overlay driver keeps a layer's directory.
func (s *Store) driverDir() string { return filepath.Join(s.layout.Graph(), "overlay") }

// Dir implements storage.Layers. It asks neither the catalogue nor its locks:
// a layer's directory is the driver's, overlay/ID/diff, and is made and removed
// under that name at once. One lstat(2).
func (s *Store) Dir(id storage.LayerID) (string, error) {
	if !storage.IsHex64(string(id)) {
		return "", fmt.Errorf("layer ID %q is not 64 hex digits: %w", id, storage.ErrNotFound)
	}
	dir := filepath.Join(s.driverDir(), string(id), "diff")
	if _, err := os.Lstat(dir); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = storage.ErrNotFound
		}
		return "", fmt.Errorf("layer %s: %w", id, err)
	}
	return dir, nil
}

// Find implements storage.Layers. What it finds may be collected before the
// caller holds it with a lease.
func (s *Store) Find(ctx context.Context, name string) (storage.LayerID, error) {
	if storage.IsHex64(name) {
		return "", fmt.Errorf("layer name %q is an ID", name)
	}
	id, err := s.named(name)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", name, err)
	}
	gone, err := s.index.Dropped(ctx, id)
	if err != nil {
		return "", err
	}
	if len(gone) > 0 {
		return "", fmt.Errorf("layer %s: %w", name, storage.ErrNotFound)
	}
	return id, nil
}

// named returns the layer of the catalogue with that name, or
// storage.ErrNotFound. The catalogue would take a name for the beginning of an
// ID too.
func (s *Store) named(name string) (storage.LayerID, error) {
	l, err := s.catalog.Layer(name)
	if errors.Is(err, cstorage.ErrLayerUnknown) || err == nil && !slices.Contains(l.Names, name) {
		return "", storage.ErrNotFound
	}
	if err != nil {
		return "", err
	}
	return storage.LayerID(l.ID), nil
}

// All implements storage.Layers.
func (s *Store) All(context.Context) ([]storage.LayerID, error) {
	layers, err := s.catalog.Layers()
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	ids := make([]storage.LayerID, len(layers))
	for i, l := range layers {
		ids[i] = storage.LayerID(l.ID)
	}
	return ids, nil
}

// Remove implements storage.Layers. Leases and images are not asked: GC does
// that. The index forgets the layers' steps and seals first, and images that
// need one.
func (s *Store) Remove(ctx context.Context, ids ...storage.LayerID) error {
	if _, err := s.index.DropLayers(ctx, ids...); err != nil {
		return err
	}
	return s.delete(ctx, ids)
}

// delete removes layers from the catalogue and the disk.
func (s *Store) delete(ctx context.Context, ids []storage.LayerID) error {
	for _, id := range ids {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		err := s.catalog.DeleteLayer(string(id))
		if err != nil && !errors.Is(err, cstorage.ErrNotALayer) && !errors.Is(err, cstorage.ErrLayerUnknown) {
			return fmt.Errorf("remove layer %s: %w", id, err)
		}
	}
	return nil
}

// staged is a staging directory of the driver. It holds dir, which becomes the
// layer, and beside it work and the owner file.
type staged struct {
	store *Store
	out   *graphdriver.DriverWithDifferOutput
	work  string
	over  bool // committed or discarded
}

// ownerFile names, in a staging directory, the lease of the process it
// belongs to.
const ownerFile = "mstage-owner"

// directory is a Differ that writes nothing: the caller fills the directory
// afterwards.
type directory struct{ owner string }

// ApplyDiff implements containers/storage's Differ.
func (d directory) ApplyDiff(dest string, _ *archive.TarOptions, _ *graphdriver.DifferOptions) (graphdriver.DriverWithDifferOutput, error) {
	base := filepath.Dir(dest)
	err := errors.Join(
		os.WriteFile(filepath.Join(base, ownerFile), []byte(d.owner), 0o600),
		os.Mkdir(filepath.Join(base, "work"), 0o700),
		// The driver made it 0555, and a umask may have taken more.
		os.Chmod(dest, 0o755))
	return graphdriver.DriverWithDifferOutput{Target: dest, Size: -1}, err
}

// Close implements containers/storage's Differ.
func (directory) Close() error { return nil }

// Stage implements storage.Layers. The directory is empty, 0:0 and 0755. No
// lock of the catalogue is taken, so any number can be staged side by side.
func (s *Store) Stage(ctx context.Context) (storage.Staged, error) {
	lock, err := s.lock(ctx, lockStage, layout.Shared)
	if err != nil {
		return nil, err
	}
	out, err := s.catalog.PrepareStagedLayer(nil, directory{owner: s.own.name})
	if err = errors.Join(err, lock.Unlock()); err != nil {
		return nil, fmt.Errorf("stage layer: %w", err)
	}
	return &staged{store: s, out: out, work: filepath.Join(filepath.Dir(out.Target), "work")}, nil
}

// Dir implements storage.Staged.
func (st *staged) Dir() string { return st.out.Target }

// WorkDir implements storage.Staged.
func (st *staged) WorkDir() string { return st.work }

// Discard implements storage.Staged.
func (st *staged) Discard() error {
	if st.over {
		return nil
	}
	st.over = true
	// First the trees, without the catalogue's lock that the rest needs.
	err := errors.Join(removeAll(st.out.Target), removeAll(st.work), st.cleanup())
	if err != nil {
		return fmt.Errorf("discard staged layer: %w", err)
	}
	return nil
}

// cleanup removes the staging directory, under the lock that keeps a
// collection from meeting it without its owner file.
func (st *staged) cleanup() error {
	lock, err := st.store.lock(context.Background(), lockStage, layout.Shared)
	if err != nil {
		return err
	}
	return errors.Join(st.store.catalog.CleanupStagedLayer(st.out), lock.Unlock())
}

// commitTries bounds how often Commit meets a layer of its name that is being
// collected. Once is already rare.
const commitTries = 5

// Commit implements storage.Staged. The layer is leased to this process until
// Close; so is the winner.
func (st *staged) Commit(ctx context.Context, name string) (id storage.LayerID, won bool, err error) {
	if st.over {
		return "", false, errors.New("commit: layer was committed or discarded before")
	}
	if name == "" || storage.IsHex64(name) {
		return "", false, fmt.Errorf("commit: layer name %q is empty or an ID", name)
	}
	if err := removeAll(st.work); err != nil {
		return "", false, fmt.Errorf("commit: %w", err)
	}
	for range commitTries {
		id, won, err = st.commit(ctx, name)
		if !errors.Is(err, storage.ErrNotFound) {
			break
		}
	}
	if err != nil {
		return "", false, fmt.Errorf("commit %s: %w", name, err)
	}
	return id, won, st.Discard() //nolint:contextcheck // what was staged goes away whatever became of the build
}

// commit puts the layer into the catalogue, or returns the one that has the
// name. The error wraps storage.ErrNotFound when that one is being collected.
func (st *staged) commit(ctx context.Context, name string) (storage.LayerID, bool, error) {
	s := st.store
	id, err := newLayerID()
	if err != nil {
		return "", false, err
	}
	if err := s.own.write([]storage.LayerID{id}); err != nil {
		return "", false, err
	}
	err = s.unsynced(ctx, func() error {
		_, err := s.catalog.ApplyStagedLayer(cstorage.ApplyStagedLayerOptions{
			ID:           string(id),
			Names:        []string{name},
			LayerOptions: &cstorage.LayerOptions{Volatile: true},
			DiffOutput:   st.out,
			DiffOptions:  &graphdriver.ApplyDiffWithDifferOpts{},
		})
		return err
	})
	if err == nil {
		return id, true, nil
	}
	if !errors.Is(err, cstorage.ErrDuplicateName) {
		return "", false, err
	}
	return st.winner(ctx, name)
}

// winner returns the layer that has the name, held. One that is condemned
// loses its name here, so that the next try can have it.
func (st *staged) winner(ctx context.Context, name string) (storage.LayerID, bool, error) {
	s := st.store
	id, err := s.named(name)
	if err != nil {
		return "", false, err
	}
	err = s.own.Hold(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		if nameErr := s.catalog.RemoveNames(string(id), []string{name}); nameErr != nil && !errors.Is(nameErr, cstorage.ErrLayerUnknown) {
			return "", false, nameErr
		}
	}
	return id, false, err
}

// newLayerID returns a random ID.
func newLayerID() (storage.LayerID, error) {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return storage.LayerID(hex.EncodeToString(b)), nil
}
