// Package index turns records of steps, images and seals into one bbolt file,
// and finds them again by cache key, ID and name.
//
// It implements storage.Steps, storage.Images and storage.Seals. Every
// operation opens the file, runs one transaction and closes it, so that the
// command line and any number of workers share it: look-ups run side by side,
// a write excludes all others for about a millisecond. A View keeps the file
// open for a whole walk of the cache.
//
// Writes don't wait for the disk: a process that is killed loses nothing,
// because the kernel has the pages. A kernel that dies may leave a torn file,
// so a marker beside it says that something is not synced yet; the first use
// after another boot then checks every page. Sync makes what was written
// durable and removes the marker. The store calls it when an image is tagged.
//
// Each image is also kept as a JSON file in a directory beside the database,
// from which Rebuild makes a new one. Step records and seals are not: they only
// save work.
package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layout"
)

// ErrDamaged is wrapped by the error of every operation that meets a damaged
// file. It is a *DamagedError.
var ErrDamaged = errors.New("damaged index")

// DamagedError names the damaged file and, in Hint, how to mend it.
type DamagedError struct {
	File string
	Hint string
	Err  error
}

func (e *DamagedError) Error() string { return fmt.Sprintf("%s is damaged: %v", e.File, e.Err) }

// Unwrap returns ErrDamaged and the cause.
func (e *DamagedError) Unwrap() []error { return []error{ErrDamaged, e.Err} }

// damagedHint names the commands that open the store for writing: that is when
// the worker calls Rebuild.
const damagedHint = `"mstage prune" rebuilds it from the image records beside it: images stay, the build cache is lost`

// The buckets. Keys and values are text or JSON unless said otherwise.
var (
	bucketSteps   = []byte("steps")   // key's hex → StepRecord
	bucketUsed    = []byte("used")    // key's hex → time of the last use
	bucketLayers  = []byte("layers")  // layer ID + "/" + key's hex → nothing: the steps of a layer
	bucketImages  = []byte("images")  // local ID's hex → Image
	bucketSealed  = []byte("sealed")  // config digest's hex → local ID's hex
	bucketNames   = []byte("names")   // name → local ID's hex
	bucketSeals   = []byte("seals")   // layer ID → Seal
	bucketDropped = []byte("dropped") // layer ID → time when it was condemned
)

// Index is the index of one store. Safe for concurrent use; it holds no file
// open between operations.
type Index struct {
	reads
	path   string
	images string
	marker layout.Marker
}

var (
	_ storage.Steps  = (*Index)(nil)
	_ storage.Images = (*Index)(nil)
	_ storage.Seals  = (*Index)(nil)
)

// Open returns the index whose database is the file at path; image records are
// in the directory "images" beside it. Nothing is opened or made yet: for
// look-ups a missing file is an empty index.
func Open(path string) (*Index, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("index %q: not an absolute path", path)
	}
	ix := &Index{
		path:   path,
		images: filepath.Join(filepath.Dir(path), "images"),
		marker: layout.Marker(path + ".unsynced"),
	}
	ix.reads = reads{with: ix.view}
	return ix, nil
}

// lock takes the lock of the index. bbolt has a lock of its own, but waits for
// it in steps of 50 ms; with this one outside, that one is always free.
func (ix *Index) lock(ctx context.Context, mode int) (*layout.Lock, error) {
	return layout.AcquireLock(ctx, ix.path+".lock", mode)
}

// view runs f in a read transaction. f gets nil when there is no database yet.
func (ix *Index) view(ctx context.Context, f func(*bbolt.Tx) error) error {
	s, err := ix.openReader(ctx)
	if err != nil {
		return err
	}
	return errors.Join(s.view(f), s.close())
}

// session is the open database with the lock that guards it. db is nil when
// there is no database yet.
type session struct {
	ix   *Index
	db   *bbolt.DB
	lock *layout.Lock
}

