package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/storage"
)

// Remote sends images to registries. Safe for concurrent use.
type Remote interface {
	// Push sends an image under a name and returns its manifest's digest. homes are
	// names of images that have a blob, by the blob's digest. tell hears of the
	// bytes of each blob that has to be sent.
	Push(ctx context.Context, name string, img *image.OCI, homes map[string][]string, tell func(digest string, sent, total int64)) (storage.Digest, error)
}

// Pull brings the image that a word names into the store, from the first source
// behind a network that has it. An image of the store that a source answers with
// is returned as it is. platform "" is the engine's. The error wraps
// pluginapi.ErrNotFound when no source knows the word.
func (e *Engine) Pull(ctx context.Context, word, platform string, sink progress.Sink) (storage.Image, error) {
	if platform == "" {
		platform = e.o.Platform
	}
	found, err := e.resolveRemote(ctx, word, platform)
	if err != nil {
		return storage.Image{}, err
	}
	if found.Image != "" {
		return e.o.Index.Image(ctx, storage.Digest(found.Image))
	}
	img, err := plan.Fetched(found)
	if err != nil {
		return storage.Image{}, fmt.Errorf("%s: %w", found.Reference, err)
	}
	res, err := e.call(ctx, worker.Job{Pull: &worker.Pull{Images: []plan.Image{img}}}, sink, nil)
	if err != nil {
		return storage.Image{}, err
	}
	return res.Images[0], nil
}

func (e *Engine) remoteSources(ctx context.Context) ([]pluginapi.Source, error) {
	var remote []pluginapi.Source
	for _, s := range e.o.Sources {
		d, err := s.Describe(ctx)
		if err != nil {
			return nil, err
		}
		if slices.Contains(d.Capabilities, pluginapi.CapabilityNetwork) {
			remote = append(remote, s)
		}
	}
	return remote, nil
}

// resolveRemote asks the sources behind a network.
func (e *Engine) resolveRemote(ctx context.Context, word, platform string) (pluginapi.Resolved, error) {
	remote, err := e.remoteSources(ctx)
	if err != nil {
		return pluginapi.Resolved{}, err
	}
	q := pluginapi.Request{Reference: word, Use: pluginapi.UseFrom, Platform: platform}
	err = fmt.Errorf("%s: %w", word, pluginapi.ErrNotFound)
	for _, s := range remote {
		var r pluginapi.Resolved
		if r, err = s.Resolve(ctx, q); err == nil {
			return r, r.Check(q)
		}
		if !pluginapi.IsNotFound(err) {
			break
		}
	}
	return pluginapi.Resolved{}, err
}

// Push sends an image of the store to registries under names, and returns the
// digest of its manifest.
func (e *Engine) Push(ctx context.Context, img storage.Image, names []string, sink progress.Sink) (storage.Digest, error) {
	res, err := e.call(ctx, worker.Job{Push: &worker.Push{Image: img, Names: names}}, sink, nil)
	if err != nil {
		return "", err
	}
	return res.Exports[0].Digest, nil
}

// pull brings images into the store.
func (b *Backend) pull(ctx context.Context, j *worker.Pull, sink progress.Sink) (*worker.Result, error) {
	numbered := &numberedSink{Sink: sink}
	res := &worker.Result{}
	for _, img := range j.Images {
		title := "pulling " + img.Reference
		err := numbered.step(ctx, title, func() ([]string, error) {
			rec, _, err := b.fetchRecord(ctx, img, int(numbered.last.Load()), numbered.Send)
			res.Images = append(res.Images, rec)
			return nil, err
		})
		if err != nil {
			return nil, err
		}
	}
	if _, err := b.Collect(ctx, false); err != nil {
		return nil, err
	}
	return res, b.Sync(ctx)
}

