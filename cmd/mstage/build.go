package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/export"
)

// buildFlags are the flags of `mstage build` as written.
type buildFlags struct {
	file         string
	names        []string
	target       string
	platform     string
	buildArgs    []string
	labels       []string
	secrets      []string
	noCache      bool
	network      string
	allow        []string
	hosts        []string
	shmSize      string
	ulimits      []string
	jobs         int
	iidFile      string
	metadataFile string
	progress     string
	quiet        bool
	outputs      []string
	pull         string
	push         bool
	load         bool

	registryFlags
}

func newBuildCommand(c *cli) *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [flags] CONTEXT|-",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile. CONTEXT is the directory that COPY and ADD
read from; "-" reads a Dockerfile, or a tar of a context, from standard input.

The image goes to the local store, unless --output says something else. The
image ID is printed on standard output, everything else on standard error.`,
		Example: `  mstage build -t hello .
  mstage build --target test --build-arg VERSION=1.2 .
  mstage build -t hello -o type=docker,dest=hello.tar .
  mstage build -o rootfs .`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRefused(cmd); err != nil {
				return err
			}
			return c.build(cmd.Context(), &f, args[0])
		},
	}
	f.register(cmd)
	registerRefused(cmd)
	return cmd
}

// register declares the flags that plan and build share with docker.
func (f *buildFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	f.registerPlan(cmd)
	fs.StringArrayVarP(&f.names, "tag", "t", nil, "name of the image, `NAME[:TAG]` (again for more)")
	fs.StringArrayVar(&f.secrets, "secret", nil, "`id=ID,src=FILE` or id=ID,env=NAME for RUN --mount=type=secret")
	fs.BoolVar(&f.noCache, "no-cache", false, "run every step; results are kept for the next build")
	fs.StringArrayVar(&f.hosts, "add-host", nil, "extra line of /etc/hosts, `HOST:IP`")
	fs.IntVar(&f.jobs, "jobs", 0, "how many RUNs at once (default 16; stages are not limited)")
	fs.StringVar(&f.iidFile, "iidfile", "", "write the image ID to `FILE`")
	fs.StringVar(&f.metadataFile, "metadata-file", "", "write a JSON description of the result to `FILE`")
	fs.StringVar(&f.progress, "progress", "", progressFlag)
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "print the image ID only")
	fs.StringVar(&f.caBundle, "ca-bundle", "", "`FILE` of certificates that registries and RUNs may be trusted by; never part of a layer")
	fs.StringVar(&f.pull, "pull", "missing", "ask registries for base images: always, missing (when the store has none) or never")
	fs.Lookup("pull").NoOptDefVal = "always"
	fs.BoolVar(&f.push, "push", false, "push the image to the registries of its names; short for -o type=registry")
	fs.BoolVar(&f.load, "load", false, "hand the image to the docker daemon, or podman's service; short for -o type=daemon")
	f.registerPull(cmd)
	fs.StringArrayVarP(&f.outputs, "output", "o", nil, "`type=image|registry|daemon|oci|docker|local|tar[,dest=PATH]`, a directory, or - (again for more)")
}

// registerPlan declares the flags that change the plan.
func (f *buildFlags) registerPlan(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVarP(&f.file, "file", "f", "", "the Dockerfile, - for standard input (default Dockerfile, dockerfile or Containerfile in CONTEXT)")
	fs.StringVar(&f.target, "target", "", "stage to build, by name or index (default the last)")
	fs.StringVar(&f.platform, "platform", "", "`OS/ARCH`; only this host's is supported yet")
	fs.StringArrayVar(&f.buildArgs, "build-arg", nil, "`NAME[=VALUE]` for ARG; without = from the environment")
	fs.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` for the image")
	fs.StringVar(&f.network, "network", "default", "network of RUN: default, none or host")
	fs.StringArrayVar(&f.allow, "allow", nil, "`network.host` lets a RUN ask for the host's network")
	fs.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm for RUN, as 128m (default 64m)")
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "limit for RUN, `NAME=SOFT[:HARD]`")
}

// build runs one build and prints its image ID.
func (c *cli) build(ctx context.Context, f *buildFlags, contextArg string) (err error) {
	req, cleanup, err := c.request(ctx, f, contextArg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cleanup()) }()
	if err := c.addBuildOptions(&req, f); err != nil {
		return err
	}
	out, err := c.newProgress(progressOptions{mode: f.progress, quiet: f.quiet, title: "Building", source: req.Dockerfile})
	if err != nil {
		return err
	}
	req.Sink = out
	var res *engine.BuildResult
	err = showing(out, func() error {
		eng, err := c.registryEngine(&f.registryFlags, f.pull)
		if err != nil {
			return err
		}
		res, err = eng.Build(ctx, req)
		return err
	})
	if err != nil {
		return err
	}
	return c.report(f, res)
}

