package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/plan"
)

// planned is a Dockerfile with every kind of source.
const planned = `FROM hello AS base
FROM registry.example/other AS open
FROM scratch AS unneeded
FROM base
COPY --from=open /a /b
RUN --mount=from=base,target=/m x
COPY f /f
`

// contextWith is a build context with a Dockerfile.
func contextWith(t *testing.T, text string) string {
	t.Helper()
	return filepath.Dir(write(t, filepath.Join(t.TempDir(), "Dockerfile"), text))
}

func TestAPlanShowsStagesSourcesAndSteps(t *testing.T) {
	newStore(t)
	dir := contextWith(t, planned)
	got := succeed(t, "plan", dir)
	_, got, _ = strings.Cut(got, "\n") // the platform is this host's
	want := `
stage 0 base
  FROM docker.io/library/hello:latest: image ` + hello.ID.Short() + ` (localtag)

stage 1 open
  FROM registry.example/other: registry (not asked)

stage 3 (unnamed)  (target)
  FROM stage 0 base
  COPY --from=open /a /b
      from stage 1 open
  RUN --mount=from=base,target=/m x
      mount /m from stage 0 base
  COPY f /f
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAPlanIsJSONOrAGraph(t *testing.T) {
	newStore(t)
	dir := contextWith(t, planned)
	var p plan.Plan
	if err := json.Unmarshal([]byte(succeed(t, "plan", "--format", "json", dir)), &p); err != nil || len(p.Stages) != 3 || p.Target != 2 {
		t.Errorf("got %d stages, target %d, %v, want 3 and 2", len(p.Stages), p.Target, err)
	}
	dot := succeed(t, "plan", "--format", "dot", dir)
	for _, want := range []string{
		"digraph plan {", `image0 -> stage0 [label="FROM"];`, `image1 -> stage1 [label="FROM"];`, `stage0 -> stage2 [label="FROM"];`,
		`stage1 -> stage2 [label="--from"];`, `stage0 -> stage2 [label="--from"];`, "not asked", "penwidth=2",
	} {
		if !strings.Contains(dot, want) {
			t.Errorf("got\n%s\nwant %s in it", dot, want)
		}
	}
}

func TestAPlanMakesNoStore(t *testing.T) {
	root := filepath.Join(t.TempDir(), "none")
	succeed(t, "--root", root, "plan", contextWith(t, "FROM scratch\nCOPY f /f"))
	if _, err := os.Lstat(root); err == nil {
		t.Error("got a store, want none")
	}
}

func TestAPlanRefusesWhatABuildWould(t *testing.T) {
	newStore(t)
	for text, want := range map[string]string{
		"FROM scratch\nCOPPY a b": `did you mean "COPY"?`, "FROM scratch AS build\nFROM scratch\nCOPY --from=biuld a b": `did you mean "build"`,
		"FROM scratch\nCOPY --link a b": "COPY --link is not supported yet",
	} {
		stdout, stderr, code := mstageRun("plan", contextWith(t, text))
		if code == engine.ExitOK || stdout != "" || !strings.Contains(stderr, want) || !strings.Contains(stderr, "Dockerfile:") {
			t.Errorf("%q: got code %d, %q and %q, want %q with its place", text, code, stdout, stderr, want)
		}
	}
	_, stderr, code := mstageRun("plan", "--format", "xml", ".")
	if code != engine.ExitUsage || !strings.Contains(stderr, "--format xml") {
		t.Errorf("got code %d and %q, want a usage error", code, stderr)
	}
}
