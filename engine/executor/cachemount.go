package executor

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
)

// cacheMount is a mount with the ID that its directory is kept under.
type cacheMount struct {
	plan.Mount
	id string
}

// strictness orders the sharing modes: the strictest that a RUN asks for one
// cache counts.
var strictness = map[string]int{"locked": 0, "private": 1, "shared": 2}

// acquireCaches takes the caches of all mounts, each once and in the order of
// their IDs: so neither a RUN that mounts one twice waits for itself, nor two RUNs
// that lock the same ones for each other.
func (r *runStep) acquireCaches(ctx context.Context, mounts []plan.Mount) error {
	var wanted []cacheMount
	for _, m := range mounts {
		if m.Type != dockerfile.MountCache {
			continue
		}
		id, err := r.cacheID(ctx, m)
		if err != nil {
			return err
		}
		wanted = append(wanted, cacheMount{m, id})
	}
	slices.SortStableFunc(wanted, func(a, b cacheMount) int {
		return cmp.Or(strings.Compare(a.id, b.id), cmp.Compare(strictness[a.Sharing], strictness[b.Sharing]))
	})
	r.caches = map[string]string{}
	for _, m := range wanted {
		if _, ok := r.caches[m.id]; ok {
			continue
		}
		fill := func(dir string) error { return r.fillCache(ctx, m.Mount, dir) }
		dir, release, err := r.machine.Caches.Acquire(ctx, m.id, m.Sharing, fill)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
		r.undo = append(r.undo, release)
		r.caches[m.id] = dir
	}
	return nil
}

// addCache shows a cache directory, which starts as a copy of its source.
func (r *runStep) addCache(ctx context.Context, m plan.Mount) error {
	id, err := r.cacheID(ctx, m)
	if err != nil {
		return err
	}
	r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{
		Type: sandbox.MountBind, Source: r.caches[id], Target: m.Target, ReadOnly: m.ReadOnly,
	})
	return nil
}

// cacheID tells caches of one id apart that were made for different owners or
// from different sources, so that a mount finds what it asked for.
func (r *runStep) cacheID(ctx context.Context, m plan.Mount) (string, error) {
	id := fmt.Sprintf("%s:%d:%d:%o", m.ID, m.UID, m.GID, m.Mode)
	if m.From.Stage == nil && m.From.Image == nil {
		return id, nil
	}
	chain, err := r.walk.sourceIdentity(ctx, m.From)
	return fmt.Sprintf("%s:%s:%s", id, chain, m.Source), err
}

// fillCache makes a new cache directory what the mount says.
func (r *runStep) fillCache(ctx context.Context, m plan.Mount, dir string) error {
	if m.From.Stage != nil || m.From.Image != nil {
		layers, err := r.walk.sourceLayers(ctx, m.From)
		if err != nil {
			return err
		}
		if err := r.copyInto(ctx, layers, m.Source, dir); err != nil {
			return err
		}
	}
	if m.UID != 0 || m.GID != 0 {
		if err := os.Chown(dir, int(m.UID), int(m.GID)); err != nil {
			return ownerError(m.Target, m.UID, m.GID, err)
		}
	}
	return chmod(dir, m.Mode)
}

// chmod sets permission bits as chmod(2) has them, sticky and setgid included.
func chmod(name string, mode uint32) error {
	if err := unix.Chmod(name, mode); err != nil {
		return fmt.Errorf("chmod %o %s: %w", mode, name, err)
	}
	return nil
}

// copyInto copies source of layers into an existing host directory.
func (r *runStep) copyInto(ctx context.Context, layers []storage.Layer, source, dir string) error {
	view, err := r.machine.view(layers)
	if err != nil {
		return err
	}
	sel, err := copy.Select(ctx, view, copy.Spec{Sources: []string{relative(source)}})
	if err != nil {
		return err
	}
	_, err = copy.Apply(ctx, sel, copy.Dest{Chain: chainfs.New(nil), Dir: dir, Path: "/"}, copy.Options{})
	return err
}
