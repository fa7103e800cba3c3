package integration

import (
	"bytes"
	"cmp"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

func TestTheBinaryNeedsNoInterpreterAndNoLibrary(t *testing.T) {
	bin, err := mstageBinary()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("got a program header %v, want none", p.Type)
		}
	}
	if libraries, err := f.ImportedLibraries(); err == nil && len(libraries) > 0 {
		t.Errorf("got imported libraries %v, want none", libraries)
	}
}

func TestTheBinaryRunsInAnImageThatHoldsNothingElse(t *testing.T) {
	s := newBusyboxStore(t)
	if err := copyFile(s.bin, filepath.Join(s.dir, "mstage")); err != nil {
		t.Fatal(err)
	}
	s.write("Dockerfile", "FROM scratch\nCOPY --chmod=755 mstage /mstage\n")
	s.mustRun("build", "-t", "alone", ".")
	want := s.mustRun("version")
	if got := s.mustRun("run", "alone", "/mstage", "version"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTheBinaryEmbedsRootCertificates(t *testing.T) {
	bin, err := mstageBinary()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	missing, count := 0, 0
	for root := range bundle.Roots() {
		count++
		if !bytes.Contains(program, root.Certificate) {
			missing++
		}
	}
	if missing > 0 || count == 0 {
		t.Errorf("got a binary without %d of Mozilla's %d roots, want all of them", missing, count)
	}
}

// startBudget is the CPU time that `mstage version` may take: whoever calls
// mstage from a script or a shell's completion doesn't wait for more.
const startBudget = 10 * time.Millisecond

func TestTheVersionIsPrintedWithin10MillisecondsOfCPU(t *testing.T) {
	bin, err := mstageBinary()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the heaviest initialisations:\n%s", strings.Join(heaviestInits(t, bin, 10), "\n"))
	const runs = 20 // the least of them is what the machine's other work added least to
	least := time.Hour
	for range runs {
		cmd := exec.Command(bin, "version")
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		least = min(least, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}
	t.Logf("mstage version takes %v of CPU", least)
	if least > startBudget {
		t.Errorf("got %v of CPU, want at most %v", least, startBudget)
	}
}

// heaviestInits returns the n lines of GODEBUG=inittrace=1 that took longest:
// "init NAME @0.5 ms, 0.2 ms clock, 9216 bytes, 10 allocs".
func heaviestInits(t *testing.T, bin string, n int) []string {
	t.Helper()
	cmd := exec.Command(bin, "version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	took := func(line string) float64 {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			return 0
		}
		ms, err := strconv.ParseFloat(fields[4], 64)
		if err != nil {
			return 0
		}
		return ms
	}
	lines := slices.Collect(strings.Lines(stderr.String()))
	slices.SortStableFunc(lines, func(a, b string) int { return cmp.Compare(took(b), took(a)) })
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\n")
	}
	if len(lines) == 0 {
		t.Fatal("got no inittrace, want a line for each package")
	}
	return lines[:min(n, len(lines))]
}
