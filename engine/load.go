package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mstage/mstage/engine/archive"
	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

// LoadRequest says which archive to load.
type LoadRequest struct {
	// Path is a file or a layout directory; "" is the caller's standard input.
	Path string
	// Platform is chosen where an image is there for several; "" is the host's.
	Platform string
	// Sink takes the progress; nil for none.
	Sink progress.Sink
}

// Load reads the images of a docker or OCI archive, or of an OCI layout, into the
// store. Names that other images have are moved when all images are there; after
// an error no name has changed. What is wrong with the archive is a
// *worker.Failure with ExitUsage.
func (e *Engine) Load(ctx context.Context, r LoadRequest) ([]worker.Loaded, error) {
	if r.Platform == "" {
		r.Platform = e.o.Platform
	}
	res, err := e.call(ctx, worker.Job{Load: &worker.Load{Path: r.Path, Platform: r.Platform}}, r.Sink, nil)
	if err != nil {
		return nil, err
	}
	return res.Loaded, nil
}

// load reads an archive in one step of the progress.
func (b *Backend) load(ctx context.Context, j *worker.Load, sink progress.Sink) (*worker.Result, error) {
	from := "-"
	if j.Path != "" {
		from = filepath.Base(j.Path)
	}
	res := &worker.Result{}
	numbered := &numberedSink{Sink: sink}
	err := numbered.step(ctx, "loading "+from, func() ([]string, error) {
		l := &loader{b: b, sink: numbered, teller: numbered.teller()}
		var err error
		res.Loaded, err = l.load(ctx, j)
		return nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", from, err)
	}
	return res, nil
}

// loader reads one archive.
type loader struct {
	b      *Backend
	sink   progress.Sink
	teller *teller

	mu     sync.Mutex
	layers map[storage.Blob]storage.Layer // guarded by mu
}

// load reads all images, then names them.
func (l *loader) load(ctx context.Context, j *worker.Load) (done []worker.Loaded, err error) {
	a, err := open(ctx, j, archive.Options{TempDir: l.b.SpoolDir, Platform: j.Platform})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	images, err := a.Images(ctx)
	if err != nil {
		return nil, err
	}
	records, err := l.records(ctx, a, images)
	if err != nil {
		return nil, err
	}
	for i, img := range images {
		if err := l.tellMoved(ctx, records[i].ID, img.Names); err != nil {
			return nil, err
		}
		if err := l.b.Images.PutImage(ctx, records[i], img.Names...); err != nil {
			return nil, err
		}
		done = append(done, worker.Loaded{Image: img.ID(), Names: img.Names})
	}
	return done, l.b.Sync(ctx)
}

// records returns the images as the store is to keep them, with all their layers
// in the store.
func (l *loader) records(ctx context.Context, a *archive.Archive, images []archive.Image) ([]storage.Image, error) {
	records := make([]storage.Image, len(images))
	var missing []archive.Image
	for i, img := range images {
		known, ok, err := l.known(ctx, img)
		if err != nil {
			return nil, err
		}
		if ok {
			records[i] = known
		} else {
			missing = append(missing, img)
		}
	}
	if err := l.fetch(ctx, a, missing); err != nil {
		return nil, err
	}
	for i, img := range images {
		if records[i].ID != "" {
			continue
		}
		var err error
		if records[i], err = l.record(img); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// known returns the image when the store has it, by the ID that docker shows: one
// that was built here and exported too. An image that comes with another manifest
// than before is not known.
func (l *loader) known(ctx context.Context, img archive.Image) (storage.Image, bool, error) {
	rec, err := l.b.Images.Image(ctx, img.ID())
	if errors.Is(err, storage.ErrNotFound) {
		return rec, false, nil
	}
	if err != nil {
		return rec, false, err
	}
	if rec.ID == img.ID() && img.Manifest != nil {
		if m := rec.Sealed.Manifest; m == nil || m.Digest() != img.Manifest.Digest() {
			return rec, false, nil
		}
	}
	err = l.b.Lease.Hold(ctx, layerIDs(rec)...)
	if errors.Is(err, storage.ErrNotFound) {
		return rec, false, nil
	}
	return rec, err == nil, err
}

// open opens what the job names.
func open(ctx context.Context, j *worker.Load, o archive.Options) (*archive.Archive, error) {
	if j.Path == "" {
		return archive.Read(ctx, os.Stdin, o)
	}
	return archive.Open(ctx, j.Path, o)
}

// minLoaders keeps one layer reading while another waits for the disk.
const minLoaders = 2

// fetch brings every layer into the store, several at a time, each once.
func (l *loader) fetch(ctx context.Context, a *archive.Archive, images []archive.Image) error {
	l.layers = map[storage.Blob]storage.Layer{}
	begun := map[storage.Blob]bool{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(minLoaders, runtime.NumCPU()))
	for _, img := range images {
		for _, layer := range img.Layers {
			if begun[layer.Blob] || gctx.Err() != nil {
				continue
			}
			begun[layer.Blob] = true
			g.Go(func() error { return l.fetchLayer(gctx, a, layer) })
		}
	}
	return g.Wait()
}

// fetchLayer unpacks one layer unless the store has it.
func (l *loader) fetchLayer(ctx context.Context, a *archive.Archive, want archive.Layer) (err error) {
	s := l.b.fetchStores()
	layer, known, err := fetch.Known(ctx, s, want.Blob)
	if err != nil {
		return err
	}
	if known {
		l.teller.blob(want.Blob, progress.TransferExists, want.SizeBytes)
		l.keep(want, layer)
		return nil
	}
	r, err := a.Open(want)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	counted := &countedReader{r: r, tell: func(n int64) { l.teller.blob(want.Blob, progress.TransferUnpack, n) }}
	if layer, err = fetch.Blob(ctx, s, want.Blob, counted); err != nil {
		return blamed(ctx, err)
	}
	l.teller.blob(want.Blob, progress.TransferDone, want.SizeBytes)
	l.keep(want, layer)
	return nil
}

// keep notes the layer of a blob.
func (l *loader) keep(want archive.Layer, layer storage.Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.layers[want.Blob] = layer
}

// blamed says that it is the archive that is wrong, unless the host or a cancel
// was the cause.
func blamed(ctx context.Context, err error) error {
	if ctx.Err() != nil || !layertar.Damaged(err) {
		return err
	}
	return &archive.Error{Err: err}
}

// record returns the image as the store keeps it. Without a manifest its layers'
// seals have the blobs as they were in the archive, so that it keeps its ID when
// it goes out again.
func (l *loader) record(img archive.Image) (storage.Image, error) {
	layers := make([]storage.Layer, len(img.Layers))
	for i, layer := range img.Layers {
		layers[i] = l.layers[layer.Blob]
	}
	var m storage.Manifest
	if img.Manifest != nil {
		m = *img.Manifest
	}
	rec, err := fetch.Image(m, img.Config, layers)
	if err != nil {
		return rec, &archive.Error{Err: err}
	}
	if img.Manifest == nil {
		rec.Sealed.Manifest = nil
	}
	return rec, nil
}

// tellMoved warns about names that leave another image.
func (l *loader) tellMoved(ctx context.Context, to storage.Digest, names []string) error {
	for _, name := range names {
		old, err := l.b.Images.ByName(ctx, name)
		if errors.Is(err, storage.ErrNotFound) || err == nil && old.ID == to {
			continue
		}
		if err != nil {
			return err
		}
		all, err := l.b.names(ctx, old.ID)
		if err != nil {
			return err
		}
		if len(all) == 1 && slices.Contains(all, name) {
			l.sink.Send(progress.Event{
				Kind: progress.Warning, Time: time.Now(),
				Message: fmt.Sprintf("image %s had the name %s and has none now", old.ID.Short(), name),
			})
		}
	}
	return nil
}
