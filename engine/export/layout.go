package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	// dirMode is the mode of directories in a layout, less the umask.
	dirMode = 0o777
	// maxIndexBytes bounds an index that is there already: far above real ones.
	maxIndexBytes = 8 << 20
)

// writeDir writes the layout as a directory. A new directory appears whole. One
// that holds a layout gets the image added, with the index replaced last and at
// once; any other that is not empty is refused.
func (a *archive) writeDir(ctx context.Context, dest string) error {
	entries, err := os.ReadDir(dest)
	if errors.Is(err, fs.ErrNotExist) {
		return newDir(dest, func(dir string) error { return a.fillDir(ctx, dir) })
	}
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		if err := a.merge(dest); err != nil {
			return err
		}
	}
	return a.fillDir(ctx, dest)
}

// newDir makes the directory dest with what fill puts in. It appears whole.
func newDir(dest string, fill func(dir string) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(dest), dirMode); err != nil {
		return err
	}
	temp := tempName(filepath.Clean(dest))
	if err := os.Mkdir(temp, dirMode); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	if err := fill(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, dest); err != nil {
		return err
	}
	return syncDir(filepath.Dir(filepath.Clean(dest)))
}

// fillDir writes every member, what names the others last.
func (a *archive) fillDir(ctx context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, filepath.FromSlash(dirBlobs)), dirMode); err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(a.members))
	names = slices.DeleteFunc(names, func(n string) bool { return n == fileIndex })
	for _, name := range append(names, fileIndex) {
		m := a.members[name]
		err := replaceFile(filepath.Join(dir, filepath.FromSlash(name)), func(w io.Writer) error {
			return m.copyTo(ctx, w)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// merge takes over the images of the layout that dest holds, but for those
// whose name goes to the new one.
func (a *archive) merge(dest string) error {
	if _, err := os.Stat(filepath.Join(dest, fileLayout)); err != nil {
		return fmt.Errorf("%s is neither empty nor an OCI layout", dest)
	}
	old, err := readIndex(filepath.Join(dest, fileIndex))
	if err != nil {
		return err
	}
	kept := slices.DeleteFunc(old.Manifests, func(d v1.Descriptor) bool {
		return slices.ContainsFunc(a.index.Manifests, func(n v1.Descriptor) bool { return replaces(n, d) })
	})
	a.index.Manifests = append(kept, a.index.Manifests...)
	return a.addJSON(fileIndex, a.index)
}

// replaces reports whether the line n takes the place of the line d.
func replaces(n, d v1.Descriptor) bool {
	name, oldName := n.Annotations[annotationName], d.Annotations[annotationName]
	if name == "" && oldName == "" {
		return n.Digest == d.Digest
	}
	return name == oldName
}

// readIndex reads index.json; a missing one is empty.
func readIndex(name string) (v1.IndexManifest, error) {
	var index v1.IndexManifest
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err != nil {
		return index, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndexBytes+1))
	if err != nil {
		return index, err
	}
	if len(b) > maxIndexBytes {
		return index, fmt.Errorf("%s is larger than %d bytes", name, maxIndexBytes)
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return index, fmt.Errorf("%s: %w", name, err)
	}
	return index, nil
}