// openReader opens the database for look-ups.
func (ix *Index) openReader(ctx context.Context) (*session, error) {
	if err := ix.mendAfterBoot(ctx); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(ix.path); errors.Is(err, fs.ErrNotExist) {
		return &session{ix: ix}, nil
	}
	lock, err := ix.lock(ctx, layout.Shared)
	if err != nil {
		return nil, err
	}
	db, err := ix.open(true)
	if errors.Is(err, fs.ErrNotExist) {
		return &session{ix: ix}, lock.Unlock()
	}
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	return &session{ix: ix, db: db, lock: lock}, nil
}

// openWriter opens the database for one change, making it when it is missing.
func (ix *Index) openWriter(ctx context.Context) (*session, error) {
	if err := ix.mendAfterBoot(ctx); err != nil {
		return nil, err
	}
	lock, err := ix.lock(ctx, layout.Exclusive)
	if err != nil {
		return nil, err
	}
	s := &session{ix: ix, lock: lock}
	if err := ix.marker.Set(); err != nil {
		return nil, errors.Join(fmt.Errorf("index: %w", err), s.close())
	}
	if s.db, err = ix.open(false); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// update runs f in a write transaction and afterwards, still under the lock,
// brings the image records up to date that f says have changed.
func (ix *Index) update(ctx context.Context, f func(*change) error) error {
	s, err := ix.openWriter(ctx)
	if err != nil {
		return err
	}
	c := &change{images: map[string]bool{}}
	err = s.guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			c.tx = tx
			return f(c)
		})
	})
	if err == nil && len(c.images) > 0 {
		err = s.view(func(tx *bbolt.Tx) error { return ix.mirror(tx, c.images) })
	}
	return errors.Join(err, s.close())
}

// change is a write transaction and the local IDs (hex) of the images whose
// record or names it touches.
type change struct {
	tx     *bbolt.Tx
	images map[string]bool
}

// lockWait bounds the wait for bbolt's own lock, which only a program that
// ignores ours could hold.
const lockWait = 10 * time.Second

// open opens the database file. The caller holds the lock.
func (ix *Index) open(readOnly bool) (db *bbolt.DB, err error) {
	err = ix.guard(func() error {
		db, err = bbolt.Open(ix.path, 0o600, &bbolt.Options{
			ReadOnly:     readOnly,
			NoSync:       true,
			NoGrowSync:   true,
			FreelistType: bbolt.FreelistMapType,
			Timeout:      lockWait,
		})
		return err
	})
	switch {
	case err == nil || errors.Is(err, ErrDamaged):
		return db, err
	case isFileError(err):
		return nil, fmt.Errorf("open index: %w", err)
	}
	return nil, ix.damaged(err)
}

// isFileError reports whether err is the operating system's, not the file
// content's.
func isFileError(err error) bool {
	_, ok := errors.AsType[*fs.PathError](err)
	return ok || errors.Is(err, berrors.ErrTimeout)
}

func (ix *Index) damaged(err error) error {
	return &DamagedError{File: ix.path, Hint: damagedHint, Err: err}
}

// guard runs f and returns what a damaged file does to it as a *DamagedError:
// bbolt panics at pages of a wrong type and faults beyond a truncated file.
func (ix *Index) guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = ix.damaged(fmt.Errorf("%v", p))
		}
	}()
	err = f()
	if _, typed := errors.AsType[*DamagedError](err); errors.Is(err, ErrDamaged) && !typed {
		return ix.damaged(err)
	}
	return err
}

func (s *session) guard(f func() error) error { return s.ix.guard(f) }

// view runs f in a read transaction.
func (s *session) view(f func(*bbolt.Tx) error) error {
	if s.db == nil {
		return f(nil)
	}
	return s.guard(func() error { return s.db.View(f) })
}

// close gives the file and the lock back.
func (s *session) close() error {
	var errs []error
	if s.db != nil {
		errs = append(errs, s.guard(s.db.Close))
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Unlock())
	}
	return errors.Join(errs...)
}
