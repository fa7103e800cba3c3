package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// member is one member of a tar.
type member struct {
	offset, sizeBytes int64
	// link is where a symbolic or hard link leads, as a name of the archive.
	link string
	// odd says what a member is that is neither a regular file nor a link, "" for
	// those.
	odd string
	// twice is set when a regular file came again under the same name.
	twice bool
}

// tarFiles are the members of a tar that can be read at any place.
type tarFiles struct {
	content io.ReaderAt
	members map[string]member
	closer  io.Closer
}

// Close closes what the tar is read from.
func (t *tarFiles) Close() error { return t.closer.Close() }

// readTar walks over the headers; no content is read.
func readTar(ctx context.Context, content *io.SectionReader) (*tarFiles, error) {
	t := &tarFiles{content: content, members: map[string]member{}}
	tr := tar.NewReader(content) // seeks over contents
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, t.checkEmpty(content.Size())
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, tarError(err, len(t.members))
		}
		at, err := content.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if err := t.add(h, at); err != nil {
			return nil, err
		}
		if len(t.members) > MaxMembers {
			return nil, errorf("more than %d members", MaxMembers)
		}
	}
}

// tarError says what is wrong with a tar. Errors of the file system stay as they
// are.
func tarError(err error, members int) error {
	switch {
	case members == 0 && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)):
		return &Error{Err: errors.New("not a tar archive"), Hint: "`docker save`, `podman save`, skopeo and `mstage save` write what can be loaded"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errorf("archive is cut short after %d members", members)
	case errors.As(err, new(unix.Errno)):
		return err
	}
	return errorf("after %d members: %w", members, err)
}

func (t *tarFiles) checkEmpty(sizeBytes int64) error {
	if len(t.members) > 0 {
		return nil
	}
	if sizeBytes == 0 {
		return errorf("archive is empty")
	}
	return errorf("archive has no members")
}

// add notes one member whose content begins at offset.
func (t *tarFiles) add(h *tar.Header, offset int64) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	m := member{offset: offset, sizeBytes: h.Size}
	switch h.Typeflag {
	case tar.TypeReg:
		if isSparse(h) {
			m.odd = "sparse"
		}
	case tar.TypeDir:
		m.odd = "a directory"
	case tar.TypeSymlink:
		m.link, err = clean(path.Join(path.Dir(name), h.Linkname))
		if path.IsAbs(h.Linkname) || len(h.Linkname) > maxNameBytes {
			err = errOut(h.Linkname)
		}
	case tar.TypeLink:
		m.link, err = clean(h.Linkname)
	default:
		m.odd = "no regular file"
	}
	if err != nil {
		return errorf("member %.200q: link: %w", h.Name, err)
	}
	if m.sizeBytes > t.left(offset) {
		return errorf("archive is cut short in %s", name)
	}
	old, again := t.members[name]
	m.twice = again && (m.odd != "a directory" || old.odd != m.odd)
	t.members[name] = m
	return nil
}

// left is how many bytes there are from offset on.
func (t *tarFiles) left(offset int64) int64 {
	if s, ok := t.content.(*io.SectionReader); ok {
		return s.Size() - offset
	}
	return 0
}

// isSparse reports whether a member's content in the tar is not the file's.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// errOut is a name that leads out of the archive.
type errOut string

func (e errOut) Error() string { return fmt.Sprintf("%.200q leads out of the archive", string(e)) }

// clean returns a name without "./" and the like.
func clean(name string) (string, error) {
	if len(name) > maxNameBytes {
		return "", errorf("name of %d bytes, the limit is %d", len(name), maxNameBytes)
	}
	cleaned := path.Clean(name)
	if !fs.ValidPath(cleaned) || strings.ContainsRune(cleaned, 0) {
		return "", &Error{Err: errOut(name)}
	}
	return cleaned, nil
}

// open implements files. Links are followed within the archive.
func (t *tarFiles) open(name string) (file, error) {
	asked := name
	for range maxLinks {
		m, ok := t.members[name]
		switch {
		case !ok:
			return file{}, &fs.PathError{Op: "open", Path: asked, Err: fs.ErrNotExist}
		case m.twice:
			return file{}, errorf("%s is there twice", name)
		case m.odd != "":
			return file{}, errorf("%s is %s", name, m.odd)
		case m.link == "":
			return file{io.NewSectionReader(t.content, m.offset, m.sizeBytes), io.NopCloser(nil)}, nil
		}
		name = m.link
	}
	return file{}, errorf("%s: more than %d links", asked, maxLinks)
}

// directory is a layout that is not packed.
type directory struct{ *os.Root }

// open implements files. A link that leads out of the directory is not followed.
func (d directory) open(name string) (file, error) {
	f, err := d.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil && !errors.As(err, new(unix.Errno)) {
		return file{}, &Error{Err: err} // os.Root refused the way
	}
	if err != nil {
		return file{}, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errorf("%s is no regular file", name)
	}
	if err != nil {
		return file{}, errors.Join(err, f.Close())
	}
	return file{io.NewSectionReader(f, 0, st.Size()), f}, nil
}
