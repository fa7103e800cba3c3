package buildcontext

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxTarBytes bounds what a context from standard input may unpack to: a
	// few kilobytes can inflate to any size.
	maxTarBytes = 64 << 30
	// maxTarEntries bounds its inodes.
	maxTarEntries = 2 << 20
	// maxTarNameBytes is PATH_MAX.
	maxTarNameBytes = 4096
	// xattrRecord begins a PAX record that holds an extended attribute.
	xattrRecord = "SCHILY.xattr."
	// modeBits are the permissions with setuid, setgid and sticky.
	modeBits = 0o7777
)

// unpacker writes a tar's entries below a directory. Every path is resolved by
// os.Root: links that lead out of the directory lead nowhere.
type unpacker struct {
	root    *os.Root
	limits  unpackLimits
	bytes   int64
	entries int
	// dirs are directories whose mode and time are set when all is written.
	dirs map[string]*tar.Header
}

// unpackLimits are the limits of one archive.
type unpackLimits struct {
	bytes   int64
	entries int
}

// unpack unpacks a tar into dir. Owners are not kept: files of a build context
// are copied as 0:0.
func unpack(ctx context.Context, r io.Reader, dir string) error {
	return unpackLimited(ctx, r, dir, unpackLimits{bytes: maxTarBytes, entries: maxTarEntries})
}

func unpackLimited(ctx context.Context, r io.Reader, dir string, limits unpackLimits) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	u := &unpacker{root: root, limits: limits, dirs: map[string]*tar.Header{}}
	if err := u.all(tar.NewReader(contextReader{ctx: ctx, r: r})); err != nil {
		return fmt.Errorf("build context from tar: %w", err)
	}
	return u.finishDirs()
}

// all unpacks every entry.
func (u *unpacker) all(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader { // git archive's commit
			continue
		}
		if u.entries++; u.entries > u.limits.entries {
			return fmt.Errorf("%w: the limit is %d", errTooMany, u.limits.entries)
		}
		name, err := tarName(h.Name)
		if err != nil {
			return err
		}
		if err := u.entry(name, h, tr); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// tarName returns a clean path below the root. A leading slash is dropped, as
// tar(1) does; ".." is refused.
func tarName(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	switch {
	case len(name) > maxTarNameBytes:
		return "", fmt.Errorf("a name of %d bytes: the limit is %d", len(name), maxTarNameBytes)
	case strings.IndexByte(name, 0) >= 0:
		return "", fmt.Errorf("%q: a name with a NUL", name)
	case clean == "..", strings.HasPrefix(clean, "../"):
		return "", fmt.Errorf("%q: a name that leads out of the build context", name)
	}
	return clean, nil
}

// entry unpacks one entry.
func (u *unpacker) entry(name string, h *tar.Header, content io.Reader) error {
	if name == "." {
		return nil // the directory is the caller's
	}
	if err := u.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return u.makeDir(name, h)
	}
	delete(u.dirs, name)
	if err := u.root.RemoveAll(name); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.writeFile(name, h, content)
	case tar.TypeSymlink:
		if len(h.Linkname) > maxLinkBytes {
			return fmt.Errorf("a link target of %d bytes: the limit is %d", len(h.Linkname), maxLinkBytes)
		}
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		target, err := tarName(h.Linkname)
		if err != nil {
			return err
		}
		return u.root.Link(target, name)
	default:
		return fmt.Errorf("entry type %q is not supported in a build context", h.Typeflag)
	}
}

// makeDir makes a directory, or keeps the one that is there.
func (u *unpacker) makeDir(name string, h *tar.Header) error {
	info, err := u.root.Lstat(name)
	if err == nil && !info.IsDir() {
		if err := u.root.Remove(name); err != nil {
			return err
		}
	}
	if err != nil || !info.IsDir() {
		if err := u.root.Mkdir(name, 0o755); err != nil {
			return err
		}
	}
	u.dirs[name] = h
	return nil
}

// writeFile writes a regular file that does not exist yet.
func (u *unpacker) writeFile(name string, h *tar.Header, content io.Reader) (err error) {
	if u.bytes += h.Size; u.bytes > u.limits.bytes {
		return fmt.Errorf("the build context unpacks to more than %d bytes", u.limits.bytes)
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, content); err != nil {
		return errors.Join(err, f.Close())
	}
	// The owner may read: as non-root the build could not otherwise.
	if err := finish(f, h, 0o400); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

// finish sets extended attributes and mode of an open file; need is added.
func finish(f *os.File, h *tar.Header, need uint32) error {
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || !isContentXattr(name) {
			continue
		}
		if err := unix.Fsetxattr(int(f.Fd()), name, []byte(value), 0); err != nil {
			return fmt.Errorf("set extended attribute %s: %w", name, err)
		}
	}
	return unix.Fchmod(int(f.Fd()), uint32(h.Mode&modeBits)|need)
}

// finishDirs sets modes and times of directories, the deepest first: a mode can
// shut a directory, and writing changes its time.
func (u *unpacker) finishDirs() error {
	names := make([]string, 0, len(u.dirs))
	for name := range u.dirs {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(b, "/"), strings.Count(a, "/")), strings.Compare(a, b))
	})
	for _, name := range names {
		if err := u.finishDir(name, u.dirs[name]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("build context from tar: %s: %w", name, err)
		}
	}
	return nil
}

// finishDir finishes one directory, unless something else took its place.
func (u *unpacker) finishDir(name string, h *tar.Header) error {
	info, err := u.root.Lstat(name)
	if err != nil || !info.IsDir() {
		return err
	}
	f, err := u.root.Open(name)
	if err != nil {
		return err
	}
	// The owner may list and remove: whose directory it is has to clean up.
	if err := errors.Join(finish(f, h, 0o700), f.Close()); err != nil {
		return err
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}
