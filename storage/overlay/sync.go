package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
	"github.com/mstage/mstage/storage/layout"
)

func (s *Store) marker() layout.Marker { return layout.Marker(s.layout.Unsynced()) }

// unsynced runs a commit that does not wait for the disk.
func (s *Store) unsynced(ctx context.Context, commit func() error) error {
	lock, err := s.lock(ctx, lockSync, layout.Shared)
	if err != nil {
		return err
	}
	err = s.marker().Set()
	if err == nil {
		err = commit()
	}
	return errors.Join(err, lock.Unlock())
}

// Sync returns when every layer, blob and record that was committed before is
// on the disk. It syncs the whole file system once: seconds, where a build
// wrote gigabytes. The caller does so before it reports an image as tagged or
// exported.
func (s *Store) Sync(ctx context.Context) error {
	state, err := s.marker().State()
	if err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	if state != layout.Clean {
		if err := s.syncLayers(ctx); err != nil {
			return fmt.Errorf("sync store: %w", err)
		}
	}
	return s.index.Sync(ctx)
}

// syncLayers makes the layers of now durable, then notes them. Commits go on
// meanwhile; when there was one, the marker stays for it.
func (s *Store) syncLayers(ctx context.Context) error {
	before, err := s.All(ctx)
	if err != nil {
		return err
	}
	if err := syncfs(s.layout.Root); err != nil {
		return err
	}
	lock, err := s.lock(ctx, lockSync, layout.Exclusive)
	if err != nil {
		return err
	}
	return errors.Join(s.noteSynced(ctx, before), lock.Unlock())
}

// noteSynced adds layers to the list of those that are on the disk, and drops
// what is gone from it. The caller has the lock.
func (s *Store) noteSynced(ctx context.Context, layers []storage.LayerID) error {
	now, err := s.All(ctx)
	if err != nil {
		return err
	}
	known, err := s.readSynced()
	if err != nil {
		return err
	}
	for _, id := range layers {
		known[id] = true
	}
	var lines strings.Builder
	clean := true
	for _, id := range now {
		if known[id] {
			lines.WriteString(string(id) + "\n")
		} else {
			clean = false
		}
	}
	if err := layout.WriteFile(s.layout.Synced(), []byte(lines.String())); err != nil {
		return err
	}
	if !clean {
		return nil
	}
	return s.marker().Clear()
}

func (s *Store) readSynced() (map[storage.LayerID]bool, error) {
	known := map[storage.LayerID]bool{}
	b, err := os.ReadFile(s.layout.Synced())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		known[storage.LayerID(strings.TrimSpace(line))] = true
	}
	return known, nil
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		err = fmt.Errorf("syncfs: %w", err)
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// catalogFile is containers/storage's list of volatile layers. It is written
// without a sync, so that it may be torn after an unclean end of the machine.
func (s *Store) catalogFile() string {
	return filepath.Join(s.layout.Graph(), "overlay-layers", "volatile-layers.json")
}

// beforeCatalog reports whether the machine ended with unsynced layers, and
// then moves a torn catalogue out of the way, which would keep
// containers/storage from opening. The other processes are as new as we are:
// the lock makes one of them do the work.
func (s *Store) beforeCatalog(ctx context.Context) (lost bool, err error) {
	state, err := s.marker().State()
	if err != nil || state != layout.Lost {
		return false, err
	}
	lock, err := s.lock(ctx, lockSync, layout.Exclusive)
	if err != nil {
		return false, err
	}
	return true, errors.Join(s.dropTornCatalog(), lock.Unlock())
}

func (s *Store) dropTornCatalog() error {
	b, err := os.ReadFile(s.catalogFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var layers []json.RawMessage
	if json.Unmarshal(b, &layers) == nil {
		return nil
	}
	s.warn("the list of layers was damaged when the machine stopped: all layers are dropped")
	return os.Remove(s.catalogFile())
}

// mend brings catalogue, disk and index together again: after an unclean end
// of the machine, and when the index is damaged.
func (s *Store) mend(ctx context.Context, lost bool) error {
	if lost {
		if err := s.dropUnsynced(ctx); err != nil {
			return fmt.Errorf("mend store %s: %w", s.layout.Root, err)
		}
	}
	_, err := s.index.Dropped(ctx)
	return s.mendIndex(ctx, err)
}

// mendIndex rebuilds the index when err says that it is damaged, and returns
// any other error.
func (s *Store) mendIndex(ctx context.Context, err error) error {
	if !errors.Is(err, index.ErrDamaged) {
		return err
	}
	s.warn(err.Error() + ": rebuilding it")
	layers, err := s.All(ctx)
	if err != nil {
		return err
	}
	r, err := s.index.Rebuild(ctx, layers)
	if err != nil {
		return err
	}
	s.warn(fmt.Sprintf("the index is rebuilt: %d images stay, the build cache is lost", r.Images))
	for _, text := range r.Lost {
		s.warn("lost " + text)
	}
	return nil
}

// dropUnsynced removes the layers that were committed after the last Sync, or
// whose directory is gone.
func (s *Store) dropUnsynced(ctx context.Context) error {
	lock, err := s.lock(ctx, lockSync, layout.Exclusive)
	if err != nil {
		return err
	}
	state, err := s.marker().State()
	if err == nil && state == layout.Lost {
		err = s.dropUnsyncedLocked(ctx)
	}
	return errors.Join(err, lock.Unlock())
}

func (s *Store) dropUnsyncedLocked(ctx context.Context) error {
	survivors, torn, err := s.divide(ctx)
	if err != nil {
		return err
	}
	_, err = s.index.Dropped(ctx)
	if err := s.mendIndex(ctx, err); err != nil {
		return err
	}
	gone := slices.Clone(torn)
	uses, err := s.index.Uses(ctx)
	if err != nil {
		return err
	}
	for _, u := range uses {
		if !survivors[u.ID] && !slices.Contains(torn, u.ID) {
			gone = append(gone, u.ID)
		}
	}
	images, err := s.index.DropLayers(ctx, gone...)
	if err != nil {
		return err
	}
	for _, img := range images {
		s.warn(fmt.Sprintf("image %s %s was not on the disk when the machine stopped: dropped",
			img.ID.Short(), strings.Join(img.Names, " ")))
	}
	if err := errors.Join(s.delete(ctx, torn), s.removeUnknown(ctx)); err != nil {
		return err
	}
	return errors.Join(s.noteSynced(ctx, nil), s.marker().Clear())
}

// divide tells the layers that are known to be whole from the others of the
// catalogue.
func (s *Store) divide(ctx context.Context) (survivors map[storage.LayerID]bool, torn []storage.LayerID, err error) {
	known, err := s.readSynced()
	if err != nil {
		return nil, nil, err
	}
	all, err := s.All(ctx)
	if err != nil {
		return nil, nil, err
	}
	survivors = map[storage.LayerID]bool{}
	for _, id := range all {
		if _, err := s.Dir(id); err == nil && known[id] {
			survivors[id] = true
		} else {
			torn = append(torn, id)
		}
	}
	return survivors, torn, nil
}
