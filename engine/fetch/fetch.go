// Package fetch turns what comes from outside into layers of the store.
package fetch

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

// Stores are the parts of the store that fetching writes to.
type Stores struct {
	Layers storage.Layers
	Lease  storage.Lease
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
	id, _, err := staged.Commit(ctx, storage.DiffLayerName(res.DiffID))
	if err != nil {
		return layer, err
	}
	layer = storage.Layer{
		ID: id, Identity: res.DiffID, SizeBytes: res.SizeBytes,
		Created: time.Now().UTC().Truncate(time.Second),
	}
	return layer, s.Lease.Hold(ctx, id)
}
