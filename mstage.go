// Package mstage embeds the build engine in a program: Init gives the program
// its second role as a worker process, New wires the engine with its store,
// sources and sandboxes.
//
// The mstage command is such a program, and nothing more.
package mstage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/plugins"
	"github.com/mstage/mstage/sandbox/rootless"
	"github.com/mstage/mstage/sandbox/runc"
	"github.com/mstage/mstage/storage/cachedir"
	"github.com/mstage/mstage/storage/index"
	"github.com/mstage/mstage/storage/layout"
	"github.com/mstage/mstage/storage/overlay"
)

// Init must be the first thing in main. In the program's own process it returns
// at once; in a worker process, which is the same program again, it does the
// worker's job and exits.
func Init() {
	runc.Init()
	if !rootless.IsWorker() {
		return
	}
	if err := serve(); err != nil {
		fmt.Fprintf(os.Stderr, "mstage: worker: %v\n", err)
		os.Exit(engine.ExitInternal)
	}
	os.Exit(engine.ExitOK)
}

// Options say which store an engine works on. Only Root is required.
type Options struct {
	// Root is the store's directory. It is made by the first build or import.
	Root string
	// Sources answer for FROM and --from words. Nil: the built-in ones in their
	// documented order.
	Sources []pluginapi.Source
	// Stdin, Stdout and Stderr are what commands of Run and outputs to "-" use.
	// Nil: the process's own.
	Stdin, Stdout, Stderr *os.File
	// Version stands in what the engine writes. Zero: "dev".
	Version string
}

// New returns an engine on a store. A store that can't be used is a
// *layout.Error; one that does not exist yet is empty.
func New(o Options) (*engine.Engine, error) {
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, err
	}
	l, err := layout.Open(root)
	if errors.Is(err, os.ErrNotExist) {
		l, err = layout.Layout{Root: root}, nil
	}
	if err != nil {
		return nil, err
	}
	ix, err := index.Open(l.Index())
	if err != nil {
		return nil, err
	}
	if o.Sources == nil {
		o.Sources = plugins.Order(ix, plugins.Others{})
	}
	return engine.New(engine.Options{
		Root: root, Index: ix, Sources: o.Sources, Version: o.Version, Platform: Platform(),
		Launcher: launcher{root: root, stdin: orStd(o.Stdin, os.Stdin), stdout: orStd(o.Stdout, os.Stdout), stderr: orStd(o.Stderr, os.Stderr)},
	}), nil
}

func orStd(f, std *os.File) *os.File {
	if f != nil {
		return f
	}
	return std
}

// Platform is what this host builds for: "linux/amd64".
func Platform() string { return "linux/" + runtime.GOARCH }

// launcher starts workers for one store.
type launcher struct {
	root                  string
	stdin, stdout, stderr *os.File
}

// Launch starts a worker.
func (l launcher) Launch(interactive bool) (worker.Process, error) {
	state := stateDir(l.root)
	if _, err := layout.Create(l.root); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	w, err := rootless.Start(context.Background(), rootless.Options{
		Env: append(os.Environ(), stateVariable+"="+state), StateDir: state, SameGroup: interactive,
		Stdin: l.stdin, Stdout: l.stdout, Stderr: l.stderr,
	})
	if err != nil {
		return nil, err
	}
	return process{File: w.Conn, worker: w}, nil
}

// process is a worker with its socket.
type process struct {
	*os.File
	worker *rootless.Worker
}

func (p process) Kill() error { p.worker.Kill(); return nil }
func (p process) Wait() error { return p.worker.Wait() }

// stateVariable tells the worker where its private tmpfs is.
const stateVariable = "MSTAGE_WORKER_STATE"

// stateDir is a directory of the store over which each worker mounts a private
// tmpfs; on disk it stays empty.
func stateDir(root string) string { return filepath.Join(root, "run") }

// serve is the worker process: one job, then the end.
func serve() error {
	conn, err := rootless.WorkerConn()
	if err != nil {
		return err
	}
	defer conn.Close()
	return engine.Serve(conn, openBackend)
}

// openBackend opens the store and what runs commands.
func openBackend(ctx context.Context, root string) (b *engine.Backend, err error) {
	state := os.Getenv(stateVariable)
	if state == "" {
		return nil, errors.New("the worker has no state directory")
	}
	store, err := overlay.Open(ctx, overlay.Options{Root: root, RunRoot: filepath.Join(state, "storage"), Warn: warn})
	if err != nil {
		return nil, err
	}
	closers := []io.Closer{store}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(closers))
		}
	}()
	lease, err := store.Lease(ctx)
	if err != nil {
		return nil, err
	}
	caches := cachedir.Dirs{Path: filepath.Join(root, "cache")}
	for _, dir := range []string{caches.Path, filepath.Join(state, "temp")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	lazy := &lazyRunner{stateDir: filepath.Join(state, "sandbox")}
	closers = append(closers, lazy)
	return &engine.Backend{
		Layers: store, Mounter: store, Lease: lease, Images: store.Index(), Steps: store.Index(),
		Seals: store.Index(), Blobs: store.Blobs(), Caches: caches, Runner: lazy,
		TempDir: filepath.Join(state, "temp"), Sync: store.Sync, Touch: store.Index().Touch, RunHint: singleUIDHint(),
		Collect: collector(store, caches),
		Close:   func() error { return errors.Join(lease.Release(), closeAll(closers)) },
	}, nil
}

// singleUIDHint explains a failed chown or setgroups where only one user ID is
// mapped.
func singleUIDHint() string {
	b, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(b))
	if err != nil || len(fields) != 3 || fields[2] != "1" {
		return ""
	}
	return "only one user ID is mapped here, so a chown or setgroups in the command fails: " + rootless.Unmapped("other users").Hint
}

// collector removes what nothing needs, and the cache directories with all.
func collector(store *overlay.Store, caches cachedir.Dirs) func(ctx context.Context, all bool) (int64, error) {
	return func(ctx context.Context, all bool) (int64, error) {
		report, err := store.GC(ctx, overlay.GCOptions{All: all})
		freed := report.LayerBytes + report.BlobBytes
		if err != nil || !all {
			return freed, err
		}
		_, err = caches.RemoveUnused()
		return freed, err
	}
}

// closeAll closes in reverse order.
func closeAll(closers []io.Closer) error {
	var err error
	for _, closer := range slices.Backward(closers) {
		err = errors.Join(err, closer.Close())
	}
	return err
}

// warn tells what the store mended.
func warn(text string) { fmt.Fprintf(os.Stderr, "mstage: warning: %s\n", text) }
