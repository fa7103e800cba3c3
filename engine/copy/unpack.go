package copy

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/layertar"
	"github.com/mstage/mstage/storage/tree"
)

const (
	// maxArchiveEntries bounds the inodes of one archive, as for layers.
	maxArchiveEntries = layertar.DefaultMaxEntries
	// maxArchiveBytes bounds the sum of the file sizes in one archive, in
	// bytes: a few KB of compressed input can ask for any amount.
	maxArchiveBytes = layertar.DefaultMaxBytes
	// maxID is the largest user or group id; -1 means "leave it" to chown(2).
	maxID = 1<<32 - 2
)

// paxXattr begins an extended attribute's PAX key.
const paxXattr = "SCHILY.xattr."

var (
	errTooLarge = errors.New("over the limit of an archive's size")
	errOutside  = errors.New("leads out of the archive")
)

// unpacker unpacks one archive. The destination is the root of its world, as
// in BuildKit: a link in the archive to /etc leads to /etc below it.
type unpacker struct {
	*apply
	base    string // the destination directory
	entries int
	bytes   int64
	tally   tally
}

// unpack unpacks the archive f into the directory dest of the layer, and
// returns the size and digest of f.
func (a *apply) unpack(ctx context.Context, f *os.File, dest string) (copied, error) {
	c, err := a.unpackAll(ctx, f, dest)
	if ctx.Err() == nil && layertar.Damaged(err) {
		err = &ArchiveError{Err: err}
	}
	return c, err
}

func (a *apply) unpackAll(ctx context.Context, f *os.File, dest string) (copied, error) {
	counted := &digestReader{ctx: ctx, r: f, h: sha256.New()}
	plain, _, err := layertar.Decompress(counted)
	if err != nil {
		return copied{}, err
	}
	defer plain.Close()
	u := &unpacker{apply: a, base: dest}
	if err := u.all(ctx, tar.NewReader(plain)); err != nil {
		return copied{}, err
	}
	// What follows the archive's end belongs to the file all the same.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return copied{}, err
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return copied{}, err
	}
	a.add(u.tally)
	return counted.sum(), nil
}

