package overlay

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
)

// Usage measures the store as du(1) does, but for file systems mounted in it.
// caches are directories of cache mounts; their sizes are filled in. What
// vanishes meanwhile is not counted.
func (s *Store) Usage(ctx context.Context, caches []storage.CacheUsage) (storage.Usage, error) {
	u := storage.Usage{Caches: caches}
	m, err := newMeasure(ctx, s.layout.Root)
	if err != nil {
		return u, err
	}
	uses, err := s.index.Uses(ctx)
	if err != nil {
		return u, err
	}
	ls, err := s.readLeases()
	if err != nil {
		return u, err
	}
	if u.Layers, err = s.layerUsage(m, uses, ls); err != nil {
		return u, err
	}
	if u.Blobs, err = s.blobUsage(m, uses, ls); err != nil {
		return u, err
	}
	for i := range u.Caches {
		if u.Caches[i].DiskBytes, err = m.below(filepath.Join(s.layout.Root, "cache", u.Caches[i].Name)); err != nil {
			return u, err
		}
	}
	u.OtherBytes, err = m.below(s.layout.Root)
	return u, err
}

// layerUsage measures every layer, those of images first.
func (s *Store) layerUsage(m *measure, uses []index.LayerUse, ls leases) ([]storage.LayerUsage, error) {
	all, err := s.All(m.ctx)
	if err != nil {
		return nil, err
	}
	known := map[storage.LayerID]index.LayerUse{}
	for _, use := range uses {
		known[use.ID] = use
	}
	layers := make([]storage.LayerUsage, len(all))
	for i, id := range all {
		use := known[id]
		layers[i] = storage.LayerUsage{
			ID: id, Image: use.Image, Cached: len(use.Keys) > 0, Held: ls.held[id],
			Created: use.Created, LastUse: use.LastUse,
		}
	}
	slices.SortFunc(layers, func(a, b storage.LayerUsage) int {
		if a.Image != b.Image {
			return map[bool]int{true: -1, false: 1}[a.Image]
		}
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	for i, l := range layers {
		if layers[i].DiskBytes, err = m.below(filepath.Join(s.driverDir(), string(l.ID))); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// blobUsage measures every blob.
func (s *Store) blobUsage(m *measure, uses []index.LayerUse, ls leases) ([]storage.BlobUsage, error) {
	all, err := s.blobs.All(m.ctx)
	if err != nil {
		return nil, err
	}
	held := map[storage.Digest]bool{}
	for _, use := range uses {
		for _, b := range use.Blobs {
			held[b] = held[b] || ls.held[use.ID]
		}
	}
	blobs := make([]storage.BlobUsage, len(all))
	for i, b := range all {
		blobs[i] = storage.BlobUsage{Digest: b.Digest, Held: held[b.Digest]}
		if blobs[i].DiskBytes, err = m.below(filepath.Join(s.layout.Blobs(), "sha256", b.Digest.Hex())); err != nil {
			return nil, err
		}
	}
	return blobs, nil
}

// measure adds up disk blocks, each inode once.
type measure struct {
	ctx  context.Context // of one call of Usage
	dev  uint64
	seen map[uint64]bool // inodes
}

func newMeasure(ctx context.Context, root string) (*measure, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(root, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: root, Err: err}
	}
	return &measure{ctx: ctx, dev: uint64(st.Dev), seen: map[uint64]bool{}}, nil
}

// blockBytes is the unit of st_blocks. Source: stat(2).
const blockBytes = 512

// below returns the bytes of path and what is below it and was not counted yet.
func (m *measure) below(path string) (sum int64, err error) {
	err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if m.ctx.Err() != nil {
			return context.Cause(m.ctx)
		}
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok:
			return nil
		case uint64(st.Dev) != m.dev && d.IsDir():
			return fs.SkipDir
		case !m.again(st.Ino):
			sum += st.Blocks * blockBytes
		case d.IsDir():
			return fs.SkipDir // a whole tree that was counted
		}
		return nil
	})
	return sum, err
}

// again reports whether an inode was counted before. All are remembered, those of
// directories too: the rest of the store is what is left over. A million inodes
// take some 40 MB.
func (m *measure) again(ino uint64) bool {
	before := m.seen[ino]
	m.seen[ino] = true
	return before
}
