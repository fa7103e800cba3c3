package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/sandbox/rootless"
	"github.com/mstage/mstage/sandbox/sandboxtest"
)

// stateEnv tells the worker where its private tmpfs is.
const stateEnv = "MSTAGE_TEST_STATE"

// TestMain runs the tests inside a worker, as the caller's user.
func TestMain(m *testing.M) {
	Init()
	if rootless.IsWorker() {
		os.Exit(m.Run())
	}
	code, err := inWorker()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func inWorker() (int, error) {
	dir, err := os.MkdirTemp("", "mstage-state-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	w, err := rootless.Start(context.Background(), rootless.Options{
		Args: os.Args[1:], Env: append(os.Environ(), stateEnv+"="+dir),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, StateDir: dir, SameGroup: true,
	})
	if err != nil {
		return 0, err
	}
	if w.Rung == rootless.RungSingleUID {
		w.Kill()
		return 0, errors.Join(errors.New("these tests need subordinate ids"), w.Notice)
	}
	var exit *exec.ExitError
	if err := w.Wait(); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	} else if err != nil {
		return 0, err
	}
	return 0, nil
}

func openRunner(t testing.TB, o Options) *Runner {
	o.Warn = func(message string) { t.Log("libcontainer: " + message) }
	dir, err := os.MkdirTemp(os.Getenv(stateEnv), "runner-")
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// busyboxRoot is a root file system of Debian's static busybox.
func busyboxRoot(t testing.TB) string {
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"bin", "etc", "tmp", "mnt"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range splitLines(out) {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{filepath.Dir(root), root} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestContract(t *testing.T) {
	sandboxtest.TestRunner(t, openForContract)
}

func TestTheMainThreadIsLentToNobody(t *testing.T) {
	threads := make(chan int)
	release := make(chan struct{})
	defer close(release)
	for range 50 {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			threads <- unix.Gettid()
			<-release
		}()
		if tid := <-threads; tid == os.Getpid() {
			t.Fatal("a goroutine ran on the main thread: /proc/self would show the namespaces that it enters")
		}
	}
}

func splitLines(b []byte) []string { return strings.Fields(string(b)) }

// openForContract is a runner with a network, and a root file system for it.
func openForContract(t *testing.T) (sandbox.Runner, string) {
	return openRunner(t, Options{}), busyboxRoot(t)
}