func (u *unpacker) all(ctx context.Context, r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		u.entries++
		u.bytes += max(h.Size, 0)
		if u.entries > maxArchiveEntries || u.bytes > maxArchiveBytes {
			return errTooLarge
		}
		if err := u.entry(ctx, h, r); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// entry unpacks one entry.
func (u *unpacker) entry(ctx context.Context, h *tar.Header, content io.Reader) error {
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	if name == "." || h.Typeflag == tar.TypeXGlobalHeader {
		return nil // the destination stays as it is, as in BuildKit
	}
	e, xattrs, err := tarEntry(h)
	if err != nil {
		return err
	}
	dir, err := u.parent(name)
	if err != nil {
		return err
	}
	e.Path = path.Join(dir, path.Base(name))
	if e.IsDir() {
		return u.dir(e, xattrs)
	}
	if err := u.clear(e.Path); err != nil {
		return err
	}
	return u.node(ctx, h, e, xattrs, content)
}

// inside returns an archive's name as a path below its root.
func inside(name string) (string, error) {
	if len(name) >= unix.PathMax {
		return "", unix.ENAMETOOLONG
	}
	if strings.ContainsRune(name, 0) {
		return "", fs.ErrInvalid
	}
	if slices.Contains(strings.Split(name, "/"), "..") && strings.HasPrefix(path.Clean(strings.TrimLeft(name, "/")), "..") {
		return "", errOutside
	}
	return within(name), nil
}

// below looks names up below the destination, so that links stay there.
type below struct {
	stage *stage
	base  string
}

func (b below) Lstat(name string) (tree.Entry, error) { return b.stage.Lstat(path.Join(b.base, name)) }

// resolve returns where a name of the archive is in the image.
func (u *unpacker) resolve(name string, followLast bool) (string, error) {
	resolved, _, err := tree.Resolve(below{u.stage, u.base}, name, followLast)
	return path.Join(u.base, resolved), err
}

// parent makes the directory for a name and returns its path. A file in the
// way is replaced only by an entry of its own.
func (u *unpacker) parent(name string) (string, error) {
	dir, err := u.resolve(path.Dir(name), true)
	if err != nil {
		return "", err
	}
	if u.stage.staged(dir) != nil {
		return dir, nil
	}
	made, err := u.stage.mkdirs(dir, newDirs{dirMode, u.o.Chown})
	if err == nil && made != dir {
		err = errOutside // resolved already: no link can be left
	}
	return dir, err
}

// dir makes a directory, or takes the one that is there; anything else there is
// replaced.
func (u *unpacker) dir(e tree.Entry, xattrs map[string][]byte) error {
	found, err := u.stage.Lstat(e.Path)
	switch {
	case err == nil && found.IsDir():
		err = u.stage.mkdir(e.Path, newDirs{})
	case err == nil || errors.Is(err, fs.ErrNotExist):
		err = u.newDir(e.Path)
	}
	if err != nil {
		return err
	}
	u.stage.staged(e.Path).cover(u.archived(e, xattrs))
	return nil
}

// newDir makes a directory where none is visible. One of the chain that a file
// of the layer hid stays hidden.
func (u *unpacker) newDir(name string) error {
	if err := u.clear(name); err != nil {
		return err
	}
	below, err := u.stage.chain.Lstat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return u.stage.create(name, &stagedDir{opaque: err == nil && below.IsDir()})
}

// archived is the metadata of an entry: --chmod is not for archives.
func (u *unpacker) archived(e tree.Entry, xattrs map[string][]byte) metadata {
	m := metadataOf(e, xattrs)
	if u.o.Chown != nil {
		m.uid, m.gid = u.o.Chown.UID, u.o.Chown.GID
	}
	return m
}

// clear removes what the layer has at name. What the chain has there is hidden
// by what comes next.
func (u *unpacker) clear(name string) error {
	root, err := os.OpenRoot(u.stage.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if u.stage.staged(name) == nil {
		err := root.Remove(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if name == u.base || strings.HasPrefix(u.base, name+"/") {
		return unix.EBUSY
	}
	for dir := range u.stage.dirs {
		if dir == name || strings.HasPrefix(dir, name+"/") {
			delete(u.stage.dirs, dir)
		}
	}
	return root.RemoveAll(name)
}

// node makes anything but a directory at a name that is free in the layer.
func (u *unpacker) node(ctx context.Context, h *tar.Header, e tree.Entry, xattrs map[string][]byte, content io.Reader) error {
	fd, err := u.stage.openDir(path.Dir(e.Path))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	w := writer{apply: u.apply, destDir: path.Dir(e.Path), fd: fd}
	base := path.Base(e.Path)
	switch {
	case h.Typeflag == tar.TypeLink:
		return u.link(ctx, &w, h.Linkname, e.Path)
	case e.IsRegular():
		return u.file(&w, e, xattrs, untilDone{ctx, content})
	case e.IsSymlink():
		err = unix.Symlinkat(e.Link, fd, base)
	case e.Type() == typeFIFO:
		err = unix.Mknodat(fd, base, typeFIFO|0o600, 0)
	default:
		return w.device(e, base)
	}
	if err != nil {
		return err
	}
	return u.archived(e, nil).setAt(fd, base, e.Path, e.IsSymlink())
}

func (u *unpacker) file(w *writer, e tree.Entry, xattrs map[string][]byte, content io.Reader) error {
	out, err := w.create(path.Base(e.Path))
	if err != nil {
		return err
	}
	defer out.Close()
	n, err := io.Copy(out, content)
	if err != nil {
		return err
	}
	u.tally.size += n
	u.tally.copied++
	return u.archived(e, xattrs).set(int(out.Fd()), e.Path)
}

// link makes a hard link to a name of the archive, or of the image: that one's
// file comes into the layer then, as overlayfs would copy it up.
func (u *unpacker) link(ctx context.Context, w *writer, target, dest string) error {
	name, err := inside(target)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	dir, err := u.parent(name)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	name = path.Join(dir, path.Base(name))
	if name == dest {
		return fmt.Errorf("hard link to itself: %w", fs.ErrInvalid)
	}
	if err := u.copyUp(ctx, name); err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	fd, err := u.stage.openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, path.Base(name), w.fd, path.Base(dest), 0)
}

// copyUp brings a file of the chain into the layer.
func (u *unpacker) copyUp(ctx context.Context, name string) error {
	if _, err := u.stage.lstatStaged(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := u.stage.Lstat(name); err != nil {
		return err
	}
	src, err := u.stage.chain.OpenDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer src.Close()
	e, err := src.Lstat(path.Base(name))
	if err != nil {
		return err
	}
	fd, err := u.stage.openDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	as := &apply{sel: &Selection{}, stage: u.stage}
	w := writer{apply: as, src: chainDir{src}, destDir: path.Dir(name), fd: fd}
	_, err = w.node(ctx, e, path.Base(name))
	return err
}

// tarEntry returns an archive's entry as a tree's.
func tarEntry(h *tar.Header) (tree.Entry, map[string][]byte, error) {
	types := map[byte]uint32{
		tar.TypeReg: tree.TypeRegular, tar.TypeLink: tree.TypeRegular, tar.TypeGNUSparse: tree.TypeRegular,
		tar.TypeDir: tree.TypeDir, tar.TypeSymlink: tree.TypeSymlink, tar.TypeFifo: typeFIFO,
		tar.TypeChar: typeChar, tar.TypeBlock: typeBlock,
	}
	typ, ok := types[h.Typeflag]
	if !ok {
		return tree.Entry{}, nil, fmt.Errorf("entry type %q can't be unpacked", h.Typeflag)
	}
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return tree.Entry{}, nil, fmt.Errorf("owner %d:%d: no such id", h.Uid, h.Gid)
	}
	if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
		return tree.Entry{}, nil, fmt.Errorf("device %d:%d: no such number", h.Devmajor, h.Devminor)
	}
	e := tree.Entry{
		Mode: typ | uint32(h.Mode)&permMask, UID: uint32(h.Uid), GID: uint32(h.Gid), //nolint:gosec // checked above
		Size: h.Size, ModTime: h.ModTime, Link: h.Linkname, Nlink: 1,
		Rdev: unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)), //nolint:gosec // checked above
	}
	var xattrs map[string][]byte
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if ok && chainfs.IsContentXattr(name) {
			if xattrs == nil {
				xattrs = map[string][]byte{}
			}
			xattrs[name] = []byte(value)
		}
	}
	return e, xattrs, nil
}

// The largest numbers that the kernel's dev_t holds. Source: linux/kdev_t.h.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// untilDone ends with its context: a sparse file of an archive gives zeros for
// an hour without a byte of the archive being read.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// digestReader digests what is read through it, and ends with its context.
type digestReader struct {
	ctx context.Context
	r   io.Reader
	h   interface {
		io.Writer
		Sum(b []byte) []byte
	}
	n int64
}

func (d *digestReader) Read(p []byte) (int, error) {
	if d.ctx.Err() != nil {
		return 0, context.Cause(d.ctx)
	}
	n, err := d.r.Read(p)
	_, _ = d.h.Write(p[:n]) // a hash never fails
	d.n += int64(n)
	return n, err
}

func (d *digestReader) sum() copied {
	return copied{bytes: d.n, digest: storage.Digest("sha256:" + hex.EncodeToString(d.h.Sum(nil)))}
}
