package layertar

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
)

// UnpackOptions bounds what Unpack takes from a tar. Zero means the default.
type UnpackOptions struct {
	// MaxEntries is the number of tar entries.
	MaxEntries int
	// MaxBytes bounds the uncompressed stream, and apart from it the sum of the
	// file sizes.
	MaxBytes int64
	// MaxRatio is the uncompressed bytes for each compressed byte, looked at
	// after the first GiB.
	MaxRatio int64
}

// dirTime is the time that a directory gets at the end. In the order of the
// entries, because two names can lead to one directory and the last one counts.
type dirTime struct {
	name  string
	mtime time.Time
}

// errEmpty is an input without a single byte, which is no tar.
var errEmpty = errors.New("empty input is not a tar archive")

// unpacker is one run of Unpack.
type unpacker struct {
	ctx  context.Context
	opts UnpackOptions
	root int
	// dirName and dirFD are the directory that was used last; dirFD is -1 when
	// there is none. Entries come directory by directory.
	dirName string
	dirFD   int
	// dirTimes are set when no entry changes a directory any more.
	dirTimes []dirTime
	// declaredBytes is the sum of the entries' sizes.
	declaredBytes int64
	// noDevices is set after the kernel refused to make a device node.
	noDevices bool
	buf       []byte
	res       Result
}

// Unpack writes the layer tar r, compressed or not, into dir, an existing empty
// directory that becomes a diff directory: whiteouts become character devices
// 0:0, opaque markers user.overlay.opaque=y. r is read to its end and is not
// trusted: nothing outside dir is touched, and parents that are symbolic links
// are followed as if dir were "/". Owners, modes with setuid, user.* attributes,
// file capabilities and modification times are kept; the access time becomes
// the modification time. A root without an entry keeps its owner and mode; a
// parent without one is 0755 and root's.
//
// A device node that the process may not make becomes a placeholder and is
// listed in the Result. An owner that can't be set is an *OwnerError; a limit
// that is passed wraps ErrLimit. After an error dir holds what was written so
// far. The process needs the owners' IDs in its user namespace.
//
// Source: OCI image-spec v1.1, layer.md.
func Unpack(ctx context.Context, r io.Reader, dir string, o UnpackOptions) (Result, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	u := &unpacker{
		ctx: ctx, opts: o.withDefaults(), root: root, dirFD: -1,
		buf: make([]byte, copyBufBytes),
	}
	defer u.forgetParent()
	if err := u.run(r); err != nil {
		return Result{}, fmt.Errorf("unpack layer: %w", err)
	}
	return u.res, nil
}

// withDefaults fills the zero fields.
func (o UnpackOptions) withDefaults() UnpackOptions {
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxRatio == 0 {
		o.MaxRatio = DefaultMaxRatio
	}
	return o
}

// run reads the stream and unpacks every entry.
func (u *unpacker) run(r io.Reader) error {
	packed := &countReader{r: ctxReader{u.ctx, r}}
	plain, _, err := Decompress(packed)
	if err != nil {
		return err
	}
	defer plain.Close()
	stream := &tarStream{r: plain, packed: packed, sum: sha256.New(), opts: u.opts}
	if err := u.entries(tar.NewReader(stream)); err != nil {
		return err
	}
	// The digest covers the padding after the end marker too.
	if _, err := io.CopyBuffer(io.Discard, stream, u.buf); err != nil {
		return err
	}
	if stream.n == 0 {
		return errEmpty
	}
	u.res.TarBytes = stream.n
	u.res.DiffID = storage.Digest("sha256:" + hex.EncodeToString(stream.sum.Sum(nil)))
	return u.setDirTimes()
}

// entries unpacks until the end marker.
func (u *unpacker) entries(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		if u.res.Entries++; u.res.Entries > u.opts.MaxEntries {
			return fmt.Errorf("more than %d entries: %w", u.opts.MaxEntries, ErrLimit)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // a comment for the archive, as git writes it
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
}

// entry unpacks one entry.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if err := checkOwner(h); err != nil {
		return err
	}
	if len(u.dirTimes) == 0 {
		// A root without an entry gets a time from the tar, not from the clock,
		// so that it is written the same every time.
		u.dirTimes = append(u.dirTimes, dirTime{".", h.ModTime})
	}
	if name == "." {
		return u.rootDir(h)
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if handled, err := u.whiteout(dir, base, h.ModTime); handled || err != nil {
		return err
	}
	at, err := u.parent(dir, h.ModTime)
	if err != nil {
		return err
	}
	n := &node{u: u, h: h, name: name, base: base, at: at}
	return n.make(content)
}

