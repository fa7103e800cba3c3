// Package fetch turns what comes from outside into layers and images of the
// store.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

// Stores are the parts of the store that fetching writes to. Layer needs the
// first two only.
type Stores struct {
	Layers storage.Layers
	Lease  storage.Lease
	Blobs  storage.Blobs
	Seals  storage.Seals
	Steps  storage.Steps
	Images storage.Images
}

// MismatchError says that bytes from outside are not what was promised.
type MismatchError struct {
	What      string // "blob sha256:…"
	Want, Got string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: got %s, want %s", e.What, e.Got, e.Want)
}

// Layer unpacks one layer tar, compressed or not, and returns the layer. Its
// identity is its diff ID. The same content fetched twice is one layer.
func Layer(ctx context.Context, s Stores, r io.Reader) (layer storage.Layer, err error) {
	staged, err := s.Layers.Stage(ctx)
	if err != nil {
		return layer, err
	}
	defer func() { err = errors.Join(err, staged.Discard()) }()
	res, err := layertar.Unpack(ctx, r, staged.Dir(), layertar.UnpackOptions{})
	if err != nil {
		return layer, err
	}
	return commit(ctx, s, staged, res)
}

// commit gives an unpacked layer its name.
func commit(ctx context.Context, s Stores, staged storage.Staged, res layertar.Result) (storage.Layer, error) {
	id, _, err := staged.Commit(ctx, storage.DiffLayerName(res.DiffID))
	if err != nil {
		return storage.Layer{}, err
	}
	layer := storage.Layer{
		ID: id, Identity: res.DiffID, SizeBytes: res.SizeBytes,
		Created: time.Now().UTC().Truncate(time.Second),
	}
	return layer, s.Lease.Hold(ctx, id)
}

// Blob unpacks a layer's blob while it is read, and keeps the blob as it is.
// r is not trusted: a size, blob digest or diff ID other than want's is a
// *MismatchError, and nothing is kept then. Reading ends at the first byte over
// want's size.
func Blob(ctx context.Context, s Stores, want storage.Blob, r io.Reader) (layer storage.Layer, err error) {
	staged, err := s.Layers.Stage(ctx)
	if err != nil {
		return layer, err
	}
	defer func() { err = errors.Join(err, staged.Discard()) }()
	blob, err := s.Blobs.Create(ctx)
	if err != nil {
		return layer, err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	exact := &exactReader{r: r, what: "blob " + string(want.Digest), left: want.SizeBytes}
	tee := io.TeeReader(exact, blob)
	res, err := layertar.Unpack(ctx, tee, staged.Dir(), layertar.UnpackOptions{})
	if err != nil {
		return layer, blame(ctx, fmt.Errorf("blob %s: %w", want.Digest, err), tee, blob, want.Digest)
	}
	if err := promised(blob, want, res); err != nil {
		return layer, err
	}
	// From here on there is something to be owned: a cancel must not come between.
	ctx = context.WithoutCancel(ctx)
	if _, _, err := blob.Commit(want.Digest); err != nil {
		return layer, err
	}
	if layer, err = commit(ctx, s, staged, res); err != nil {
		return layer, err
	}
	if err := s.Seals.PutSeal(ctx, layer.ID, image.SealOf(want)); err != nil {
		return layer, err
	}
	return layer, s.Steps.RecordSteps(ctx, storage.StepRecord{Layer: layer}, knownKey(want.DiffID))
}

// blame finds out whether the sender is why a blob can't be unpacked: then its
// bytes are others than promised, and that is the error.
func blame(ctx context.Context, err error, rest io.Reader, blob storage.BlobWriter, want storage.Digest) error {
	if _, known := errors.AsType[*MismatchError](err); known || ctx.Err() != nil {
		return err
	}
	if _, copyErr := io.Copy(io.Discard, rest); copyErr != nil {
		if length, ok := errors.AsType[*MismatchError](copyErr); ok {
			return length
		}
		return err
	}
	if got := blob.Sum(); got != want {
		return &MismatchError{What: "blob", Want: string(want), Got: string(got)}
	}
	return err
}

// promised compares what came with what was announced.
func promised(blob storage.BlobWriter, want storage.Blob, res layertar.Result) error {
	if got := blob.Sum(); got != want.Digest {
		return &MismatchError{What: "blob", Want: string(want.Digest), Got: string(got)}
	}
	if res.DiffID != want.DiffID {
		return &MismatchError{
			What: "layer of blob " + string(want.Digest), Want: "diff ID " + string(want.DiffID), Got: string(res.DiffID),
		}
	}
	return nil
}

// Forget lets the collector have the layers of an image that was removed, but for
// those that another image of the store has.
func Forget(ctx context.Context, s Stores, img storage.Image) error {
	others, err := s.Images.AllImages(ctx)
	if err != nil {
		return err
	}
	used := map[storage.LayerID]bool{}
	for _, other := range others {
		for _, l := range other.Layers {
			used[l.ID] = true
		}
	}
	var keys []storage.Digest
	for _, l := range img.Layers {
		if !used[l.ID] {
			keys = append(keys, knownKey(l.Identity))
		}
	}
	return s.Steps.ForgetSteps(ctx, keys...)
}

// knownKey is where the record of a layer from outside is found again.
func knownKey(diffID storage.Digest) storage.Digest {
	return storage.DigestBytes([]byte("fetched layer " + diffID))
}

// Known returns the layer of a blob that the store has, and holds it. ok is
// false when the layer or the blob is not there.
func Known(ctx context.Context, s Stores, want storage.Blob) (layer storage.Layer, ok bool, err error) {
	r, size, err := s.Blobs.Open(ctx, want.Digest)
	if errors.Is(err, storage.ErrNotFound) {
		return layer, false, nil
	}
	if err != nil {
		return layer, false, err
	}
	if err := r.Close(); err != nil || size != want.SizeBytes {
		return layer, false, err
	}
	rec, ok, err := s.Steps.Step(ctx, knownKey(want.DiffID))
	if err != nil || !ok {
		return layer, false, err
	}
	err = s.Lease.Hold(ctx, rec.Layer.ID)
	if errors.Is(err, storage.ErrNotFound) {
		return layer, false, nil
	}
	return rec.Layer, err == nil, err
}

// exactReader refuses a stream that is longer or shorter than announced.
type exactReader struct {
	r    io.Reader
	what string
	left int64
	read int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if int64(len(p)) > e.left+1 {
		p = p[:e.left+1]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	e.read += int64(n)
	switch {
	case e.left < 0:
		return n, &MismatchError{What: e.what, Want: fmt.Sprintf("%d bytes", e.read+e.left), Got: "more"}
	case errors.Is(err, io.EOF) && e.left > 0:
		return n, &MismatchError{What: e.what, Want: fmt.Sprintf("%d bytes", e.read+e.left), Got: fmt.Sprintf("%d", e.read)}
	}
	return n, err
}
