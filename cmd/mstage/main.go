// Command mstage builds images from multi-stage Dockerfiles without a daemon
// and without root: flags to structs, events to a terminal.
package main

import (
	"context"
	"io"
	"os"

	"github.com/mstage/mstage"
)

func main() {
	mstage.Init()
	if err := trustEmbeddedRoots(); err != nil {
		os.Exit(finish(os.Stderr, err))
	}
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program but for the process. It returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := withSignals(context.Background())
	defer stop()
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr, lookupenv: os.LookupEnv}
	return finish(stderr, execute(ctx, c, args[1:]))
}
