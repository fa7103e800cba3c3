package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/integration/vttest"
)

// onTerminal is a command whose standard error is a terminal.
type onTerminal struct {
	t       *testing.T
	cmd     *exec.Cmd
	control *os.File
	over    chan struct{} // closed when nobody has the terminal open any more

	mu      sync.Mutex
	screen  *vttest.Screen // guarded by mu
	changed chan struct{}  // guarded by mu: closed when the screen changes
}

// onTerminal starts mstage on a terminal. It is stopped when the test ends.
func (s *testStore) onTerminal(t *testing.T, columns, rows int, args ...string) *onTerminal {
	t.Helper()
	control, terminal, err := vttest.OpenPTY(columns, rows)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	o := &onTerminal{
		t: t, cmd: s.command(args...), control: control, over: make(chan struct{}),
		screen: vttest.New(columns, rows), changed: make(chan struct{}),
	}
	o.cmd.Stderr = terminal
	// A group of its own, in the test's session: a shell's job, which can be stopped.
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go o.read()
	t.Cleanup(func() {
		_ = o.cmd.Process.Kill() // has ended long ago, unless the test failed
		<-o.over
		control.Close()
	})
	return o
}

// read draws what comes until nobody has the terminal open.
func (o *onTerminal) read() {
	defer close(o.over)
	b := make([]byte, 4096)
	for {
		n, err := o.control.Read(b)
		o.mu.Lock()
		_, _ = o.screen.Write(b[:n])
		close(o.changed)
		o.changed = make(chan struct{})
		o.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// await waits until the screen is as wanted.
func (o *onTerminal) await(what string, is func(*vttest.Screen) bool) {
	o.t.Helper()
	timeout := time.After(endOfProcesses)
	for {
		o.mu.Lock()
		ok, changed, text := is(o.screen), o.changed, o.screen.Text()
		o.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-o.over:
			o.t.Fatalf("the command ended and never showed %s:\n%s", what, text)
		case <-timeout:
			o.t.Fatalf("no %s after %s:\n%s", what, endOfProcesses, text)
		}
	}
}

func (o *onTerminal) awaitText(text string) {
	o.t.Helper()
	o.await(text, func(s *vttest.Screen) bool { return strings.Contains(s.Text(), text) })
}

// ended waits for the command and returns its exit code, -1 for a signal, and
// the screen it left. The terminal must be as it was.
func (o *onTerminal) ended() (int, *vttest.Screen) {
	o.t.Helper()
	var exit *exec.ExitError
	if err := o.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		o.t.Fatal(err)
	}
	select {
	case <-o.over:
	case <-time.After(endOfProcesses):
		o.t.Fatalf("the terminal is still open %s after the command ended", endOfProcesses)
	}
	if o.screen.CursorHidden || o.screen.WrapOff {
		o.t.Errorf("cursor hidden %v, wrapping off %v, want neither", o.screen.CursorHidden, o.screen.WrapOff)
	}
	if len(o.screen.Complaints) > 0 {
		o.t.Errorf("complaints of the terminal: %q", o.screen.Complaints)
	}
	return o.cmd.ProcessState.ExitCode(), o.screen
}

// steps returns the lines of a screen that are steps, without times and sorted,
// because stages overtake each other.
func steps(s *vttest.Screen) []string {
	var names []string
	for _, line := range s.Lines() {
		if name, ok := strings.CutPrefix(line, " => "); ok {
			names = append(names, strings.TrimSpace(name[:max(0, strings.LastIndex(name, " "))]))
		}
	}
	slices.Sort(names)
	return names
}

