// Command differential builds the same Dockerfiles with mstage and with BuildKit
// and compares the images: file trees (type, mode, owner, size, content, links,
// hard links, attributes, times), configs and histories. mstage's type=tar output
// is compared with the layers of its own image as well. Package integration's
// scripts say what mstage does; this says whether another builder does the same.
//
// Its arguments are case files. A case has this form; only :about and
// Dockerfile are required:
//
//	=== sentence that names the case
//	:about FEATURE, …        of those in features.go
//	:arg NAME=VALUE          build argument
//	:target STAGE
//	:label KEY=VALUE
//	:secret ID VALUE
//	:fail                    both have to refuse it
//	:known REASON            a difference is expected, and shown as such
//	--- setup                script for bash, run in the empty context directory
//	--- ignore               .dockerignore
//	--- Dockerfile
//
// With -update, and only when every case is equal or known to differ, what mstage
// made becomes the goldens in the directory golden beside the case files. The
// package's test compares mstage alone with them: it needs neither root nor BuildKit.
//
// A case named "base:NAME" is built by mstage alone, first, and becomes the image
// NAME for both.
//
// Neither builder has times in a cache key, so two cases with equal bytes and an
// equal destination may show each other's times: files of a new case get content
// of their own.
//
// It has to be root: BuildKit's daemon is. mstage and the setups are not. The exit
// code is 1 when a case differs without a :known line or can't be compared.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
)

// settings is what the flags say.
type settings struct {
	mstage, buildctl, addr  string
	work                    string // absolute; below it are the store, contexts and outputs
	user                    owner  // of work
	only                    *regexp.Regexp
	jobs                    int
	layers, cached, verbose bool
	update                  bool // write goldens
	features                bool // print the table and no more
}

// owner is who runs mstage and the setups.
type owner struct{ uid, gid uint32 }

func main() {
	s, files, err := parseFlags(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err == nil {
		err = s.run(ctx, files, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "differential:", err)
		stop()
		os.Exit(1)
	}
}

// parseFlags returns the settings and the names of the case files.
func parseFlags(args []string, usage io.Writer) (s settings, files []string, err error) {
	flags := flag.NewFlagSet("differential", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.StringVar(&s.mstage, "mstage", "", "mstage's binary")
	flags.StringVar(&s.buildctl, "buildctl", "", "buildctl's binary")
	flags.StringVar(&s.addr, "addr", "", "address of buildkitd")
	flags.StringVar(&s.work, "work", "", "directory for everything that is made; its owner runs mstage")
	only := flags.String("only", "", "regular expression: cases with names that match")
	flags.IntVar(&s.jobs, "j", 2, "cases at once")
	flags.BoolVar(&s.layers, "layers", false, "compare the names in each layer, too")
	flags.BoolVar(&s.cached, "cached", false, "build with the cache, and compare no times")
	flags.BoolVar(&s.verbose, "v", false, "show what both said of cases that fail")
	flags.BoolVar(&s.features, "features", false, "print how many cases there are of each feature, and build none")
	flags.BoolVar(&s.update, "update", false, "write the goldens of the cases, when all are equal or known to differ")
	if err := flags.Parse(args); err != nil {
		return s, nil, err
	}
	if s.features {
		return s, flags.Args(), nil
	}
	for _, name := range []string{"mstage", "buildctl", "addr", "work"} {
		if flags.Lookup(name).Value.String() == "" {
			return s, nil, fmt.Errorf("-%s is needed", name)
		}
	}
	if flags.NArg() == 0 || s.jobs < 1 {
		return s, nil, errors.New("case files and -j of at least 1 are needed")
	}
	if s.update && s.cached {
		return s, nil, errors.New("-update and -cached exclude each other: goldens have times")
	}
	if s.only, err = regexp.Compile(*only); err != nil {
		return s, nil, fmt.Errorf("-only: %w", err)
	}
	if s.work, err = filepath.Abs(s.work); err != nil {
		return s, nil, err
	}
	s.user, err = ownerOf(s.work)
	return s, flags.Args(), err
}

// ownerOf returns whom a directory belongs to.
func ownerOf(dir string) (owner, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return owner{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return owner{}, fmt.Errorf("%s: not a directory", dir)
	}
	return owner{uid: stat.Uid, gid: stat.Gid}, nil
}

// run compares the cases of files and writes the table. The error says how many
// of them are neither equal nor known to differ.
func (s settings) run(ctx context.Context, files []string, out io.Writer) error {
	cases, err := readCases(files)
	if err != nil {
		return err
	}
	if s.features {
		return printFeatures(out, cases)
	}
	bases, err := s.makeBases(ctx, cases)
	if err != nil {
		return err
	}
	var todo []testCase
	for _, c := range cases {
		if !c.isBase() && s.only.MatchString(c.name) {
			todo = append(todo, c)
		}
	}
	if len(todo) == 0 {
		return fmt.Errorf("no case matches %q", s.only)
	}
	results := s.compareAll(ctx, todo, bases, out)
	if err := ctx.Err(); err != nil {
		return err
	}
	return finish(out, s, cases, results)
}

// finish writes the table's last line and, when that is asked for and nothing is
// against it, goldens.
func finish(out io.Writer, s settings, cases []testCase, results []result) error {
	if err := summary(out, results); err != nil || !s.update {
		return err
	}
	return updateGoldens(cases, results)
}

// compareAll writes each result as it comes and returns all in the order of cases.
func (s settings) compareAll(ctx context.Context, cases []testCase, bases []base, out io.Writer) []result {
	results := make([]result, len(cases))
	var running sync.WaitGroup
	var writing sync.Mutex
	slots := make(chan struct{}, s.jobs)
	for i, c := range cases {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			results[i] = s.compare(ctx, i, c, bases)
			writing.Lock()
			defer writing.Unlock()
			fmt.Fprint(out, results[i])
		})
	}
	running.Wait()
	return results
}

// isBase reports whether a case makes an image for others.
func (c testCase) isBase() bool { return strings.HasPrefix(c.name, basePrefix) }
