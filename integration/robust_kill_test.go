package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/progress"
)

// victim is a command of mstage that is to be killed.
type victim struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout io.Reader
	events chan progress.Event // closed at the end of standard error
	log    bytes.Buffer        // standard error, to be read after events is closed

	mu        sync.Mutex
	workerPID int    // guarded by mu
	pidNS     string // guarded by mu
}

// begin starts a command that is to be killed.
func (s *testStore) begin(args ...string) *victim {
	s.t.Helper()
	v := &victim{t: s.t, cmd: s.command(args...), events: make(chan progress.Event, 1<<16)}
	var err error
	if v.stdin, err = v.cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	if v.stdout, err = v.cmd.StdoutPipe(); err != nil {
		s.t.Fatal(err)
	}
	stderr, err := v.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go v.listen(stderr)
	return v
}

// listen turns standard error into events. It ends when no process has that
// stream any more: those of the worker included.
func (v *victim) listen(stderr io.Reader) {
	defer close(v.events)
	lines := bufio.NewScanner(io.TeeReader(stderr, &v.log))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e progress.Event
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Kind != "" {
			v.worker() // looking later would take the time in which the command ends
			v.events <- e
		}
	}
}

// worker returns the process ID of the command's worker, 0 when it has none so
// far, and the pid namespace that the worker made.
func (v *victim) worker() (pid int, pidNS string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.workerPID != 0 {
		return v.workerPID, v.pidNS
	}
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		v.t.Fatal(err)
	}
	for _, pid := range children(v.t, v.cmd.Process.Pid) {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && ns != own {
			v.workerPID, v.pidNS = pid, ns
			break
		}
	}
	return v.workerPID, v.pidNS
}

// await waits until an event is the one. It reports false when the command
// ended before.
func (v *victim) await(is func(progress.Event) bool) bool {
	for e := range v.events {
		if is(e) {
			return true
		}
	}
	return false
}

// kill kills a process and waits until every process is gone that could write
// to standard error.
func (v *victim) kill(pid int) {
	v.t.Helper()
	// A worker may have ended by now; the command is ours until it is waited for.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		v.t.Fatalf("kill %d: %v", pid, err)
	}
	timeout := time.After(endOfProcesses)
	for {
		select {
		case _, open := <-v.events:
			if open {
				continue
			}
			_ = v.cmd.Wait() // it was killed
			return
		case <-timeout:
			v.t.Fatalf("standard error is still open %s after the kill", endOfProcesses)
		}
	}
}

// reach brings a victim to the moment at which it is killed, and reports
// whether it got there alive.
type reach func(v *victim) bool

// stepBegins: a step whose title has the text has begun.
func stepBegins(text string) reach {
	return func(v *victim) bool {
		return v.await(func(e progress.Event) bool { return e.Kind == progress.StepStarted && strings.Contains(e.Name, text) })
	}
}

// stepsDone: n steps are over.
func stepsDone(n int) reach {
	return func(v *victim) bool {
		return v.await(func(e progress.Event) bool {
			if e.Kind == progress.StepDone {
				n--
			}
			return n == 0
		})
	}
}

// runPrints: a RUN has written the text.
func runPrints(text string) reach {
	return func(v *victim) bool {
		return v.await(func(e progress.Event) bool { return bytes.Contains(e.Data, []byte(text)) })
	}
}

// later waits a little after another moment, to meet what no event tells.
func later(r reach, d time.Duration) reach {
	return func(v *victim) bool {
		if !r(v) {
			return false
		}
		<-time.After(d)
		return true
	}
}

// processIsThere: the process has been started.
func processIsThere(*victim) bool { return true }

// workerIsThere: the worker's namespaces are there.
func workerIsThere(v *victim) bool {
	return within(endOfProcesses, func() string {
		if pid, _ := v.worker(); pid == 0 {
			return "no worker"
		}
		return ""
	}) == ""
}

// fed: that part of a file went into standard input, 1 and an end of file for
// all of it.
func fed(file string, part float64) reach {
	return func(v *victim) bool {
		data, err := os.ReadFile(file)
		if err != nil {
			v.t.Fatal(err)
		}
		if _, err := v.stdin.Write(data[:int(part*float64(len(data)))]); err != nil {
			return false
		}
		return part < 1 || v.stdin.Close() == nil
	}
}

// wrote: so many bytes came out of standard output.
func wrote(n int64) reach {
	return func(v *victim) bool {
		_, err := io.CopyN(io.Discard, v.stdout, n)
		return err == nil
	}
}

// moment is one point in the life of a command.
type moment struct {
	phase string
	args  []string
	reach reach
	// mayEnd says that the command may be over before the moment comes.
	mayEnd bool
}

