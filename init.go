package mstage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/sandbox/rootless"
	"github.com/mstage/mstage/sandbox/runc"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/cachedir"
	"github.com/mstage/mstage/storage/overlay"
)

// workerRole is the first argument of a worker; the second is where its private
// tmpfs is. They are for people who read ps: the role itself is not told by them.
const workerRole = "worker"

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

// serve is the worker process: one job, then the end.
func serve() error {
	// A reader that has gone makes a write fail instead of ending the worker
	// without a word. A handler is not inherited by commands, SIG_IGN would be.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	conn, err := rootless.WorkerConn()
	if err != nil {
		return err
	}
	defer conn.Close()
	return engine.Serve(conn, rootless.WorkerFile(0), openBackend)
}

// openBackend opens the store and what runs commands.
func openBackend(ctx context.Context, root string) (b *engine.Backend, err error) {
	if len(os.Args) != 3 || os.Args[1] != workerRole {
		return nil, errors.New("the worker has no state directory")
	}
	state := os.Args[2]
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
		TempDir: filepath.Join(state, "temp"), SpoolDir: store.TempDir(), Sync: store.Sync, Touch: store.Index().Touch, RunHint: singleUIDHint(),
		Collect: collector(store, caches), Usage: usage(store, caches),
		Close: func() error { return errors.Join(lease.Release(), closeAll(closers)) },
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

// usage measures the store with its cache directories.
func usage(store *overlay.Store, caches cachedir.Dirs) func(ctx context.Context) (storage.Usage, error) {
	return func(ctx context.Context) (storage.Usage, error) {
		all, err := caches.All()
		if err != nil {
			return storage.Usage{}, err
		}
		return store.Usage(ctx, all)
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
