package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// fiftyInstructions returns a Dockerfile of 50 instructions, every fifth a COPY.
func fiftyInstructions() string {
	var b strings.Builder
	b.WriteString("FROM busybox\n")
	for i := range 49 {
		switch i % 5 {
		case 0:
			fmt.Fprintf(&b, "COPY file /file-%d\n", i)
		case 1:
			fmt.Fprintf(&b, "ENV NUMBER=%d\n", i)
		case 2:
			fmt.Fprintf(&b, "WORKDIR /dir-%d\n", i)
		default:
			fmt.Fprintf(&b, "RUN echo %d >/run-%d\n", i, i)
		}
	}
	return b.String()
}

// builtFifty returns a store in which the 50 instructions are built already.
func builtFifty(t *testing.T) *testStore {
	t.Helper()
	s := newBusyboxStore(t)
	s.write("context/file", "content")
	s.write("context/Dockerfile", fiftyInstructions())
	s.mustRun("build", "-t", "fifty", "context")
	s.mustRun("build", "-t", "fifty", "context") // a young file's digest is remembered from the second look on
	return s
}

// rebuildBudget is how long a build of 50 instructions that are all in the cache
// may take: less than what feels like waiting.
const rebuildBudget = 100 * time.Millisecond

func TestARebuildOf50CachedInstructionsTakesLessThan100Milliseconds(t *testing.T) {
	s := builtFifty(t)
	least := time.Hour
	for range 10 {
		begin := time.Now()
		r := s.run("build", "-t", "fifty", "context")
		least = min(least, time.Since(begin))
		if cached := strings.Count(r.stderr, "CACHED"); r.code != 0 || cached < 40 {
			t.Fatalf("got exit code %d and %d cached steps, want 0 and all of them\n%s", r.code, cached, r.stderr)
		}
	}
	t.Logf("a rebuild takes %v", least)
	if least > rebuildBudget {
		t.Errorf("got %v, want at most %v", least, rebuildBudget)
	}
}

// started is a system call that makes a process or a thread, as strace prints it.
var started = regexp.MustCompile(`\b(clone3?|v?fork)\(.*`)

func TestACachedRebuildStartsNoProcessAndOpensNoLayer(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed")
	}
	s := builtFifty(t)
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := s.command("build", "-t", "fifty", "context")
	cmd.Args = append([]string{"strace", "-f", "-o", trace, "-s", "4096", "-e", "trace=process,%file", s.bin}, cmd.Args[1:]...)
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = path
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("trace: %v\n%s", err, out)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(text)) {
		lines++
		if call := started.FindString(line); call != "" && !strings.Contains(call, "CLONE_THREAD") && !strings.Contains(call, "resumed") {
			t.Errorf("got a new process, want threads only: %s", line)
		}
		if strings.Contains(line, filepath.Join(s.root, "containers")+"/") {
			t.Errorf("got a look at the layers, want none: %s", line)
		}
	}
	if !strings.Contains(string(text), "context/Dockerfile") || lines < 20 {
		t.Errorf("got a trace of %d lines, want one of a build", lines)
	}
}