// maxID is the largest user or group ID; the one above means "leave as it is"
// to chown(2).
const maxID = 1<<32 - 2

// checkOwner refuses IDs that no file can have.
func checkOwner(h *tar.Header) error {
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || id > maxID {
			return fmt.Errorf("owner %d:%d: not a user or group ID", h.Uid, h.Gid)
		}
	}
	return nil
}

// rootDir gives the layer's root the metadata of its entry.
func (u *unpacker) rootDir(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return errors.New("the root is not a directory")
	}
	n := &node{u: u, h: h, name: ".", base: ".", at: u.root}
	return n.openDirMetadata(false)
}

const (
	whiteoutPrefix = ".wh."
	// whiteoutOpaque in a directory hides what lower layers have there.
	whiteoutOpaque = ".wh..wh..opq"
	// whiteoutMeta begins names that belong to AUFS itself and to no layer.
	whiteoutMeta = ".wh..wh."
)

// whiteout handles the names that the image format reserves.
func (u *unpacker) whiteout(dir, base string, mtime time.Time) (handled bool, err error) {
	if i := slices.IndexFunc(strings.Split(dir, "/"), reserved); i >= 0 {
		if strings.Contains("/"+dir, "/"+whiteoutMeta) {
			u.res.skip(path.Join(dir, base), "metadata of AUFS")
			return true, nil
		}
		return true, errors.New("a whiteout is not a directory")
	}
	if !reserved(base) {
		return false, nil
	}
	if base == whiteoutOpaque {
		return true, u.opaque(dir, mtime)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		u.res.skip(path.Join(dir, base), "metadata of AUFS")
		return true, nil
	}
	return true, u.hide(dir, strings.TrimPrefix(base, whiteoutPrefix), mtime)
}

// reserved reports whether a name has a meaning of its own in layers.
func reserved(base string) bool { return strings.HasPrefix(base, whiteoutPrefix) }

// opaque marks dir.
func (u *unpacker) opaque(dir string, mtime time.Time) error {
	at, err := u.parent(dir, mtime)
	if err != nil {
		return err
	}
	return markOpaque(at, ".")
}

// markOpaque marks the directory name as hiding the ones below.
func markOpaque(at int, name string) error {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setXattrs(fd, map[string][]byte{xattrOpaque: []byte("y")})
}

// hide makes name in dir invisible in the layers below. What the same layer has
// under the name stays: "whiteout files MUST only apply to resources in
// lower/parent layers".
func (u *unpacker) hide(dir, name string, mtime time.Time) error {
	if name == "" || name == "." || name == ".." {
		return errors.New("whiteout without a name")
	}
	at, err := u.parent(dir, mtime)
	if err != nil {
		return err
	}
	st, err := lstatAt(at, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return unix.Mknodat(at, name, unix.S_IFCHR, 0)
	case err != nil:
		return err
	case isDir(st):
		return markOpaque(at, name)
	}
	return nil
}

// setDirTimes gives every directory its time, after all that changes it.
func (u *unpacker) setDirTimes() error {
	u.forgetParent()
	for _, d := range u.dirTimes {
		fd, err := openIn(u.root, d.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // a later entry took its place
		}
		if err == nil {
			err = setTimes(fd, "", d.mtime)
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("set time of %s: %w", d.name, err)
		}
	}
	return nil
}

// setTimes sets both times of name in the directory at, not followed, or of at
// itself when name is "".
func setTimes(at int, name string, mtime time.Time) error {
	ts := unix.Timespec{Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	return unix.UtimesNanoAt(at, name, []unix.Timespec{ts, ts}, flags)
}

// countReader counts what was read.
type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// tarStream is the uncompressed stream: hashed, counted and bounded.
type tarStream struct {
	r      io.Reader
	packed *countReader
	sum    hash.Hash
	opts   UnpackOptions
	n      int64
}

func (s *tarStream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	s.n += int64(n)
	if s.n > s.opts.MaxBytes {
		return n, fmt.Errorf("tar stream of more than %d bytes: %w", s.opts.MaxBytes, ErrLimit)
	}
	if s.n > ratioSlackBytes && s.n/s.opts.MaxRatio > s.packed.n {
		return n, fmt.Errorf("more than %d bytes for each compressed byte: %w", s.opts.MaxRatio, ErrLimit)
	}
	return n, err
}
