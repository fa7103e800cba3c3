package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mstage/mstage"
	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/reference"
)

// loadFlags are the flags of `mstage load`.
type loadFlags struct {
	input    string
	platform string
	quiet    bool
}

func newLoadCommand(c *cli) *cobra.Command {
	var f loadFlags
	cmd := &cobra.Command{
		Use:   "load [flags] [FILE|DIR|-]",
		Short: "Load images from a docker or OCI archive",
		Long: `Load the images of an archive into the local store: one of docker save, podman
save, skopeo, buildx or mstage, compressed or not, or the directory of an OCI
image layout. Without a name, or for "-", standard input is read.

The names in the archive are given to the images when all of them are there; a
name that another image has is moved.`,
		Example: `  mstage load -i hello.tar
  docker save debian:12 | mstage load
  mstage load layout-directory`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && f.input != "" {
				return &usageError{message: "load: -i and an argument both name an archive", command: cmd.CommandPath()}
			}
			if len(args) > 0 {
				f.input = args[0]
			}
			return c.load(cmd.Context(), f)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.input, "input", "i", "", "the archive or layout directory, - for standard input (default -)")
	fs.StringVar(&f.platform, "platform", "", "`OS/ARCH[/VARIANT]` to choose where an image is there for several (default the host's)")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "no progress")
	return cmd
}

// load loads an archive and prints what was in it, as docker does.
func (c *cli) load(ctx context.Context, f loadFlags) (err error) {
	var req engine.LoadRequest
	if f.platform != "" {
		p, err := parsePlatform(f.platform, "linux/amd64")
		if err != nil {
			return err
		}
		req.Platform = p.String()
	}
	path, stream, err := c.loadSource(f.input)
	if err != nil {
		return err
	}
	if stream != nil {
		defer func() { err = errors.Join(err, stream.Close()) }()
	}
	req.Path = path
	out, err := c.newProgress(progressOptions{quiet: f.quiet, title: "Loading"})
	if err != nil {
		return err
	}
	req.Sink = out
	root, err := c.storeRoot()
	if err != nil {
		return err
	}
	eng, err := mstage.New(mstage.Options{Root: root, Version: version, Stdin: stream})
	if err != nil {
		return err
	}
	var loaded []worker.Loaded
	err = showing(out, func() error {
		loaded, err = eng.Load(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	return c.printLoaded(loaded)
}

// loadSource says what to read: a path, or a stream, nil for standard input. What
// is neither a regular file nor a directory, as /dev/fd/63, is opened here: the
// worker has no such file. The caller closes the stream.
func (c *cli) loadSource(input string) (path string, stream *os.File, err error) {
	if input == "" || input == "-" {
		if isTerminal(c.stdin) {
			return "", nil, &usageError{message: "load: standard input is a terminal", hint: "name the archive with -i, or redirect standard input"}
		}
		return "", nil, nil
	}
	st, err := os.Stat(input)
	if err != nil {
		return "", nil, &usageError{message: err.Error()}
	}
	if st.IsDir() {
		path, err = filepath.Abs(input)
		return path, nil, err
	}
	if !st.Mode().IsRegular() {
		stream, err = os.Open(input)
		if err != nil {
			err = &usageError{message: err.Error()}
		}
		return "", stream, err
	}
	path, err = readable(input)
	return path, nil, err
}

// printLoaded prints a line for each name, or the ID of an image without one.
func (c *cli) printLoaded(loaded []worker.Loaded) error {
	for _, l := range loaded {
		lines := []string{"Loaded image ID: " + string(l.Image)}
		if len(l.Names) > 0 {
			lines = nil
		}
		for _, name := range l.Names {
			lines = append(lines, "Loaded image: "+reference.Familiar(name))
		}
		for _, line := range lines {
			if _, err := fmt.Fprintln(c.stdout, line); err != nil {
				return err
			}
		}
	}
	return nil
}
