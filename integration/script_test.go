package integration

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the expected outputs in the scripts")

// TestScript runs every script of testdata/script against the real binary. Each
// has an own store, $MSTAGE_ROOT, and these variables:
//
//	$BUSYBOX   the tar of a busybox root
//	$MSTAGE    the binary
//	$LOOPBACK  the port of an HTTP server on the host's 127.0.0.1
//	$ARCH      the host's architecture, as in "linux/amd64"
//	$OWNER     the caller's user ID
func TestScript(t *testing.T) {
	bin, err := mstageBinary()
	if err != nil {
		t.Fatal(err)
	}
	rootFS, err := busyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	programs, err := programDir()
	if err != nil {
		t.Fatal(err)
	}
	port, err := loopbackServer()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       *update,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"busybox":   scriptBusybox,
			"exits":     scriptExits,
			"interrupt": scriptInterrupt,
			"archive":   scriptArchive,
			"syscall":   scriptSystemCall,
			"json":      scriptJSON,
			"events":    scriptEvents,
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", programs+":"+e.Getenv("PATH"))
			e.Setenv("MSTAGE_ROOT", filepath.Join(e.WorkDir, ".store"))
			e.Setenv("MSTAGE", bin)
			e.Setenv("BUSYBOX", rootFS)
			e.Setenv("LOOPBACK", strconv.Itoa(port))
			e.Setenv("ARCH", hostArch)
			e.Setenv("OWNER", strconv.Itoa(os.Geteuid()))
			e.Values[testKey{}] = e.T()
			e.Defer(func() {
				if err := removeStore(bin, e.Getenv("MSTAGE_ROOT")); err != nil {
					e.T().Fatal(err)
				}
			})
			return nil
		},
	})
}

// testKey is the key of a script's testing.T.
type testKey struct{}

// programDir is a directory in which "mstage" is the binary.
var programDir = sync.OnceValues(func() (string, error) {
	bin, err := mstageBinary()
	if err != nil {
		return "", err
	}
	dir, err := shared()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "bin")
	return dir, errors.Join(os.Mkdir(dir, 0o755), os.Symlink(bin, filepath.Join(dir, "mstage")))
})

// condition knows the conditions of scripts besides testscript's own.
func condition(name string) (bool, error) {
	switch name {
	case "root":
		return os.Geteuid() == 0, nil
	case "userns":
		return userNamespaces() == "", nil
	case "subids":
		return subIDs()
	default:
		return false, fmt.Errorf("unknown condition %q", name)
	}
}

// subIDs reports whether workers have more than one user ID.
func subIDs() (bool, error) {
	bin, err := mstageBinary()
	if err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "mstage-subids-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	out, err := exec.Command(bin, "--root", filepath.Join(dir, "store"), "unshare", "cat", "/proc/self/uid_map").Output()
	ids := 0
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 {
			n, convErr := strconv.Atoi(f[2])
			ids, err = ids+n, errors.Join(err, convErr)
		}
	}
	return ids > 1, err
}

// scriptBusybox imports the busybox root as the image "busybox". Where no worker
// can be started the script is skipped.
//
//	busybox
func scriptBusybox(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: busybox")
	}
	if reason := userNamespaces(); reason != "" {
		ts.Value(testKey{}).(testscript.T).Skip(reason)
	}
	ts.Check(ts.Exec("mstage", "import", ts.Getenv("BUSYBOX"), "busybox"))
}

// scriptExits runs a program that must end with the exit code.
//
//	exits CODE PROGRAM [ARGUMENT…]
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARGUMENT…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	got := 0
	if exit != nil {
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// scriptInterrupt runs a program, sends it a signal (INT or TERM) as soon as its
// standard error holds the text, and wants the exit code.
//
//	interrupt TEXT SIGNAL CODE PROGRAM [ARGUMENT…]
func scriptInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: interrupt TEXT SIGNAL CODE PROGRAM [ARGUMENT…]")
	}
	number, ok := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM}[args[1]]
	want, err := strconv.Atoi(args[2])
	if !ok || err != nil {
		ts.Fatalf("%s %s: INT or TERM and a number", args[1], args[2])
	}
	program := args[3]
	if program == "mstage" {
		program = ts.Getenv("MSTAGE")
	}
	cmd := exec.Command(program, args[4:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "MSTAGE_ROOT"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	watch := &watcher{text: args[0], seen: func() { _ = cmd.Process.Signal(number) }}
	cmd.Stderr = watch
	ts.Check(cmd.Start())
	_ = cmd.Wait() // the exit code is looked at below
	fmt.Fprint(ts.Stderr(), watch.all.String())
	if !watch.found {
		ts.Fatalf("%q never appeared", args[0])
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// watcher collects output and calls seen once, when text has appeared in it.
type watcher struct {
	text  string
	seen  func()
	found bool
	all   strings.Builder
}

func (w *watcher) Write(b []byte) (int, error) {
	w.all.Write(b)
	if !w.found && strings.Contains(w.all.String(), w.text) {
		w.found = true
		w.seen()
	}
	return len(b), nil
}

// scriptArchive prints the content of a docker or OCI archive, or of an OCI
// layout directory: tags, config and all entries of all layers.
//
//	archive FILE
func scriptArchive(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: archive FILE")
	}
	files, err := readArchive(ts.MkAbs(args[0]))
	ts.Check(err)
	lines, err := describeImage(files)
	ts.Check(err)
	for line := range slices.Values(lines) {
		fmt.Fprintln(ts.Stdout(), line)
	}
}

// scriptSystemCall writes a static program that makes one system call and exits
// with its errno.
//
//	syscall NUMBER FILE
func scriptSystemCall(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: syscall NUMBER FILE")
	}
	number, err := strconv.ParseUint(args[0], 10, 16)
	ts.Check(err)
	program, err := systemCallProgram(uint16(number))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), program, 0o755))
}
