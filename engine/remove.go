package engine

import (
	"context"
	"fmt"

	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// remove untags or removes images as `docker rmi` does, then collects their
// layers.
func (b *Backend) remove(ctx context.Context, j *worker.Remove) (*worker.Result, error) {
	res := &worker.Result{}
	for _, t := range j.Targets {
		lines, err := b.removeOne(ctx, t, j.Force)
		res.Removed = append(res.Removed, lines...)
		if err != nil {
			return nil, err
		}
	}
	freed, err := b.Collect(ctx, false)
	res.FreedBytes = freed
	return res, err
}

// names lists the names of an image.
func (b *Backend) names(ctx context.Context, id storage.Digest) ([]string, error) {
	all, err := b.Images.AllImages(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range all {
		if img.ID == id {
			return img.Names, nil
		}
	}
	return nil, fmt.Errorf("image %s: %w", id, storage.ErrNotFound)
}

// removeOne takes a name away; the image goes with its last name.
func (b *Backend) removeOne(ctx context.Context, t worker.RemoveTarget, force bool) ([]string, error) {
	all, err := b.names(ctx, t.Image)
	if err != nil {
		return nil, err
	}
	if t.Name == "" && len(all) > 1 && !force {
		return nil, fmt.Errorf("image %s has %d names: %w (-f removes it with all of them)", t.Image.Short(), len(all), storage.ErrInUse)
	}
	going := all
	if t.Name != "" {
		going = []string{t.Name}
	}
	var lines []string
	for _, name := range going {
		if err := b.Images.Untag(ctx, name); err != nil {
			return lines, err
		}
		lines = append(lines, "Untagged: "+name)
	}
	if len(going) < len(all) {
		return lines, nil
	}
	img, err := b.Images.Image(ctx, t.Image)
	if err != nil {
		return lines, err
	}
	if err := b.Images.RemoveImage(ctx, t.Image); err != nil {
		return lines, err
	}
	if err := fetch.Forget(ctx, b.fetchStores(), img); err != nil {
		return lines, err
	}
	return append(lines, "Deleted: "+string(t.Image)), nil
}
