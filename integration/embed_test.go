package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// embedderVariable names the compiled testdata/embedder, for hosts and users
// without Go.
const embedderVariable = "MSTAGE_EMBEDDER"

// buildTags are those of every build of this module.
const buildTags = "netgo osusergo runc_nocriu exclude_graphdriver_btrfs exclude_graphdriver_zfs"

// staticFlags link a program without libraries: it runs in sandboxes, too.
const staticFlags = `-s -w -linkmode external -extldflags "-static"`

// embedder returns the compiled program.
func embedder(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(embedderVariable); path != "" {
		return path
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("Go is not installed and %s is not set", embedderVariable)
	}
	path := filepath.Join(t.TempDir(), "embedder")
	out, err := exec.Command("go", "build", "-tags", buildTags, "-ldflags", staticFlags, "-o", path, "./testdata/embedder").CombinedOutput()
	if err != nil {
		t.Fatalf("compile the embedder: %v\n%s", err, out)
	}
	return path
}

func TestAProgramThatEmbedsTheEngineBuildsADockerfile(t *testing.T) {
	program := embedder(t)
	s := newBusyboxStore(t)
	s.write("context/file", "from the context")
	s.write("context/Dockerfile", "FROM busybox AS build\nCOPY file /file\nRUN tr a-z A-Z </file >/upper\nFROM busybox\nCOPY --from=build /upper /upper\n")
	cmd := exec.Command(program, s.root, filepath.Join(s.dir, "context"), "docker.io/library/embedded:latest")
	cmd.Stderr = &bytes.Buffer{}
	out, err := cmd.Output()
	if err != nil || !strings.HasPrefix(string(out), "sha256:") {
		t.Fatalf("got %q and %v, want an image ID\n%s", out, err, cmd.Stderr)
	}
	if got, want := s.mustRun("run", "embedded", "cat", "/upper"), "FROM THE CONTEXT"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
