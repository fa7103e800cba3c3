package executor

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/tree"
)

// contextLayerPath is where a layer made for RUN --mount=type=bind holds what
// the mount shows.
const contextLayerPath = "/mount"

// inputs fills in what a step reads besides its own text.
func (w *walk) inputs(ctx context.Context, t *task) error {
	switch {
	case t.step.Copy != nil:
		source, err := w.copyIdentity(ctx, t.step.Copy)
		t.inputs.Source = source
		return err
	case t.step.Run != nil:
		for _, m := range t.step.Run.Mounts {
			id, err := w.mountIdentity(ctx, m)
			if err != nil {
				return err
			}
			t.inputs.Mounts = append(t.inputs.Mounts, id)
		}
	}
	return nil
}

// copyIdentity is the digest of what a COPY selects in the context, or the
// identity of the chain that it reads from.
func (w *walk) copyIdentity(ctx context.Context, c *plan.Copy) (storage.Digest, error) {
	if !c.Context {
		return w.sourceIdentity(ctx, c.From)
	}
	sel, files, err := w.selectContext(ctx, spec(c))
	if err != nil {
		return "", err
	}
	return sel.Digest(ctx, digestOf(ctx, files))
}

// digestOf returns how the digest of one file is found; a selection of
// here-documents alone needs no context.
func digestOf(ctx context.Context, files Files) func(tree.Entry) (storage.Digest, error) {
	if files == nil {
		return nil
	}
	return func(e tree.Entry) (storage.Digest, error) { return files.FileDigest(ctx, e) }
}

// spec is the selection of a COPY.
func spec(c *plan.Copy) copy.Spec {
	s := copy.Spec{Sources: c.Sources, Context: c.Context}
	for _, f := range c.Inline {
		s.Inline = append(s.Inline, copy.InlineFile(f))
	}
	return s
}

// selectContext finds what a COPY names in the build context.
func (w *walk) selectContext(ctx context.Context, s copy.Spec) (*copy.Selection, Files, error) {
	if len(s.Sources) == 0 {
		sel, err := copy.Select(ctx, chainfs.New(nil), s)
		return sel, nil, err
	}
	files, err := w.context(ctx)
	if err != nil {
		return nil, nil, err
	}
	sel, err := copy.Select(ctx, files, s)
	return sel, files, selectFault(err, "the build context, or .dockerignore hides it")
}

// selectFault adds to a source that is not there what may be meant.
func selectFault(err error, where string) error {
	if errors.Is(err, path.ErrBadPattern) || errors.Is(err, syscall.ELOOP) {
		return &FaultError{Err: err}
	}
	var missing *copy.NotFoundError
	if !errors.As(err, &missing) {
		return err
	}
	hint := "it is not in " + where
	if len(missing.Suggestions) > 0 {
		hint = fmt.Sprintf("did you mean %q?", missing.Suggestions[0])
	}
	return &FaultError{Err: err, Hint: hint}
}

// mountIdentity stands for what a mount shows in RUN's key; "" when the content
// of the mount does not count.
func (w *walk) mountIdentity(ctx context.Context, m plan.Mount) (storage.Digest, error) {
	if m.Context {
		return w.copyIdentity(ctx, &plan.Copy{Context: true, Sources: []string{relative(m.Source)}})
	}
	if m.From.Stage == nil && m.From.Image == nil {
		return "", nil
	}
	return w.sourceIdentity(ctx, m.From)
}

// relative is a mount's source as COPY names files.
func relative(source string) string {
	return strings.TrimPrefix(path.Clean("/"+source), "/")
}

// findByContent looks a COPY --from up by what it selects, when its fast key
// missed.
func (w *walk) findByContent(ctx context.Context, t *task, fast storage.Digest) (storage.StepRecord, bool, error) {
	c := t.step.Copy
	layers, err := w.sourceLayers(ctx, c.From)
	if err != nil {
		return storage.StepRecord{}, false, err
	}
	digest := func(ctx context.Context, ids []storage.LayerID) (storage.Digest, bool, error) {
		return w.chainDigest(ctx, c, ids)
	}
	rec, content, ok, err := w.o.Cache.FindByContent(ctx, c, t.chain, layerIDs(layers), digest)
	if err != nil {
		return rec, false, err
	}
	if content != "" {
		t.keys = append(t.keys, cache.ContentKey(c, t.chain, content))
	}
	if !ok {
		return rec, false, nil
	}
	err = w.o.Cache.Record(ctx, rec, fast)
	if errors.Is(err, storage.ErrNotFound) {
		return rec, false, nil // the result was collected meanwhile
	}
	return rec, err == nil, err
}

