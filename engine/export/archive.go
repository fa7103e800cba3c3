package export

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/storage"
)

// The annotations by which an index names its images. Source: OCI image-spec
// v1.1, annotations.md; containerd's image import.
const (
	annotationName = "io.containerd.image.name"
	annotationRef  = "org.opencontainers.image.ref.name"
)

const (
	fileLayout       = "oci-layout"
	fileIndex        = "index.json"
	fileManifest     = "manifest.json"
	fileRepositories = "repositories"
	dirBlobs         = "blobs/sha256"
	// layoutVersion is the content of fileLayout. Source: image-layout.md.
	layoutVersion = `{"imageLayoutVersion":"1.0.0"}`
)

// member is one file of an archive.
type member struct {
	sizeBytes int64
	open      func() (io.ReadCloser, error)
}

// archive is an OCI layout of one or more images, with docker's files in it when
// asked for: one tar then serves `docker load`, docker-archive: and oci-archive:
// alike.
type archive struct {
	// manifest is that of the last image added.
	manifest storage.Digest
	index    v1.IndexManifest
	members  map[string]member
	// docker is set for docker's files; the others are what they say.
	docker       bool
	images       []dockerManifest
	repositories map[string]map[string]string
}

// newArchive returns an archive without images.
func newArchive(docker bool) *archive {
	return &archive{
		docker: docker, repositories: map[string]map[string]string{},
		index:   v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex},
		members: map[string]member{fileLayout: memory([]byte(layoutVersion))},
	}
}

// add adds a sealed image.
func (a *archive) add(ctx context.Context, blobs storage.Blobs, img storage.Image, layers []image.SealedLayer, tags []tag) error {
	if a.docker {
		var err error
		if blobs, layers, err = forDocker(ctx, blobs, layers); err != nil {
			return err
		}
	}
	oci, err := image.NewOCI(ctx, blobs, img, layers)
	if err != nil {
		return err
	}
	if err := a.addImage(oci, tags); err != nil || !a.docker {
		return err
	}
	return a.addDocker(oci, tags)
}

// finish adds the files that name the others.
func (a *archive) finish() error {
	if err := a.addJSON(fileIndex, a.index); err != nil || !a.docker {
		return err
	}
	if len(a.repositories) > 0 {
		if err := a.addJSON(fileRepositories, a.repositories); err != nil {
			return err
		}
	}
	return a.addJSON(fileManifest, a.images)
}

// memory returns a member with these bytes.
func memory(b []byte) member {
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	return member{sizeBytes: int64(len(b)), open: open}
}

// addJSON adds a file with v as JSON.
func (a *archive) addJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	a.members[name] = memory(b)
	return nil
}

// blobPath returns where a layout keeps a blob.
func blobPath(h v1.Hash) string { return path.Join(dirBlobs, h.Hex) }

// addImage adds the image's blobs and its lines in the index.
func (a *archive) addImage(oci *image.OCI, tags []tag) error {
	m, err := oci.Manifest()
	if err != nil {
		return err
	}
	raw, err := oci.RawManifest()
	if err != nil {
		return err
	}
	config, err := oci.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := oci.Digest()
	if err != nil {
		return err
	}
	a.members[blobPath(m.Config.Digest)] = memory(config)
	a.members[blobPath(digest)] = memory(raw)
	layers, err := oci.Layers()
	if err != nil {
		return err
	}
	for i, d := range m.Layers {
		a.members[blobPath(d.Digest)] = member{sizeBytes: d.Size, open: layers[i].Compressed}
	}
	cf, err := oci.ConfigFile()
	if err != nil {
		return err
	}
	a.manifest = storage.Digest(digest.String())
	a.list(v1.Descriptor{
		MediaType: m.MediaType, Size: int64(len(raw)), Digest: digest, Platform: cf.Platform(),
	}, tags)
	return nil
}

// list puts one manifest into the index under every name.
func (a *archive) list(d v1.Descriptor, tags []tag) {
	if len(tags) == 0 {
		a.index.Manifests = append(a.index.Manifests, d)
	}
	for _, t := range tags {
		named := d
		named.Annotations = map[string]string{annotationName: t.full, annotationRef: t.version}
		a.index.Manifests = append(a.index.Manifests, named)
	}
}

// dockerManifest is one image in manifest.json. Source: docker image spec v1.2,
// "Combined Image JSON + Filesystem Changeset Format".
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// addDocker notes what manifest.json, and the older repositories file when the
// image has names, say of an image.
func (a *archive) addDocker(oci *image.OCI, tags []tag) error {
	m, err := oci.Manifest()
	if err != nil {
		return err
	}
	entry := dockerManifest{Config: blobPath(m.Config.Digest), Layers: []string{}}
	top := m.Config.Digest.Hex
	for _, d := range m.Layers {
		entry.Layers = append(entry.Layers, blobPath(d.Digest))
		top = d.Digest.Hex
	}
	for _, t := range tags {
		entry.RepoTags = append(entry.RepoTags, t.familiar())
		if a.repositories[t.repo] == nil {
			a.repositories[t.repo] = map[string]string{}
		}
		a.repositories[t.repo][t.version] = top
	}
	a.images = append(a.images, entry)
	return nil
}

// writeTar writes the archive as a tar: sorted, every time 0, every owner root.
func (a *archive) writeTar(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", dirBlobs + "/"} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.members)) {
		m := a.members[name]
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: m.sizeBytes,
			ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if err := m.copyTo(ctx, tw); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return tw.Close()
}

// copyBytes is copied between two looks at the context.
const copyBytes = 8 << 20

// copyTo writes the member's content, which must be as long as announced.
func (m member) copyTo(ctx context.Context, w io.Writer) (err error) {
	r, err := m.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var done int64
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(w, r, copyBytes)
		done += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if done != m.sizeBytes {
		return fmt.Errorf("blob has %d bytes instead of %d", done, m.sizeBytes)
	}
	return nil
}
