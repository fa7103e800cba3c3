package buildcontext

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/tree"
)

const (
	// hashBytes is one read; larger ones don't get faster.
	hashBytes = 256 << 10
	// hashTries is how often a file is read again that changes meanwhile.
	hashTries = 3
)

var errChanging = errors.New("changes while it is read")

var hashBuffers = sync.Pool{New: func() any { b := make([]byte, hashBytes); return &b }}

// FileDigest returns the SHA-256 of a regular file's bytes, from the stat index
// when the file is as it was then. Many may run at once. It ends with ctx: a
// sparse file of a few bytes may be read for an hour.
func (c *Context) FileDigest(ctx context.Context, e tree.Entry) ([sha256.Size]byte, error) {
	n, err := c.lookup("digest", e.Path)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	if !n.entry.IsRegular() {
		return [sha256.Size]byte{}, &fs.PathError{Op: "digest", Path: e.Path, Err: errNotRegular}
	}
	if c.index != nil {
		if r, ok := c.index.find(n.key()); ok {
			return r.digest, nil
		}
	}
	return c.hash(ctx, e.Path)
}

// key is the stat index's key for a node.
func (n *node) key() statKey {
	e := n.entry
	return statKey{
		dev: e.Dev, ino: e.Ino, size: e.Size, mtime: e.ModTime.UnixNano(), ctime: n.ctime,
		mode: e.Mode, uid: e.UID, gid: e.GID,
	}
}

// hash reads a file and keeps its digest.
func (c *Context) hash(ctx context.Context, path string) (sum [sha256.Size]byte, err error) {
	f, err := c.openRegular(path)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for range hashTries {
		now := time.Now()
		if c.index != nil {
			now = c.index.now()
		}
		before, err := keyOf(f)
		if err != nil {
			return sum, err
		}
		if sum, err = hashFile(ctx, f); err != nil {
			return sum, err
		}
		after, err := keyOf(f)
		if err != nil {
			return sum, err
		}
		if before == after {
			return sum, c.remember(f, after, sum, now)
		}
	}
	return sum, &fs.PathError{Op: "digest", Path: path, Err: errChanging}
}

// remember puts a digest into the index.
func (c *Context) remember(f *os.File, k statKey, sum [sha256.Size]byte, now time.Time) error {
	if c.index == nil {
		return nil
	}
	names, err := contentXattrs(f)
	if err != nil {
		return err
	}
	r := indexRecord{digest: sum}
	if len(names) == 0 {
		r.flags |= indexPlain
	}
	c.index.put(k, r, now)
	return nil
}

// keyOf is the stat index's key for an open file.
func keyOf(f *os.File) (statKey, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return statKey{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	n := node{entry: entryOf(f.Name(), &st), ctime: st.Ctim.Nano()}
	return n.key(), nil
}

// hashFile returns the digest of the whole file.
func hashFile(ctx context.Context, f *os.File) (sum [sha256.Size]byte, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return sum, err
	}
	bp, ok := hashBuffers.Get().(*[]byte)
	if !ok {
		panic("hashBuffers holds byte slices only")
	}
	defer hashBuffers.Put(bp)
	h := sha256.New()
	// The wrapper also hides WriteTo, which would not use the buffer.
	if _, err := io.CopyBuffer(h, contextReader{ctx: ctx, r: f}, *bp); err != nil {
		return sum, fmt.Errorf("digest: %w", err)
	}
	h.Sum(sum[:0])
	return sum, nil
}
