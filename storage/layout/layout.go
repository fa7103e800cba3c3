// Package layout turns a store's root directory into the paths of its parts,
// and refuses a directory that this process must not use as a store.
//
// It is what the command line and the worker share: it opens neither the index
// nor containers/storage.
//
//	ROOT/format          the layout's version
//	ROOT/containers/     containers/storage's graph root: the layers
//	ROOT/index.db        records of steps, images and seals
//	ROOT/images/         one JSON file per image, to rebuild the index from
//	ROOT/blobs/          compressed layer blobs
//	ROOT/leases/         one locked file per worker: what it uses
//	ROOT/tmp/            one directory per worker, removed with its lease
//	ROOT/locks/          lock files
//	ROOT/empty/          two empty directories, lower layers for mounts with none
//	ROOT/cache/          directories of RUN --mount=type=cache
//	ROOT/run/            where each worker mounts its private tmpfs; empty on disk
//	ROOT/stat-index/     digests of build context files by their inodes
//	ROOT/synced,unsynced what an unclean end of the machine may have lost
//	ROOT/overlay-ok      that overlayfs works here, until the next boot
package layout

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Version is the layout that this program reads and writes.
const Version = 1

// formatPrefix begins the one line of the format file.
const formatPrefix = "mstage store "

// maxFormatBytes bounds what is read of the format file: a line and a number.
const maxFormatBytes = 64

// dirMode is for every directory of a store: layers may hold setuid programs
// and secrets, so no other user gets in.
const dirMode = 0o700

// Problem says why a directory can't be used as a store.
type Problem int

// The problems.
const (
	// ProblemOwner: the store belongs to another user.
	ProblemOwner Problem = iota + 1
	// ProblemFormat: a store of another version, or no store at all.
	ProblemFormat
	// ProblemFilesystem: the file system can't hold overlay layers.
	ProblemFilesystem
)

// Error is a store directory that can't be used. Hint says what to do about it
// and is not part of Error().
type Error struct {
	Root    string
	Problem Problem
	Hint    string
	Err     error
}

