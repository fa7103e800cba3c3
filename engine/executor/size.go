package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mstage/mstage/engine/copy"
)

// contentBytes is the sum of the sizes of the regular files below dir, each
// inode once.
func contentBytes(dir string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("stat %s: no inode", d.Name())
		}
		if st.Nlink > 1 {
			id := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // Dev has another type on other architectures
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		sum += info.Size()
		return nil
	})
	return sum, err
}

// ownerError explains a chown that the id mapping can't honour.
func ownerError(name string, uid, gid uint32, err error) error {
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EINVAL) {
		return &copy.OwnerError{Path: name, UID: uid, GID: gid}
	}
	return err
}
