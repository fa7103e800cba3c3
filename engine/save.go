package engine

import (
	"context"
	"os"

	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// Save writes images into one archive or layout: o.Type is oci or docker. Each
// has the names that are given here. A file appears whole or not at all; the
// images are sealed then.
func (e *Engine) Save(ctx context.Context, images []worker.Saved, o export.Output) error {
	_, err := e.call(ctx, worker.Job{Save: &worker.Save{Images: images, Output: o}}, nil, nil)
	return err
}

// save writes the archive.
func (b *Backend) save(ctx context.Context, j *worker.Save) (*worker.Result, error) {
	images := make([]export.Named, len(j.Images))
	for i, s := range j.Images {
		img, err := b.Images.Image(ctx, s.Image)
		if err != nil {
			return nil, err
		}
		// Held, so that an rmi meanwhile takes nothing that is still to be read.
		if err := b.Lease.Hold(ctx, layerIDs(img)...); err != nil {
			return nil, err
		}
		images[i] = export.Named{Image: img, Names: s.Names}
	}
	o := j.Output
	o.Stdout = os.Stdout
	if _, err := export.Images(ctx, b.stores(), images, o); err != nil {
		return nil, err
	}
	return &worker.Result{}, b.Sync(ctx)
}

// layerIDs lists an image's layers.
func layerIDs(img storage.Image) []storage.LayerID {
	ids := make([]storage.LayerID, len(img.Layers))
	for i, l := range img.Layers {
		ids[i] = l.ID
	}
	return ids
}
