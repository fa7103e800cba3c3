// Package runc runs a sandbox.Spec as a container of runc's libcontainer.
//
// It needs the worker of sandbox/rootless around it: root in a user namespace
// (or on the host), an own mount and pid namespace, and a private tmpfs. Each
// command gets new mount, pid, uts, ipc and user namespaces, docker's
// capabilities, paths and seccomp profile, and the network namespace of a slot
// that later commands use again.
package runc

import (
	"context"
	"crypto/rand"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C half of libcontainer's init
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

// Options of New.
type Options struct {
	// Network serves sandbox.NetworkDefault; nil refuses that mode.
	Network sandbox.Network
	// Warn receives what libcontainer logs as a warning or worse; nil drops it.
	// It may be called concurrently. The latest Runner's is in use, because
	// libcontainer has one logger for the process.
	Warn func(message string)
}

// Runner implements sandbox.Runner with libcontainer.
type Runner struct {
	stateDir string
	network  sandbox.Network
	ids      idMappings
	exe      *os.File // this program, sealed: what sandboxes see as their init
	slots    slotPool
}

var _ sandbox.Runner = (*Runner)(nil)

// Init takes over when this process is libcontainer's init: it does not return
// then. Call it first in main. The role is told by libcontainer's environment
// variable, so no argument of the command line can collide with it.
func Init() {
	if os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		libcontainer.Init()
	}
}

// New returns a Runner that keeps its state in stateDir, an existing directory
// on a tmpfs that only this process and its children see. Close releases it.
func New(stateDir string, o Options) (*Runner, error) {
	if err := checkStatic("/proc/self/exe"); err != nil {
		return nil, err
	}
	ids, err := readIDMappings()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"containers", "runs", "slots"} {
		if err := os.MkdirAll(filepath.Join(stateDir, dir), 0o711); err != nil {
			return nil, err
		}
	}
	exe, err := exeseal.CloneSelfExe(stateDir)
	if err != nil {
		return nil, fmt.Errorf("seal this program: %w", err)
	}
	warnings.set(o.Warn)
	r := &Runner{stateDir: stateDir, network: o.Network, ids: ids, exe: exe}
	r.slots = slotPool{dir: filepath.Join(stateDir, "slots"), network: o.Network, ids: ids}
	return r, nil
}

// Close disconnects the network namespaces. No Run may be under way.
func (r *Runner) Close() error {
	warnings.set(nil)
	return errors.Join(r.slots.close(), r.exe.Close())
}

// checkStatic refuses a program that needs a dynamic loader: the sandbox starts
// it in the image's root file system, which has none or a foreign one.
func checkStatic(path string) error {
	program, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read this program: %w", err)
	}
	defer program.Close()
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			return errors.New("this program is linked dynamically, sandboxes need a static one: " +
				`build it with -ldflags '-linkmode external -extldflags "-static"'`)
		}
	}
	return nil
}

// Run runs one command; see sandbox.Runner. An id that this worker can't give
// is a *rootless.HostError.
func (r *Runner) Run(ctx context.Context, s sandbox.Spec) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s = withDefaults(s)
	if err := r.check(s); err != nil {
		return err
	}
	limits, err := rlimits(s.Ulimits, r.ids)
	if err != nil {
		return err
	}
	slot, err := r.slots.take(ctx, s.Network)
	if err != nil {
		return err
	}
	defer r.slots.put(slot)
	id := rand.Text()
	room, err := newRoom(filepath.Join(r.stateDir, "runs", id), s, slot, r.ids)
	if err != nil {
		return err
	}
	config, err := r.config(id, s, slot, room)
	if err != nil {
		return errors.Join(err, room.close())
	}
	config.Rlimits = limits
	container, err := libcontainer.Create(filepath.Join(r.stateDir, "containers"), id, config)
	if err != nil {
		return errors.Join(fmt.Errorf("create sandbox: %w", err), room.close())
	}
	err = r.runIn(ctx, container, s)
	if cleanup := errors.Join(destroy(container), room.close()); cleanup != nil {
		return errors.Join(err, cleanup)
	}
	return err
}

func destroy(c *libcontainer.Container) error {
	if err := c.Destroy(); err != nil {
		return fmt.Errorf("remove sandbox: %w", err)
	}
	return nil
}

func withDefaults(s sandbox.Spec) sandbox.Spec {
	if s.Hostname == "" {
		s.Hostname = "mstage"
	}
	if s.Network == "" {
		s.Network = sandbox.NetworkDefault
	}
	if s.ShmBytes == 0 {
		s.ShmBytes = defaultShmBytes
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	return s
}

// runIn starts the command in its container and waits for its end. The thread
// stays this goroutine's until then: the command dies with the thread that
// forked it.
func (r *Runner) runIn(ctx context.Context, c *libcontainer.Container, s sandbox.Spec) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	streams, err := openStreams(s)
	if err != nil {
		return err
	}
	defer streams.close()
	statusR, process, err := r.process(s, streams)
	if err != nil {
		return err
	}
	defer statusR.Close()
	err = c.Run(process)
	closeAll(process.ExtraFiles[1:])
	streams.closeChild()
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = process.Signal(unix.SIGKILL) }) // ended already
	defer stop()
	ioErr := streams.start()
	if ioErr != nil {
		_ = process.Signal(unix.SIGKILL) // ended already
	}
	startErr := readStatus(statusR, s)
	state, waitErr := process.Wait()
	if err := errors.Join(ioErr, streams.wait()); err != nil && ctx.Err() == nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if startErr != nil {
		return startErr
	}
	return exitError(state, waitErr)
}

// process is the shim as libcontainer's process. The caller closes
// ExtraFiles[1:] and the reader.
func (r *Runner) process(s sandbox.Spec, streams *streams) (*os.File, *libcontainer.Process, error) {
	ord, err := order{spec: s, setGroups: r.ids.setGroups, chownStdio: streams.chown}.file()
	if err != nil {
		return nil, nil, err
	}
	statusR, statusW, err := os.Pipe()
	if err != nil {
		ord.Close()
		return nil, nil, err
	}
	p := &libcontainer.Process{
		Args:          []string{shimExe, shimArg},
		Env:           []string{"HOME=/"}, // libcontainer reads /etc/passwd for one otherwise
		Cwd:           "/",
		Stdin:         streams.in(),
		Stdout:        streams.out(),
		Stderr:        streams.err(),
		ConsoleSocket: streams.consoleChild,
		ExtraFiles:    []*os.File{r.exe, ord, statusW},
		Init:          true,
	}
	if s.Terminal != nil {
		p.ConsoleWidth, p.ConsoleHeight = s.Terminal.Columns, s.Terminal.Rows
	}
	return statusR, p, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() // they were open for the child only
	}
}

func exitError(state *os.ProcessState, err error) error {
	if state == nil {
		return fmt.Errorf("wait for sandbox: %w", err)
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return fmt.Errorf("wait for sandbox: %w", err)
	case status.Signaled():
		return &sandbox.ExitError{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
	case status.ExitStatus() != 0:
		return &sandbox.ExitError{Code: status.ExitStatus()}
	}
	return nil
}

// noNUL refuses what execve(2) can't carry.
func noNUL(lists ...[]string) error {
	for _, list := range lists {
		for _, v := range list {
			if strings.ContainsRune(v, 0) {
				return startError(codeNotExecutable, "exec: %q holds a NUL byte", v)
			}
		}
	}
	return nil
}
