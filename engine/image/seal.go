package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

// MediaTypeGzip is the media type of the blobs that Seal makes. Source: OCI
// image-spec v1.1, layer.md.
const MediaTypeGzip = "application/vnd.oci.image.layer.v1.tar+gzip"

const (
	// minSealers keeps one layer reading while another waits for the disk.
	minSealers = 2
	// maxConfigBytes bounds an image config: far above real ones of a few KiB.
	maxConfigBytes = 8 << 20
)

// SealOptions says what Seal computes.
type SealOptions struct {
	// Compress asks for compressed blobs as well as diff IDs.
	Compress bool
	// Tell, which may be nil, hears how much of a layer was read: of total, which
	// is about right, and the last time with done. Called by several goroutines.
	Tell func(layer string, read, total int64, done bool)
}

// SealedLayer is a layer with its digests.
type SealedLayer struct {
	storage.Layer
	Seal storage.Seal
}

// Seal returns img with its diff IDs and config digest, and its layers with
// their digests, lowest first. Every layer that has no seal yet is read once,
// several at a time; a sealed one is not touched. What was computed is kept in
// the store. An image that was sealed before keeps its config, bit by bit,
// unless a layer's blob is gone and the layer as it is written now differs. An
// image that came with a manifest goes by that, while its blobs are there.
func Seal(ctx context.Context, s Stores, img storage.Image, o SealOptions) (storage.Image, []SealedLayer, error) {
	layers, kept, err := keptSeals(ctx, s.Blobs, img)
	if err != nil {
		return img, nil, fmt.Errorf("seal image %s: %w", img.ID.Short(), err)
	}
	if kept {
		return img, layers, nil
	}
	layers, err = sealLayers(ctx, s, img.Layers, o)
	if err != nil {
		return img, nil, fmt.Errorf("seal image %s: %w", img.ID.Short(), err)
	}
	sealed, err := sealConfig(img, layers)
	if err != nil {
		return img, nil, fmt.Errorf("seal image %s: %w", img.ID.Short(), err)
	}
	if img.Sealed != nil && img.Sealed.ConfigDigest == sealed.ConfigDigest {
		return img, layers, nil
	}
	img.Sealed = &sealed
	if err := s.Images.PutImage(ctx, img); err != nil {
		return img, nil, fmt.Errorf("seal image %s: %w", img.ID.Short(), err)
	}
	return img, layers, nil
}

// keptSeals returns the layers as the image's own manifest has them. ok is false
// when it has none or the store lacks one of its blobs.
func keptSeals(ctx context.Context, blobs storage.Blobs, img storage.Image) (layers []SealedLayer, ok bool, err error) {
	if img.Sealed == nil || img.Sealed.Manifest == nil || len(img.Sealed.Manifest.Blobs) != len(img.Layers) {
		return nil, false, nil
	}
	for i, b := range img.Sealed.Manifest.Blobs {
		there, err := hasBlob(ctx, blobs, b.Digest)
		if err != nil || !there {
			return nil, false, err
		}
		layers = append(layers, SealedLayer{Layer: img.Layers[i], Seal: SealOf(b)})
	}
	return layers, true, nil
}

// SealOf returns the seal of a layer that came as a blob.
func SealOf(b storage.Blob) storage.Seal {
	return storage.Seal{DiffID: b.DiffID, Blob: b.Digest, MediaType: b.MediaType, BlobBytes: b.SizeBytes}
}

