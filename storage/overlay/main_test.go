package overlay_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mstage/mstage/storage/overlay"
)

// inNamespace marks the process that TestMain started.
const inNamespace = "MSTAGE_OVERLAY_TEST_NAMESPACE"

// TestMain runs the tests in the kind of process that a worker is: uid 0 in an
// own mount namespace, and in an own user namespace unless the caller is root.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(again())
	}
	if role := os.Getenv(childRole); role != "" {
		os.Exit(child(role))
	}
	os.Exit(m.Run())
}

func again() int {
	args := []string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc"}
	if os.Geteuid() != 0 {
		args = append(args, "--map-auto", "--map-root-user")
	}
	cmd := exec.Command("unshare", append(append(args, os.Args[0]), os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "overlay tests in a namespace:", err)
		return 1
	}
	return 0
}

// open opens a store in root with a run directory of its own on a tmpfs.
func open(t testing.TB, root string, change ...func(*overlay.Options)) *overlay.Store {
	t.Helper()
	o := overlay.Options{Root: root, RunRoot: runRoot(t)}
	for _, c := range change {
		c(&o)
	}
	s, err := overlay.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func runRoot(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "run")
}

// newRoot is a directory for a store. The layers are removed with the test.
func newRoot(t testing.TB) string { return filepath.Join(t.TempDir(), "store") }