// killDockerfile has every kind of step. SALT makes every step new but the copies
// of the context; the tree does not depend on it.
const killDockerfile = `FROM busybox AS made
ARG SALT
RUN echo begun && for d in 0 1 2 3 4 5 6 7 8 9; do mkdir /made$d; done; \
  seq 1 1500 | awk '{ f = "/made" ($1 % 10) "/f" $1; print > f; close(f) }' && echo half && \
  chown -R 7:8 /made1 && ln /made2/f2 /made2/hard && chmod 4755 /made3/f3 && rm -rf /home && echo "$SALT" >/salt && echo over
COPY data /data
FROM busybox
COPY --from=made / /
ARG SALT
RUN rm -r /salt /made4 && mv /made5 /made6/moved && echo last && cp -a /made7 /copied
COPY data /data/again
`

func killStore(t *testing.T) *testStore {
	t.Helper()
	s := newBusyboxStore(t)
	s.write("ctx/Dockerfile", killDockerfile)
	for i := range 200 {
		s.write(fmt.Sprintf("ctx/data/d%d/f%d", i%10, i), strings.Repeat("x", i*100))
	}
	s.ownBinary()
	return s
}

// killMoments are spread over all commands that change a store.
func killMoments(rootFS string, archives []string) []moment {
	load := func(i int, r reach, mayEnd bool) moment {
		return moment{fmt.Sprint("load ", i, " from standard input"), []string{"load", "-q", "-"}, r, mayEnd}
	}
	build := []string{"build", "--progress", "json", "-t", "killed", "ctx"}
	imports := []string{"import", "-", "imported"}
	tar := []string{"build", "--progress", "json", "-o", "type=tar,dest=-", "ctx"}
	archive := []string{"build", "--progress", "json", "-o", "type=docker,dest=out.tar", "ctx"}
	tag := []string{"tag", "busybox", "tagged:1"}
	return []moment{
		{"import: worker is there", imports, workerIsThere, false},
		{"import: a tenth read", imports, fed(rootFS, 0.1), false},
		{"import: nine tenths read", imports, fed(rootFS, 0.9), false},
		{"import: commit", imports, fed(rootFS, 1), true},
		{"import: commit 10 ms later", imports, later(fed(rootFS, 1), 10*time.Millisecond), true},
		{"build: process is there", build, processIsThere, false},
		{"build: worker is there", build, workerIsThere, false},
		{"RUN: set up", build, stepBegins("RUN echo begun"), false},
		{"RUN: command is there", build, runPrints("begun"), false},
		{"RUN: command works", build, runPrints("half"), false},
		{"RUN: command ends", build, runPrints("over"), false},
		{"RUN: commit", build, later(runPrints("over"), 5*time.Millisecond), true},
		{"COPY --from: begins", build, stepBegins("COPY --from"), false},
		{"COPY --from: 10 ms later", build, later(stepBegins("COPY --from"), 10*time.Millisecond), true},
		{"COPY --from: 40 ms later", build, later(stepBegins("COPY --from"), 40*time.Millisecond), true},
		{"COPY: context into a later step", build, stepBegins("COPY data /data/again"), false},
		{"second RUN: works on copies", build, later(stepBegins("RUN rm -r /salt"), 20*time.Millisecond), true},
		{"second RUN: copies up", build, runPrints("last"), false},
		{"build: all steps done", build, stepsDone(7), true},
		{"tag of a build: 5 ms after all steps", build, later(stepsDone(7), 5*time.Millisecond), true},
		{"tag: process is there", tag, processIsThere, true},
		{"tag: 5 ms later", tag, later(processIsThere, 5*time.Millisecond), true},
		{"tag: 10 ms later", tag, later(processIsThere, 10*time.Millisecond), true},
		{"export tar: first bytes", tar, wrote(1), false},
		{"export tar: megabytes", tar, wrote(3 << 20), false},
		{"export docker: sealing", archive, stepsDone(6), true},
		{"export docker: 100 ms later", archive, later(stepsDone(6), 100*time.Millisecond), true},
		load(0, fed(archives[0], 0.1), false),
		load(1, fed(archives[1], 0.9), false),
		load(2, fed(archives[2], 1), true),
		load(3, later(fed(archives[3], 1), 20*time.Millisecond), true),
		load(4, later(fed(archives[4], 1), 60*time.Millisecond), true),
		{"save: worker is there", []string{"save", "-o", "out.tar", "killed"}, workerIsThere, true},
		{"save: 60 ms later", []string{"save", "-o", "out.tar", "killed"}, later(workerIsThere, 60*time.Millisecond), true},
	}
}

// killArchives saves images that have no layer in common but busybox's.
func (s *testStore) killArchives() []string {
	s.t.Helper()
	archives := make([]string, 5)
	for i := range archives {
		name := fmt.Sprint("loaded:", i)
		s.mustRun("build", "-q", "-t", name, "--build-arg", fmt.Sprint("SALT=load", i), "ctx")
		archives[i] = filepath.Join(s.t.TempDir(), "archive.tar")
		s.mustRun("save", "-o", archives[i], name)
	}
	return archives
}

