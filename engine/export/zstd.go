package export

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

// mediaTypeTar is an uncompressed layer. Source: OCI image-spec v1.1, layer.md.
const mediaTypeTar = "application/vnd.oci.image.layer.v1.tar"

// plainBlobs shows blobs uncompressed under their diff IDs.
type plainBlobs struct {
	storage.Blobs
	// packed are the blobs in the store by diff ID.
	packed map[storage.Digest]storage.Digest
}

// forDocker returns the layers with what is compressed by zstd uncompressed,
// because docker before 23.0 can't read it.
func forDocker(ctx context.Context, blobs storage.Blobs, layers []image.SealedLayer) (storage.Blobs, []image.SealedLayer, error) {
	p := &plainBlobs{Blobs: blobs, packed: map[storage.Digest]storage.Digest{}}
	layers = slices.Clone(layers)
	for i := range layers {
		seal := &layers[i].Seal
		if !strings.HasSuffix(seal.MediaType, "zstd") {
			continue
		}
		p.packed[seal.DiffID] = seal.Blob
		if seal.TarBytes == 0 {
			n, err := p.length(ctx, seal.DiffID)
			if err != nil {
				return nil, nil, err
			}
			seal.TarBytes = n
		}
		seal.Blob, seal.BlobBytes, seal.MediaType = seal.DiffID, seal.TarBytes, mediaTypeTar
	}
	return p, layers, nil
}

// length reads a blob to its end, for a seal that does not tell.
func (p *plainBlobs) length(ctx context.Context, diffID storage.Digest) (int64, error) {
	r, _, err := p.Open(ctx, diffID)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, r)
}

// Open returns the tar in a blob that was asked for by diff ID. Its size is not
// known here and -1.
func (p *plainBlobs) Open(ctx context.Context, d storage.Digest) (io.ReadCloser, int64, error) {
	packed, ok := p.packed[d]
	if !ok {
		return p.Blobs.Open(ctx, d)
	}
	blob, _, err := p.Blobs.Open(ctx, packed)
	if err != nil {
		return nil, 0, err
	}
	plain, _, err := layertar.Decompress(blob)
	if err != nil {
		blob.Close()
		return nil, 0, fmt.Errorf("blob %s: %w", packed.Short(), err)
	}
	return &plainBlob{ReadCloser: plain, blob: blob}, -1, nil
}

// plainBlob closes the blob together with what reads from it.
type plainBlob struct {
	io.ReadCloser
	blob io.Closer
}

// Close closes both.
func (b *plainBlob) Close() error {
	err := b.ReadCloser.Close()
	if cerr := b.blob.Close(); err == nil {
		err = cerr
	}
	return err
}
