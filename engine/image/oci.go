package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

// OCI is a sealed image as go-containerregistry knows it. Blobs are opened from
// the store when they are asked for, and never compressed again. Safe for
// concurrent use.
type OCI struct {
	config   []byte
	manifest v1.Manifest
	raw      []byte
	layers   []v1.Layer
}

var (
	_ v1.Image = (*OCI)(nil)
	_ v1.Layer = (*blobLayer)(nil)
)

// NewOCI returns the OCI image of what Seal returned with Compress set; it has
// the manifest that the image came with, OCI's or docker's, when its layers are
// those blobs. ctx
// bounds every later read of a blob, which go-containerregistry's interface has
// no context for.
func NewOCI(ctx context.Context, blobs storage.Blobs, img storage.Image, layers []SealedLayer) (*OCI, error) {
	if img.Sealed == nil {
		return nil, fmt.Errorf("image %s is not sealed", img.ID.Short())
	}
	config, err := v1.NewHash(string(img.Sealed.ConfigDigest))
	if err != nil {
		return nil, err
	}
	o := &OCI{config: img.Sealed.Config, manifest: v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(img.Sealed.Config)), Digest: config},
		Layers:        []v1.Descriptor{},
	}}
	for i, l := range layers {
		bl, err := newBlobLayer(ctx, blobs, l.Seal)
		if err != nil {
			return nil, fmt.Errorf("layer %d of image %s: %w", i, img.ID.Short(), err)
		}
		o.layers = append(o.layers, bl)
		o.manifest.Layers = append(o.manifest.Layers, bl.desc)
	}
	if kept := img.Sealed.Manifest; kept != nil && sameBlobs(kept.Blobs, layers) {
		o.raw = kept.Raw
		return o, json.Unmarshal(kept.Raw, &o.manifest)
	}
	o.raw, err = json.Marshal(o.manifest)
	return o, err
}

// sameBlobs reports whether the layers go out as the blobs that they came as.
func sameBlobs(blobs []storage.Blob, layers []SealedLayer) bool {
	return slices.EqualFunc(blobs, layers, func(b storage.Blob, l SealedLayer) bool { return b.Digest == l.Seal.Blob })
}

// Layers returns the layers, lowest first.
func (o *OCI) Layers() ([]v1.Layer, error) { return o.layers, nil }

// MediaType returns that of the manifest.
func (o *OCI) MediaType() (types.MediaType, error) { return o.manifest.MediaType, nil }

// Size returns the length of the manifest in bytes.
func (o *OCI) Size() (int64, error) { return int64(len(o.raw)), nil }

// ConfigName returns the digest of the config, docker's image ID.
func (o *OCI) ConfigName() (v1.Hash, error) { return o.manifest.Config.Digest, nil }

// ConfigFile returns the parsed config.
func (o *OCI) ConfigFile() (*v1.ConfigFile, error) {
	return v1.ParseConfigFile(bytes.NewReader(o.config))
}

// RawConfigFile returns the exact bytes of the config.
func (o *OCI) RawConfigFile() ([]byte, error) { return o.config, nil }

// Digest returns the digest of the manifest.
func (o *OCI) Digest() (v1.Hash, error) {
	return v1.NewHash(string(storage.DigestBytes(o.raw)))
}

// Manifest returns a copy of the manifest.
func (o *OCI) Manifest() (*v1.Manifest, error) { return o.manifest.DeepCopy(), nil }

// RawManifest returns the exact bytes of the manifest.
func (o *OCI) RawManifest() ([]byte, error) { return o.raw, nil }

// LayerByDigest returns the layer, or the config, whose blob has the digest.
func (o *OCI) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	for i, d := range o.manifest.Layers {
		if d.Digest == h {
			return o.layers[i], nil
		}
	}
	if h == o.manifest.Config.Digest {
		return configLayer{o}, nil
	}
	return nil, fmt.Errorf("image has no blob %s: %w", h, storage.ErrNotFound)
}