// chainDigest is the digest of what a COPY selects in layers. ok is false when
// a layer is gone, or the selection fails there.
func (w *walk) chainDigest(ctx context.Context, c *plan.Copy, ids []storage.LayerID) (storage.Digest, bool, error) {
	layers := make([]storage.Layer, len(ids))
	for i, id := range ids {
		layers[i].ID = id
	}
	view, err := w.machine.view(layers)
	if errors.Is(err, storage.ErrNotFound) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	sel, err := copy.Select(ctx, view, spec(c))
	if err != nil {
		return "", false, nil //nolint:nilerr // the step itself tells what is wrong with its sources
	}
	d, err := sel.Digest(ctx, copy.FileDigest(ctx, view))
	return d, err == nil, err
}

// doCopy writes the selected files into a new layer.
func (w *walk) doCopy(ctx context.Context, t *task) (rec storage.StepRecord, err error) {
	c := t.step.Copy
	source, err := w.copySource(ctx, t, c)
	if err != nil {
		return rec, err
	}
	staged, err := w.machine.Layers.Stage(ctx)
	if err != nil {
		return rec, err
	}
	defer func() { err = errors.Join(err, staged.Discard()) }()
	res, err := w.applyCopy(ctx, t, source, staged.Dir())
	if err != nil {
		return rec, err
	}
	layer := storage.Layer{Identity: t.keys[0], Linked: source.linked()}
	if c.Context {
		w.contentKeys(t, c, res.Digest, &layer)
	} else {
		t.keys = append(t.keys, cache.ShapeKey(c, t.chain))
	}
	layer.SizeBytes = res.SizeBytes
	rec, err = w.commit(ctx, t, staged, layer)
	rec.From = layerIDs(source.layers)
	return rec, err
}

// contentKeys sets what follows from the bytes that were really copied: a file
// that changed since the key was made must not be recorded under it.
func (w *walk) contentKeys(t *task, c *plan.Copy, content storage.Digest, layer *storage.Layer) {
	if content == "" {
		content = t.inputs.Source
	}
	layer.Identity = cache.CopyIdentity(c, content)
	if content != t.inputs.Source {
		t.inputs.Source = content
		t.keys = []storage.Digest{cache.StepKey(t.step, w.o.Plan.Platform, t.inputs)}
	}
}

// copySource is what a COPY reads from.
type copySource struct {
	sel *copy.Selection
	// layers are the source chain's, empty for the context.
	layers []storage.Layer
	// mayLink says of each layer whether its inodes may be linked.
	mayLink []bool
	// used notes the layers that were linked to.
	used []atomic.Bool
}

// link reports whether a layer's inodes may be linked, and notes that one is.
func (s *copySource) link(layer int) bool {
	if s.mayLink[layer] {
		s.used[layer].Store(true)
	}
	return s.mayLink[layer]
}

// copySource selects the files of a COPY.
func (w *walk) copySource(ctx context.Context, t *task, c *plan.Copy) (*copySource, error) {
	if c.Context {
		sel, _, err := w.selectContext(ctx, spec(c))
		return &copySource{sel: sel}, err
	}
	layers, err := w.sourceLayers(ctx, c.From)
	if err != nil {
		return nil, err
	}
	view, err := w.machine.view(layers)
	if err != nil {
		return nil, err
	}
	sel, err := copy.Select(ctx, view, spec(c))
	return &copySource{
		sel: sel, layers: layers,
		mayLink: linkable(layers, t.layers), used: make([]atomic.Bool, len(layers)),
	}, selectFault(err, "what --from names")
}

// linkable says which source layers' inodes may get names above dest: not those
// that dest shows already, directly or by links, because one inode twice in a
// merged view makes cp and mv call two files the same.
func linkable(source, dest []storage.Layer) []bool {
	shown := map[storage.LayerID]bool{}
	for _, l := range dest {
		shown[l.ID] = true
		for _, id := range l.Linked {
			shown[id] = true
		}
	}
	may := make([]bool, len(source))
	for i, l := range source {
		may[i] = !shown[l.ID]
		for _, id := range l.Linked {
			may[i] = may[i] && !shown[id]
		}
	}
	return may
}