func TestATerminalShowsThePictureOfABuild(t *testing.T) {
	s := newBusyboxStore(t)
	s.env = []string{"TERM=xterm", "NO_COLOR="}
	s.write("Dockerfile", `FROM busybox AS one
MAINTAINER nobody
RUN printf '\033]0;owned\007\033[2J'; seq 1000; echo a line that is rather long for a terminal like this one, and goes on
FROM busybox AS two
RUN echo other >/other
FROM busybox
COPY --from=one /etc/passwd /1
COPY --from=two /other /2
`)
	o := s.onTerminal(t, 50, 12, "build", "-t", "pictured", ".")
	code, screen := o.ended()
	if code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	want := []string{
		"CACHED [one 1/2] FROM docker.io/library/…",
		"CACHED [stage-2 1/3] FROM docker.io/libr…",
		"CACHED [two 1/2] FROM docker.io/library/…",
		"[one 2/2] RUN printf '\\033]0;owned\\007\\0…",
		"[stage-2 2/3] COPY --from=one /etc/passw…",
		"[stage-2 3/3] COPY --from=two /other /2",
		"[two 2/2] RUN echo other >/other",
		"exporting to image",
	}
	if got := steps(screen); !slices.Equal(got, want) {
		t.Errorf("got the steps\n%q\nwant\n%q\nof\n%s", got, want, screen.Text())
	}
	lines := screen.Lines()
	if first := lines[0]; !strings.HasPrefix(first, "[+] Building ") || !strings.HasSuffix(first, "s (8/8) FINISHED") {
		t.Errorf("got the header %q", first)
	}
	if !strings.Contains(screen.Text(), "\n\n 1 warning:\n - Dockerfile:2: Maintainer") {
		t.Errorf("got\n%s\nwant the warning at the end", screen.Text())
	}
	if !slices.Contains(screen.Styles, "34") {
		t.Errorf("got the styles %q, want the one of a step that is over", screen.Styles)
	}
}

func TestARunningStepShowsItsLastLinesAndASignalLeavesTheCursor(t *testing.T) {
	for name, c := range map[string]struct {
		signal os.Signal
		code   int
		want   string
	}{
		"SIGINT":                           {syscall.SIGINT, 130, "\n => CANCELED [2/2] RUN"},
		"SIGTERM":                          {syscall.SIGTERM, 143, "\n => CANCELED [2/2] RUN"},
		"SIGHUP, which kills at once":      {syscall.SIGHUP, -1, ""},
		"SIGQUIT, which kills with a dump": {syscall.SIGQUIT, 2, "SIGQUIT: quit"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newBusyboxStore(t)
			s.ownBinary()
			s.env = []string{"NO_COLOR=1", "TERM=xterm"}
			s.write("Dockerfile", "FROM busybox\nRUN seq 20; printf '10%%\\r20%%'; sleep 600\n")
			o := s.onTerminal(t, 40, 24, "build", ".")
			o.awaitText("\n => => # 16\n => => # 17\n => => # 18\n => => # 19\n => => # 20\n => => # 20%")
			o.await("hidden cursor", func(s *vttest.Screen) bool { return s.CursorHidden })
			_, pidNS := (&victim{t: t, cmd: o.cmd}).worker()
			if err := o.cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			code, screen := o.ended()
			if code != c.code || !strings.Contains(screen.Text(), c.want) {
				t.Errorf("exit code %d, want %d and %q in\n%s", code, c.code, c.want, screen.Text())
			}
			if len(screen.Styles) > 0 {
				t.Errorf("NO_COLOR is set: got the styles %q", screen.Styles)
			}
			s.nothingLeft(pidNS)
		})
	}
}

func TestTheSecondSignalLeavesTheCursorToo(t *testing.T) {
	s := newBusyboxStore(t)
	s.ownBinary()
	s.write("Dockerfile", "FROM busybox\nRUN echo here; sleep 600\n")
	o := s.onTerminal(t, 40, 24, "build", ".")
	o.awaitText("=> # here")
	v := &victim{t: t, cmd: o.cmd}
	pid, pidNS := v.worker()
	for _, p := range append(children(t, pid), pid) { // one that is stopped can't cancel anything
		if err := syscall.Kill(p, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() { // two that are pending at once count as one
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				_ = o.cmd.Process.Signal(syscall.SIGINT)
			}
		}
	}()
	code, _ := o.ended()
	close(done)
	if code != -1 && code != 130 {
		t.Errorf("exit code %d, want the end by SIGINT", code)
	}
	s.nothingLeft(pidNS)
}

func TestAStoppedBuildLeavesTheTerminalAndDrawsAnewLater(t *testing.T) {
	s := newBusyboxStore(t)
	s.write("Dockerfile", "FROM busybox\nRUN echo here; sleep 600\n")
	o := s.onTerminal(t, 40, 24, "build", ".")
	o.awaitText("=> # here")
	if err := o.cmd.Process.Signal(syscall.SIGTSTP); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(o.cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("got %v, %v, want a process that is stopped", status, err)
	}
	o.await("cursor", func(s *vttest.Screen) bool { return !s.CursorHidden })
	if _, err := o.control.WriteString("the shell's\n"); err != nil { // the terminal echoes it
		t.Fatal(err)
	}
	o.awaitText("the shell's")
	if err := o.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	o.await("second picture", func(s *vttest.Screen) bool {
		_, below, _ := strings.Cut(s.Text(), "the shell's\n")
		return s.CursorHidden && strings.HasPrefix(below, "[+] Building") && strings.Contains(below, "=> # here")
	})
	if err := o.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code, screen := o.ended(); code != 130 {
		t.Errorf("exit code %d, want 130\n%s", code, screen.Text())
	}
}

