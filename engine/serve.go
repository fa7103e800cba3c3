package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/executor"
	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

// Backend is what a worker has open: the store with its layers, and sandboxes.
type Backend struct {
	Layers  storage.Layers
	Mounter storage.Mounter
	Lease   storage.Lease
	Images  storage.Images
	Steps   storage.Steps
	Seals   storage.Seals
	Blobs   storage.Blobs
	Caches  executor.CacheDirs
	Runner  sandbox.Runner
	// TempDir is a private directory on a tmpfs.
	TempDir string
	// SpoolDir is a directory of this process on the store's file system.
	SpoolDir string
	// RunHint is shown with every RUN that failed, because this host may be why;
	// "" for none.
	RunHint string
	// Touch marks step results as used, for the collector's choice.
	Touch func(ctx context.Context, keys ...storage.Digest) error
	// Sync makes everything that was committed survive a power failure.
	Sync func(ctx context.Context) error
	// Collect removes what neither an image nor a lease needs; with all, step
	// results and cache directories too. It returns the bytes freed.
	Collect func(ctx context.Context, all bool) (int64, error)
	// Usage measures what the store takes on the disk.
	Usage func(ctx context.Context) (storage.Usage, error)
	Close func() error
	// ask asks the CLI's process; Serve sets it.
	ask func(ctx context.Context, a worker.Ask, t worker.Take) (worker.Answer, error)
}

// stores are the parts that exports read.
func (b *Backend) stores() image.Stores {
	return image.Stores{Layers: b.Layers, Mounter: b.Mounter, Seals: b.Seals, Blobs: b.Blobs, Images: b.Images, TempDir: b.TempDir}
}

// Serve does one job in the worker process and answers over conn; open files
// come over streams, which it closes. open is called when the job is known. The
// answer is always sent; the error is about the conversation alone.
func Serve(conn, streams *os.File, open func(ctx context.Context, root string) (*Backend, error)) error {
	server, err := worker.NewServer(conn, streams)
	if err != nil {
		return err
	}
	job, err := server.Job()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	resize := make(chan [2]uint16, 1)
	go listen(server, cancel, resize)
	result, err := perform(ctx, job, open, server, resize)
	if err != nil {
		return server.Report(worker.Report{Failure: Describe(err)})
	}
	return server.Report(worker.Report{Done: result})
}

// listen hears control messages until the CLI is gone; then the worker has no
// reason to live.
func listen(s *worker.Server, cancel context.CancelCauseFunc, resize chan [2]uint16) {
	for {
		c, err := s.Control()
		if err != nil {
			cancel(&Interrupted{Signal: syscall.SIGTERM})
			return
		}
		if c.Cancel {
			cancel(&Interrupted{Signal: syscall.SIGINT})
		}
		if c.Resize != nil {
			replace(resize, *c.Resize)
		}
	}
}

// replace puts the newest size into a channel of capacity 1 that nobody else
// sends to.
func replace(resize chan [2]uint16, size [2]uint16) {
	select {
	case <-resize:
	default:
	}
	resize <- size
}

// perform opens the store and does the job.
func perform(ctx context.Context, job worker.Job, open func(ctx context.Context, root string) (*Backend, error), sink *worker.Server, resize <-chan [2]uint16) (res *worker.Result, err error) {
	if job.Unshare != nil {
		return unshare(ctx, job.Unshare)
	}
	b, err := open(ctx, job.Root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	b.ask = sink.Ask
	switch {
	case job.Build != nil:
		return b.build(ctx, job.Build, sink)
	case job.Run != nil:
		return b.run(ctx, job.Run, resize)
	case job.Import != nil:
		return b.importImage(ctx, job.Import)
	case job.Pull != nil:
		return b.pull(ctx, job.Pull, sink)
	case job.Push != nil:
		return b.push(ctx, job.Push, sink)
	case job.Load != nil:
		return b.load(ctx, job.Load, sink)
	case job.Save != nil:
		return b.save(ctx, job.Save)
	case job.Remove != nil:
		return b.remove(ctx, job.Remove)
	case job.Usage != nil:
		return b.usage(ctx)
	case job.Prune != nil:
		return b.prune(ctx, job.Prune)
	default:
		return nil, errors.New("job asks for nothing")
	}
}

// build runs the plan, keeps the image and delivers its outputs.
func (b *Backend) build(ctx context.Context, j *worker.Build, sink progress.Sink) (*worker.Result, error) {
	hosts, err := hostEntries(j.Hosts)
	if err != nil {
		return nil, err
	}
	m := b.machine(hosts)
	m.Secrets, m.CABundle = j.Secrets, j.CABundle
	m.Slots = make(chan struct{}, max(1, j.Runs))
	files := &contextFiles{context: j.Context}
	steps := &cache.Cache{Steps: b.Steps, Disabled: j.NoCache}
	numbered := &numberedSink{Sink: sink}
	results, err := executor.Run(ctx, executor.Options{
		Plan: &j.Plan, Cache: steps, Context: files.open, Sink: numbered,
	}, m)
	if err := errors.Join(err, files.close()); err != nil {
		return nil, b.hinted(err)
	}
	img, err := assemble(&j.Plan, results)
	if err != nil {
		return nil, err
	}
	res := &worker.Result{Image: &img}
	if err := b.deliver(ctx, j, res, numbered); err != nil {
		return nil, err
	}
	if err := b.Touch(ctx, steps.Hits()...); err != nil {
		return nil, err
	}
	_, err = b.Collect(ctx, false)
	return res, err
}

// hinted adds RunHint to the failure of a command.
func (b *Backend) hinted(err error) error {
	if b.RunHint == "" || !ranAndFailed(err) {
		return err
	}
	f := Describe(err)
	f.Hint = b.RunHint
	return f
}

// machine is what the executor works with.
func (b *Backend) machine(hosts []sandbox.HostEntry) *executor.Machine {
	return &executor.Machine{
		Layers: b.Layers, Mounter: b.Mounter, Lease: b.Lease, Runner: b.Runner, Caches: b.Caches,
		TempDir: b.TempDir, Hosts: hosts, Slots: make(chan struct{}, 1), Fetch: b.fetchImage,
	}
}

// hostEntries parses --add-host values.
func hostEntries(hosts []worker.Host) ([]sandbox.HostEntry, error) {
	var entries []sandbox.HostEntry
	for _, h := range hosts {
		addr, err := netip.ParseAddr(h.Addr)
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", h.Name, err)
		}
		entries = append(entries, sandbox.HostEntry{Name: h.Name, Addr: addr})
	}
	return entries, nil
}
