package rootless

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// parentRole is the environment variable of a process that starts a worker and
// then waits to be killed.
const parentRole = "MSTAGE_TEST_PARENT"

func TestMain(m *testing.M) {
	switch {
	case IsWorker():
		os.Exit(worker(os.Args[1:]))
	case os.Getenv(parentRole) != "":
		os.Exit(parent())
	}
	os.Exit(m.Run())
}

// worker is what the workers of these tests do.
func worker(args []string) int {
	conn, err := WorkerConn()
	if err != nil {
		return 100
	}
	switch args[0] {
	case "exit":
		return 42
	case "run":
		out, err := exec.Command(args[1], args[2:]...).CombinedOutput()
		fmt.Fprintf(conn, "%s", out)
		if err != nil {
			fmt.Fprintln(conn, err)
		}
	case "file":
		io.Copy(conn, WorkerFile(0))
	case "interrupt":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		fmt.Fprintln(conn, "ready")
		<-ctx.Done()
		fmt.Fprintln(conn, "cancelled")
		if args[1] == "hang" {
			select {}
		}
		return 7
	case "children":
		return children(conn)
	}
	return 0
}

// children starts processes that leave orphans and checks their exit codes.
func children(conn io.Writer) int {
	for i := range 40 {
		err := exec.Command("sh", "-c", fmt.Sprintf("(sh -c 'exit 3' &) ; exit %d", i%5)).Run()
		code := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		} else if err != nil {
			code = -1
		}
		if code != i%5 {
			fmt.Fprintf(conn, "got exit code %d (%v), want %d\n", code, err, i%5)
		}
	}
	fmt.Fprintln(conn, "done")
	return 0
}

// parent starts a worker that sleeps, with this process's standard output.
func parent() int {
	w, err := Start(context.Background(), Options{
		Args: []string{"run", "sleep", "1000"}, Stdout: os.Stdout,
		StateDir: os.Getenv(parentRole),
	})
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, "started")
	_ = w.Wait()
	return 0
}

func start(t *testing.T, o Options) *Worker {
	t.Helper()
	w, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Kill()
		w.Conn.Close()
	})
	return w
}

