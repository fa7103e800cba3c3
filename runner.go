package mstage

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/sandbox/netstack"
	"github.com/mstage/mstage/sandbox/runc"
)

// lazyRunner makes the sandbox's runner and network when the first command
// needs them: an import or a build of COPYs alone has none.
type lazyRunner struct {
	stateDir string

	once    sync.Once
	runner  *runc.Runner
	network *netstack.Network
	err     error
}

// Run implements sandbox.Runner.
func (l *lazyRunner) Run(ctx context.Context, s sandbox.Spec) error {
	l.once.Do(l.open)
	if l.err != nil {
		return l.err
	}
	return l.runner.Run(ctx, s)
}

func (l *lazyRunner) open() {
	if l.err = os.MkdirAll(l.stateDir, 0o711); l.err != nil {
		return
	}
	if l.network, l.err = netstack.New(netstack.Options{}); l.err != nil {
		return
	}
	l.runner, l.err = runc.New(l.stateDir, runc.Options{Network: l.network, Warn: warn})
}

// Close releases what was made.
func (l *lazyRunner) Close() error {
	var err error
	if l.runner != nil {
		err = l.runner.Close()
	}
	if l.network != nil {
		err = errors.Join(err, l.network.Close())
	}
	return err
}
