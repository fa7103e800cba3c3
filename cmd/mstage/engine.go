package main

import (
	"os"

	"golang.org/x/term"

	"github.com/mstage/mstage"
	"github.com/mstage/mstage/engine"
)

// engine opens the engine on the store that the flags choose.
func (c *cli) engine() (*engine.Engine, error) {
	root, err := c.storeRoot()
	if err != nil {
		return nil, err
	}
	return mstage.New(mstage.Options{Root: root, Version: version})
}

// isTerminal reports whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// status is the error for the exit code of a command that mstage ran for the
// user: it becomes mstage's own and nothing is printed. 0 is no error.
func status(code int) error {
	if code == 0 {
		return nil
	}
	return &codedError{code: code}
}