// push seals an image and has it sent.
func (b *Backend) push(ctx context.Context, j *worker.Push, sink progress.Sink) (*worker.Result, error) {
	numbered := &numberedSink{Sink: sink}
	res := &worker.Result{Image: &j.Image}
	for i, name := range j.Names {
		err := numbered.step(ctx, "pushing "+name, func() ([]string, error) {
			return b.send(ctx, res, i, numbered.teller(), worker.Export{Type: export.TypeRegistry, Dest: name})
		})
		if err != nil {
			return nil, err
		}
	}
	return res, b.Sync(ctx)
}

// send seals the image and lets the CLI's process send it to where its output
// number i goes.
func (b *Backend) send(ctx context.Context, res *worker.Result, i int, t *teller, e worker.Export) ([]string, error) {
	img, layers, err := image.Seal(ctx, b.stores(), *res.Image, image.SealOptions{Compress: true, Tell: t.sealing})
	if err != nil {
		return nil, err
	}
	*res.Image = img
	blobs := make([]storage.Blob, len(layers))
	for i, l := range layers {
		blobs[i] = storage.Blob{Digest: l.Seal.Blob, MediaType: l.Seal.MediaType, SizeBytes: l.Seal.BlobBytes, DiffID: l.Seal.DiffID}
	}
	answer, err := b.ask(ctx, worker.Ask{Send: &worker.Send{Output: i, Image: img, Blobs: blobs, Vertex: t.vertex}}, worker.Take{})
	if err != nil {
		return nil, err
	}
	e.Digest = answer.Digest
	res.Exports = append(res.Exports, e)
	return answer.Lines, nil
}

// send does in the CLI's process what needs credentials and the caller's network.
func (h *helper) send(ctx context.Context, s *worker.Send) (answer worker.Answer, err error) {
	layers := make([]image.SealedLayer, len(s.Blobs))
	for i, b := range s.Blobs {
		layers[i] = image.SealedLayer{Layer: s.Image.Layers[i], Seal: image.SealOf(b)}
	}
	if h.job.Push != nil {
		return h.push(ctx, s, layers, h.job.Push.Names[s.Output:s.Output+1])
	}
	o := h.job.Build.Outputs[s.Output]
	if o.Type == export.TypeRegistry {
		return h.push(ctx, s, layers, h.job.Build.Names)
	}
	t := newTeller(h.sink.Send, s.Vertex)
	answer.Lines, err = o.Daemon.Load(ctx, h.engine.o.Blobs, s.Image, layers, h.job.Build.Names,
		func(sent, total int64) { t.moved("archive", progress.TransferUpload, sent, total) })
	return answer, err
}

// push sends the image to the registry of each name.
func (h *helper) push(ctx context.Context, s *worker.Send, layers []image.SealedLayer, names []string) (answer worker.Answer, err error) {
	oci, err := image.NewOCI(ctx, h.engine.o.Blobs, s.Image, layers)
	if err != nil {
		return answer, err
	}
	homes, err := h.homes(ctx)
	if err != nil {
		return answer, err
	}
	t := newTeller(h.sink.Send, s.Vertex)
	tell := func(digest string, sent, total int64) { t.moved(digest, progress.TransferUpload, sent, total) }
	for _, name := range names {
		if answer.Digest, err = h.engine.o.Remote.Push(ctx, name, oci, homes, tell); err != nil {
			return answer, err
		}
		answer.Lines = append(answer.Lines, "pushed "+name+"@"+string(answer.Digest))
	}
	return answer, nil
}

// homes lists the names of the images that came with a blob, by the blob's digest.
func (h *helper) homes(ctx context.Context) (map[string][]string, error) {
	all, err := h.engine.o.Index.AllImages(ctx)
	if err != nil {
		return nil, err
	}
	homes := map[string][]string{}
	for _, img := range all {
		if img.Sealed == nil || img.Sealed.Manifest == nil {
			continue
		}
		for _, b := range img.Sealed.Manifest.Blobs {
			homes[string(b.Digest)] = append(homes[string(b.Digest)], img.Names...)
		}
	}
	return homes, nil
}
