package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// parallelDockerfile makes two stages and a result that shows which it came from.
const parallelDockerfile = `FROM busybox AS made
ARG WHO=all
RUN for i in 1 2 3 4 5 6 7 8 9; do mkdir /m$i; echo $WHO >/m$i/f; done
FROM busybox
COPY --from=made /m1 /m2 /m3 /copied/
COPY data /data
RUN mv /copied /moved && cat /data/f >/result
`

func TestBuildsAtOnceOnOneStore(t *testing.T) {
	const builds = 4
	for name, who := range map[string]func(i int) string{
		"of the same Dockerfile":       func(int) string { return "all" },
		"that share some of the steps": func(i int) string { return fmt.Sprint("pair", i/2) },
		"that differ":                  func(i int) string { return fmt.Sprint("only", i) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newBusyboxStore(t)
			s.write("ctx/Dockerfile", parallelDockerfile)
			s.write("ctx/data/f", "from the context\n")
			tar := func(i int) string { return filepath.Join(s.dir, fmt.Sprint("out", i, ".tar")) }
			var group sync.WaitGroup
			for i := range builds {
				group.Go(func() {
					args := []string{
						"build", "-q", "-t", fmt.Sprint("result:", i), "--build-arg", "WHO=" + who(i),
						"-o", "type=image", "-o", "type=tar,dest=" + tar(i), "ctx",
					}
					if out, err := s.command(args...).CombinedOutput(); err != nil {
						t.Errorf("build %d: %v\n%s", i, err, out)
					}
				})
			}
			group.Wait()
			if t.Failed() {
				return
			}
			s.sound()
			for i := range builds {
				alone := newBusyboxStore(t)
				alone.dir = s.dir
				sameTree(t, treeOf(t, tar(i)), alone.builtTree("--build-arg", "WHO="+who(i), "ctx"))
				want := who(i) + "\nfrom the context\n"
				if got := s.mustRun("run", fmt.Sprint("result:", i), "cat", "/moved/f", "/result"); got != want {
					t.Errorf("image %d says %q, want %q", i, got, want)
				}
			}
		})
	}
}

func TestBuildsPruneAndImportAtOnceOnOneStore(t *testing.T) {
	s := newBusyboxStore(t)
	s.write("ctx/Dockerfile", parallelDockerfile)
	s.write("ctx/data/f", "from the context\n")
	rootFS, err := busyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 3 {
		commands := [][]string{
			{"build", "-q", "-t", "result", "--build-arg", fmt.Sprint("WHO=w", i), "ctx"},
			{"prune", "-f"},
			{"import", rootFS, fmt.Sprint("imported:", i)},
			{"images"},
		}
		for _, args := range commands {
			group.Go(func() {
				if out, err := s.command(args...).CombinedOutput(); err != nil {
					t.Errorf("mstage %q: %v\n%s", args, err, out)
				}
			})
		}
	}
	group.Wait()
	s.mustRun("prune", "-f")
	s.sound()
}

// sleepers has a result that needs stages which sleep so many seconds each.
func sleepers(stages, seconds int) string {
	var text strings.Builder
	for i := range stages {
		fmt.Fprintf(&text, "FROM busybox AS s%d\nRUN sleep %d && echo %d >/f%d\n", i, seconds, i, i)
	}
	text.WriteString("FROM busybox AS unneeded\nRUN exit 1\nFROM busybox\n")
	for i := range stages {
		fmt.Fprintf(&text, "COPY --from=s%d /f%d /\n", i, i)
	}
	return text.String()
}

func TestIndependentStagesRunAtOnceAndUnneededOnesNever(t *testing.T) {
	s := newBusyboxStore(t)
	s.write("ctx/Dockerfile", sleepers(8, 2))
	begin := time.Now()
	tree := s.builtTree("ctx")
	// In turn they take 16 s. scripts/bench.sh measures; this tells the two apart.
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("8 stages that sleep 2 s took %s, want them at once", took)
	}
	for i := range 8 {
		if name := fmt.Sprint("/f", i); tree[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestAnUnchangedBuildOfFiftyInstructionsIsQuick(t *testing.T) {
	s := newBusyboxStore(t)
	s.write("ctx/Dockerfile", instructions(50))
	s.mustRun("build", "-q", "ctx")
	before := modified(t, s.root)
	begin := time.Now()
	s.mustRun("build", "-q", "ctx")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the unchanged build took %s, want a fraction of 2 s", took)
	}
	if after := modified(t, s.root); after != before {
		t.Errorf("the catalogue of layers changed at %s, want it untouched since %s", after, before)
	}
}

// instructions is a Dockerfile of n cheap instructions of several kinds.
func instructions(n int) string {
	var text strings.Builder
	text.WriteString("FROM busybox\n")
	for i := range n - 1 {
		switch i % 3 {
		case 0:
			fmt.Fprintf(&text, "RUN echo %d >/f%d\n", i, i)
		case 1:
			fmt.Fprintf(&text, "COPY Dockerfile /copied%d\n", i)
		default:
			fmt.Fprintf(&text, "ENV NAME%d=%d\n", i, i)
		}
	}
	return text.String()
}

// modified is when the catalogue of layers was changed.
func modified(t testing.TB, root string) time.Time {
	t.Helper()
	fi, err := os.Stat(filepath.Join(root, "containers", "overlay-layers"))
	if err != nil {
		t.Fatal(err)
	}
	return fi.ModTime()
}
