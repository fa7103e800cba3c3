// Package rootless turns a command line into a worker: the same binary once
// more, as root of a user namespace in which it may mount, and it explains why
// a host can't do that.
//
// The worker is a process in new user, pid, mount and ipc namespaces. Its PID 1
// is a small C process that reaps orphans and passes signals on; the Go side
// (the caller's main, IsWorker is true) is that one's child. So os/exec and
// libcontainer keep the exit status of their own children. When the process
// that called Start dies, even by SIGKILL, PID 1 dies, and with it every
// process and every mount of the namespaces.
package rootless

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Rung says how a worker got its identity.
type Rung int

// The rungs, best first. RungAuto lets Start find the best that works.
const (
	RungAuto      Rung = iota
	RungSubIDs         // caller is 0, subordinate ids follow from 1
	RungSingleUID      // caller is 0, there is nobody else: chown and setgroups fail
	RungRoot           // caller is root already: no user namespace
	// RungOwnIDs: caller is root of a container, without the right to mount, and
	// maps every id that the container has.
	RungOwnIDs
)

func (r Rung) String() string {
	switch r {
	case RungSubIDs:
		return "subordinate ids"
	case RungSingleUID:
		return "single uid"
	case RungRoot:
		return "root"
	case RungOwnIDs:
		return "the container's own ids"
	case RungAuto:
		return "auto"
	}
	return fmt.Sprintf("rung %d", int(r))
}

// Options of Start. The zero value is a worker with the caller's standard
// streams closed (/dev/null), arguments and environment of this process.
type Options struct {
	// Args are the worker's os.Args[1:].
	Args []string
	// Env is the worker's environment; nil is this process's.
	Env []string
	// ExtraFiles are inherited; WorkerFile(i) returns them. They stay the
	// caller's.
	ExtraFiles []*os.File
	// Stdin, Stdout and Stderr are inherited as they are; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// StateDir is an existing directory that the worker sees as an empty
	// private tmpfs. Empty: none.
	StateDir string
	// SameGroup leaves the worker in the caller's process group, for a command
	// that reads from the caller's terminal. Otherwise it leads its own and
	// what the terminal sends reaches only the caller.
	SameGroup bool
	// Rung forces one; RungAuto finds it.
	Rung Rung

	probe bool // try an overlay and end
}

// Worker is a running worker. Its methods may be called concurrently.
type Worker struct {
	// Conn is a stream socket to WorkerConn. The caller closes it.
	Conn *os.File
	// Rung is the one in use.
	Rung Rung
	// Notice is why a better rung than Rung is not in use; nil if there is none.
	Notice *HostError

	cmd    *exec.Cmd
	sync   *os.File
	done   chan struct{}
	err    error // of cmd.Wait, valid after done
	killed atomic.Bool
}

// Start starts a worker and returns when its namespaces and mounts exist. ctx
// bounds the start only. An error that lies in the host is a *HostError.
func Start(ctx context.Context, o Options) (*Worker, error) {
	if o.Rung != RungAuto {
		return startRung(ctx, o, o.Rung, nil)
	}
	if os.Geteuid() == 0 && hasCapabilities(unix.CAP_SYS_ADMIN) {
		return startRung(ctx, o, RungRoot, nil)
	}
	if mapsOwnIDs() {
		return startRung(ctx, o, RungOwnIDs, nil)
	}
	w, err := startRung(ctx, o, RungSubIDs, nil)
	var notice *HostError
	if !errors.As(err, &notice) || !notice.mapping || ctx.Err() != nil {
		return w, err
	}
	return startRung(ctx, o, RungSingleUID, notice)
}

func startRung(ctx context.Context, o Options, rung Rung, notice *HostError) (*Worker, error) {
	var maps idMaps
	if rung == RungSubIDs {
		var err error
		if maps, err = thisHost().findMaps(); err != nil {
			return nil, err
		}
	}
	w := &Worker{Rung: rung, Notice: notice, done: make(chan struct{})}
	if err := w.spawn(o); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, w.Kill)
	defer stop()
	if err := w.enter(ctx, o, maps); err != nil {
		w.Kill()
		w.Conn.Close()
		return nil, errors.Join(err, w.closeSync())
	}
	return w, nil
}

// spawn starts the process in its namespaces; it waits for enter then.
func (w *Worker) spawn(o Options) error {
	conn, connChild, err := socketPair("worker-conn")
	if err != nil {
		return err
	}
	defer connChild.Close()
	sync, syncChild, err := socketPair("worker-sync")
	if err != nil {
		conn.Close()
		return err
	}
	defer syncChild.Close()
	w.Conn, w.sync = conn, sync
	w.cmd = command(o, w.Rung, append([]*os.File{syncChild, connChild}, o.ExtraFiles...))
	if err := w.startOnOwnThread(); err != nil {
		conn.Close()
		sync.Close()
		return thisHost().cloneError(err, w.Rung)
	}
	return nil
}

