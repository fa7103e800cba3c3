package executor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
)

// CacheDirs keeps the directories of RUN --mount=type=cache.
type CacheDirs interface {
	// Acquire returns the directory for id, made by fill when it is new, and
	// what gives it back. sharing is "shared", "private" (another directory when
	// this one is taken) or "locked" (waits).
	Acquire(ctx context.Context, id, sharing string, fill func(dir string) error) (dir string, release func() error, err error)
}

// Machine is what executing a step needs and looking one up doesn't.
type Machine struct {
	Layers  storage.Layers
	Mounter storage.Mounter
	Lease   storage.Lease
	Runner  sandbox.Runner
	Caches  CacheDirs
	// TempDir is a private directory, best on a tmpfs: mount points, secrets.
	TempDir string
	// Secrets by id.
	Secrets map[string][]byte
	// Hosts are extra lines of /etc/hosts.
	Hosts []sandbox.HostEntry
	// CABundle is a file of trusted certificates that RUNs get to see, "" for none.
	CABundle string
	// Fetch brings an image with Content into the store and returns its layers.
	// cached says that the store had them all. tell hears of transfers.
	Fetch func(ctx context.Context, img plan.Image, vertex int, tell func(progress.Event)) (layers []storage.Layer, cached bool, err error)
	// Slots limits how many RUNs go on at once; its capacity is the limit.
	Slots chan struct{}

	unique atomic.Int64
}

// acquire takes a slot for a RUN.
func (m *Machine) acquire(ctx context.Context) (release func(), err error) {
	select {
	case m.Slots <- struct{}{}:
		return func() { <-m.Slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// tempDir makes an empty directory below TempDir.
func (m *Machine) tempDir(kind string) (string, error) {
	dir := filepath.Join(m.TempDir, fmt.Sprintf("%s-%d", kind, m.unique.Add(1)))
	return dir, os.MkdirAll(dir, 0o755)
}

// view opens the merged view of layers without mounting it.
func (m *Machine) view(layers []storage.Layer) (*chainfs.View, error) {
	dirs := make([]string, len(layers))
	for i, l := range layers {
		dir, err := m.Layers.Dir(l.ID)
		if err != nil {
			return nil, err
		}
		dirs[i] = dir
	}
	return chainfs.New(dirs), nil
}

// layerIDs returns the layers' IDs in order.
func layerIDs(layers []storage.Layer) []storage.LayerID {
	ids := make([]storage.LayerID, len(layers))
	for i, l := range layers {
		ids[i] = l.ID
	}
	return ids
}

// chainMounts keeps one read-only mount per chain for RUN --mount=type=bind, so
// that many RUNs share it.
type chainMounts struct {
	machine *Machine

	mu     sync.Mutex
	mounts map[storage.Digest]*chainMount // guarded by mu
}

type chainMount struct {
	once    sync.Once
	dir     string
	unmount func() error
	err     error
}

func newChainMounts(m *Machine) *chainMounts {
	return &chainMounts{machine: m, mounts: map[storage.Digest]*chainMount{}}
}

// get returns the directory where the merged view of layers is mounted.
func (c *chainMounts) get(ctx context.Context, layers []storage.Layer) (string, error) {
	key := cache.ChainIdentity(layers)
	c.mu.Lock()
	m, ok := c.mounts[key]
	if !ok {
		m = &chainMount{}
		c.mounts[key] = m
	}
	c.mu.Unlock()
	m.once.Do(func() { m.dir, m.unmount, m.err = c.machine.mountReadOnly(ctx, layers) })
	return m.dir, m.err
}

// close unmounts. The mounts live in the worker's own mount namespace: one that
// is still busy ends with the worker, so a failure here loses nothing.
func (c *chainMounts) close() {
	for _, m := range c.mounts {
		if m.unmount != nil {
			_ = m.unmount()
		}
	}
}

// mountReadOnly mounts the merged view of layers on a new directory.
func (m *Machine) mountReadOnly(ctx context.Context, layers []storage.Layer) (string, func() error, error) {
	dir, err := m.tempDir("chain")
	if err != nil {
		return "", nil, err
	}
	stub, err := m.tempDir("stub")
	if err != nil {
		return "", nil, err
	}
	unmount, err := m.Mounter.Mount(ctx, storage.MountOptions{Layers: layerIDs(layers), Stub: stub, Target: dir})
	return dir, unmount, err
}
