package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/mstage/mstage/engine/executor"
	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

// run starts a command on an image; what it writes is thrown away.
func (b *Backend) run(ctx context.Context, j *worker.Run, resize <-chan [2]uint16) (*worker.Result, error) {
	hosts, err := hostEntries(j.Hosts)
	if err != nil {
		return nil, err
	}
	o := executor.CommandOptions{Stdout: os.Stdout, Stderr: os.Stderr}
	if j.Stdin {
		o.Stdin = os.Stdin
	}
	if j.Terminal {
		o.Terminal = &sandbox.Terminal{Rows: j.Rows, Columns: j.Columns, Resize: resize}
	}
	for _, m := range j.Mounts {
		o.Mounts = append(o.Mounts, sandbox.Mount{
			Type: sandbox.MountBind, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly,
		})
	}
	err = executor.Command(ctx, b.machine(hosts), j.Image.Layers, &j.Command, o)
	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
		return &worker.Result{ExitCode: exit.Code}, nil
	}
	if start, ok := errors.AsType[*sandbox.StartError](err); ok {
		return nil, &worker.Failure{Message: err.Error(), Code: start.Code}
	}
	return &worker.Result{}, err
}

// importImage makes an image of one layer out of a root file system tar.
func (b *Backend) importImage(ctx context.Context, j *worker.Import) (*worker.Result, error) {
	in, from, err := importSource(j)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	layer, err := fetch.Layer(ctx, fetch.Stores{Layers: b.Layers, Lease: b.Lease}, in)
	if err != nil {
		return nil, blamed(ctx, fmt.Errorf("import %s: %w", from, err))
	}
	created := layer.Created
	osName, arch, _ := strings.Cut(j.Platform, "/")
	arch, variant, _ := strings.Cut(arch, "/")
	img, err := image.New(imageconfig.Config{
		Created: &created, OS: osName, Architecture: arch, Variant: variant,
		History: []imageconfig.History{{Created: &created, Comment: "Imported from " + filepath.Base(from)}},
	}, []storage.Layer{layer})
	if err != nil {
		return nil, err
	}
	if err := b.Images.PutImage(ctx, img, j.Name); err != nil {
		return nil, err
	}
	return &worker.Result{Image: &img}, b.Sync(ctx)
}

// importSource opens the tar and says how it is called.
func importSource(j *worker.Import) (io.ReadCloser, string, error) {
	if j.Path == "" {
		return io.NopCloser(os.Stdin), "-", nil
	}
	f, err := os.Open(j.Path)
	return f, j.Path, err
}

// prune collects what nothing needs; all takes the images away first.
func (b *Backend) prune(ctx context.Context, j *worker.Prune) (*worker.Result, error) {
	if j.All {
		if err := b.removeAll(ctx); err != nil {
			return nil, err
		}
	}
	freed, err := b.Collect(ctx, j.All)
	if err != nil {
		return nil, err
	}
	return &worker.Result{FreedBytes: freed}, b.Sync(ctx)
}

// exitNoCommand is what shells return for a command that is not there.
const exitNoCommand = 127

// unshare runs a host command as root of the worker's namespaces.
func unshare(ctx context.Context, j *worker.Unshare) (*worker.Result, error) {
	cmd := exec.CommandContext(ctx, j.Args[0], j.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return &worker.Result{ExitCode: shellCode(exit.ProcessState)}, nil
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return nil, &worker.Failure{Message: err.Error(), Code: exitNoCommand}
	}
	return &worker.Result{}, err
}

// shellCode is the exit code, or 128 + the signal's number, as shells have it.
func shellCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// removeAll forgets every image.
func (b *Backend) removeAll(ctx context.Context) error {
	all, err := b.Images.AllImages(ctx)
	if err != nil {
		return err
	}
	for _, img := range all {
		if err := b.Images.RemoveImage(ctx, img.ID); err != nil {
			return err
		}
	}
	return nil
}
