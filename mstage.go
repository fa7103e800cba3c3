// Package mstage embeds the build engine in a program: Init gives the program
// its second role as a worker process, New wires the engine with its store,
// sources and sandboxes.
//
// The mstage command is such a program, and nothing more.
package mstage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/pkg/registry"
	"github.com/mstage/mstage/plugins"
	registrysource "github.com/mstage/mstage/plugins/registry"
	"github.com/mstage/mstage/sandbox/rootless"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/blobs"
	"github.com/mstage/mstage/storage/index"
	"github.com/mstage/mstage/storage/layout"
)

// Options say which store an engine works on. Only Root is required.
type Options struct {
	// Root is the store's directory. It is made by the first build or import.
	Root string
	// Sources answer for FROM and --from words. Nil: the built-in ones in their
	// documented order, registries as Pull says.
	Sources []pluginapi.Source
	// Registry says how registries are reached.
	Registry registry.Options
	// Pull says when registries are asked.
	Pull PullPolicy
	// Stdin, Stdout and Stderr are what commands of Run and outputs to "-" use.
	// Nil: the process's own.
	Stdin, Stdout, Stderr *os.File
	// Version stands in what the engine writes. Zero: "dev".
	Version string
}

// PullPolicy says when registries are asked about an image's name.
type PullPolicy int

// The policies.
const (
	// PullMissing asks for what the store has not.
	PullMissing PullPolicy = iota
	// PullAlways asks about every name, and downloads what is new.
	PullAlways
	// PullNever asks nobody.
	PullNever
)

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
	store, err := blobs.Open(l.Blobs())
	if err != nil {
		return nil, err
	}
	client := registry.New(o.Registry)
	if o.Sources == nil {
		o.Sources = plugins.Order(ix, others(client, ix, o.Pull))
	}
	return engine.New(engine.Options{
		Root: root, Index: ix, Sources: o.Sources, Blobs: store, Remote: remote{client}, Version: o.Version, Platform: Platform(),
		Launcher: launcher{root: root, stdin: orStd(o.Stdin, os.Stdin), stdout: orStd(o.Stdout, os.Stdout), stderr: orStd(o.Stderr, os.Stderr)},
	}), nil
}

// others are the sources outside this host.
func others(client *registry.Client, images storage.Images, pull PullPolicy) plugins.Others {
	if pull == PullNever {
		return plugins.Others{}
	}
	always := pull == PullAlways
	return plugins.Others{Remote: []pluginapi.Source{registrysource.New(client, images, always)}, Fresh: always}
}

// remote pushes over the registry client.
type remote struct{ client *registry.Client }

// Push implements engine.Remote.
func (r remote) Push(ctx context.Context, name string, img *image.OCI, homes map[string][]string, tell func(digest string, sent, total int64)) (storage.Digest, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return "", err
	}
	digest, err := r.client.Push(ctx, ref, img, registry.PushOptions{Progress: tell, Homes: homes})
	if err != nil {
		return "", registrysource.Refusal(err)
	}
	return storage.ParseDigest(digest)
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
func (l launcher) Launch(o worker.LaunchOptions) (worker.Process, error) {
	state := ""
	if !o.NoStore {
		var err error
		if state, err = makeStateDir(l.root); err != nil {
			return nil, err
		}
	}
	w, err := rootless.Start(context.Background(), rootless.Options{
		Args: []string{workerRole, state}, StateDir: state, SameGroup: o.Terminal,
		Stdin: l.stdin, Stdout: l.stdout, Stderr: l.stderr, ExtraFiles: []*os.File{o.Streams},
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

// Notice tells why a better rung than the one in use is out of reach.
func (p process) Notice() string {
	if p.worker.Notice == nil {
		return ""
	}
	return p.worker.Notice.Message + ": files keep only one owner; " + p.worker.Notice.Hint
}

func (p process) Wait() error { return p.worker.Wait() }

// makeStateDir makes the store where it is missing, and the directory in it over
// which each worker mounts a private tmpfs; on disk it stays empty.
func makeStateDir(root string) (string, error) {
	if _, err := layout.Create(root); err != nil {
		return "", err
	}
	dir := filepath.Join(root, "run")
	return dir, os.MkdirAll(dir, 0o700)
}