// linked lists the layers whose inodes a copy has names for, those that they
// themselves link to included.
func (s *copySource) linked() []storage.LayerID {
	var ids []storage.LayerID
	for i, l := range s.layers {
		if s.used[i].Load() {
			ids = append(append(ids, l.ID), l.Linked...)
		}
	}
	return ids
}

// applyCopy writes a selection into dir.
func (w *walk) applyCopy(ctx context.Context, t *task, source *copySource, dir string) (copy.Result, error) {
	view, err := w.machine.view(t.layers)
	if err != nil {
		return copy.Result{}, err
	}
	o, err := copyOptions(view, t.step.Copy)
	if err != nil {
		return copy.Result{}, err
	}
	if len(source.mayLink) > 0 {
		o.HardLink = source.link
	}
	res, err := copy.Apply(ctx, source.sel, copy.Dest{Chain: view, Dir: dir, Path: t.step.Copy.Dest}, o)
	return res, destFault(err)
}

// destFault returns the error of writing to a destination that can't be what the
// Dockerfile wants of it as the Dockerfile's fault.
func destFault(err error) error {
	var (
		conflict *copy.ConflictError
		replace  *copy.ReplaceError
		several  *copy.SeveralError
		damaged  *copy.ArchiveError
	)
	switch {
	case errors.As(err, &several):
		return &FaultError{Err: err, Hint: "a / at the end makes the destination a directory"}
	case errors.As(err, &conflict), errors.As(err, &replace), errors.As(err, &damaged), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		return &FaultError{Err: err}
	default:
		return err
	}
}

// copyOptions looks names up in the destination.
func copyOptions(view *chainfs.View, c *plan.Copy) (copy.Options, error) {
	o := copy.Options{Unpack: c.Unpack, Chmod: c.Chmod}
	if _, err := copy.ParseChmod(c.Chmod); err != nil {
		return o, &FaultError{Err: fmt.Errorf("--chmod=%s: %w", c.Chmod, err), Hint: "octal such as 0755, or symbolic such as u+rwx,go=rX"}
	}
	if c.Chown != "" {
		uid, gid, err := copy.LookupOwner(view, c.Chown)
		if err != nil {
			return o, &FaultError{Err: fmt.Errorf("--chown=%s: %w", c.Chown, err), Hint: "a number needs no entry in the image"}
		}
		o.Chown = &copy.Owner{UID: uid, GID: gid}
	}
	return o, nil
}

// doWorkdir makes a directory, owned by the stage's user, unless it exists.
func (w *walk) doWorkdir(ctx context.Context, t *task) (rec storage.StepRecord, err error) {
	view, err := w.machine.view(t.layers)
	if err != nil {
		return rec, err
	}
	var owner *copy.Owner
	if name := t.step.Workdir.User; name != "" {
		user, err := lookupUser(view, name)
		if err != nil {
			return rec, err
		}
		owner = &copy.Owner{UID: user.UID, GID: user.GID}
	}
	staged, err := w.machine.Layers.Stage(ctx)
	if err != nil {
		return rec, err
	}
	defer func() { err = errors.Join(err, staged.Discard()) }()
	if err := copy.Mkdir(copy.Dest{Chain: view, Dir: staged.Dir(), Path: t.step.Workdir.Path}, owner); err != nil {
		return rec, destFault(err)
	}
	return w.commit(ctx, t, staged, storage.Layer{Identity: t.keys[0]})
}

// contextLayer is a layer that holds a part of the build context, for a bind
// mount: what .dockerignore hides stays hidden, and owners are 0:0.
func (w *walk) contextLayer(ctx context.Context, t *task, source string) (storage.StepRecord, error) {
	step := plan.Step{Title: t.step.Title, Pos: t.step.Pos, Copy: &plan.Copy{
		Context: true, Sources: []string{relative(source)}, Dest: contextLayerPath,
	}}
	sub := &task{stage: t.stage, step: &step, vertex: t.vertex, chain: cache.ChainIdentity(nil)}
	sub.inputs.Chain = sub.chain
	if err := w.inputs(ctx, sub); err != nil {
		return storage.StepRecord{}, err
	}
	key := cache.StepKey(&step, w.o.Plan.Platform, sub.inputs)
	rec, _, err := w.single(ctx, sub, key)
	return rec, err
}
