package copy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/tree"
)

// writer makes names in one directory of the layer.
type writer struct {
	apply   *apply
	item    *item
	src     sourceDir
	destDir string
	fd      int // of destDir
	// first is nil where names can't be hard links of each other.
	first *firsts
	tally tally
}

// copied is what went through when a regular file was copied.
type copied struct {
	linked bool // the inode is the source's
	bytes  int64
	digest storage.Digest // "" when nobody asked
	xattrs map[string][]byte
}

func (w *writer) dest(base string) string { return path.Join(w.destDir, base) }

// node copies anything but a directory and returns its digest.
func (w *writer) node(ctx context.Context, e chainfs.Entry, base string) ([sha256.Size]byte, error) {
	var xattrs map[string][]byte
	var content storage.Digest
	var err error
	switch e.Type() {
	case tree.TypeRegular:
		var c copied
		c, err = w.regular(ctx, e, base)
		e.Size, content, xattrs = c.bytes, c.digest, c.xattrs
	case tree.TypeSymlink:
		err = w.make(base, func() error { return unix.Symlinkat(e.Link, w.fd, base) })
		err = w.describe(err, e.Entry, base)
	case typeFIFO:
		err = w.make(base, func() error { return unix.Mknodat(w.fd, base, typeFIFO|0o600, 0) })
		err = w.describe(err, e.Entry, base)
	case typeChar, typeBlock:
		err = w.device(e.Entry, base)
	default:
		err = fmt.Errorf("copy %s: type %o can't be kept in an image", e.Path, e.Type())
	}
	if err != nil || !w.apply.digests {
		return [sha256.Size]byte{}, err
	}
	return nodeSum(w.apply.sel.owned(e.Entry), xattrs, content), nil
}

// make runs create; a name that an earlier source brought is replaced.
func (w *writer) make(base string, create func() error) error {
	err := create()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if w.apply.stage.staged(w.dest(base)) != nil {
		return &ReplaceError{Path: w.dest(base)}
	}
	if err := unix.Unlinkat(w.fd, base, 0); err != nil {
		return err
	}
	return create()
}

// describe gives a link or special file its metadata.
func (w *writer) describe(err error, e tree.Entry, base string) error {
	if err != nil {
		return fmt.Errorf("make /%s: %w", w.dest(base), err)
	}
	return w.apply.metadata(e, nil).setAt(w.fd, base, w.dest(base), e.IsSymlink())
}

// device makes a device node, or an empty file that stands for it where the
// kernel refuses one. A character device 0:0 would be a whiteout.
func (w *writer) device(e tree.Entry, base string) error {
	whiteout := e.Type() == typeChar && e.Rdev == 0
	if !whiteout {
		err := w.make(base, func() error { return unix.Mknodat(w.fd, base, e.Type()|0o600, int(e.Rdev)) })
		if !errors.Is(err, unix.EPERM) {
			return w.describe(err, e, base)
		}
	}
	f, err := w.create(base)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fsetxattr(int(f.Fd()), chainfs.DeviceXattr, []byte(chainfs.DeviceValue(e)), 0); err != nil {
		return fmt.Errorf("make a placeholder for device /%s: %w", w.dest(base), err)
	}
	return w.apply.metadata(e, nil).set(int(f.Fd()), w.dest(base))
}