func TestAKilledBuildLeavesNothingAndTheNextOneIsWhole(t *testing.T) {
	undisturbed := killStore(t)
	want := undisturbed.builtTree("ctx")
	undisturbed.sound()
	archives := undisturbed.killArchives()
	rootFS, err := busyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"command", "worker"} {
		t.Run(who, func(t *testing.T) {
			s := killStore(t)
			killed := 0
			for i, m := range killMoments(rootFS, archives) {
				if who == "worker" && (i%4 != 2 || slices.Contains(m.args, "tag")) {
					continue
				}
				t.Run(m.phase, func(t *testing.T) {
					s := *s
					s.t = t
					s.env = append(slices.Clone(s.env), "TMPDIR="+t.TempDir())
					if s.killAt(m, who == "worker", fmt.Sprint("SALT=", i)) {
						killed++
					}
					s.recovers(m, want, fmt.Sprint("SALT=", i))
				})
			}
			if who == "command" && killed < 20 {
				t.Errorf("killed at %d moments, want 20 at least", killed)
			}
		})
	}
}

// workerIsGone is what a command says whose worker was killed.
var workerIsGone = regexp.MustCompile(`the worker process ended without an answer|start worker: it ended early`)

// killAt kills a command, or its worker, at a moment. It reports whether that
// was before its end.
func (s *testStore) killAt(m moment, worker bool, salt string) bool {
	s.t.Helper()
	args := slices.Clone(m.args)
	if args[0] == "build" {
		args = slices.Insert(args, 1, "--build-arg", salt)
	}
	v := s.begin(args...)
	alive := m.reach(v)
	target := v.cmd.Process.Pid
	if worker {
		if pid, _ := v.worker(); pid != 0 {
			target = pid
		}
	}
	begin := time.Now()
	v.kill(target)
	_, pidNS := v.worker()
	// A process that ended before is killed as a zombie: its own code stays.
	early := v.cmd.ProcessState.Success()
	if !alive && !m.mayEnd || early && !m.mayEnd {
		s.t.Errorf("ended before the moment came:\n%s", v.log.String())
	}
	if worker && !early && !workerIsGone.MatchString(v.log.String()) {
		s.t.Errorf("the command does not tell that its worker is gone:\n%s", v.log.String())
	}
	s.nothingLeft(pidNS)
	s.t.Logf("phase %q: ended before: %v, all processes gone after %s", m.phase, early, time.Since(begin).Round(time.Millisecond))
	s.noLitter()
	return !early
}

// noLitter fails the test when the command left files in its directory for
// temporary ones, or an output that is not whole.
func (s *testStore) noLitter() {
	s.t.Helper()
	tmp, _ := strings.CutPrefix(s.env[len(s.env)-1], "TMPDIR=")
	for _, dir := range []string{tmp, s.dir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range entries {
			switch e.Name() {
			case "ctx":
			case "out.tar": // the kill came after the output had its name
				s.wholeArchive(filepath.Join(dir, e.Name()))
			default:
				s.t.Errorf("left behind: %s/%s", dir, e.Name())
			}
		}
	}
}

// wholeArchive fails the test unless the file is a docker archive to its end,
// and removes it.
func (s *testStore) wholeArchive(file string) {
	s.t.Helper()
	if tree := treeOf(s.t, file); tree["/manifest.json"] == "" {
		s.t.Errorf("%s has no manifest.json", file)
	}
	if err := os.Remove(file); err != nil {
		s.t.Fatal(err)
	}
}

// loads loads the archive of a moment that was interrupted: what there is of it
// by name is whole.
func (s *testStore) loads(m moment) {
	s.t.Helper()
	name := "loaded:" + strings.Fields(m.phase)[1]
	if s.run("inspect", name).code == 0 {
		s.mustRun("run", name, "test", "-e", "/copied/f7")
	}
}

// recovers does the same again undisturbed.
func (s *testStore) recovers(m moment, want fileTree, salt string) {
	s.t.Helper()
	switch m.args[0] {
	case "import":
		rootFS, err := busyboxTar()
		if err != nil {
			s.t.Fatal(err)
		}
		s.mustRun("import", rootFS, "imported")
	case "tag":
		s.mustRun(m.args...)
	case "load":
		s.loads(m)
	case "save":
		s.mustRun("save", "-o", filepath.Join(s.t.TempDir(), "out.tar"), "killed")
	}
	s.mustRun("build", "-q", "-t", "killed", "--build-arg", salt, "ctx")
	sameTree(s.t, s.builtTree("--build-arg", salt, "ctx"), want)
	s.sound()
}