// LayerByDiffID returns the layer whose uncompressed tar has the digest.
func (o *OCI) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	for _, l := range o.layers {
		if id, err := l.DiffID(); err == nil && id == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("image has no layer with diff ID %s: %w", h, storage.ErrNotFound)
}

// blobLayer is a layer over a blob of the store.
type blobLayer struct {
	ctx    context.Context // of the whole export; v1.Layer has none to hand in
	blobs  storage.Blobs
	blob   storage.Digest
	desc   v1.Descriptor
	diffID v1.Hash
}

// newBlobLayer returns the layer that seal describes.
func newBlobLayer(ctx context.Context, blobs storage.Blobs, seal storage.Seal) (*blobLayer, error) {
	digest, err := v1.NewHash(string(seal.Blob))
	if err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	diffID, err := v1.NewHash(string(seal.DiffID))
	if err != nil {
		return nil, fmt.Errorf("diff ID: %w", err)
	}
	mt, err := ociMediaType(seal.MediaType)
	if err != nil {
		return nil, err
	}
	desc := v1.Descriptor{MediaType: mt, Size: seal.BlobBytes, Digest: digest}
	return &blobLayer{ctx: ctx, blobs: blobs, blob: seal.Blob, desc: desc, diffID: diffID}, nil
}

// ociMediaType returns the OCI name of a layer's media type: a manifest must not
// mix OCI's and docker's.
func ociMediaType(mt string) (types.MediaType, error) {
	switch types.MediaType(mt) {
	case types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer:
		return types.MediaType(mt), nil
	case types.DockerLayer:
		return types.OCILayer, nil
	case types.DockerUncompressedLayer:
		return types.OCIUncompressedLayer, nil
	default:
		if strings.HasSuffix(mt, "diff.tar.zstd") {
			return types.OCILayerZStd, nil
		}
		return "", fmt.Errorf("media type %q is not one of an image layer", mt)
	}
}

// Digest returns the digest of the blob.
func (l *blobLayer) Digest() (v1.Hash, error) { return l.desc.Digest, nil }

// DiffID returns the digest of the uncompressed tar.
func (l *blobLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// Size returns the length of the blob in bytes.
func (l *blobLayer) Size() (int64, error) { return l.desc.Size, nil }

// MediaType returns the OCI media type of the blob.
func (l *blobLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// Compressed opens the blob.
func (l *blobLayer) Compressed() (io.ReadCloser, error) {
	r, _, err := l.blobs.Open(l.ctx, l.blob)
	return r, err
}

// Uncompressed opens the tar in the blob.
func (l *blobLayer) Uncompressed() (io.ReadCloser, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	plain, _, err := layertar.Decompress(r)
	if err != nil {
		r.Close()
		return nil, err
	}
	return &plainBlob{ReadCloser: plain, blob: r}, nil
}

// plainBlob closes the blob together with what reads from it.
type plainBlob struct {
	io.ReadCloser
	blob io.Closer
}

func (p *plainBlob) Close() error {
	err := p.ReadCloser.Close()
	if cerr := p.blob.Close(); err == nil {
		err = cerr
	}
	return err
}

// configLayer shows the config as a blob, for clients that upload it as one.
type configLayer struct{ o *OCI }

// Digest returns the digest of the config.
func (c configLayer) Digest() (v1.Hash, error) { return c.o.manifest.Config.Digest, nil }

// DiffID is the digest too: a config is never compressed.
func (c configLayer) DiffID() (v1.Hash, error) { return c.o.manifest.Config.Digest, nil }

// Compressed returns the config's bytes.
func (c configLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(c.o.config)), nil
}

// Uncompressed returns the config's bytes.
func (c configLayer) Uncompressed() (io.ReadCloser, error) { return c.Compressed() }

// Size returns the length of the config in bytes.
func (c configLayer) Size() (int64, error) { return int64(len(c.o.config)), nil }

// MediaType returns that of an OCI config.
func (c configLayer) MediaType() (types.MediaType, error) { return types.OCIConfigJSON, nil }
