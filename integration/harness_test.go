package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// binaryVariables name the built binary; scripts/test.sh sets the first.
var binaryVariables = []string{"MSTAGE_BINARY", "MSTAGE_BIN"}

// shared is a directory that all tests of one run share; TestMain removes it.
var shared = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "mstage-integration-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := shared(); err == nil {
		err = os.RemoveAll(dir)
		if err != nil {
			fmt.Fprintf(os.Stderr, "remove shared directory: %v\n", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// mstageBinary is the path of the static binary under test: from the environment, or
// bin/mstage, or built now.
var mstageBinary = sync.OnceValues(func() (string, error) {
	for _, name := range binaryVariables {
		if path := os.Getenv(name); path != "" {
			return filepath.Abs(path)
		}
	}
	built := filepath.Join("..", "bin", "mstage")
	if _, err := os.Stat(built); err == nil {
		return filepath.Abs(built)
	}
	dir, err := shared()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "mstage")
	if out, err := exec.Command("../scripts/build.sh", "", path).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build mstage: %w\n%s", err, out)
	}
	return path, nil
})

// busyboxTar is the tar of a small root file system: busybox from Debian's
// busybox-static with a link for each applet, as scripts/demo.sh makes it.
var busyboxTar = sync.OnceValues(func() (string, error) {
	dir, err := shared()
	if err != nil {
		return "", err
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", fmt.Errorf("busybox-static is not installed: %w", err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return "", fmt.Errorf("list busybox's applets: %w", err)
	}
	path := filepath.Join(dir, "busybox.tar")
	return path, os.WriteFile(path, rootFS(program, strings.Fields(string(applets))), 0o644)
})

// rootFS returns the tar of a root file system around busybox.
func rootFS(program []byte, applets []string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		// Writing to memory fails for a header that can't be encoded only.
		if err := errors.Join(w.WriteHeader(&h), second(w.Write(data))); err != nil {
			panic(err)
		}
	}
	for _, dir := range []string{"bin/", "dev/", "etc/", "home/", "proc/", "root/", "sys/", "usr/", "usr/bin/", "var/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for _, applet := range applets {
		if applet != "busybox" {
			add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1000:Builder:/home/builder:/bin/sh\n",
		"group":  "root:x:0:\nbuilder:x:1000:\ndocs:x:2000:builder\n",
	} {
		add(tar.Header{Name: "etc/" + name, Mode: 0o644}, []byte(text))
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func second[T any](_ T, err error) error { return err }

// userNamespaces says why this host can't start a worker, "" when it can.
var userNamespaces = sync.OnceValue(func() string {
	bin, err := mstageBinary()
	if err != nil {
		return err.Error()
	}
	dir, err := os.MkdirTemp("", "mstage-userns-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	out, err := exec.Command(bin, "--root", filepath.Join(dir, "store"), "unshare", "true").CombinedOutput()
	if err != nil {
		return "no worker can be started: " + strings.TrimSpace(string(out))
	}
	return ""
})

// testStore is a store of one test with the binary to work on it.
type testStore struct {
	t   testing.TB
	bin string
	// root is the store, dir the working directory of commands.
	root, dir string
	// env is added to the environment of commands.
	env []string
	// home is the user's home directory in that environment, "" for the caller's.
	home string
}

// newTestStore returns an empty store below the test's temporary directory. When
// the test ends, `prune -a` and a plain removal must leave nothing of it.
func newTestStore(t testing.TB) *testStore {
	t.Helper()
	bin, err := mstageBinary()
	if err != nil {
		t.Fatal(err)
	}
	s := &testStore{t: t, bin: bin, root: filepath.Join(t.TempDir(), "store"), dir: t.TempDir()}
	t.Cleanup(func() {
		if err := removeStore(bin, s.root); err != nil {
			t.Error(err)
		}
	})
	return s
}

// removeStore empties a store and removes it, as a user would.
func removeStore(bin, root string) error {
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if out, err := exec.Command(bin, "--root", root, "prune", "-a", "-f").CombinedOutput(); err != nil {
		return fmt.Errorf("prune -a of %s: %w: %s", root, err, out)
	}
	return os.RemoveAll(root)
}

// newBusyboxStore returns a store with the image busybox. The test is skipped
// where no worker can be started.
func newBusyboxStore(t testing.TB) *testStore {
	t.Helper()
	if reason := userNamespaces(); reason != "" {
		t.Skip(reason)
	}
	rootFS, err := busyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	s := newTestStore(t)
	s.mustRun("import", rootFS, "busybox")
	return s
}

// ran is a command that ended.
type ran struct {
	stdout, stderr string
	code           int
}

// command returns a command of mstage on the store, not started.
func (s *testStore) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.bin, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "MSTAGE_ROOT="+s.root)
	cmd.Env = append(cmd.Env, s.env...)
	return cmd
}

// run runs mstage to its end, whatever that is.
func (s *testStore) run(args ...string) ran {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := s.command(args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("mstage %q: %v", args, err)
	}
	return ran{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// mustRun runs mstage, which must exit with 0, and returns its standard output.
func (s *testStore) mustRun(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.code != 0 {
		s.t.Fatalf("mstage %q: exit code %d, want 0\n%s", args, r.code, r.stderr)
	}
	return r.stdout
}

// write writes a file below the store's working directory, with its parents.
func (s *testStore) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// copyFile copies a file with its permissions.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, st.Mode().Perm())
	if err != nil {
		return err
	}
	return errors.Join(second(io.Copy(out, in)), out.Close())
}