func command(o Options, rung Rung, files []*os.File) *exec.Cmd {
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       append([]string{argv0}, o.Args...),
		Env:        o.Env,
		ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
			Pdeathsig:  unix.SIGKILL,
			Setpgid:    !o.SameGroup,
		},
	}
	if rung != RungRoot {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	}
	// A nil *os.File in an interface is not nil.
	if o.Stdin != nil {
		cmd.Stdin = o.Stdin
	}
	if o.Stdout != nil {
		cmd.Stdout = o.Stdout
	}
	if o.Stderr != nil {
		cmd.Stderr = o.Stderr
	}
	return cmd
}

// startOnOwnThread starts cmd from a thread that lives until cmd ended:
// PDEATHSIG fires when the thread that forked ends, not the process.
func (w *Worker) startOnOwnThread() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := w.cmd.Start()
		started <- err
		if err == nil {
			w.err = w.cmd.Wait()
			close(w.done)
		}
	}()
	return <-started
}

// enter writes the id maps and lets the worker make its mounts.
func (w *Worker) enter(ctx context.Context, o Options, maps idMaps) error {
	goOn := byte(goMapped)
	var err error
	switch w.Rung {
	case RungSubIDs:
		err = maps.write(ctx, w.cmd.Process.Pid)
	case RungSingleUID:
		err = writeSingleMap(w.cmd.Process.Pid)
	case RungOwnIDs:
		err = writeOwnMaps(w.cmd.Process.Pid)
	case RungRoot, RungAuto:
		goOn = goDirect
	}
	if err != nil && w.gone() {
		// Its maps can't be written any more, which says nothing about this host:
		// a lower rung would hide that somebody killed it.
		return w.endedEarly(ctx, errors.New(err.Error()))
	}
	if err != nil {
		return err
	}
	if _, err := w.sync.Write(setupMessage(goOn, o)); err != nil {
		return fmt.Errorf("set worker up: %w", err)
	}
	return w.awaitReady(ctx)
}

func setupMessage(goOn byte, o Options) []byte {
	b := []byte{goOn}
	for _, flag := range []bool{!o.SameGroup, o.probe} {
		v := uint32(0)
		if flag {
			v = 1
		}
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	b = binary.NativeEndian.AppendUint32(b, uint32(len(o.StateDir)))
	return append(b, o.StateDir...)
}

// gone reports whether the worker's first process has ended, waited for or not.
func (w *Worker) gone() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, w.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return errors.Is(err, unix.ECHILD) || err == nil && info.Signo != 0
}

// endedEarly waits for the end of a worker that is gone and tells about it.
func (w *Worker) endedEarly(ctx context.Context, err error) error {
	<-w.done
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("start worker: it ended early: %w", errors.Join(w.err, err))
}

func (w *Worker) awaitReady(ctx context.Context) error {
	var status [8]byte
	if _, err := io.ReadFull(w.sync, status[:]); err != nil {
		return w.endedEarly(ctx, err)
	}
	step := binary.NativeEndian.Uint32(status[:4])
	if step == stepReady {
		return nil
	}
	return thisHost().stepError(step, syscall.Errno(binary.NativeEndian.Uint32(status[4:])), w.Rung)
}

// Wait waits for the worker's end. A worker that did not exit with 0 is an
// *exec.ExitError; its code is the Go side's, or 128 + its signal's number.
func (w *Worker) Wait() error {
	<-w.done
	return errors.Join(w.err, w.closeSync())
}

// Done is closed when the worker has ended.
func (w *Worker) Done() <-chan struct{} { return w.done }

func (w *Worker) closeSync() error {
	if err := w.sync.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Signal sends a signal to the worker's Go side.
func (w *Worker) Signal(sig syscall.Signal) error {
	return w.cmd.Process.Signal(sig)
}

// Kill ends the worker and everything it runs at once.
func (w *Worker) Kill() {
	w.killed.Store(true)
	_ = w.cmd.Process.Kill() // ended already
}

// Relay forwards the first signal as SIGINT, so that the worker can clean up,
// and kills on the second. It returns when the worker ended or signals was
// closed.
func (w *Worker) Relay(signals <-chan os.Signal) {
	for n := 0; ; n++ {
		select {
		case <-w.done:
			return
		case _, ok := <-signals:
			switch {
			case !ok:
				return
			case n == 0:
				_ = w.Signal(unix.SIGINT) // ended already
			default:
				w.Kill()
			}
		}
	}
}

func socketPair(name string) (parent, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair %s: %w", name, err)
	}
	// The parent's end is polled by Go; the child's end is for C too.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// hasCapabilities reports whether this process has all of these capabilities.
func hasCapabilities(wanted ...uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	for _, c := range wanted {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return false
		}
	}
	return true
}
