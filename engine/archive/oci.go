package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

// dirBlobs is where a layout keeps blobs. Source: image-layout.md.
const dirBlobs = "blobs/sha256"

// The annotations by which an index names its images. Source: OCI image-spec
// v1.1, annotations.md; containerd's image import.
const (
	annotationName = "io.containerd.image.name"
	annotationRef  = "org.opencontainers.image.ref.name"
	// annotationReference marks what BuildKit attaches to an image, which is
	// none itself.
	annotationReference = "vnd.docker.reference.type"
)

// index is what of an OCI index or a docker manifest list is looked at. Source:
// OCI image-spec v1.1, image-index.md.
type index struct {
	Manifests []descriptor `json:"manifests"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform"`
	Annotations map[string]string `json:"annotations"`
}

// The media types of indexes and of image configs.
var (
	indexTypes = []string{
		"application/vnd.oci.image.index.v1+json",
		"application/vnd.docker.distribution.manifest.list.v2+json",
	}
	manifestTypes = []string{
		"application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.v2+json",
	}
	configTypes = []string{
		"",
		"application/vnd.oci.image.config.v1+json",
		"application/vnd.docker.container.image.v1+json",
	}
)

// readLayout adds the images of index.json. Each of its lines is an image, or
// one image for several platforms.
func (a *Archive) readLayout(list *imageList) error {
	raw, err := a.read(fileIndex, MaxIndexBytes)
	if err != nil {
		return err
	}
	top, err := parseIndex(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", fileIndex, err)
	}
	for _, group := range byName(top.Manifests) {
		imgs, err := a.choose(group.lines, group.name != "", 0)
		if err != nil {
			return err
		}
		for _, img := range imgs {
			if img.Names, err = namesOf(group, img); err != nil {
				return err
			}
			list.add(img.Image)
		}
	}
	return nil
}

// parseIndex reads an index.
func parseIndex(raw []byte) (index, error) {
	var ix index
	if err := json.Unmarshal(raw, &ix); err != nil {
		return ix, &Error{Err: err}
	}
	if len(ix.Manifests) > MaxImages {
		return ix, errorf("%d manifests, the limit is %d", len(ix.Manifests), MaxImages)
	}
	return ix, nil
}

// group are the lines of an index that have one name, "" for none.
type group struct {
	name  string
	lines []descriptor
}

// byName groups lines by name, in the order of the names' first appearance.
func byName(lines []descriptor) []group {
	var groups []group
	for _, d := range lines {
		name := nameOf(d)
		i := slices.IndexFunc(groups, func(g group) bool { return g.name == name })
		if i < 0 {
			i = len(groups)
			groups = append(groups, group{name: name})
		}
		groups[i].lines = append(groups[i].lines, d)
	}
	return groups
}

// nameOf returns the name that a line gives its image, "" for none. A ref.name
// counts when it is a whole reference: "busybox:1" and not "1", as containerd
// and podman have it.
func nameOf(d descriptor) string {
	if name := d.Annotations[annotationName]; name != "" {
		return name
	}
	if ref := d.Annotations[annotationRef]; strings.ContainsAny(ref, ":/") {
		if _, err := reference.Parse(ref); err == nil {
			return ref
		}
	}
	return ""
}

// namesOf returns the normalised names of an image of a group.
func namesOf(g group, img found) ([]string, error) {
	if g.name == "" {
		return nil, nil
	}
	name, err := imageName(g.name, img.digests...)
	if err != nil {
		return nil, err
	}
	return []string{name}, nil
}

// reservedName means an empty base after FROM.
const reservedName = "docker.io/library/scratch"

// imageName normalises a name from an archive. One with a digest must have one
// of the image's own.
func imageName(word string, digests ...string) (string, error) {
	r, err := reference.Parse(word)
	if err != nil {
		return "", &Error{Err: err}
	}
	if len(word) > maxReferenceBytes {
		return "", errorf("name of %d bytes, the limit is %d", len(word), maxReferenceBytes)
	}
	if r.Name() == reservedName {
		return "", errorf("name %q: scratch is reserved", word)
	}
	if r.Digest != "" && !slices.Contains(digests, r.Digest) {
		return "", errorf("name %q has the digest of another image", word)
	}
	if r.Tag != "" {
		r.Digest = ""
	}
	return r.WithDefaultTag().String(), nil
}

// found is an image with the digests of its manifest and of the indexes that
// led to it.
type found struct {
	Image
	digests []string
}

