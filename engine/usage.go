package engine

import (
	"context"

	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// Usage measures what the store takes on the disk. A store that does not exist
// takes nothing, and no worker is started then.
func (e *Engine) Usage(ctx context.Context) (storage.Usage, error) {
	if !e.storeExists() {
		return storage.Usage{}, nil
	}
	res, err := e.call(ctx, worker.Job{Usage: &worker.Usage{}}, nil, nil)
	if err != nil {
		return storage.Usage{}, err
	}
	return *res.Usage, nil
}

// usage measures the store.
func (b *Backend) usage(ctx context.Context) (*worker.Result, error) {
	u, err := b.Usage(ctx)
	return &worker.Result{Usage: &u}, err
}
