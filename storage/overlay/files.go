package overlay

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// removeAll removes a tree, also directories without permission: overlay makes
// work/work with mode 000.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	walkErr := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && d.Type()&fs.ModeSymlink == 0 {
			return os.Chmod(p, 0o700)
		}
		return nil
	})
	return errors.Join(walkErr, os.RemoveAll(path))
}
