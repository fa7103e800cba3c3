package layertar

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
)

// WriteOptions says what Write reads.
type WriteOptions struct {
	// Merged: dir is a mounted, read-only merged view and not a diff directory.
	// No name has a meaning of its own there, and the root gets an entry only
	// when its mode or owner is unusual.
	Merged bool
}

// writeBufBytes collects the small writes of headers and small files.
const writeBufBytes = 1 << 20

// inode identifies an inode.
type inode struct{ dev, ino uint64 }

// writer is one run of Write.
type writer struct {
	ctx    context.Context
	tw     *tar.Writer
	merged bool
	// links holds the first name of each inode with several.
	links map[inode]string
	buf   []byte
	res   Result
}

// Write writes the diff directory dir as an uncompressed layer tar: the same
// directory always gives the same bytes. Entries are sorted by directory and
// name, without user and group names, with PAX records only where ustar has no
// room, and hard links are found by repeated inodes. Whiteouts become ".wh."
// names, opaque directories hold ".wh..wh..opq", placeholders are devices
// again. Sockets, which tar has no type for, are skipped and reported.
//
// The root has an entry: in overlayfs the uppermost layer decides its metadata.
func Write(ctx context.Context, w io.Writer, dir string, o WriteOptions) (Result, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	out := &tarSink{w: ctxWriter{ctx, w}, sum: sha256.New()}
	buffered := bufio.NewWriterSize(out, writeBufBytes)
	t := &writer{
		ctx: ctx, tw: tar.NewWriter(buffered), merged: o.Merged,
		links: map[inode]string{}, buf: make([]byte, copyBufBytes),
	}
	if err := t.rootDir(root); err != nil {
		return Result{}, fmt.Errorf("write layer: %w", err)
	}
	if err := errors.Join(t.tw.Close(), buffered.Flush()); err != nil {
		return Result{}, fmt.Errorf("write layer: %w", err)
	}
	t.res.TarBytes = out.n
	t.res.DiffID = storage.Digest("sha256:" + hex.EncodeToString(out.sum.Sum(nil)))
	return t.res, nil
}

// tarSink hashes and counts what it passes on.
type tarSink struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (s *tarSink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	s.n += int64(n)
	return n, err
}

// rootDir writes the root and all below it.
func (t *writer) rootDir(root int) error {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return err
	}
	a, err := readAttributes(root)
	if err != nil {
		return err
	}
	plain := st.Mode&permBits == impliedDirMode && st.Uid == 0 && st.Gid == 0 && len(a.content) == 0
	if t.merged && plain {
		return t.children(root, "")
	}
	return t.directory(root, ".", st, a)
}

// directory writes a directory's entry, its opaque marker and what is in it.
func (t *writer) directory(fd int, name string, st unix.Stat_t, a attributes) error {
	if a.redirect {
		return fmt.Errorf("%s: directory renamed by overlayfs (redirect_dir), which a layer can't express", name)
	}
	h := t.header(name+"/", st, a)
	h.Typeflag = tar.TypeDir
	if err := t.put(h); err != nil {
		return err
	}
	prefix := ""
	if name != "." {
		prefix = name + "/"
	}
	if a.opaque && !t.merged {
		if err := t.put(marker(prefix + whiteoutOpaque)); err != nil {
			return err
		}
	}
	return t.children(fd, prefix)
}

// children writes what is in the directory fd, whose names begin with prefix.
func (t *writer) children(fd int, prefix string) error {
	names, err := sortedNames(fd, prefix)
	if err != nil {
		return fmt.Errorf("read directory /%s: %w", prefix, err)
	}
	for _, base := range names {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		if err := t.entry(fd, base, prefix+base); err != nil {
			return err
		}
	}
	return nil
}

