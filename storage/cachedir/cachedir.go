// Package cachedir keeps the directories of RUN --mount=type=cache: they
// outlive builds, and several builds may share one.
package cachedir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
)

// Dirs are the cache directories below one place. Safe for concurrent use, also
// by several processes: a lock file beside each directory says who has it.
type Dirs struct {
	// Path is the directory that holds them; it exists.
	Path string
}

const (
	// pollEvery is how often a locked cache is asked for again. flock(2) can't
	// be cancelled, so it isn't waited for in the kernel.
	pollEvery = 50 * time.Millisecond
	// maxPrivate bounds the directories of one private cache: more RUNs than
	// this at a time is no build.
	maxPrivate = 1024
	// freshSuffix is behind the name of a directory that is being filled.
	freshSuffix = ".new"
)

// Acquire returns the directory for id, made by fill when it is new. sharing is
// "shared" (any number at once), "private" (another directory when this one is
// taken) or "locked" (waits until it is free). release gives it back.
func (d Dirs) Acquire(ctx context.Context, id, sharing string, fill func(dir string) error) (dir string, release func() error, err error) {
	name := storage.DigestBytes([]byte(id)).Hex()
	var lock *os.File
	switch sharing {
	case "", "shared":
		lock, err = d.lock(ctx, name, unix.LOCK_SH)
	case "locked":
		lock, err = d.lock(ctx, name, unix.LOCK_EX)
	case "private":
		name, lock, err = d.lockFree(name)
	default:
		return "", nil, fmt.Errorf("unknown sharing %q", sharing)
	}
	if err != nil {
		return "", nil, err
	}
	dir = filepath.Join(d.Path, name)
	if err := d.fill(ctx, dir, fill); err != nil {
		return "", nil, errors.Join(err, lock.Close())
	}
	return dir, lock.Close, nil
}

// fill makes the directory whole: it appears under its name only when it is.
func (d Dirs) fill(ctx context.Context, dir string, fill func(dir string) error) error {
	making, err := d.lock(ctx, filepath.Base(dir)+".make", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer making.Close()
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fresh := dir + freshSuffix
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	if err := fill(fresh); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	return os.Rename(fresh, dir)
}

// lockFree takes the first directory of a private cache that nobody has.
func (d Dirs) lockFree(name string) (string, *os.File, error) {
	for i := range maxPrivate {
		candidate := name
		if i > 0 {
			candidate += "." + strconv.Itoa(i)
		}
		lock, err := d.tryLock(candidate, unix.LOCK_EX)
		if err == nil {
			return candidate, lock, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return "", nil, err
		}
	}
	return "", nil, fmt.Errorf("more than %d users of one private cache", maxPrivate)
}

// lock waits for a lock until ctx ends.
func (d Dirs) lock(ctx context.Context, name string, how int) (*os.File, error) {
	for {
		f, err := d.tryLock(name, how)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tryLock returns the locked file; closing it unlocks.
func (d Dirs) tryLock(name string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(d.Path, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	return f, nil
}

// All lists the directories by name and says which are in use; their sizes are
// not looked at.
func (d Dirs) All() ([]storage.CacheUsage, error) {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return nil, err
	}
	var all []storage.CacheUsage
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		lock, err := d.tryLock(strings.TrimSuffix(e.Name(), freshSuffix), unix.LOCK_EX)
		held := errors.Is(err, unix.EWOULDBLOCK)
		if !held {
			err = errors.Join(err, lock.Close())
		}
		if err != nil && !held {
			return nil, err
		}
		all = append(all, storage.CacheUsage{Name: e.Name(), Held: held})
	}
	return all, nil
}

// RemoveUnused deletes the directories that nobody has and returns how many. One
// that is being filled is its cache's, and what a killed process left half filled
// goes.
func (d Dirs) RemoveUnused() (int, error) {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return 0, err
	}
	removed := 0
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		lock, err := d.tryLock(strings.TrimSuffix(e.Name(), freshSuffix), unix.LOCK_EX)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return removed, err
		}
		err = os.RemoveAll(filepath.Join(d.Path, e.Name()))
		if err := errors.Join(err, lock.Close()); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
