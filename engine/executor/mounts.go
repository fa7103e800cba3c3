package executor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/tree"
)

// addFiles shows here-documents as files.
func (r *runStep) addFiles() error {
	for _, f := range r.run.Files {
		source, err := r.secretFile([]byte(f.Data), 0o755, 0, 0)
		if err != nil {
			return err
		}
		r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{
			Type: sandbox.MountBind, Source: source, Target: path.Join(dockerfile.InlineDir, f.Name), ReadOnly: true,
		})
	}
	return nil
}

// addMounts adds the mounts of RUN --mount, outer ones first.
func (r *runStep) addMounts(ctx context.Context) error {
	mounts := slices.Clone(r.run.Mounts)
	slices.SortStableFunc(mounts, func(a, b plan.Mount) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	if err := r.acquireCaches(ctx, mounts); err != nil {
		return err
	}
	for _, m := range mounts {
		if err := r.addMount(ctx, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	return nil
}

func (r *runStep) addMount(ctx context.Context, m plan.Mount) error {
	switch m.Type {
	case dockerfile.MountTmpfs:
		r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{
			Type: sandbox.MountTmpfs, Target: m.Target, SizeBytes: m.SizeBytes,
		})
		return nil
	case dockerfile.MountSecret:
		return r.addSecret(m)
	case dockerfile.MountCache:
		return r.addCache(ctx, m)
	case dockerfile.MountBind:
		return r.addBind(ctx, m)
	case dockerfile.MountSSH:
		return errors.New("type=ssh is not supported yet")
	default:
		return fmt.Errorf("unknown type %q", m.Type)
	}
}

// addSecret shows a secret as a file or a variable. One that the caller did not
// give is left out unless it is required.
func (r *runStep) addSecret(m plan.Mount) error {
	data, ok := r.machine.Secrets[m.ID]
	if !ok {
		if m.Required {
			return &FaultError{
				Err:  fmt.Errorf("secret %q was not given", m.ID),
				Hint: fmt.Sprintf("add --secret id=%s,src=FILE or --secret id=%s,env=NAME", m.ID, m.ID),
			}
		}
		return nil
	}
	if m.Env != "" {
		r.spec.Env = append(r.spec.Env, m.Env+"="+string(data))
		if m.Target == "" {
			return nil
		}
	}
	source, err := r.secretFile(data, m.Mode, m.UID, m.GID)
	if err != nil {
		return err
	}
	r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{
		Type: sandbox.MountBind, Source: source, Target: m.Target, ReadOnly: true,
	})
	return nil
}

// secretFile writes a file below TempDir that goes away with the step.
func (r *runStep) secretFile(data []byte, mode, uid, gid uint32) (string, error) {
	dir, err := r.machine.tempDir("file")
	if err != nil {
		return "", err
	}
	r.undo = append(r.undo, func() error { return os.RemoveAll(dir) })
	name := filepath.Join(dir, "data")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return "", err
	}
	if uid != 0 || gid != 0 {
		if err := os.Chown(name, int(uid), int(gid)); err != nil {
			return "", ownerError(name, uid, gid, err)
		}
	}
	return name, chmod(name, mode)
}

// addBind shows a directory or file of the context, a stage or an image.
func (r *runStep) addBind(ctx context.Context, m plan.Mount) error {
	layers, source, err := r.bindSource(ctx, m)
	if err != nil {
		return err
	}
	var dir string
	if m.ReadOnly {
		dir, err = r.walk.mounts.get(ctx, layers)
	} else {
		dir, err = r.scratchOver(ctx, layers)
	}
	if err != nil {
		return err
	}
	inside, err := r.resolveIn(layers, source)
	if err != nil {
		return err
	}
	r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{
		Type: sandbox.MountBind, Source: filepath.Join(dir, inside), Target: m.Target, ReadOnly: m.ReadOnly,
	})
	return nil
}

// bindSource returns the layers that hold what a bind mount shows, and the path
// in them.
func (r *runStep) bindSource(ctx context.Context, m plan.Mount) ([]storage.Layer, string, error) {
	if !m.Context {
		layers, err := r.walk.sourceLayers(ctx, m.From)
		return layers, m.Source, err
	}
	rec, err := r.walk.contextLayer(ctx, r.task, m.Source)
	if err != nil {
		return nil, "", err
	}
	return []storage.Layer{rec.Layer}, contextLayerPath, nil
}

// resolveIn returns the real path of source in layers, links followed.
func (r *runStep) resolveIn(layers []storage.Layer, source string) (string, error) {
	view, err := r.machine.view(layers)
	if err != nil {
		return "", err
	}
	inside, exists, err := tree.Resolve(view, source, true)
	if err == nil && !exists {
		err = &FaultError{Err: fmt.Errorf("source %s: %w", source, fs.ErrNotExist)}
	}
	return inside, err
}