func (e *Error) Error() string { return fmt.Sprintf("store %s: %v", e.Root, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// HostHint returns Hint: what is wrong is the place, not what was asked for.
func (e *Error) HostHint() string { return e.Hint }

// Layout is a store's root directory, absolute and clean.
type Layout struct{ Root string }

// Format is the file that holds the layout's version.
func (l Layout) Format() string { return filepath.Join(l.Root, "format") }

// Graph is containers/storage's graph root.
func (l Layout) Graph() string { return filepath.Join(l.Root, "containers") }

// Index is the database of storage/index.
func (l Layout) Index() string { return filepath.Join(l.Root, "index.db") }

// Blobs is the directory of storage/blobs.
func (l Layout) Blobs() string { return filepath.Join(l.Root, "blobs") }

// Leases is the directory of the workers' lease files.
func (l Layout) Leases() string { return filepath.Join(l.Root, "leases") }

// Tmp is the directory of the workers' temporary directories.
func (l Layout) Tmp() string { return filepath.Join(l.Root, "tmp") }

// Locks is the directory of the lock files.
func (l Layout) Locks() string { return filepath.Join(l.Root, "locks") }

// Empty holds two empty directories, "0" and "1".
func (l Layout) Empty() string { return filepath.Join(l.Root, "empty") }

// Unsynced is the marker of layers that may not be on the disk yet.
func (l Layout) Unsynced() string { return filepath.Join(l.Root, "unsynced") }

// Synced lists the layers that are known to be on the disk.
func (l Layout) Synced() string { return filepath.Join(l.Root, "synced") }

// OverlayOK is the marker of a file system that passed the overlay test.
func (l Layout) OverlayOK() string { return filepath.Join(l.Root, "overlay-ok") }

// Open returns the layout of an existing store. The error wraps
// fs.ErrNotExist when there is none (readers take that for an empty store), and
// is an *Error when it is not this user's or not of this version.
func Open(root string) (Layout, error) {
	l, err := at(root)
	if err != nil {
		return Layout{}, err
	}
	if err := l.checkOwner(); err != nil {
		return Layout{}, err
	}
	if err := l.checkFormat(); err != nil {
		return Layout{}, err
	}
	return l, nil
}

// Create returns the layout of root, making the store when root is missing or
// empty. A directory that holds other things is refused with an *Error.
func Create(root string) (Layout, error) {
	l, err := Open(root)
	if !errors.Is(err, fs.ErrNotExist) {
		return l, err
	}
	if l, err = at(root); err != nil {
		return Layout{}, err
	}
	if err := os.MkdirAll(l.Root, dirMode); err != nil {
		return Layout{}, fmt.Errorf("make store: %w", err)
	}
	if err := l.checkOwner(); err != nil {
		return Layout{}, err
	}
	if err := l.checkUnused(); err != nil {
		return Layout{}, err
	}
	for _, dir := range []string{
		l.Graph(), l.Blobs(), l.Leases(), l.Tmp(), l.Locks(), l.Empty(),
		filepath.Join(l.Empty(), "0"), filepath.Join(l.Empty(), "1"),
	} {
		if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return Layout{}, fmt.Errorf("make store: %w", err)
		}
	}
	if err := l.writeFormat(); err != nil {
		return Layout{}, fmt.Errorf("make store: %w", err)
	}
	return l, nil
}

// at makes root absolute.
func at(root string) (Layout, error) {
	if root == "" {
		return Layout{}, errors.New("no store directory given")
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return Layout{}, fmt.Errorf("store %s: %w", root, err)
	}
	return Layout{Root: abs}, nil
}

// checkOwner refuses another user's directory. Within a worker's user
// namespace the caller is uid 0 and so is the directory, if it is the same user.
func (l Layout) checkOwner() error {
	fi, err := os.Stat(l.Root)
	if err != nil {
		return fmt.Errorf("store %s: %w", l.Root, err)
	}
	if !fi.IsDir() {
		return &Error{
			Root: l.Root, Problem: ProblemFormat, Hint: "name a directory with --root or MSTAGE_ROOT",
			Err: errors.New("not a directory"),
		}
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if uid := os.Geteuid(); ok && int(st.Uid) != uid {
		return &Error{
			Root: l.Root, Problem: ProblemOwner,
			Hint: "each user has an own store: name another directory with --root or MSTAGE_ROOT",
			Err:  fmt.Errorf("belongs to uid %d, not to uid %d", st.Uid, uid),
		}
	}
	return nil
}

// checkFormat reads the format file.
func (l Layout) checkFormat() error {
	b, err := os.ReadFile(l.Format())
	if err != nil {
		return fmt.Errorf("store %s: %w", l.Root, err)
	}
	text, ok := strings.CutPrefix(string(b[:min(len(b), maxFormatBytes)]), formatPrefix)
	version, convErr := strconv.Atoi(strings.TrimSpace(text))
	if !ok || convErr != nil {
		return &Error{
			Root: l.Root, Problem: ProblemFormat, Hint: "name another directory with --root or MSTAGE_ROOT",
			Err: errors.New("its format file is not one of mstage"),
		}
	}
	if version != Version {
		return &Error{
			Root: l.Root, Problem: ProblemFormat,
			Hint: "use the mstage that made it, or another directory (--root, MSTAGE_ROOT)",
			Err:  fmt.Errorf("has format %d, this mstage knows %d", version, Version),
		}
	}
	return nil
}

// checkUnused refuses to spread a store over a directory with other content.
// The names of a store's parts are fine: another process may be making it now.
func (l Layout) checkUnused() error {
	entries, err := os.ReadDir(l.Root)
	if err != nil {
		return fmt.Errorf("store %s: %w", l.Root, err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "containers", "blobs", "leases", "tmp", "locks", "empty", "format", "images", "cache", "run", "stat-index",
			"index.db", "index.db.lock", "synced", "unsynced", "overlay-ok", "lost+found":
		default:
			if !strings.HasPrefix(e.Name(), formatTemp) {
				return &Error{
					Root: l.Root, Problem: ProblemFormat,
					Hint: "name an empty or a new directory with --root or MSTAGE_ROOT",
					Err:  fmt.Errorf("is not a store and holds %q", e.Name()),
				}
			}
		}
	}
	return nil
}

// formatTemp begins the name of a format file in the making.
const formatTemp = ".format-"

// writeFormat makes the format file last and at once, so that a store that was
// half made is made again.
func (l Layout) writeFormat() error {
	f, err := os.CreateTemp(l.Root, formatTemp)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s%d\n", formatPrefix, Version)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), l.Format())
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