// addBuildOptions reads the flags that a plan doesn't need.
func (c *cli) addBuildOptions(r *engine.Request, f *buildFlags) error {
	var err error
	if r.Names, err = imageNames(f.names); err != nil {
		return err
	}
	if r.Secrets, err = parseSecrets(f.secrets, c.lookupenv); err != nil {
		return err
	}
	if r.Hosts, err = parseHosts(f.hosts); err != nil {
		return err
	}
	if r.Outputs, err = c.parseOutputs(f.outputs); err != nil {
		return err
	}
	if f.load {
		r.Outputs = append(r.Outputs, export.Output{Type: export.TypeDaemon})
	}
	if f.push {
		r.Outputs = append(r.Outputs, export.Output{Type: export.TypeRegistry})
	}
	if err := checkPushed(r); err != nil {
		return err
	}
	for i := range r.Outputs {
		if o := &r.Outputs[i]; o.Type == export.TypeDaemon {
			if o.Daemon, err = c.daemon(*o); err != nil {
				return err
			}
		}
	}
	for flag, name := range map[string]string{"--iidfile": f.iidFile, "--metadata-file": f.metadataFile} {
		if err := checkFile(flag, name); err != nil {
			return err
		}
	}
	if f.jobs < 0 {
		return usagef("--jobs %d: a number from 1 up", f.jobs)
	}
	r.NoCache, r.Runs = f.noCache, f.jobs
	if f.caBundle != "" {
		r.CABundle, err = readable(f.caBundle)
	}
	return err
}

// checkPushed refuses to push what has no name, and drops a second push.
func checkPushed(r *engine.Request) error {
	isPush := func(o export.Output) bool { return o.Type == export.TypeRegistry }
	first := slices.IndexFunc(r.Outputs, isPush)
	if first < 0 {
		return nil
	}
	if len(r.Names) == 0 {
		return &usageError{message: "push: the image has no name", hint: "-t REGISTRY/NAME[:TAG] says where to push"}
	}
	rest := slices.DeleteFunc(r.Outputs[first+1:], isPush)
	r.Outputs = r.Outputs[:first+1+len(rest)]
	return nil
}

// readable returns the absolute path of a file that can be read.
func readable(name string) (string, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil {
		return "", &usageError{message: err.Error()}
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", &usageError{message: name + ": not a regular file"}
	}
	return filepath.Abs(name)
}

// imageNames normalises -t values.
func imageNames(words []string) ([]string, error) {
	var names []string
	for _, w := range words {
		name, err := imageName(w)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

// parseOutputs reads -o values; a terminal gets no archive.
func (c *cli) parseOutputs(values []string) ([]export.Output, error) {
	var outputs []export.Output
	for _, v := range values {
		o, err := export.ParseOutput(v)
		if err != nil {
			return nil, outputError(err)
		}
		if o.Dest == "-" && slices.ContainsFunc(outputs, func(other export.Output) bool { return other.Dest == "-" }) {
			return nil, &usageError{message: "-o " + v + ": another output takes standard output already", hint: "add dest=FILE"}
		}
		if o.Dest == "-" && isTerminal(c.stdout) {
			return nil, &usageError{message: "-o " + v + ": standard output is a terminal", hint: "redirect it, or add dest=FILE"}
		}
		if o.Dest != "" && o.Dest != "-" {
			if o.Dest, err = filepath.Abs(o.Dest); err != nil {
				return nil, err
			}
			if err := checkWritable(o.Dest); err != nil {
				return nil, err
			}
		}
		outputs = append(outputs, o)
	}
	return outputs, nil
}

// checkFile refuses a file that could not be written when the build is done.
func checkFile(flag, name string) error {
	if name == "" {
		return nil
	}
	if st, err := os.Stat(name); err == nil && st.IsDir() {
		return usagef("%s %s: is a directory", flag, name)
	}
	if err := unix.Access(filepath.Dir(name), unix.W_OK); err != nil {
		return usagef("%s %s: write to %s: %v", flag, name, filepath.Dir(name), err)
	}
	return nil
}

// checkWritable refuses a place that the caller may not write to. The worker is
// root over the caller's files and would write to a directory of mode 0555.
func checkWritable(dest string) error {
	dir := dest
	for {
		st, err := os.Stat(dir)
		if err == nil && (st.IsDir() || dir == dest && !st.Mode().IsRegular()) {
			break // a device or a pipe is written to itself
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return nil // the export tells what is wrong with such a path
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return &usageError{message: fmt.Sprintf("-o %s: write to %s: %v", dest, dir, err)}
	}
	return nil
}

// report prints the image ID and writes the files that were asked for.
func (c *cli) report(f *buildFlags, res *engine.BuildResult) error {
	if !toStdout(res) {
		fmt.Fprintln(c.stdout, res.Image.ID)
	}
	if f.iidFile != "" {
		if err := writeFile(f.iidFile, []byte(res.Image.ID)); err != nil {
			return err
		}
	}
	if f.metadataFile == "" {
		return nil
	}
	b, err := json.MarshalIndent(metadata(res), "", "  ")
	if err != nil {
		return err
	}
	return writeFile(f.metadataFile, append(b, '\n'))
}

// toStdout reports whether an output took standard output.
func toStdout(res *engine.BuildResult) bool {
	for _, e := range res.Exports {
		if e.Dest == "-" {
			return true
		}
	}
	return false
}

// metadata has BuildKit's keys where the value is known.
func metadata(res *engine.BuildResult) map[string]any {
	m := map[string]any{"mstage.image.id": res.Image.ID}
	if len(res.Names) > 0 {
		m["image.name"] = strings.Join(res.Names, ",")
	}
	for _, e := range res.Exports {
		if e.Digest != "" {
			m["containerimage.digest"] = e.Digest
		}
	}
	if res.Image.Sealed != nil {
		m["containerimage.config.digest"] = res.Image.Sealed.ConfigDigest
	}
	return m
}

// writeFile writes a file whole or not at all.
func writeFile(name string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// outputError is the usage error for a -o that can't be honoured.
func outputError(err error) error {
	if bad, ok := errors.AsType[*export.OutputError](err); ok {
		return &usageError{message: bad.Error(), hint: bad.Hint}
	}
	return err
}
