package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// fetchStores are the parts of the store that a fetch writes to.
func (b *Backend) fetchStores() fetch.Stores {
	return fetch.Stores{Layers: b.Layers, Lease: b.Lease, Blobs: b.Blobs, Seals: b.Seals, Steps: b.Steps, Images: b.Images}
}

// fetchImage implements executor.Machine.Fetch: what the store lacks comes from
// the CLI's process, which alone knows the source, and is unpacked while it
// comes. The image gets its name in the store, so that the next build finds it
// without asking anybody.
func (b *Backend) fetchImage(ctx context.Context, img plan.Image, vertex int, tell func(progress.Event)) ([]storage.Layer, bool, error) {
	rec, cached, err := b.fetchRecord(ctx, img, vertex, tell)
	return rec.Layers, cached, err
}

func (b *Backend) fetchRecord(ctx context.Context, img plan.Image, vertex int, tell func(progress.Event)) (rec storage.Image, cached bool, err error) {
	f := &imageFetch{backend: b, img: img, teller: newTeller(tell, vertex), layers: map[storage.Digest]storage.Layer{}}
	missing, err := f.known(ctx)
	if err == nil && len(missing) > 0 {
		err = f.fetch(ctx, missing)
	}
	if _, named := errors.AsType[*worker.Failure](err); err != nil && !named {
		err = fmt.Errorf("%s: %w", img.Reference, err)
	}
	if err != nil {
		return rec, false, err
	}
	layers := make([]storage.Layer, len(img.Content.Manifest.Blobs))
	for i, blob := range img.Content.Manifest.Blobs {
		layers[i] = f.layers[blob.Digest]
	}
	rec, err = fetch.Image(img.Content.Manifest, img.Content.Config, layers)
	if err != nil {
		return rec, false, err
	}
	return rec, len(missing) == 0, b.Images.PutImage(ctx, rec, img.Reference)
}

// imageFetch is one image on its way into the store.
type imageFetch struct {
	backend *Backend
	img     plan.Image
	teller  *teller

	mu     sync.Mutex
	layers map[storage.Digest]storage.Layer // guarded by mu: by the blob's digest
}

// known finds the layers that the store has, unpacks those of which it has the
// blob only, and returns the blobs of others, each once.
func (f *imageFetch) known(ctx context.Context) (missing map[storage.Digest]storage.Blob, err error) {
	missing = map[storage.Digest]storage.Blob{}
	for _, blob := range f.img.Content.Manifest.Blobs {
		layer, ok, err := fetch.Known(ctx, f.backend.fetchStores(), blob)
		if err != nil {
			return nil, err
		}
		if !ok {
			layer, ok, err = f.stored(ctx, blob)
		}
		if err != nil {
			return nil, err
		}
		if !ok {
			missing[blob.Digest] = blob
			continue
		}
		f.layers[blob.Digest] = layer
		f.teller.blob(blob, progress.TransferExists, blob.SizeBytes)
	}
	return missing, nil
}

// stored unpacks a blob that the store has: that of a layer which was built here
// and pushed or exported, and has another identity. A damaged one is as good as
// none.
func (f *imageFetch) stored(ctx context.Context, blob storage.Blob) (layer storage.Layer, ok bool, err error) {
	r, size, err := f.backend.Blobs.Open(ctx, blob.Digest)
	if errors.Is(err, storage.ErrNotFound) {
		return layer, false, nil
	}
	if err != nil {
		return layer, false, err
	}
	defer r.Close()
	if size != blob.SizeBytes {
		return layer, false, nil
	}
	layer, err = fetch.Blob(ctx, f.backend.fetchStores(), blob, r)
	if _, damaged := errors.AsType[*fetch.MismatchError](err); damaged {
		return layer, false, nil
	}
	return layer, err == nil, err
}

// fetch asks for the missing blobs and unpacks them as they come.
func (f *imageFetch) fetch(ctx context.Context, missing map[storage.Digest]storage.Blob) error {
	ask := worker.Ask{Fetch: &worker.Fetch{Resolved: f.img.Content.Resolved}}
	for _, blob := range f.img.Content.Manifest.Blobs {
		if _, lacking := missing[blob.Digest]; lacking && !slices.Contains(ask.Fetch.Layers, string(blob.Digest)) {
			ask.Fetch.Layers = append(ask.Fetch.Layers, string(blob.Digest))
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	take := func(h worker.StreamHeader, r *os.File) {
		blob, wanted := missing[storage.Digest(h.Layer)]
		g.Go(func() error {
			defer r.Close()
			if !wanted {
				return fmt.Errorf("layer %s was not asked for", h.Layer)
			}
			return f.blob(gctx, blob, r)
		})
	}
	answer, askErr := f.backend.ask(ctx, ask, worker.Take{Stream: take, Enough: gctx.Done()})
	err := g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// A stream that broke off has its reason at the other end, unless this end
	// closed it.
	if askErr != nil && (err == nil || !answer.Left) {
		return askErr
	}
	if err != nil {
		return err
	}
	for digest := range missing {
		if _, came := f.layers[digest]; !came {
			return fmt.Errorf("layer %s did not come", digest)
		}
	}
	return nil
}

// blob unpacks one blob.
func (f *imageFetch) blob(ctx context.Context, blob storage.Blob, r io.Reader) error {
	counted := &countedReader{
		r: r, tell: func(n int64) { f.teller.blob(blob, progress.TransferDownload, n) },
		end: func() { f.teller.blob(blob, progress.TransferUnpack, blob.SizeBytes) },
	}
	layer, err := fetch.Blob(ctx, f.backend.fetchStores(), blob, counted)
	if err != nil {
		return err
	}
	f.teller.blob(blob, progress.TransferDone, blob.SizeBytes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.layers[blob.Digest] = layer
	return nil
}