// create makes a new regular file. The caller closes.
func (w *writer) create(base string) (*os.File, error) {
	fd := -1
	err := w.make(base, func() (err error) {
		fd, err = unix.Openat(w.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create /%s: %w", w.dest(base), err)
	}
	return os.NewFile(uintptr(fd), "/"+w.dest(base)), nil
}

// regular links or copies a regular file. Names of one inode stay names of one
// inode.
func (w *writer) regular(ctx context.Context, e chainfs.Entry, base string) (copied, error) {
	var first *firstName
	if w.first != nil && e.Nlink > 1 {
		var mine bool
		first, mine = w.first.claim(inode{e.Dev, e.Ino})
		if !mine {
			return w.again(ctx, first, e, base)
		}
		defer close(first.done)
	}
	c, err := w.linkOrCopy(ctx, e, base, true)
	if first != nil {
		first.dest, first.copied, first.err = w.dest(base), c, err
	}
	return c, err
}

// linkOrCopy makes a new name; counts says that its inode wasn't there before.
func (w *writer) linkOrCopy(ctx context.Context, e chainfs.Entry, base string, counts bool) (copied, error) {
	if w.apply.mayLink(w.item, e) {
		done, err := w.link(e, base)
		if err != nil {
			return copied{}, err
		}
		if done {
			w.tally.linked++
			if counts {
				w.tally.size += e.Size
				w.tally.linkedBytes += e.Size
			}
			return copied{bytes: e.Size, linked: true}, nil
		}
	}
	c, err := w.copy(ctx, e, base)
	w.tally.copied++
	w.tally.size += c.bytes
	return c, err
}

// again makes a further name of an inode whose first name is being made.
func (w *writer) again(ctx context.Context, first *firstName, e chainfs.Entry, base string) (copied, error) {
	select {
	case <-first.done:
	case <-ctx.Done():
		return copied{}, context.Cause(ctx)
	}
	if first.err != nil {
		return copied{}, first.err
	}
	dir, err := w.apply.stage.openDir(path.Dir(first.dest))
	if err != nil {
		return copied{}, err
	}
	defer unix.Close(dir)
	err = w.make(base, func() error { return unix.Linkat(dir, path.Base(first.dest), w.fd, base, 0) })
	switch {
	case err == nil:
		w.countAgain(first)
		return first.copied, nil
	case cannotLink(err):
		return w.linkOrCopy(ctx, e, base, false)
	}
	return copied{}, fmt.Errorf("link /%s: %w", w.dest(base), err)
}

// countAgain counts a further name as its first name was made.
func (w *writer) countAgain(first *firstName) {
	if first.linked {
		w.tally.linked++
		return
	}
	w.tally.copied++
}

// link makes the name an additional one of the source's inode. done is false
// when the file system refuses, so that the file is to be copied.
func (w *writer) link(e chainfs.Entry, base string) (done bool, err error) {
	src, ok := w.src.(chainDir)
	if !ok {
		return false, nil
	}
	srcFD, err := src.FD(e.Layer)
	if err != nil {
		return false, err
	}
	err = w.make(base, func() error { return unix.Linkat(srcFD, path.Base(e.Path), w.fd, base, 0) })
	if cannotLink(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("link /%s: %w", w.dest(base), err)
	}
	return true, nil
}

// cannotLink reports whether a hard link is refused for reasons that a copy
// doesn't have: too many names (65000 on ext4), another file system, or
// fs.protected_hardlinks.
func cannotLink(err error) bool {
	return errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM)
}

// copy copies a regular file with its metadata.
func (w *writer) copy(ctx context.Context, e chainfs.Entry, base string) (copied, error) {
	in, err := w.src.Open(e)
	if err != nil {
		return copied{}, fmt.Errorf("open %s: %w", e.Path, err)
	}
	defer in.Close()
	xattrs, err := w.src.FileXattrs(e, in)
	if err != nil {
		return copied{}, fmt.Errorf("read attributes of %s: %w", e.Path, err)
	}
	c, err := w.write(ctx, e.Entry, base, in, xattrs)
	if err != nil {
		return copied{}, fmt.Errorf("copy %s: %w", e.Path, err)
	}
	return c, nil
}

// write makes a regular file with the content of in and the metadata of e.
func (w *writer) write(ctx context.Context, e tree.Entry, base string, in io.Reader, xattrs map[string][]byte) (copied, error) {
	out, err := w.create(base)
	if err != nil {
		return copied{}, err
	}
	defer out.Close()
	c, err := transfer(ctx, out, in, w.apply.digests)
	if err != nil {
		return copied{}, err
	}
	c.xattrs = xattrs
	if err := w.apply.metadata(e, xattrs).set(int(out.Fd()), w.dest(base)); err != nil {
		return copied{}, err
	}
	return c, nil
}

// inline writes a here-document.
func (w *writer) inline(ctx context.Context, it *item, base string) ([sha256.Size]byte, error) {
	c, err := w.write(ctx, it.entry, base, strings.NewReader(it.inline.Data), nil)
	w.tally.copied++
	w.tally.size += c.bytes
	w.apply.add(w.tally)
	return nodeSum(it.entry, nil, c.digest), err
}

// sliceBytes is copied between two looks at the context.
const sliceBytes = 64 << 20

// transferBytes is the size of one read when bytes are digested on their way.
const transferBytes = 256 << 10

// transferBuffers saves an allocation per file: it took most of the time of a
// copy of small files.
var transferBuffers = sync.Pool{New: func() any { return new([transferBytes]byte) }}

// transfer copies in to out. Without a digest the kernel copies, or shares the
// blocks, when both are files (copy_file_range, as in os.File.ReadFrom).
func transfer(ctx context.Context, out *os.File, in io.Reader, digest bool) (copied, error) {
	if !digest {
		return transferPlain(ctx, out, in)
	}
	d := &digestReader{ctx: ctx, r: in, h: sha256.New()}
	buf := transferBuffers.Get().(*[transferBytes]byte) //nolint:forcetypeassert // the pool's only type
	defer transferBuffers.Put(buf)
	_, err := io.CopyBuffer(struct{ io.Writer }{out}, d, buf[:])
	return d.sum(), err
}

// transferPlain copies in to out in slices, so that ctx can end it.
func transferPlain(ctx context.Context, out *os.File, in io.Reader) (copied, error) {
	var c copied
	for {
		if ctx.Err() != nil {
			return c, context.Cause(ctx)
		}
		n, err := out.ReadFrom(io.LimitReader(in, sliceBytes))
		c.bytes += n
		if n < sliceBytes || err != nil {
			return c, err
		}
	}
}