// scratchOver mounts layers so that writes are thrown away when the step ends.
func (r *runStep) scratchOver(ctx context.Context, layers []storage.Layer) (string, error) {
	staged, err := r.machine.Layers.Stage(ctx)
	if err != nil {
		return "", err
	}
	r.undo = append(r.undo, staged.Discard)
	dir, err := r.machine.tempDir("scratch")
	if err != nil {
		return "", err
	}
	stub, err := r.machine.tempDir("stub")
	if err != nil {
		return "", err
	}
	unmount, err := r.machine.Mounter.Mount(ctx, storage.MountOptions{
		Layers: layerIDs(layers), Stub: stub, Upper: staged.Dir(), Work: staged.WorkDir(), Target: dir,
	})
	if err != nil {
		return "", err
	}
	r.undo = append(r.undo, unmount)
	return dir, nil
}

// rootMount is the mounted root file system of a RUN.
type rootMount struct {
	dir     string
	made    []string // mount points that had to be made in the upper directory
	unmount func() error
}

// mountRoot mounts the layers with the staged directory on top. Mount points
// come from a stub below all layers, so that they leave nothing in the new one.
func (r *runStep) mountRoot(ctx context.Context) (*rootMount, error) {
	points, err := r.mountPoints()
	if err != nil {
		return nil, err
	}
	stub, err := r.machine.tempDir("stub")
	if err != nil {
		return nil, err
	}
	r.undo = append(r.undo, func() error { return os.RemoveAll(stub) })
	for _, p := range points {
		if err := makePoint(stub, p); err != nil {
			return nil, err
		}
	}
	dir, err := r.machine.tempDir("rootfs")
	if err != nil {
		return nil, err
	}
	r.undo = append(r.undo, func() error { return os.Remove(dir) })
	unmount, err := r.machine.Mounter.Mount(ctx, storage.MountOptions{
		Layers: layerIDs(r.task.layers), Stub: stub, Upper: r.staged.Dir(), Work: r.staged.WorkDir(), Target: dir,
	})
	if err != nil {
		return nil, err
	}
	root := &rootMount{dir: dir, unmount: unmount}
	if err := root.complete(points); err != nil {
		return nil, errors.Join(err, root.close())
	}
	return root, nil
}

// point is one mount point: a path without links, relative to the root.
type point struct {
	path string
	dir  bool
}

// mountPoints lists what has to exist in the root file system, links resolved.
func (r *runStep) mountPoints() ([]point, error) {
	var points []point
	for _, p := range sandbox.MountPoints() {
		if err := addPoint(&points, r.view, p, strings.HasSuffix(p, "/")); err != nil {
			return nil, err
		}
	}
	for _, m := range r.spec.Mounts {
		dir, err := isDirMount(m)
		if err != nil {
			return nil, err
		}
		if err := addPoint(&points, r.view, m.Target, dir); err != nil {
			return nil, err
		}
	}
	return points, nil
}

func addPoint(points *[]point, view *chainfs.View, name string, dir bool) error {
	p, exists, err := tree.Resolve(view, name, true)
	if err != nil || exists {
		return err
	}
	*points = append(*points, point{p, dir})
	return nil
}

// isDirMount reports whether the mount shows a directory.
func isDirMount(m sandbox.Mount) (bool, error) {
	if m.Type == sandbox.MountTmpfs {
		return true, nil
	}
	st, err := os.Stat(m.Source)
	return err == nil && st.IsDir(), err
}

// makePoint makes a mount point below root with its parents.
func makePoint(root string, p point) error {
	dir := p.path
	if !p.dir {
		dir = path.Dir(p.path)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.MkdirAll(dir, 0o755); err != nil || p.dir {
		return err
	}
	f, err := r.OpenFile(p.path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// complete makes the points that the stub can't show, because a layer hides
// what is below its directory. They are removed again by close.
func (m *rootMount) complete(points []point) error {
	for _, p := range points {
		missing, err := firstMissing(m.dir, p.path)
		if err != nil {
			return err
		}
		if missing == "" {
			continue
		}
		if err := makePoint(m.dir, p); err != nil {
			return err
		}
		for q := p.path; ; q = path.Dir(q) {
			m.made = append(m.made, q)
			if q == missing {
				break
			}
		}
	}
	return nil
}

// firstMissing returns the uppermost part of p that does not exist, "" for none.
func firstMissing(root, p string) (string, error) {
	cur := ""
	for part := range strings.SplitSeq(p, "/") {
		cur = path.Join(cur, part)
		switch _, err := os.Lstat(filepath.Join(root, cur)); {
		case errors.Is(err, fs.ErrNotExist):
			return cur, nil
		case err != nil:
			return "", err
		}
	}
	return "", nil
}

// close removes mount points that were made, as far as they are still empty,
// and unmounts. What the command left in the tree is hostile: a parent may be a
// link by now, so names are looked up confined to the root.
func (m *rootMount) close() error {
	if len(m.made) > 0 {
		if err := m.removePoints(); err != nil {
			return errors.Join(err, m.unmount())
		}
	}
	return m.unmount()
}

func (m *rootMount) removePoints() error {
	root, err := os.OpenRoot(m.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// Points share parents that were made: those come after all that is in them.
	slices.SortStableFunc(m.made, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	for _, p := range m.made {
		if st, err := root.Lstat(p); err == nil && (st.IsDir() || st.Size() == 0) {
			_ = root.Remove(p) // a directory that the command filled stays
		}
	}
	return nil
}
