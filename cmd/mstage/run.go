package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mstage/mstage"
	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// runFlags are the flags of `mstage run`.
type runFlags struct {
	stdin, terminal bool
	env             []string
	dir, user       string
	volumes         []string
	entrypoint      string
	network         string
	hosts           []string
	pull            string

	registryFlags
}

func newRunCommand(c *cli) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND…]",
		Short: "Run a command on an image in a sandbox",
		Long: `Run a command on an image in a sandbox, as RUN does in a build. What it writes
to its file system is thrown away when it ends. The exit code is the command's;
125 says that mstage failed, 126 and 127 that the command can't be started.`,
		Example: `  mstage run hello
  mstage run -it debian bash
  mstage run -v "$PWD:/src:ro" -w /src debian ls`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.entrypointSet(cmd)
			return c.run(cmd.Context(), cmd, &f, args[0], args[1:])
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &codedError{code: ownFailure, err: &usageError{message: err.Error(), command: cmd.CommandPath()}}
	})
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&f.stdin, "interactive", "i", false, "connect standard input")
	fs.BoolVarP(&f.terminal, "tty", "t", false, "give the command a terminal")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "`NAME=VALUE`, or NAME from the environment (again for more)")
	fs.StringVarP(&f.dir, "workdir", "w", "", "working directory")
	fs.StringVarP(&f.user, "user", "u", "", "`USER[:GROUP]`, names or numbers")
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "`SRC:DST[:ro]`, a host directory or file (again for more)")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "command instead of the image's entry point")
	fs.StringVar(&f.network, "network", "default", "default, none or host")
	fs.StringArrayVar(&f.hosts, "add-host", nil, "extra line of /etc/hosts, `HOST:IP`")
	fs.StringVar(&f.pull, "pull", "missing", "ask the registry for the image: always, missing or never")
	f.registerPull(cmd)
	f.registerCA(cmd)
	fs.Bool("rm", true, "the file system is always thrown away; for docker's fingers")
	return cmd
}

// entrypointSet tells --entrypoint "" from no flag.
func (f *runFlags) entrypointSet(cmd *cobra.Command) {
	if !cmd.Flags().Changed("entrypoint") {
		f.entrypoint = keepEntrypoint
	}
}

// keepEntrypoint stands for a flag that was not given; no program has this name.
const keepEntrypoint = "\x00"

// ownFailure is docker's exit code for "it was not the command that failed".
const ownFailure = 125

// run runs the command and passes its exit code on.
func (c *cli) run(ctx context.Context, cmd *cobra.Command, f *runFlags, image string, args []string) error {
	code, err := c.runImage(ctx, f, image, args)
	var failure *worker.Failure
	switch {
	case err == nil:
		return status(code)
	case errors.As(err, &failure) && slices.Contains([]int{126, 127, engine.ExitPipe}, failure.Code):
		return err
	default:
		return &codedError{code: ownFailure, hint: describe(err).Hint, err: err}
	}
}

func (c *cli) runImage(ctx context.Context, f *runFlags, image string, args []string) (int, error) {
	r, err := c.runRequest(f, args)
	if err != nil {
		return 0, err
	}
	eng, err := c.registryEngine(&f.registryFlags, f.pull)
	if err != nil {
		return 0, err
	}
	if r.Image, err = c.imageToRun(ctx, eng, image, f.pull); err != nil {
		return 0, err
	}
	if !f.terminal {
		return eng.Run(ctx, r)
	}
	restore, err := rawTerminal(&r)
	if err != nil {
		return 0, err
	}
	defer restore()
	return eng.Run(ctx, r)
}

// imageToRun finds the image, in a registry when that is asked for.
func (c *cli) imageToRun(ctx context.Context, eng *engine.Engine, word, pull string) (storage.Image, error) {
	if pullPolicies[pull] == mstage.PullNever {
		return findImage(ctx, eng.Images(), word)
	}
	out, err := c.newProgress(progressOptions{mode: "auto", title: "Pulling"})
	if err != nil {
		return storage.Image{}, err
	}
	var img storage.Image
	err = showing(out, func() error {
		var err error
		if pullPolicies[pull] == mstage.PullAlways {
			img, err = eng.Pull(ctx, word, "", out)
		} else {
			img, err = pullMissing(ctx, eng, word, out)
		}
		return err
	})
	return img, err
}

// runRequest reads the flags.
func (c *cli) runRequest(f *runFlags, args []string) (r engine.RunRequest, err error) {
	if !slices.Contains([]string{"default", "none", "host"}, f.network) {
		return r, usagef("--network %s: default, none or host", f.network)
	}
	r = engine.RunRequest{Args: args, Dir: f.dir, User: f.user, Network: f.network, Stdin: f.stdin, Terminal: f.terminal}
	if f.entrypoint != keepEntrypoint {
		r.Entrypoint = []string{}
		if f.entrypoint != "" {
			r.Entrypoint = []string{f.entrypoint}
		}
	}
	if f.dir != "" && !filepath.IsAbs(f.dir) {
		return r, usagef("--workdir %s: an absolute path", f.dir)
	}
	for _, kv := range f.env {
		name, _, given := strings.Cut(kv, "=")
		if !given {
			value, ok := c.lookupenv(name)
			if !ok {
				continue
			}
			kv = name + "=" + value
		}
		r.Env = append(r.Env, kv)
	}
	if r.Hosts, err = parseHosts(f.hosts); err != nil {
		return r, err
	}
	r.Mounts, err = parseVolumes(f.volumes)
	return r, err
}

// parseVolumes reads -v values.
func parseVolumes(values []string) ([]worker.BindMount, error) {
	var mounts []worker.BindMount
	for _, v := range values {
		parts := strings.Split(v, ":")
		if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !filepath.IsAbs(parts[1]) {
			return nil, usagef("--volume %s: SRC:DST[:ro], DST absolute", v)
		}
		m := worker.BindMount{Target: parts[1]}
		if len(parts) == 3 {
			switch parts[2] {
			case "ro":
				m.ReadOnly = true
			case "rw":
			default:
				return nil, usagef("--volume %s: %q is not ro or rw", v, parts[2])
			}
		}
		source, err := filepath.Abs(parts[0])
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(source); err != nil {
			return nil, usagef("--volume %s: %v", v, err)
		}
		m.Source = source
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// rawTerminal hands the caller's terminal to the command. restore gives it back.
func rawTerminal(r *engine.RunRequest) (restore func(), err error) {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return nil, &usageError{message: "-t: standard input is not a terminal", hint: "leave -t out"}
	}
	columns, rows, err := term.GetSize(fd)
	if err != nil {
		return nil, err
	}
	r.Rows, r.Columns = uint16(rows), uint16(columns)
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	signals := make(chan os.Signal, 1)
	sizes := make(chan [2]uint16, 1)
	signal.Notify(signals, syscall.SIGWINCH)
	go func() {
		for range signals {
			if columns, rows, err := term.GetSize(fd); err == nil {
				sizes <- [2]uint16{uint16(rows), uint16(columns)}
			}
		}
	}()
	r.Resize = sizes
	return func() {
		signal.Stop(signals)
		close(signals)
		_ = term.Restore(fd, state)
	}, nil
}