// choose returns the images that lines stand for: all of them, or where they are
// for several platforms those of the one that was asked for; with one, a single
// image of these. What is for another platform need not be in the archive.
func (a *Archive) choose(lines []descriptor, one bool, depth int) ([]found, error) {
	lines = slices.DeleteFunc(slices.Clone(lines), func(d descriptor) bool { return d.Annotations[annotationReference] != "" })
	announced := make([]platform, len(lines))
	for i, d := range lines {
		announced[i] = d.announced()
	}
	wanted, err := a.platform.pick(announced)
	if err != nil {
		return nil, err
	}
	var all []found
	var platforms []platform
	for _, i := range wanted {
		imgs, err := a.descend(lines[i], depth)
		if err != nil {
			return nil, err
		}
		for _, img := range imgs {
			all = append(all, img)
			platforms = append(platforms, platformOf(lines[i], img.Config))
		}
	}
	if wanted, err = a.platform.pick(platforms); err != nil {
		return nil, err
	}
	if one && len(distinct(platforms)) > 1 {
		wanted = wanted[:1]
	}
	chosen := make([]found, len(wanted))
	for i, w := range wanted {
		chosen[i] = all[w]
	}
	return chosen, nil
}

// descend reads what a descriptor leads to: an image, those of an index, or
// nothing when it is no image.
func (a *Archive) descend(d descriptor, depth int) ([]found, error) {
	if err := a.count(); err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, errorf("indexes are nested more than %d deep", maxDepth)
	}
	raw, err := a.readBlob(d, fetch.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	isIndex, err := isIndex(d.MediaType, raw)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	var imgs []found
	if isIndex {
		ix, err := parseIndex(raw)
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", d.Digest, err)
		}
		if imgs, err = a.choose(ix.Manifests, true, depth+1); err != nil {
			return nil, err
		}
	} else if imgs, err = a.readImage(d, raw); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	for i := range imgs {
		imgs[i].digests = append(imgs[i].digests, d.Digest)
	}
	return imgs, nil
}

// isIndex tells an index from a manifest.
func isIndex(mediaType string, raw []byte) (bool, error) {
	if mediaType == "" {
		var own struct {
			MediaType string          `json:"mediaType"`
			Manifests json.RawMessage `json:"manifests"`
		}
		if err := json.Unmarshal(raw, &own); err != nil {
			return false, &Error{Err: err}
		}
		if mediaType = own.MediaType; mediaType == "" {
			return own.Manifests != nil, nil
		}
	}
	switch {
	case slices.Contains(indexTypes, mediaType):
		return true, nil
	case slices.Contains(manifestTypes, mediaType):
		return false, nil
	}
	return false, errorf("media type %q is neither one of a manifest nor of an index", mediaType)
}

// readImage reads a manifest with its config. What is no image, as a signature,
// is left out.
func (a *Archive) readImage(d descriptor, raw []byte) ([]found, error) {
	var kind struct {
		Config struct {
			MediaType string `json:"mediaType"`
		} `json:"config"`
	}
	if err := json.Unmarshal(raw, &kind); err != nil {
		return nil, &Error{Err: err}
	}
	if !slices.Contains(configTypes, kind.Config.MediaType) {
		return nil, nil
	}
	digest, size, err := fetch.ConfigOf(raw)
	if err != nil {
		return nil, &Error{Err: err}
	}
	config, err := a.readBlob(descriptor{Digest: string(digest), Size: size}, maxConfigBytes)
	if err != nil {
		return nil, err
	}
	m, err := fetch.Manifest(raw, d.MediaType, config)
	if err != nil {
		return nil, &Error{Err: err}
	}
	img := Image{Manifest: &m, Config: config}
	for _, b := range m.Blobs {
		l := Layer{Blob: b, file: path.Join(dirBlobs, b.Digest.Hex())}
		if err := a.checkLayer(l); err != nil {
			return nil, err
		}
		img.Layers = append(img.Layers, l)
	}
	return []found{{Image: img}}, nil
}

// checkLayer makes sure that a layer is there, in its whole length.
func (a *Archive) checkLayer(l Layer) error {
	f, err := a.files.open(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return errorf("archive lacks the layer %s", l.file)
	}
	if err != nil {
		return err
	}
	if f.Size() != l.SizeBytes {
		err = errorf("layer %s has %d bytes instead of %d", l.file, f.Size(), l.SizeBytes)
	}
	return errors.Join(err, f.Close())
}

// readBlob returns a blob of the layout, verified.
func (a *Archive) readBlob(d descriptor, maxBytes int64) ([]byte, error) {
	digest, err := storage.ParseDigest(d.Digest)
	if err != nil {
		return nil, &Error{Err: err}
	}
	name := path.Join(dirBlobs, digest.Hex())
	b, err := a.read(name, maxBytes)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size {
		return nil, errorf("%s has %d bytes instead of %d", name, len(b), d.Size)
	}
	if got := storage.DigestBytes(b); got != digest {
		return nil, errorf("%s has the digest %s", name, got)
	}
	return b, nil
}