func TestAFailureIsToldInFullBelowThePicture(t *testing.T) {
	s := newBusyboxStore(t)
	s.env = []string{"TERM=xterm"}
	s.write("Dockerfile", "FROM busybox\nRUN seq 20000; printf '\\033[31mfatal\\033[0m\\033]0;owned\\007'; exit 3\n")
	code, screen := s.onTerminal(t, 60, 10, "build", "--progress", "tty", ".").ended()
	if code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	var want strings.Builder
	want.WriteString("\n------\n")
	_, log, found := strings.Cut(screen.Text(), " exit 3:\n")
	for i := range 20000 {
		fmt.Fprintf(&want, "%d\n", i+1)
	}
	want.WriteString("fatal\n------\n   1 |     FROM busybox\n   2 | >>> RUN seq")
	if !found || !strings.HasPrefix(log, strings.TrimPrefix(want.String(), "\n------\n")) {
		t.Errorf("got %d bytes, %.300q…, want the log of %d bytes", len(log), log, want.Len())
	}
	if got := steps(screen); len(got) != 2 || !strings.HasPrefix(got[1], "ERROR [2/2] RUN seq") {
		t.Errorf("got the steps %q", got)
	}
	if !slices.Contains(screen.Styles, "31") {
		t.Errorf("got the styles %q, want red", screen.Styles)
	}
}

func TestAResizedTerminalGetsAPictureThatFits(t *testing.T) {
	s := newBusyboxStore(t)
	s.write("Dockerfile", "FROM busybox\nRUN i=0; while true; do echo line $i of a log that is wider than the terminal; i=$((i+1)); sleep 0.1; done\n")
	o := s.onTerminal(t, 80, 24, "build", ".")
	o.awaitText("=> # line 3")
	// The emulator keeps its size, so wrapped lines are not seen here; what is drawn is.
	raw, err := o.control.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if err := unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 5, Col: 20}); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	o.await("four lines of 20 columns", func(s *vttest.Screen) bool {
		lines := s.Lines()
		return len(lines) == 4 && !slices.ContainsFunc(lines, func(l string) bool { return len([]rune(l)) > 20 })
	})
	if err := o.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = o.cmd.Wait()
	<-o.over
	if o.screen.CursorHidden {
		t.Error("the cursor is hidden")
	}
}

func TestThePictureIsForTerminals(t *testing.T) {
	s := newBusyboxStore(t)
	s.write("Dockerfile", "FROM busybox\nRUN echo here\n")
	for name, c := range map[string]struct {
		env  []string
		args []string
	}{
		"the flag":               {nil, []string{"--progress", "plain"}},
		"our variable":           {[]string{"MSTAGE_PROGRESS=plain"}, nil},
		"docker's variable":      {[]string{"BUILDKIT_PROGRESS=plain"}, nil},
		"a terminal of no means": {[]string{"TERM=dumb"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s.env = append([]string{"TERM=xterm"}, c.env...)
			code, screen := s.onTerminal(t, 80, 24, append([]string{"build", "."}, c.args...)...).ended()
			if code != 0 || screen.Hidden > 0 || !strings.Contains(screen.Text(), "#2 [2/2] RUN echo here") {
				t.Errorf("exit code %d, got\n%s\nwant plain lines", code, screen.Text())
			}
		})
	}
	s.env = []string{"TERM=xterm"}
	if r := s.run("build", "."); r.code != 0 || !strings.Contains(r.stderr, "#2 [2/2] RUN echo here") || strings.Contains(r.stderr, "\x1b") {
		t.Errorf("standard error is a pipe: exit code %d, got\n%s\nwant plain lines", r.code, r.stderr)
	}
	if r := s.run("build", "--progress", "tty", "."); r.code != 2 || !strings.Contains(r.stderr, "--progress tty: standard error is not a terminal") {
		t.Errorf("tty without a terminal: exit code %d, got %q", r.code, r.stderr)
	}
}
