// Package archive reads what `docker save`, podman, skopeo and mstage itself
// write: which images an archive or a layout directory holds, and the bytes of
// their layers.
//
// Nothing in an archive is trusted. Its members are found by one walk over the
// headers; names lead nowhere but to members, all that describes an image has a
// limit, and what is read by digest is verified. The layers are verified by who
// unpacks them.
//
// Source: OCI image-spec v1.1, image-layout.md and image-index.md; docker image
// spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/mstage/mstage/storage"
)

// The limits of an archive.
const (
	// MaxMembers bounds the members of a tar. `docker save` before 25 writes four
	// for each layer; 500 layers of 30 images stay below.
	MaxMembers = 65_536
	// MaxImages bounds the images, those of other platforms included.
	MaxImages = 1000
	// MaxIndexBytes bounds index.json and manifest.json.
	MaxIndexBytes = 8 << 20
	// MaxSpoolBytes bounds what a stream or a compressed archive may take on the
	// disk: four layers of the largest size that the store takes.
	MaxSpoolBytes = 256 << 30
	// maxDescriptionBytes bounds all indexes, manifests and configs together: they
	// are kept in memory.
	maxDescriptionBytes = 256 << 20
	// maxConfigBytes bounds a config: the store keeps an image, with its config
	// twice and its manifest, in a record of at most 16 MiB.
	maxConfigBytes = 6 << 20
	// maxReferenceBytes bounds the name of an image, as the store does.
	maxReferenceBytes = 1024
	// maxNameBytes bounds the name of a member; names in use are under 150.
	maxNameBytes = 512
	// maxDepth bounds indexes within indexes. Tools write two levels.
	maxDepth = 4
	// maxLinks bounds links that lead to links; docker wrote one.
	maxLinks = 8
)

// Error says what is wrong with an archive. Hint is shown apart from the
// message; "" for none.
type Error struct {
	Hint string
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *Error) Unwrap() error { return e.Err }

// errorf returns an *Error without a hint.
func errorf(format string, args ...any) error { return &Error{Err: fmt.Errorf(format, args...)} }

// Options say how to read an archive.
type Options struct {
	// TempDir is where a stream and a compressed archive are kept while they are
	// read, in a file without a name: it is gone when the process is.
	TempDir string
	// Platform is chosen where an image is there for several: "linux/amd64".
	Platform string
}

// Image is one image of an archive.
type Image struct {
	// Names are normalised references, sorted: with a tag, or with a digest.
	Names []string
	// Manifest is the OCI or docker manifest; nil in an archive without manifests.
	Manifest *storage.Manifest
	// Config is the exact bytes.
	Config []byte
	// Layers, lowest first.
	Layers []Layer
}

// ID is the image's ID, as docker shows it.
func (i Image) ID() storage.Digest { return storage.DigestBytes(i.Config) }

// Layer is one layer of an image. Its digests are claims.
type Layer struct {
	storage.Blob
	file string
}

// Archive is an open archive. Safe for concurrent use after Images. Close it.
type Archive struct {
	files    files
	platform platform
	// described is how many bytes of descriptions were read.
	described int64
	// seen counts the descriptors that were looked at.
	seen int
}

// files are the files of an archive by their clean, slash separated names.
type files interface {
	// open returns a file's bytes; the error wraps fs.ErrNotExist when there is
	// none. The caller closes.
	open(name string) (file, error)
	io.Closer
}

// file is one open file.
type file struct {
	*io.SectionReader
	io.Closer
}

// Open opens the archive or the layout directory at path.
func Open(ctx context.Context, path string, o Options) (*Archive, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		a, err := Read(ctx, f, o)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		a.files = closeBoth{a.files, f}
		return a, nil
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return newArchive(directory{root}, o)
}

// closeBoth closes the file that an archive was read from, too.
type closeBoth struct {
	files
	f *os.File
}

func (c closeBoth) Close() error { return errors.Join(c.files.Close(), c.f.Close()) }

