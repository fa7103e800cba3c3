package fetch

import (
	"encoding/json"
	"fmt"

	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/storage"
)

// Image returns the record of an image that came from outside with this
// manifest and config, and whose layers are in the store. Its ID is docker's:
// the digest of the config, whose diff IDs are the layers' identities.
func Image(m storage.Manifest, config []byte, layers []storage.Layer) (storage.Image, error) {
	cfg, err := imageconfig.Parse(config)
	if err != nil {
		return storage.Image{}, fmt.Errorf("image config: %w", err)
	}
	id := storage.DigestBytes(config)
	img := storage.Image{
		ID: id, Config: config, Layers: layers,
		Sealed: &storage.SealedImage{ConfigDigest: id, Config: config, Manifest: &m},
	}
	if cfg.Created != nil {
		img.Created = cfg.Created.UTC()
	}
	return img, nil
}

// The limits of what describes an image. Registries refuse manifests over 4 MiB;
// configs are some KiB.
const (
	MaxManifestBytes = 4 << 20
	MaxConfigBytes   = 8 << 20
	// MaxLayers is what one overlay mount can stack.
	MaxLayers = 499
)

// layerTypes are the media types of layers that can be unpacked.
var layerTypes = map[string]bool{
	"application/vnd.oci.image.layer.v1.tar":            true,
	"application/vnd.oci.image.layer.v1.tar+gzip":       true,
	"application/vnd.oci.image.layer.v1.tar+zstd":       true,
	"application/vnd.docker.image.rootfs.diff.tar":      true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip": true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
}

// manifest is what of an image manifest is looked at. Source: OCI image-spec
// v1.1, manifest.md; docker's image manifest schema 2 has the same fields.
type manifest struct {
	MediaType string       `json:"mediaType"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// ConfigOf returns the digest and size of the config that a manifest names.
func ConfigOf(raw []byte) (d storage.Digest, sizeBytes int64, err error) {
	m, err := parseManifest(raw)
	if err != nil {
		return "", 0, err
	}
	d, err = storage.ParseDigest(m.Config.Digest)
	if err == nil && (m.Config.Size < 0 || m.Config.Size > MaxConfigBytes) {
		err = fmt.Errorf("config of %d bytes, the limit is %d", m.Config.Size, MaxConfigBytes)
	}
	return d, m.Config.Size, err
}

func parseManifest(raw []byte) (m manifest, err error) {
	if len(raw) > MaxManifestBytes {
		return m, fmt.Errorf("manifest of %d bytes, the limit is %d", len(raw), MaxManifestBytes)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}

// ContentError says that what came from outside is no image that can be used.
type ContentError struct{ Err error }

func (e *ContentError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong with it.
func (e *ContentError) Unwrap() error { return e.Err }

// Manifest reads a manifest from outside together with the config that it
// names. mediaType is what it was announced as, "" to go by its own word. A
// manifest and a config that contradict each other, or a layer that can't be
// unpacked, are a *ContentError.
func Manifest(raw []byte, mediaType string, config []byte) (storage.Manifest, error) {
	m, err := readManifest(raw, mediaType, config)
	if err != nil {
		return m, &ContentError{Err: err}
	}
	return m, nil
}

func readManifest(raw []byte, mediaType string, config []byte) (storage.Manifest, error) {
	m, err := parseManifest(raw)
	if err != nil {
		return storage.Manifest{}, err
	}
	if mediaType == "" {
		mediaType = m.MediaType
	}
	if got := storage.DigestBytes(config); string(got) != m.Config.Digest {
		return storage.Manifest{}, &MismatchError{What: "image config", Want: m.Config.Digest, Got: string(got)}
	}
	cfg, err := imageconfig.Parse(config)
	if err != nil {
		return storage.Manifest{}, fmt.Errorf("image config: %w", err)
	}
	if len(m.Layers) != len(cfg.RootFS.DiffIDs) || len(m.Layers) > MaxLayers {
		return storage.Manifest{}, fmt.Errorf("manifest has %d layers and the config %d diff IDs; the limit is %d", len(m.Layers), len(cfg.RootFS.DiffIDs), MaxLayers)
	}
	out := storage.Manifest{MediaType: mediaType, Raw: raw, Blobs: make([]storage.Blob, len(m.Layers))}
	for i, l := range m.Layers {
		if out.Blobs[i], err = blobOf(l, cfg.RootFS.DiffIDs[i]); err != nil {
			return storage.Manifest{}, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return out, nil
}

// blobOf checks one layer's line.
func blobOf(d descriptor, diffID string) (b storage.Blob, err error) {
	if b.Digest, err = storage.ParseDigest(d.Digest); err != nil {
		return b, err
	}
	if b.DiffID, err = storage.ParseDigest(diffID); err != nil {
		return b, fmt.Errorf("diff ID: %w", err)
	}
	if !layerTypes[d.MediaType] {
		return b, fmt.Errorf("media type %.100q is not one of an image layer", d.MediaType)
	}
	if d.Size < 0 {
		return b, fmt.Errorf("size of %d bytes", d.Size)
	}
	b.MediaType, b.SizeBytes = d.MediaType, d.Size
	return b, nil
}
