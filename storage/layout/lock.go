package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Lock is an flock(2) of an open file. It ends with Unlock or the process,
// whichever comes first.
type Lock struct{ file *os.File }

// Shared and Exclusive are the modes of AcquireLock.
const (
	Shared    = syscall.LOCK_SH
	Exclusive = syscall.LOCK_EX
)

// AcquireLock waits for the lock of the file at path, which is made when it is
// missing. It returns context.Cause(ctx) when ctx ends first.
func AcquireLock(ctx context.Context, path string, mode int) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	err = flock(f, mode|syscall.LOCK_NB)
	if err == nil {
		return &Lock{file: f}, nil
	}
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return waitLock(ctx, f, path, mode)
}

// waitLock blocks in the kernel, which wakes us at once, in a goroutine that
// gives the lock back when nobody waits for it any more.
func waitLock(ctx context.Context, f *os.File, path string, mode int) (*Lock, error) {
	got := make(chan error)
	go func() {
		err := flock(f, mode)
		select {
		case got <- err:
		case <-ctx.Done():
			f.Close()
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		return &Lock{file: f}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Unlock ends the lock.
func (l *Lock) Unlock() error { return l.file.Close() }

// CreateLocked makes a new file in dir, named as os.CreateTemp does, and locks
// it before another process can take it for an abandoned one. The caller
// removes and closes it.
func CreateLocked(dir, pattern string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(dir, pattern)
		if err != nil {
			return nil, err
		}
		ok, err := lockNamed(f)
		if ok && err == nil {
			return f, nil
		}
		// RemoveAbandoned came between creating and locking: begin again.
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
}

// lockNamed locks f and reports whether f is ours and still has a name.
func lockNamed(f *os.File) (bool, error) {
	if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 0, nil
}

// Abandoned reports whether the file at path was made by CreateLocked in a
// process that is gone. A missing file counts as abandoned.
func Abandoned(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	switch err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("lock %s: %w", path, err)
	}
	return true, nil
}

// RemoveAbandoned removes the files in dir whose names begin with prefix, that
// CreateLocked made and whose process is gone, and returns how many.
func RemoveAbandoned(dir, prefix string) (int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var n int
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || !e.Type().IsRegular() {
			continue
		}
		removed, err := removeIfAbandoned(filepath.Join(dir, e.Name()))
		if removed {
			n++
		}
		errs = append(errs, err)
	}
	return n, errors.Join(errs...)
}

// removeIfAbandoned holds the lock while it removes the name, so that
// CreateLocked sees a file without a name.
func removeIfAbandoned(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("lock %s: %w", path, err)
	}
	err = os.Remove(path)
	return err == nil, err
}

// flock retries what a signal interrupted.
func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
