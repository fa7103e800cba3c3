package layout

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// BootID names this run of the kernel. Source: random(4).
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Marker is a file that says "something may not be on the disk yet", with the
// boot ID of the kernel that has it in memory.
type Marker string

// State says what a Marker means now.
type State int

// The states of a marker.
const (
	Clean State = iota // everything is on the disk
	Dirty              // written during this boot: the kernel still has it
	Lost               // written before another boot: it may be gone or torn
)

// State reads the marker.
func (m Marker) State() (State, error) {
	b, err := os.ReadFile(string(m))
	if errors.Is(err, fs.ErrNotExist) {
		return Clean, nil
	}
	if err != nil {
		return 0, err
	}
	id, err := BootID()
	if err != nil {
		return 0, err
	}
	if string(b) == id {
		return Dirty, nil
	}
	return Lost, nil
}

// Set makes the marker before the first write that is not synced. The marker
// itself reaches the disk first; when it is there already this is one stat.
func (m Marker) Set() error {
	if _, err := os.Lstat(string(m)); err == nil {
		return nil
	}
	id, err := BootID()
	if err != nil {
		return err
	}
	return WriteFile(string(m), []byte(id))
}

// Clear removes the marker.
func (m Marker) Clear() error {
	if err := os.Remove(string(m)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// WriteFile replaces a file at once and returns when it and its name are on
// the disk.
func WriteFile(path string, data []byte) error {
	if err := ReplaceFile(path, data); err != nil {
		return err
	}
	return errors.Join(SyncPath(path), SyncPath(filepath.Dir(path)))
}

// ReplaceFile replaces a file at once: after a kill the old or the new content
// is there, never a part.
func ReplaceFile(path string, data []byte) error {
	f, err := CreateLocked(filepath.Dir(path), replacePrefix)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return errors.Join(err, f.Close())
}

// replacePrefix begins the names of ReplaceFile's files in the making.
const replacePrefix = ".new-"

// RemoveTorn removes what killed calls of ReplaceFile left in dir.
func RemoveTorn(dir string) error {
	_, err := RemoveAbandoned(dir, replacePrefix)
	return err
}

// SyncPath calls fsync(2) on a file or directory.
func SyncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
