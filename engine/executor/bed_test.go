package executor

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/buildcontext"
	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/resolve"
	"github.com/mstage/mstage/engine/stage"
	"github.com/mstage/mstage/plugins"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/sandbox/sandboxtest"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/cachedir"
	"github.com/mstage/mstage/storage/nstest"
	"github.com/mstage/mstage/storage/storagetest"
	"github.com/mstage/mstage/storage/tree"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// patience is how long a build of a test may take before it counts as stuck.
const patience = time.Minute

// bed is a machine whose commands are Go functions, over a store in a temporary
// directory with real overlay mounts.
type bed struct {
	t       *testing.T
	store   *storagetest.Store
	runner  *sandboxtest.Fake
	machine *Machine
	caches  cachedir.Dirs
	context string // the build context's directory
	noCache bool

	mu     sync.Mutex
	events []progress.Event // guarded by mu
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, store: storagetest.New(t), runner: &sandboxtest.Fake{}, caches: cachedir.Dirs{Path: t.TempDir()}, context: t.TempDir()}
	lease, err := b.store.Lease(t.Context())
	must(t, err)
	b.machine = &Machine{
		Layers: b.store.Layers, Mounter: overlays{b.store, t.TempDir()}, Lease: lease, Runner: b.runner, Caches: b.caches,
		TempDir: t.TempDir(), Slots: make(chan struct{}, 16),
	}
	return b
}

// overlays mounts the fake store's layers with the kernel's overlayfs.
type overlays struct {
	layers storage.Layers
	empty  string // an empty directory
}

func (o overlays) Mount(_ context.Context, m storage.MountOptions) (func() error, error) {
	var lowers []string
	for _, id := range slices.Backward(m.Layers) {
		dir, err := o.layers.Dir(id)
		if err != nil {
			return nil, err
		}
		lowers = append(lowers, dir)
	}
	options := "userxattr"
	if m.Upper != "" {
		options += ",upperdir=" + m.Upper + ",workdir=" + m.Work
	} else {
		lowers = append(lowers, o.empty) // overlayfs without an upper directory wants two lower ones
	}
	options += ",lowerdir=" + strings.Join(append(lowers, m.Stub), ":")
	if err := unix.Mount("overlay", m.Target, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mount overlay with %s: %w", options, err)
	}
	return func() error { return unix.Unmount(m.Target, 0) }, nil
}

// commands are what RUN lines do, by their text.
type commands map[string]func(ctx context.Context, s sandbox.Spec) error

// script lets RUN lines do what the functions do; others succeed at once.
func (b *bed) script(c commands) {
	b.runner.Command = func(ctx context.Context, s sandbox.Spec) error {
		if do := c[s.Args[len(s.Args)-1]]; do != nil {
			return do(ctx, s)
		}
		return nil
	}
}

// plan plans a Dockerfile without images.
func (b *bed) plan(text string) *plan.Plan {
	b.t.Helper()
	f, err := dockerfile.Parse("Dockerfile", []byte(text))
	must(b.t, err)
	g, err := stage.Build(f, stage.Options{Platform: "linux/amd64"})
	must(b.t, err)
	bound, err := resolve.Bind(b.t.Context(), g, resolve.Options{Sources: plugins.Order(b.store.Index, plugins.Others{}), Platform: "linux/amd64"})
	must(b.t, err)
	p, err := plan.Make(b.t.Context(), bound, plan.Options{Platform: "linux/amd64", Images: b.store.Index})
	must(b.t, err)
	return p
}

// digestFiles is a build context as the executor wants it.
type digestFiles struct{ *buildcontext.Context }

func (d digestFiles) FileDigest(ctx context.Context, e tree.Entry) (storage.Digest, error) {
	sum, err := d.Context.FileDigest(ctx, e)
	return storage.Digest("sha256:" + hex.EncodeToString(sum[:])), err
}

// options are those of one walk; its events go to b.events.
func (b *bed) options(p *plan.Plan) Options {
	b.events = nil
	return Options{
		Plan: p, Cache: &cache.Cache{Steps: b.store.Index, Disabled: b.noCache},
		Context: func(ctx context.Context) (Files, error) {
			files, err := buildcontext.Open(ctx, buildcontext.Options{Root: b.context})
			return digestFiles{files}, err
		},
		Sink: progress.SinkFunc(func(e progress.Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, e)
		}),
	}
}

// run builds a Dockerfile.
func (b *bed) run(text string) ([]Result, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	return Run(ctx, b.options(b.plan(text)), b.machine)
}

// mustRun builds a Dockerfile and returns the layers of its last stage.
func (b *bed) mustRun(text string) []storage.Layer {
	b.t.Helper()
	results, err := b.run(text)
	must(b.t, err)
	return results[len(results)-1].Layers
}

// ran lists the commands that were run so far, sorted.
func (b *bed) ran() []string {
	var lines []string
	for _, s := range b.runner.Specs() {
		lines = append(lines, s.Args[len(s.Args)-1])
	}
	slices.Sort(lines)
	return lines
}

// path is where a layer has a file.
func (b *bed) path(l storage.Layer, name string) string {
	b.t.Helper()
	dir, err := b.store.Dir(l.ID)
	must(b.t, err)
	return filepath.Join(dir, name)
}

// names lists what a layer holds.
func (b *bed) names(l storage.Layer) []string {
	b.t.Helper()
	dir := b.path(l, ".")
	var names []string
	must(b.t, filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		if rel, relErr := filepath.Rel(dir, name); relErr == nil && rel != "." {
			names = append(names, rel)
		}
		return err
	}))
	return names
}

// file writes a file of the build context.
func (b *bed) file(name, data string) {
	b.t.Helper()
	name = filepath.Join(b.context, name)
	must(b.t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(b.t, os.WriteFile(name, []byte(data), 0o644))
}

// told lists the events of one kind with the title of their step.
func (b *bed) told(kind progress.Kind) map[string]progress.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	titles, told := map[int]string{}, map[string]progress.Event{}
	for _, e := range b.events {
		if e.Kind == progress.StepStarted {
			titles[e.Vertex] = e.Name
		}
		if e.Kind == kind {
			told[titles[e.Vertex]] = e
		}
	}
	return told
}

// writes is a command that writes files, "path" to content.
func writes(files map[string]string) func(context.Context, sandbox.Spec) error {
	return func(_ context.Context, s sandbox.Spec) error {
		for name, data := range files {
			name = filepath.Join(s.Rootfs, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(data), 0o644)); err != nil {
				return err
			}
		}
		return nil
	}
}

// mountAt returns what a command sees at a target.
func mountAt(s sandbox.Spec, target string) (sandbox.Mount, error) {
	for _, m := range s.Mounts {
		if m.Target == target {
			return m, nil
		}
	}
	return sandbox.Mount{}, fmt.Errorf("nothing is mounted on %s: got %+v", target, s.Mounts)
}

// inode is the number of a file's inode.
func inode(t *testing.T, name string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return st.Ino
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