// entry writes one name and what is below it.
func (t *writer) entry(at int, base, name string) error {
	st, err := lstatAt(at, base)
	if err != nil {
		return fmt.Errorf("stat %s: %w", name, err)
	}
	if !t.merged {
		if isWhiteout(st) {
			return t.put(marker(path.Join(path.Dir(name), whiteoutPrefix+base)))
		}
		if reserved(base) {
			return fmt.Errorf("%s: layers reserve names that begin with %q for deletions", name, whiteoutPrefix)
		}
	}
	// A repeated inode is what makes a hard link, but only one with several
	// names can repeat: that keeps the map small. The count alone says nothing,
	// other layers share inodes with this one.
	if id := (inode{uint64(st.Dev), st.Ino}); st.Nlink > 1 && !isDir(st) {
		if first, ok := t.links[id]; ok {
			h := t.header(name, st, attributes{})
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return t.put(h)
		}
		t.links[id] = name
	}
	return t.inode(at, base, name, st)
}

// inode writes a name that is not another name of an earlier one.
func (t *writer) inode(at int, base, name string, st unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG:
		return t.opened(at, base, name)
	case unix.S_IFLNK:
		return t.symlink(at, base, name, st)
	case unix.S_IFIFO:
		h := t.header(name, st, attributes{})
		h.Typeflag = tar.TypeFifo
		return t.put(h)
	case unix.S_IFCHR, unix.S_IFBLK:
		d := Device{
			Char:  st.Mode&unix.S_IFMT == unix.S_IFCHR,
			Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		}
		return t.device(name, st, d)
	}
	t.res.skip(name, "socket")
	return nil
}

// opened writes a directory or a regular file through one handle, so that all
// that is written belongs to the same inode.
func (t *writer) opened(at int, base, name string) error {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(at, base, flags, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", name, err)
	}
	a, err := readAttributes(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if isDir(st) {
		return t.directory(fd, name, st, a)
	}
	return t.regular(f, name, st, a)
}

// regular writes a regular file, or the device that it stands for.
func (t *writer) regular(f *os.File, name string, st unix.Stat_t, a attributes) error {
	if d, ok := decodeDevice(a.device); ok && st.Size == 0 {
		return t.device(name, st, d)
	}
	h := t.header(name, st, a)
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := t.put(h); err != nil {
		return err
	}
	t.res.SizeBytes += st.Size
	n, err := io.CopyBuffer(t.tw, onlyReader{io.LimitReader(f, st.Size)}, t.buf)
	if err == nil && n < st.Size {
		err = fmt.Errorf("%d bytes where there were %d: %w", n, st.Size, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// onlyReader hides every other method, so that the buffer handed to
// io.CopyBuffer is used.
type onlyReader struct{ io.Reader }

// symlink writes a symbolic link.
func (t *writer) symlink(at int, base, name string, st unix.Stat_t) error {
	target, err := readLink(at, base)
	if err != nil {
		return fmt.Errorf("read link %s: %w", name, err)
	}
	h := t.header(name, st, attributes{})
	h.Typeflag, h.Linkname = tar.TypeSymlink, target
	return t.put(h)
}

// readLink returns the target of a symbolic link.
func readLink(at int, base string) (string, error) {
	buf := make([]byte, maxPathBytes+1)
	n, err := unix.Readlinkat(at, base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// device writes a device entry.
func (t *writer) device(name string, st unix.Stat_t, d Device) error {
	h := t.header(name, st, attributes{})
	h.Typeflag = tar.TypeBlock
	if d.Char {
		h.Typeflag = tar.TypeChar
	}
	h.Devmajor, h.Devminor = int64(d.Major), int64(d.Minor)
	return t.put(h)
}

// header returns the metadata of one entry. The modification time is cut to
// whole seconds: a fraction would need a PAX record of 1 KiB for every file, and
// docker writes none, so that its tar of the same files has the same bytes.
func (t *writer) header(name string, st unix.Stat_t, a attributes) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & permBits),
		Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, 0),
	}
	for key, value := range a.content {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+key] = string(value)
	}
	return h
}

// marker returns the entry of a whiteout or an opaque marker.
func marker(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0)}
}

// put writes a header. The PAX format is asked for so that the choice does not
// depend on what ustar's prefix field happens to split; records are written
// only where a value does not fit.
func (t *writer) put(h *tar.Header) error {
	h.Format = tar.FormatPAX
	t.res.Entries++
	if err := t.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSuffix(h.Name, "/"), err)
	}
	return nil
}