// Read opens the archive in f from where f stands; the caller closes f after the
// Archive. A pipe, and what is compressed by gzip, zstd, xz or bzip2, is written
// to a temporary file first. What is wrong with the archive is an *Error.
func Read(ctx context.Context, f *os.File, o Options) (*Archive, error) {
	content, closer, err := seekable(ctx, f, o.TempDir)
	if err != nil {
		return nil, err
	}
	t, err := readTar(ctx, content)
	if err != nil {
		return nil, errors.Join(err, closer.Close())
	}
	t.closer = closer
	return newArchive(t, o)
}

func newArchive(f files, o Options) (*Archive, error) {
	p, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Archive{files: f, platform: p}, nil
}

// Close removes what was kept of a stream.
func (a *Archive) Close() error { return a.files.Close() }

// Names of the files that tell which kind an archive is.
const (
	fileLayout       = "oci-layout"
	fileIndex        = "index.json"
	fileManifest     = "manifest.json"
	fileRepositories = "repositories"
)

// Images returns the images of the archive, in its order. Every layer is there
// with the announced size; its content was not read. An archive with docker's
// manifest.json and an OCI index, as docker 25 writes it, goes by the index,
// and an image has the names of both.
func (a *Archive) Images(ctx context.Context) ([]Image, error) {
	list := &imageList{index: map[storage.Digest]int{}}
	oci, err := a.has(fileIndex)
	if err != nil {
		return nil, err
	}
	if oci {
		if err := a.readLayout(list); err != nil {
			return nil, err
		}
	}
	docker, err := a.has(fileManifest)
	if err != nil {
		return nil, err
	}
	if docker {
		if err := a.readDocker(ctx, list); err != nil {
			return nil, err
		}
	}
	if !oci && !docker {
		return nil, a.unknown()
	}
	if len(list.images) == 0 {
		return nil, errorf("archive holds no image")
	}
	return list.images, list.checkNames()
}

// unknown says why there is no image.
func (a *Archive) unknown() error {
	if old, err := a.has(fileRepositories); err == nil && old {
		return &Error{
			Err:  errors.New("archive of docker before 1.10: it has no manifest.json"),
			Hint: "`docker load` and `docker save` with docker 1.10 to 24 make a newer one",
		}
	}
	return &Error{
		Err:  errors.New("neither a docker archive (manifest.json) nor an OCI layout (index.json)"),
		Hint: "`mstage import` takes the tar of a root file system",
	}
}

// has reports whether the archive has a file of that name.
func (a *Archive) has(name string) (bool, error) {
	f, err := a.files.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// Open returns the blob of a layer. The caller closes; any number may be open.
func (a *Archive) Open(l Layer) (io.ReadCloser, error) { return a.files.open(l.file) }

// read returns a whole file that describes something.
func (a *Archive) read(name string, maxBytes int64) (b []byte, err error) {
	f, err := a.files.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf("archive lacks %s", name)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if f.Size() > maxBytes {
		return nil, errorf("%s has %d bytes, the limit is %d", name, f.Size(), maxBytes)
	}
	if a.described += f.Size(); a.described > maxDescriptionBytes {
		return nil, errorf("indexes, manifests and configs of more than %d bytes", int64(maxDescriptionBytes))
	}
	b = make([]byte, f.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// count counts one more descriptor.
func (a *Archive) count() error {
	if a.seen++; a.seen > MaxImages {
		return errorf("more than %d images", MaxImages)
	}
	return nil
}

// imageList collects images, each once.
type imageList struct {
	images []Image
	index  map[storage.Digest]int // by ID
}

// add adds an image; one that is there gets the names.
func (l *imageList) add(img Image) {
	id := img.ID()
	if !l.name(id, img.Names...) {
		l.index[id] = len(l.images)
		l.images = append(l.images, img)
	}
}

// name gives the image with that ID more names; false when there is none.
func (l *imageList) name(id storage.Digest, names ...string) bool {
	i, ok := l.index[id]
	if ok {
		all := append(l.images[i].Names, names...)
		slices.Sort(all)
		l.images[i].Names = slices.Compact(all)
	}
	return ok
}

// checkNames refuses a name of two images.
func (l *imageList) checkNames() error {
	owner := map[string]int{}
	for i, img := range l.images {
		for _, n := range img.Names {
			if other, ok := owner[n]; ok {
				return errorf("%s is the name of two images, %s and %s", n, l.images[other].ID().Short(), img.ID().Short())
			}
			owner[n] = i
		}
	}
	return nil
}