// sealLayers seals every layer, each ID once.
func sealLayers(ctx context.Context, s Stores, layers []storage.Layer, o SealOptions) ([]SealedLayer, error) {
	first := map[storage.LayerID]int{}
	out := make([]SealedLayer, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(minSealers, runtime.NumCPU()))
	for i, l := range layers {
		out[i].Layer = l
		if _, ok := first[l.ID]; ok {
			continue
		}
		first[l.ID] = i
		g.Go(func() error {
			seal, err := sealLayer(gctx, s, l, o)
			if err != nil {
				return fmt.Errorf("layer %.12s: %w", l.ID, err)
			}
			out[i].Seal = seal
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, l := range layers {
		out[i].Seal = out[first[l.ID]].Seal
	}
	return out, nil
}

// sealLayer returns the layer's seal, from the store when it holds enough.
func sealLayer(ctx context.Context, s Stores, l storage.Layer, o SealOptions) (storage.Seal, error) {
	known, ok, err := s.Seals.Seal(ctx, l.ID)
	if err != nil {
		return known, err
	}
	if ok && !o.Compress {
		return known, nil
	}
	if ok && known.Blob != "" {
		there, err := hasBlob(ctx, s.Blobs, known.Blob)
		if there || err != nil {
			return known, err
		}
	}
	seal, err := writeLayer(ctx, s, l, o)
	if err != nil {
		return seal, err
	}
	if o.Tell != nil {
		o.Tell(string(l.Identity), seal.TarBytes, seal.TarBytes, true)
	}
	return seal, s.Seals.PutSeal(ctx, l.ID, seal)
}

// hasBlob reports whether the blob is in the store.
func hasBlob(ctx context.Context, blobs storage.Blobs, d storage.Digest) (bool, error) {
	r, _, err := blobs.Open(ctx, d)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

// writeLayer reads the layer once and computes all that is asked for.
func writeLayer(ctx context.Context, s Stores, l storage.Layer, o SealOptions) (storage.Seal, error) {
	dir, err := s.Layers.Dir(l.ID)
	if err != nil {
		return storage.Seal{}, err
	}
	if o.Compress {
		tell := func(int64) {}
		if o.Tell != nil {
			tell = func(n int64) { o.Tell(string(l.Identity), n, max(n, l.SizeBytes), false) }
		}
		return compress(ctx, s.Blobs, dir, tell)
	}
	res, err := layertar.Write(ctx, io.Discard, dir, layertar.WriteOptions{})
	return storage.Seal{DiffID: res.DiffID, TarBytes: res.TarBytes}, err
}

// compress writes the layer's tar into a new blob.
func compress(ctx context.Context, blobs storage.Blobs, dir string, tell func(read int64)) (seal storage.Seal, err error) {
	bw, err := blobs.Create(ctx)
	if err != nil {
		return seal, err
	}
	defer func() { err = errors.Join(err, bw.Close()) }()
	sum := &hashWriter{w: bw, sum: sha256.New()}
	zw, err := layertar.NewGzipWriter(sum)
	if err != nil {
		return seal, err
	}
	res, err := layertar.Write(ctx, &toldWriter{w: zw, tell: tell}, dir, layertar.WriteOptions{})
	// Close always: it ends the compressor's goroutines.
	if err = errors.Join(err, zw.Close()); err != nil {
		return seal, err
	}
	blob, size, err := bw.Commit(sum.digest())
	if err != nil {
		return seal, err
	}
	return storage.Seal{
		DiffID: res.DiffID, Blob: blob, MediaType: MediaTypeGzip, BlobBytes: size, TarBytes: res.TarBytes,
	}, nil
}

// toldWriter tells how much was written.
type toldWriter struct {
	w    io.Writer
	n    int64
	tell func(n int64)
}

func (t *toldWriter) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.n += int64(n)
	t.tell(t.n)
	return n, err
}

// hashWriter computes the digest that Commit has to find again.
type hashWriter struct {
	w   io.Writer
	sum hash.Hash
}

func (h *hashWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.sum.Write(p[:n])
	return n, err
}

func (h *hashWriter) digest() storage.Digest {
	return storage.Digest("sha256:" + hex.EncodeToString(h.sum.Sum(nil)))
}

// sealConfig returns the config with the layers' diff IDs.
func sealConfig(img storage.Image, layers []SealedLayer) (storage.SealedImage, error) {
	ids := make([]string, len(layers))
	for i, l := range layers {
		ids[i] = string(l.Seal.DiffID)
	}
	config := img.Config
	if img.Sealed != nil {
		config = img.Sealed.Config
		same, err := hasDiffIDs(config, ids)
		if same || err != nil {
			return *img.Sealed, err
		}
	}
	config, err := withDiffIDs(config, ids)
	if err != nil {
		return storage.SealedImage{}, err
	}
	return storage.SealedImage{ConfigDigest: storage.DigestBytes(config), Config: config}, nil
}

// rootFS is the part of a config that sealing replaces.
type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// hasDiffIDs reports whether config names exactly these diff IDs.
func hasDiffIDs(config []byte, ids []string) (bool, error) {
	var c struct {
		RootFS rootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return false, fmt.Errorf("image config: %w", err)
	}
	return slices.Equal(c.RootFS.DiffIDs, ids), nil
}

// withDiffIDs returns config with other diff IDs. Fields that this program does
// not know stay.
func withDiffIDs(config []byte, ids []string) ([]byte, error) {
	if len(config) > maxConfigBytes {
		return nil, fmt.Errorf("image config of %d bytes, the limit is %d", len(config), maxConfigBytes)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	rootfs, err := json.Marshal(rootFS{Type: rootFSType, DiffIDs: ids})
	if err != nil {
		return nil, err
	}
	fields["rootfs"] = rootfs
	return json.Marshal(fields)
}
