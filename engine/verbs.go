package engine

import (
	"context"
	"strings"

	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// RunRequest says which command to run on an image.
type RunRequest struct {
	Image storage.Image
	// Args replace the image's command; Entrypoint its entry point, nil keeps it.
	Args       []string
	Entrypoint []string
	Env        []string
	// Dir and User replace the image's, "" keeps them.
	Dir, User string
	Mounts    []worker.BindMount
	Network   string
	Hosts     []worker.Host
	// Stdin connects the caller's standard input.
	Stdin bool
	// Terminal gives the command a terminal; Resize delivers its later sizes
	// {rows, columns}.
	Terminal      bool
	Rows, Columns uint16
	Resize        <-chan [2]uint16
}

// errNoCommand says what `docker run` says.
var errNoCommand = &worker.Failure{
	Message: "no command: the image has none and none was given",
	Hint:    "mstage run IMAGE COMMAND", Code: ExitUsage,
}

// Run runs a command on an image and returns its exit code. What the command
// writes is thrown away.
func (e *Engine) Run(ctx context.Context, r RunRequest) (int, error) {
	cfg, err := imageconfig.Parse(r.Image.Config)
	if err != nil {
		return 0, err
	}
	cmd := command(cfg.Config, r)
	if len(cmd.Args) == 0 {
		return 0, errNoCommand
	}
	res, err := e.call(ctx, worker.Job{Run: &worker.Run{
		Image: r.Image, Command: cmd, Mounts: r.Mounts, Hosts: r.Hosts, Stdin: r.Stdin,
		Terminal: r.Terminal, Rows: r.Rows, Columns: r.Columns,
	}}, nil, r.Resize)
	if err != nil {
		return 0, err
	}
	return res.ExitCode, nil
}

// command merges the image's config with what the caller wants, as docker does:
// another entry point drops the image's command.
func command(c imageconfig.Container, r RunRequest) plan.Run {
	entrypoint, args := c.Entrypoint, c.Cmd
	if r.Entrypoint != nil {
		entrypoint, args = r.Entrypoint, nil
	}
	if len(r.Args) > 0 {
		args = r.Args
	}
	run := plan.Run{
		Args: append(append([]string{}, entrypoint...), args...),
		Env:  mergeEnv(c.Env, r.Env), Dir: c.WorkingDir, User: c.User, Network: r.Network,
	}
	if r.Dir != "" {
		run.Dir = r.Dir
	}
	if r.User != "" {
		run.User = r.User
	}
	if run.Dir == "" {
		run.Dir = "/"
	}
	return run
}

// mergeEnv sets variables over those of the image.
func mergeEnv(env, over []string) []string {
	merged := append([]string{}, env...)
	for _, kv := range over {
		name, _, _ := strings.Cut(kv, "=")
		replaced := false
		for i, old := range merged {
			if strings.HasPrefix(old, name+"=") {
				merged[i], replaced = kv, true
			}
		}
		if !replaced {
			merged = append(merged, kv)
		}
	}
	return merged
}

// Import makes an image of a root file system tar and gives it a name. path ""
// reads the caller's standard input.
func (e *Engine) Import(ctx context.Context, path, name string) (storage.Image, error) {
	res, err := e.call(ctx, worker.Job{Import: &worker.Import{Path: path, Name: name, Platform: e.o.Platform}}, nil, nil)
	if err != nil {
		return storage.Image{}, err
	}
	return *res.Image, nil
}

// Remove removes names and images. It returns lines that tell what went.
func (e *Engine) Remove(ctx context.Context, targets []worker.RemoveTarget, force bool) ([]string, error) {
	res, err := e.call(ctx, worker.Job{Remove: &worker.Remove{Targets: targets, Force: force}}, nil, nil)
	if err != nil {
		return nil, err
	}
	return res.Removed, nil
}

// Prune removes what no image needs, with all the whole build cache, and returns
// the bytes freed.
func (e *Engine) Prune(ctx context.Context, all bool) (int64, error) {
	res, err := e.call(ctx, worker.Job{Prune: &worker.Prune{All: all}}, nil, nil)
	if err != nil {
		return 0, err
	}
	return res.FreedBytes, nil
}

// Unshare runs a command of this host as root of the worker's namespaces and
// returns its exit code.
func (e *Engine) Unshare(ctx context.Context, args []string) (int, error) {
	res, err := e.call(ctx, worker.Job{Unshare: &worker.Unshare{Args: args}}, nil, nil)
	if err != nil {
		return 0, err
	}
	return res.ExitCode, nil
}
