package engine

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/plugins"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/sandbox/sandboxtest"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/cachedir"
	"github.com/mstage/mstage/storage/nstest"
	"github.com/mstage/mstage/storage/storagetest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// countingIndex is a fake index that counts what is written to it.
type countingIndex struct {
	*storagetest.Index

	mu      sync.Mutex
	puts    int   // guarded by mu
	syncs   int   // guarded by mu
	putFail error // guarded by mu: what the next PutImage returns
}

func (ix *countingIndex) PutImage(ctx context.Context, img storage.Image, names ...string) error {
	ix.mu.Lock()
	ix.puts++
	err := ix.putFail
	ix.putFail = nil
	ix.mu.Unlock()
	if err != nil {
		return err
	}
	return ix.Index.PutImage(ctx, img, names...)
}

func (ix *countingIndex) Sync(context.Context) error {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.syncs++
	return nil
}

// bed is an engine whose workers are goroutines over a fake store. Commands see
// an empty directory: nothing is mounted.
type bed struct {
	*Engine
	t        *testing.T
	store    *storagetest.Store
	index    *countingIndex
	runner   *sandboxtest.Fake
	backend  *Backend
	context  string
	launched int
	closed   int
	collects []bool // what Collect was called with

	mu     sync.Mutex
	events []progress.Event // guarded by mu
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, store: storagetest.New(t), runner: &sandboxtest.Fake{}, context: t.TempDir()}
	b.index = &countingIndex{Index: b.store.Index}
	root := t.TempDir()
	must(t, os.WriteFile(filepath.Join(root, "format"), nil, 0o600))
	lease, err := b.store.Lease(t.Context())
	must(t, err)
	b.backend = &Backend{
		Layers: b.store.Layers, Mounter: noMounts{}, Lease: lease, Images: b.index, Steps: b.index, Seals: b.store.Index, Blobs: b.store.Blobs,
		Caches: cachedir.Dirs{Path: t.TempDir()}, Runner: b.runner, TempDir: t.TempDir(), SpoolDir: t.TempDir(), Touch: b.index.Touch, Sync: b.index.Sync,
		Collect: func(_ context.Context, all bool) (int64, error) { b.collects = append(b.collects, all); return 42, nil },
		Close:   func() error { b.closed++; return nil },
	}
	b.Engine = New(Options{Root: root, Index: b.index, Sources: plugins.Order(b.index, plugins.Others{}), Launcher: b, Platform: "linux/amd64"})
	return b
}

// noMounts leaves the target as it is.
type noMounts struct{}

func (noMounts) Mount(context.Context, storage.MountOptions) (func() error, error) {
	return func() error { return nil }, nil
}

// process is a worker that is a goroutine.
type process struct {
	*os.File
	over chan struct{}
}

func (p process) Notice() string { return "" }
func (p process) Kill() error    { return p.Close() }
func (p process) Wait() error    { <-p.over; return nil }

// Launch implements worker.Launcher.
func (b *bed) Launch(o worker.LaunchOptions) (worker.Process, error) {
	b.launched++
	streams, err := unix.FcntlInt(o.Streams.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	p := process{os.NewFile(uintptr(fds[0]), "client"), make(chan struct{})}
	server := os.NewFile(uintptr(fds[1]), "server")
	go func() {
		defer close(p.over)
		defer server.Close()
		err := Serve(server, os.NewFile(uintptr(streams), "streams"), func(context.Context, string) (*Backend, error) { return b.backend, nil })
		if err != nil && !errors.Is(err, io.EOF) {
			b.t.Error(err)
		}
	}()
	return p, nil
}

// Send implements progress.Sink.
func (b *bed) Send(e progress.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
}

// request asks for a Dockerfile with the name x.
func (b *bed) request(text string) Request {
	return Request{Dockerfile: []byte(text), Name: "Dockerfile", Context: Context{Dir: b.context}, Names: []string{"docker.io/library/x:latest"}, Sink: b}
}

// build builds a Dockerfile that has to succeed.
func (b *bed) build(text string) *BuildResult {
	b.t.Helper()
	res, err := b.Build(b.t.Context(), b.request(text))
	must(b.t, err)
	return res
}

// script lets RUN lines do what the functions do; others succeed at once.
func (b *bed) script(commands map[string]func(ctx context.Context, s sandbox.Spec) error) {
	b.runner.Command = func(ctx context.Context, s sandbox.Spec) error {
		if do := commands[s.Args[len(s.Args)-1]]; do != nil {
			return do(ctx, s)
		}
		return nil
	}
}

// started lists the titles of the steps, in order.
func (b *bed) started() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var titles []string
	for _, e := range b.events {
		if e.Kind == progress.StepStarted {
			titles = append(titles, e.Name)
		}
	}
	b.events = nil
	return slices.Clip(titles)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