// output is what a worker sends until it ends.
func output(t *testing.T, o Options) string {
	t.Helper()
	w := start(t, o)
	b, err := io.ReadAll(w.Conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(); err != nil {
		t.Errorf("worker: %v", err)
	}
	return string(b)
}

func script(text string) Options { return Options{Args: []string{"run", "sh", "-c", text}} }

func TestTheWorkerIsRootInNamespacesOfItsOwn(t *testing.T) {
	state := t.TempDir()
	o := script("id -u; awk '{print $1}' /proc/self/uid_map | xargs; ls -d /proc/1 /proc/2; touch " +
		state + "/x; stat -f -c %T " + state + "; grep -c shared: /proc/self/mountinfo; readlink /proc/1/exe")
	o.StateDir = state
	got := strings.Split(output(t, o), "\n")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0", "0 1", "/proc/1", "/proc/2", "tmpfs", "0", exe, ""}
	if os.Geteuid() == 0 {
		want[1] = "0"
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if left, err := os.ReadDir(state); len(left) != 0 {
		t.Errorf("the state directory outside: got %v (%v), want it empty", left, err)
	}
}

func TestASingleUIDIsMappedWithoutTools(t *testing.T) {
	o := script("cat /proc/self/uid_map | xargs; cat /proc/self/setgroups")
	o.Rung = RungSingleUID
	if got, want := output(t, o), fmt.Sprintf("0 %d 1\ndeny\n", os.Geteuid()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Root of a user namespace is what root of a container is: it has ids and no
// right to mount outside.
func TestTheRootOfAContainerMapsItsOwnIDs(t *testing.T) {
	if got, want := ownMap("         0     100000      65536\n     65536       1000          1\n"), "0 0 65536\n65536 65536 1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := ownMap("         0          0 4294967295\n"), "0 0 4294967294\n"; got != want {
		t.Errorf("got %q, want %q: the initial namespace's map is taken for it", got, want)
	}
	const show = "cat /proc/self/uid_map /proc/self/gid_map | xargs"
	inner := exec.Command("unshare", "--map-auto", "--map-root-user", "setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin",
		os.Args[0], "-test.run", "^TestInTheContainer$", "-test.v")
	inner.Env = append(os.Environ(), "MSTAGE_TEST_CONTAINER="+show)
	out, err := inner.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := "maps: 0 0 1 1 1 65535 0 0 1 1 1 65535"; !strings.Contains(string(out), want) {
		t.Errorf("got %s, want %q", out, want)
	}
}

// TestInTheContainer is the other end of the test above.
func TestInTheContainer(t *testing.T) {
	show := os.Getenv("MSTAGE_TEST_CONTAINER")
	if show == "" {
		return
	}
	w := start(t, script(show))
	if w.Rung != RungOwnIDs {
		t.Errorf("got rung %v, want %v", w.Rung, RungOwnIDs)
	}
	if err := w.Wait(); err != nil {
		t.Error(err)
	}
	t.Log("maps: " + output(t, script(show)))
}

func TestFilesAndExitCodesCrossTheBorder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("from outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := output(t, Options{Args: []string{"file"}, ExtraFiles: []*os.File{f}}); got != "from outside" {
		t.Errorf("got %q, want %q", got, "from outside")
	}
	var exit *exec.ExitError
	if err := start(t, Options{Args: []string{"exit"}}).Wait(); !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("got %v, want exit code 42", err)
	}
}

func TestOrphansDoNotDisturbTheWorkersOwnChildren(t *testing.T) {
	if got := output(t, Options{Args: []string{"children"}}); got != "done\n" {
		t.Errorf("got %q, want %q", got, "done\n")
	}
}

func TestTheFirstSignalCancelsAndTheSecondKills(t *testing.T) {
	for name, c := range map[string]struct {
		reaction string
		signals  int
		want     int
	}{
		"a worker that cleans up": {"exit", 1, 7},
		"a worker that hangs":     {"hang", 2, -1},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, Options{Args: []string{"interrupt", c.reaction}})
			lines := bufio.NewScanner(w.Conn)
			signals := make(chan os.Signal)
			go w.Relay(signals)
			for _, want := range []string{"ready", "cancelled"} {
				if !lines.Scan() || lines.Text() != want {
					t.Fatalf("got %q (%v), want %q", lines.Text(), lines.Err(), want)
				}
				if want == "ready" || c.signals == 2 {
					signals <- syscall.SIGINT
				}
			}
			var exit *exec.ExitError
			if err := w.Wait(); !errors.As(err, &exit) || exit.ExitCode() != c.want {
				t.Errorf("got %v, want exit code %d", err, c.want)
			}
		})
	}
}

// The pipe ends when its last writer is dead: the parent, the worker's PID 1,
// its Go side and what that runs.
func TestAKilledParentLeavesNoProcess(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), parentRole+"="+t.TempDir())
	cmd.Stdout = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "started\n" {
		t.Fatalf("got %q (%v), want %q", line, err, "started\n")
	}
	if err := cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
		t.Errorf("got %q (%v), want nothing", rest, err)
	}
	_ = cmd.Wait() // killed
}

func TestACancelledStartLeavesNoWorker(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("no time")
	cancel(cause)
	if w, err := Start(ctx, Options{Args: []string{"exit"}}); err == nil {
		w.Kill()
		t.Error("got no error")
	}
}

func TestCheckFindsThatThisHostWorks(t *testing.T) {
	report := Check(t.Context())
	if !report.OK() {
		t.Errorf("got %+v, want a host that works", report.Rows)
	}
	want := RungSubIDs
	if os.Geteuid() == 0 {
		want = RungRoot
	}
	if report.Rung != want {
		t.Errorf("got %v, want %v (%+v)", report.Rung, want, report.Rows)
	}
}

func TestAnUnusableStateDirectoryIsAnError(t *testing.T) {
	_, err := Start(t.Context(), Options{Args: []string{"exit"}, StateDir: "/no/such/directory"})
	if err == nil || !strings.Contains(err.Error(), "state directory") {
		t.Errorf("got %v, want an error about the state directory", err)
	}
}
