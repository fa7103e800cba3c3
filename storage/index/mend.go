package index

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layout"
)

// recordSuffix ends the name of an image's record: ID's hex + ".json".
const recordSuffix = ".json"

// mirror writes the records of the images with these IDs (hex), or removes
// those of images that are gone.
func (ix *Index) mirror(tx *bbolt.Tx, ids map[string]bool) error {
	if err := os.MkdirAll(ix.images, 0o700); err != nil {
		return fmt.Errorf("image records: %w", err)
	}
	names := namesByID(tx)
	for hex := range ids {
		path := filepath.Join(ix.images, hex+recordSuffix)
		img, ok, err := get[storage.Image](tx, bucketImages, hex)
		if err != nil {
			return err
		}
		if !ok {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("image records: %w", err)
			}
			continue
		}
		raw, err := json.Marshal(storage.TaggedImage{Image: img, Names: names[hex]})
		if err == nil {
			err = layout.ReplaceFile(path, raw)
		}
		if err != nil {
			return fmt.Errorf("image records: %w", err)
		}
	}
	return nil
}

// Sync returns when everything that was written by then is on the disk.
func (ix *Index) Sync(ctx context.Context) error {
	if state, err := ix.marker.State(); err != nil || state == layout.Clean {
		return err
	}
	lock, err := ix.lock(ctx, layout.Exclusive)
	if err != nil {
		return err
	}
	err = ix.syncFiles()
	if err == nil {
		err = ix.marker.Clear()
	}
	if err = errors.Join(err, lock.Unlock()); err != nil {
		return fmt.Errorf("sync index: %w", err)
	}
	return nil
}

// syncFiles syncs the database, the records that changed since the marker was
// made, and the names of both.
func (ix *Index) syncFiles() error {
	since, err := os.Stat(string(ix.marker))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another process was first
	}
	if err != nil {
		return err
	}
	if err := layout.SyncPath(ix.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(ix.images)
	if errors.Is(err, fs.ErrNotExist) {
		return layout.SyncPath(filepath.Dir(ix.path))
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if fi.ModTime().Before(since.ModTime()) {
			continue
		}
		if err := layout.SyncPath(filepath.Join(ix.images, e.Name())); err != nil {
			return err
		}
	}
	return errors.Join(layout.SyncPath(ix.images), layout.SyncPath(filepath.Dir(ix.path)))
}

// mendAfterBoot checks the whole file once when the kernel died with changes
// that were not synced.
func (ix *Index) mendAfterBoot(ctx context.Context) error {
	state, err := ix.marker.State()
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if state != layout.Lost {
		return nil
	}
	lock, err := ix.lock(ctx, layout.Exclusive)
	if err != nil {
		return err
	}
	if state, err = ix.marker.State(); err == nil && state == layout.Lost {
		if err = ix.checkFile(); err == nil {
			err = errors.Join(ix.syncFiles(), ix.marker.Clear())
		}
	}
	return errors.Join(err, lock.Unlock())
}

// Check reads every page and record and returns a *DamagedError for the first
// that is wrong. It excludes writers meanwhile: about 10 ms for 1 MB.
func (ix *Index) Check(ctx context.Context) error {
	if err := ix.mendAfterBoot(ctx); err != nil {
		return err
	}
	if _, err := os.Lstat(ix.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := ix.lock(ctx, layout.Shared)
	if err != nil {
		return err
	}
	return errors.Join(ix.checkFile(), lock.Unlock())
}

// checkFile checks the database. The caller holds the lock.
func (ix *Index) checkFile() error {
	db, err := ix.open(true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s := &session{ix: ix, db: db}
	err = s.view(func(tx *bbolt.Tx) error {
		if err := ix.checkSize(tx); err != nil {
			return err
		}
		var first error
		for err := range tx.Check() { // to the end, or its goroutine stays
			first = cmp.Or(first, err)
		}
		if first != nil {
			return first
		}
		_, err := layerUses(tx)
		return err
	})
	if err != nil && !errors.Is(err, ErrDamaged) {
		err = ix.damaged(err)
	}
	return errors.Join(err, s.close())
}

// checkSize reports a file that ends before its last page: reading beyond the
// end of a mapped file kills a process.
func (ix *Index) checkSize(tx *bbolt.Tx) error {
	fi, err := os.Stat(ix.path)
	if err == nil && fi.Size() < tx.Size() {
		err = fmt.Errorf("%d bytes, want %d", fi.Size(), tx.Size())
	}
	return err
}

// Rebuilt says what Rebuild could save.
type Rebuilt struct {
	// Images is how many images are in the new index.
	Images int
	// Lost are the images with a layer that is gone, and records that can't be
	// read, as text for the user.
	Lost []string
}

// Rebuild makes a new index from the image records, of those images whose
// layers are all among layers. Step records and seals are lost: steps run
// again and layers are sealed again. The old file is removed.
func (ix *Index) Rebuild(ctx context.Context, layers []storage.LayerID) (Rebuilt, error) {
	lock, err := ix.lock(ctx, layout.Exclusive)
	if err != nil {
		return Rebuilt{}, err
	}
	r, err := ix.rebuild(layers)
	if err = errors.Join(err, lock.Unlock()); err != nil {
		return Rebuilt{}, fmt.Errorf("rebuild index: %w", err)
	}
	return r, nil
}

func (ix *Index) rebuild(layers []storage.LayerID) (Rebuilt, error) {
	var r Rebuilt
	images, lost, err := ix.readRecords()
	if err != nil {
		return r, err
	}
	r.Lost = lost
	if err := os.Remove(ix.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if err := errors.Join(ix.marker.Clear(), ix.marker.Set()); err != nil {
		return r, err
	}
	db, err := ix.open(false)
	if err != nil {
		return r, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		c := &change{tx: tx, images: map[string]bool{}}
		for _, img := range images {
			if missing := missingLayer(img.Image, layers); missing != "" {
				r.Lost = append(r.Lost, fmt.Sprintf("image %s %s: layer %s is gone",
					img.ID.Short(), strings.Join(img.Names, " "), missing))
				continue
			}
			if err := c.putImage(img.Image, img.Names); err != nil {
				return err
			}
			r.Images++
		}
		return nil
	})
	return r, errors.Join(err, db.Close())
}

func missingLayer(img storage.Image, layers []storage.LayerID) storage.LayerID {
	for _, l := range img.Layers {
		if !slices.Contains(layers, l.ID) {
			return l.ID
		}
	}
	return ""
}

// readRecords reads all image records. Those that can't be read are reported,
// and removed from the directory only when their image is put again.
func (ix *Index) readRecords() (images []storage.TaggedImage, lost []string, err error) {
	entries, err := os.ReadDir(ix.images)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	for _, e := range entries {
		hex, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || !storage.IsHex64(hex) {
			continue
		}
		img, err := readRecord(filepath.Join(ix.images, e.Name()))
		if err == nil && img.ID.Hex() != hex {
			err = errors.New("it is another image's")
		}
		if err == nil {
			err = checkImage(img.Image, img.Names)
		}
		if err != nil {
			lost = append(lost, fmt.Sprintf("image %s: record: %v", hex[:12], err))
			continue
		}
		images = append(images, img)
	}
	return images, lost, nil
}

func readRecord(path string) (img storage.TaggedImage, err error) {
	f, err := os.Open(path)
	if err != nil {
		return img, err
	}
	defer f.Close()
	// JSON has the configs in base64, 4/3 of their size.
	raw, err := io.ReadAll(io.LimitReader(f, 2*maxImageBytes))
	if err != nil {
		return img, err
	}
	return img, json.Unmarshal(raw, &img)
}
