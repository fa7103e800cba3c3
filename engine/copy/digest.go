package copy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/tree"
)

// digestVersion begins every digest. It changes whenever equal content would
// get another digest.
const digestVersion = "mstage-copy-1"

// The digest is a tree of hashes. A node is: type and mode, uid, gid, size,
// rdev, link target, attributes sorted by name, content digest; a directory
// is followed by the names and digests of its children in byte order. A
// selected directory's own metadata is left out, as only its content is copied. Names that share an
// inode follow as groups. Every field has a fixed size or its length before it.

// summary collects the digest of one item while its directories are visited in
// any order.
type summary struct {
	mu    sync.Mutex
	dirs  map[string][]child // by path in the source tree
	links map[inode][]string // names of inodes that have several
}

type inode struct{ dev, ino uint64 }

type child struct {
	name  string
	isDir bool
	// sum is that of the whole node; for a directory that of its metadata.
	sum [sha256.Size]byte
}

func newSummary() *summary {
	return &summary{dirs: map[string][]child{}, links: map[inode][]string{}}
}

// put records one directory's children.
func (s *summary) put(dir string, children []child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[dir] = children
}

// name records a name of an inode that has several.
func (s *summary) name(e tree.Entry) {
	if !e.IsRegular() || e.Nlink < 2 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := inode{e.Dev, e.Ino}
	s.links[id] = append(s.links[id], e.Path)
}

// sum returns the digest of a directory and all below it.
func (s *summary) sum(dir string) [sha256.Size]byte {
	children := s.dirs[dir]
	h := sha256.New()
	slices.SortFunc(children, func(a, b child) int { return cmp.Compare(a.name, b.name) })
	for _, c := range children {
		h.Write(appendField(nil, c.name))
		h.Write(c.sum[:])
		if c.isDir {
			below := s.sum(path.Join(dir, c.name))
			h.Write(below[:])
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// linkGroups encodes which names below root share an inode.
func (s *summary) linkGroups(root string) []byte {
	var groups [][]string
	for _, names := range s.links {
		if len(names) > 1 {
			slices.Sort(names)
			groups = append(groups, names)
		}
	}
	slices.SortFunc(groups, func(a, b []string) int { return cmp.Compare(a[0], b[0]) })
	b := binary.BigEndian.AppendUint64(nil, uint64(len(groups)))
	for _, names := range groups {
		b = binary.BigEndian.AppendUint64(b, uint64(len(names)))
		for _, name := range names {
			b = appendField(b, strings.TrimPrefix(name, root+"/"))
		}
	}
	return b
}

// header encodes what a node is besides its content.
func header(e tree.Entry, xattrs map[string][]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, e.Mode)
	b = binary.BigEndian.AppendUint32(b, e.UID)
	b = binary.BigEndian.AppendUint32(b, e.GID)
	size, rdev := uint64(0), uint64(0)
	switch e.Type() {
	case tree.TypeRegular:
		size = uint64(e.Size)
	case typeChar, typeBlock:
		rdev = e.Rdev
	}
	b = binary.BigEndian.AppendUint64(b, size)
	b = binary.BigEndian.AppendUint64(b, rdev)
	b = appendField(b, e.Link)
	b = binary.BigEndian.AppendUint64(b, uint64(len(xattrs)))
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		b = appendField(b, name)
		b = appendField(b, string(xattrs[name]))
	}
	return b
}

func appendField(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
	return append(b, s...)
}

// nodeSum is the digest of anything but a directory.
func nodeSum(e tree.Entry, xattrs map[string][]byte, content storage.Digest) [sha256.Size]byte {
	return sha256.Sum256(appendField(header(e, xattrs), string(content)))
}

// total adds up the items' digests in their order.
type total struct{ b []byte }

func (t *total) file(name string, sum [sha256.Size]byte) {
	t.b = append(appendField(append(t.b, 'f'), name), sum[:]...)
}

func (t *total) dir(root string, s *summary) {
	sum := s.sum(root)
	t.b = append(append(append(t.b, 'd'), sum[:]...), s.linkGroups(root)...)
}

func (t *total) digest() storage.Digest {
	return storage.DigestBytes(append(appendField(nil, digestVersion), t.b...))
}

// Digest is the identity of the selected content: names, types, modes, owners,
// sizes, link targets, device numbers, attributes, bytes and which names are
// hard links of each other; never times. fileDigest returns the digest of a
// regular file's bytes; several calls run at once.
func (s *Selection) Digest(ctx context.Context, fileDigest func(tree.Entry) (storage.Digest, error)) (storage.Digest, error) {
	var t total
	for _, it := range s.items {
		switch {
		case it.inline != nil:
			t.file(it.name, nodeSum(it.entry, nil, storage.DigestBytes([]byte(it.inline.Data))))
		case it.entry.IsDir():
			sum := newSummary()
			visit := digestVisit{s, sum, fileDigest}
			if err := walk(ctx, it.path, visit.dir); err != nil {
				return "", err
			}
			t.dir(it.path, sum)
		default:
			visit := digestVisit{s, nil, fileDigest}
			c, err := visit.single(it.path)
			if err != nil {
				return "", err
			}
			t.file(it.name, c.sum)
		}
	}
	return t.digest(), nil
}

type digestVisit struct {
	sel        *Selection
	sum        *summary
	fileDigest func(tree.Entry) (storage.Digest, error)
}

// dir digests one directory's own names and returns its subdirectories.
func (v digestVisit) dir(ctx context.Context, name string) ([]string, error) {
	d, err := openSource(v.sel.src, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.Entries()
	if err != nil {
		return nil, err
	}
	var below []string
	var children []child
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if e.Type() == typeSocket {
			continue
		}
		c, err := v.node(d, e)
		if err != nil {
			return nil, err
		}
		if c.isDir {
			below = append(below, e.Path)
		}
		children = append(children, c)
	}
	v.sum.put(name, children)
	return below, nil
}

// node digests one name. A directory's sum is that of its metadata.
func (v digestVisit) node(d sourceDir, e chainfs.Entry) (child, error) {
	xattrs, err := d.Xattrs(e)
	if err != nil {
		return child{}, fmt.Errorf("read attributes of %s: %w", e.Path, err)
	}
	c := child{name: path.Base(e.Path), isDir: e.IsDir()}
	content := storage.Digest("")
	if e.IsRegular() {
		if content, err = v.fileDigest(e.Entry); err != nil {
			return child{}, fmt.Errorf("digest %s: %w", e.Path, err)
		}
	}
	if v.sum != nil {
		v.sum.name(e.Entry)
	}
	c.sum = nodeSum(v.sel.owned(e.Entry), xattrs, content)
	return c, nil
}

// single digests a selected file.
func (v digestVisit) single(name string) (child, error) {
	d, err := openSource(v.sel.src, path.Dir(name))
	if err != nil {
		return child{}, err
	}
	defer d.Close()
	e, err := d.Lstat(path.Base(name))
	if err != nil {
		return child{}, err
	}
	return v.node(d, e)
}
