package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

const twoSteps = "FROM scratch\nRUN one\nCOPY <<E /f\nx\nE\nCMD [\"f\"]\n"

func TestABuildThatIsInTheCacheNeedsNoWorkerAndWritesNothing(t *testing.T) {
	b := newBed(t)
	first := b.build(twoSteps)
	if first.Cached || b.launched != 1 {
		t.Fatalf("got cached %t and %d workers, want one worker", first.Cached, b.launched)
	}
	want := []string{"[2/3] RUN one", "[3/3] COPY <<E /f", "exporting to image"}
	if got := b.started(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	puts, syncs := b.index.puts, b.index.syncs
	second := b.build(twoSteps)
	if !second.Cached || b.launched != 1 || second.Image.ID != first.Image.ID {
		t.Errorf("got cached %t, %d workers and image %s, want no worker and %s", second.Cached, b.launched, second.Image.ID.Short(), first.Image.ID.Short())
	}
	if b.index.puts != puts || b.index.syncs != syncs {
		t.Errorf("got %d writes and %d syncs, want none", b.index.puts-puts, b.index.syncs-syncs)
	}
	if got := b.started(); !slices.Equal(got, want) {
		t.Errorf("from the cache: told %q, want %q", got, want)
	}
}

func TestACachedBuildWithAnotherNameOrLabelIsKept(t *testing.T) {
	b := newBed(t)
	first := b.build(twoSteps)
	r := b.request(twoSteps)
	r.Names = append(r.Names, "localhost/y:1")
	res, err := b.Build(t.Context(), r)
	must(t, err)
	if img, err := b.index.ByName(t.Context(), "localhost/y:1"); err != nil || img.ID != first.Image.ID || !res.Cached || b.index.syncs != 2 {
		t.Errorf("got %s, %v, cached %t, %d syncs, want the image under its new name, in this process, synced", img.ID, err, res.Cached, b.index.syncs)
	}
	r.Labels = map[string]string{"a": "1"}
	res, err = b.Build(t.Context(), r)
	must(t, err)
	if res.Image.ID == first.Image.ID || !res.Cached {
		t.Errorf("with a label: got image %s, cached %t, want another one from the cache", res.Image.ID, res.Cached)
	}
	if img, err := b.index.ByName(t.Context(), "localhost/y:1"); err != nil || img.ID != res.Image.ID {
		t.Errorf("got %s, %v, want the name moved", img.ID, err)
	}
}

func TestTheSealsOfAnImageStayWhenItIsBuiltAgain(t *testing.T) {
	b := newBed(t)
	img := b.build(twoSteps).Image
	img.Sealed = &storage.SealedImage{ConfigDigest: storage.DigestBytes([]byte("c"))}
	must(t, b.index.Index.PutImage(t.Context(), img))
	if got := b.build(twoSteps).Image.Sealed; got == nil || got.ConfigDigest != img.Sealed.ConfigDigest {
		t.Errorf("got %+v, want the seal", got)
	}
}

func TestABuildWhoseLayersAreCollectedMeanwhileIsDoneAgain(t *testing.T) {
	b := newBed(t)
	b.build(twoSteps)
	b.started()
	b.index.putFail = fmt.Errorf("layer: %w", storage.ErrNotFound)
	r := b.request(twoSteps)
	r.Names = []string{"docker.io/library/other:latest"}
	res, err := b.Build(t.Context(), r)
	must(t, err)
	if res.Cached || b.launched != 2 {
		t.Errorf("got cached %t and %d workers, want a second worker", res.Cached, b.launched)
	}
	if got := b.started(); len(got) != 3 {
		t.Errorf("told %q, want each step once", got)
	}
}

func TestWithoutTheCacheEverythingRunsAgain(t *testing.T) {
	b := newBed(t)
	b.build(twoSteps)
	r := b.request(twoSteps)
	r.NoCache = true
	_, err := b.Build(t.Context(), r)
	must(t, err)
	if got := len(b.runner.Specs()); got != 2 || b.launched != 2 {
		t.Errorf("got %d commands and %d workers, want 2 and 2", got, b.launched)
	}
}

func TestAFailedRunIsToldWithItsPlaceCodeAndHint(t *testing.T) {
	b := newBed(t)
	b.backend.RunHint = "one user only"
	b.script(map[string]func(context.Context, sandbox.Spec) error{"fail": func(_ context.Context, s sandbox.Spec) error {
		fmt.Fprint(s.Stderr, "oh no")
		return &sandbox.ExitError{Code: 9}
	}})
	_, err := b.Build(t.Context(), b.request("FROM scratch\nRUN fail"))
	f, ok := errors.AsType[*worker.Failure](err)
	if !ok {
		t.Fatalf("got %v, want a *worker.Failure", err)
	}
	want := worker.Failure{Message: "Dockerfile:2: RUN fail: exit code: 9", Code: ExitRun, Hint: "one user only", Vertex: 1, Pos: f.Pos}
	if !reflect.DeepEqual(*f, want) || f.Pos == nil || f.Pos.Line != 2 {
		t.Errorf("got %+v, want %+v at line 2", *f, want)
	}
	if b.closed != 1 {
		t.Errorf("the backend was closed %d times, want once", b.closed)
	}
}

func TestAFaultOfTheDockerfileShowsItsLine(t *testing.T) {
	b := newBed(t)
	must(t, os.WriteFile(filepath.Join(b.context, "file"), nil, 0o600))
	// With a RUN before it the fault is found by the worker, without by the engine.
	for _, text := range []string{"FROM scratch\nCOPY fiel /", "FROM scratch\nRUN x\nCOPY fiel /"} {
		_, err := b.Build(t.Context(), b.request(text))
		f := Describe(err)
		line := strings.Count(text, "\n") + 1
		want := fmt.Sprintf("Dockerfile:%d:1: COPY fiel /: fiel: no such file or directory\n  %d | COPY fiel /\n    | ^\n  hint: did you mean \"file\"?", line, line)
		if f.Rendered != want || f.Code != ExitUsage {
			t.Errorf("got code %d and\n%s\nwant %d and\n%s", f.Code, f.Rendered, ExitUsage, want)
		}
	}
}

func TestACancelReachesTheWorkerAndEndsTheBuildWithItsCause(t *testing.T) {
	b := newBed(t)
	cause := &Interrupted{Signal: syscall.SIGINT}
	ctx, cancel := context.WithCancelCause(t.Context())
	var seen error
	b.script(map[string]func(context.Context, sandbox.Spec) error{"wait": func(ctx context.Context, _ sandbox.Spec) error {
		cancel(cause)
		<-ctx.Done()
		seen = context.Cause(ctx)
		return seen
	}})
	_, err := b.Build(ctx, b.request("FROM scratch\nRUN wait"))
	if !errors.Is(err, cause) || Describe(err).Code != ExitInterrupted {
		t.Errorf("got %v, want the signal", err)
	}
	if _, ok := errors.AsType[*Interrupted](seen); !ok {
		t.Errorf("the command saw %v, want an interrupt", seen)
	}
	if b.closed != 1 {
		t.Errorf("the backend was closed %d times, want once", b.closed)
	}
}

func TestUnusedBuildArgumentsAreWarnedOf(t *testing.T) {
	b := newBed(t)
	r := b.request(twoSteps)
	r.BuildArgs = map[string]string{"TYPO": "1", "https_proxy": "p", "HTTP_PROXY": "p"}
	_, err := b.Build(t.Context(), r)
	must(t, err)
	if i := slices.IndexFunc(b.events, func(e progress.Event) bool {
		return e.Kind == progress.Warning && strings.HasSuffix(e.Message, " TYPO")
	}); i < 0 {
		t.Errorf("got %+v, want a warning about TYPO alone", b.events)
	}
}

func TestAPlanNeedsNoWorker(t *testing.T) {
	b := newBed(t)
	p, err := b.Plan(t.Context(), b.request("FROM registry.example/x\nRUN a"), false)
	must(t, err)
	if len(p.Images) != 1 || p.Images[0].ID != "" || b.launched != 0 {
		t.Errorf("got %+v and %d workers, want an open source and none", p.Images, b.launched)
	}
	_, err = b.Plan(t.Context(), b.request("FROM registry.example/x\nRUN a"), true)
	if !errors.Is(err, pluginapi.ErrNotFound) || Describe(err).Code != ExitNotFound {
		t.Errorf("strictly: got %v, want not found", err)
	}
	_, err = b.Plan(t.Context(), b.request("FRM x"), false)
	if _, ok := errors.AsType[*dockerfile.Error](err); !ok {
		t.Errorf("got %v, want a *dockerfile.Error", err)
	}
}

// rootTar is a root file system with one file.
func rootTar(t *testing.T) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	must(t, w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: 1}))
	_, err := w.Write([]byte("x"))
	must(t, errors.Join(err, w.Close()))
	name := filepath.Join(t.TempDir(), "root.tar")
	must(t, os.WriteFile(name, buf.Bytes(), 0o600))
	return name
}

func TestAnImportIsAnImageToBuildOn(t *testing.T) {
	b := newBed(t)
	img, err := b.Import(t.Context(), rootTar(t), "docker.io/library/base:latest")
	must(t, err)
	cfg, err := imageconfig.Parse(img.Config)
	must(t, err)
	if cfg.OS != "linux" || cfg.Architecture != "amd64" || len(cfg.History) != 1 || cfg.History[0].Comment != "Imported from root.tar" {
		t.Errorf("got %+v, want the platform and one line of history", cfg)
	}
	if b.index.syncs != 1 {
		t.Errorf("got %d syncs, want 1", b.index.syncs)
	}
	built := b.build("FROM base\nRUN x")
	if len(built.Image.Layers) != 2 || built.Image.Layers[0].ID != img.Layers[0].ID {
		t.Errorf("got layers %v, want the import's below", built.Image.Layers)
	}
	if _, err := b.Import(t.Context(), filepath.Join(t.TempDir(), "none.tar"), "x"); err == nil {
		t.Error("a file that is not there: got no error")
	}
}

func TestAnImageWithoutHistoryIsABaseToo(t *testing.T) {
	b := newBed(t)
	img := b.build(twoSteps).Image
	bare := storage.Image{ID: storage.DigestBytes([]byte("bare")), Config: []byte(`{"os":"linux","architecture":"amd64","config":{}}`), Layers: img.Layers}
	must(t, b.index.PutImage(t.Context(), bare, "docker.io/library/bare:latest"))
	cfg, err := imageconfig.Parse(b.build("FROM bare\nENV a=1\nRUN x").Image.Config)
	must(t, err)
	var got []string
	for _, h := range cfg.History {
		got = append(got, fmt.Sprintf("%s %t", h.CreatedBy, h.EmptyLayer))
	}
	if want := []string{" false", " false", "ENV a=1 true", "RUN /bin/sh -c x # buildkit false"}; !slices.Equal(got, want) {
		t.Errorf("got history %q, want %q", got, want)
	}
}

func TestARunReturnsTheCommandsOwnCode(t *testing.T) {
	b := newBed(t)
	img := b.build(twoSteps).Image
	b.script(map[string]func(context.Context, sandbox.Spec) error{
		"f": func(context.Context, sandbox.Spec) error { return &sandbox.ExitError{Code: 5} },
		"missing": func(context.Context, sandbox.Spec) error {
			return &sandbox.StartError{Code: 127, Err: errors.New("not found")}
		},
	})
	if code, err := b.Run(t.Context(), RunRequest{Image: img}); code != 5 || err != nil {
		t.Errorf("got %d, %v, want the code 5 of the image's command", code, err)
	}
	_, err := b.Run(t.Context(), RunRequest{Image: img, Args: []string{"missing"}})
	if f := Describe(err); err == nil || f.Code != 127 || f.Message != "not found" {
		t.Errorf("got %+v, want code 127", f)
	}
	_, err = b.Run(t.Context(), RunRequest{Image: img, Entrypoint: []string{}})
	if f := Describe(err); err == nil || f.Code != ExitUsage || f.Hint == "" {
		t.Errorf("no command at all: got %+v, want a usage error with a hint", f)
	}
	_, err = b.Run(t.Context(), RunRequest{Image: img, Hosts: []worker.Host{{Name: "x", Addr: "nowhere"}}})
	if err == nil || !strings.HasPrefix(err.Error(), "host x: ") {
		t.Errorf("a bad address: got %v", err)
	}
}

func TestPruneTakesImagesOnlyWithAll(t *testing.T) {
	b := newBed(t)
	b.build(twoSteps)
	b.collects = nil
	for _, all := range []bool{false, true} {
		freed, err := b.Prune(t.Context(), all)
		must(t, err)
		images, err := b.index.AllImages(t.Context())
		must(t, err)
		if freed != 42 || (len(images) == 0) != all {
			t.Errorf("all %t: got %d bytes and %d images", all, freed, len(images))
		}
	}
	if !slices.Equal(b.collects, []bool{false, true}) {
		t.Errorf("collected with %t, want false and true", b.collects)
	}
}

func TestRemoveTakesANameOrAnImage(t *testing.T) {
	const x, y = "docker.io/library/x:latest", "localhost/y:1"
	cases := map[string]struct {
		names  []string
		target worker.RemoveTarget
		force  bool
		want   []string // "ID" stands for the image's
		left   int
		err    error
	}{
		"one of two names":              {[]string{x, y}, worker.RemoveTarget{Name: y}, false, []string{"Untagged: " + y}, 1, nil},
		"the last name takes the image": {[]string{x}, worker.RemoveTarget{Name: x}, false, []string{"Untagged: " + x, "Deleted: ID"}, 0, nil},
		"an ID with one name":           {[]string{x}, worker.RemoveTarget{}, false, []string{"Untagged: " + x, "Deleted: ID"}, 0, nil},
		"an ID without a name":          {nil, worker.RemoveTarget{}, false, []string{"Deleted: ID"}, 0, nil},
		"an ID with two names":          {[]string{x, y}, worker.RemoveTarget{}, false, nil, 1, storage.ErrInUse},
		"an ID with two names, forced":  {[]string{x, y}, worker.RemoveTarget{}, true, []string{"Untagged: " + x, "Untagged: " + y, "Deleted: ID"}, 0, nil},
		"a name that is not there":      {[]string{x}, worker.RemoveTarget{Name: y}, false, nil, 1, storage.ErrNotFound},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			id := storage.DigestBytes([]byte("image"))
			must(t, b.index.Index.PutImage(t.Context(), storage.Image{ID: id, Config: []byte("{}")}, c.names...))
			c.target.Image = id
			lines, err := b.Remove(t.Context(), []worker.RemoveTarget{c.target}, c.force)
			want := strings.ReplaceAll(strings.Join(c.want, "|"), "ID", string(id))
			if strings.Join(lines, "|") != want {
				t.Errorf("got %q, want %q", lines, want)
			}
			if (err != nil) != (c.err != nil) {
				t.Errorf("got %v, want %v", err, c.err)
			}
			if errors.Is(c.err, storage.ErrInUse) && Describe(err).Code != ExitUsage || errors.Is(c.err, storage.ErrNotFound) && Describe(err).Code != ExitNotFound {
				t.Errorf("got code %d for %v", Describe(err).Code, c.err)
			}
			images, err := b.index.AllImages(t.Context())
			if err != nil || len(images) != c.left {
				t.Errorf("got %d images, %v, want %d", len(images), err, c.left)
			}
		})
	}
}

func TestUnshareReturnsTheCommandsCodeOrItsSignal(t *testing.T) {
	b := newBed(t)
	for command, want := range map[string]int{"exit 7": 7, "true": 0, "kill -TERM $$": 143} {
		if code, err := b.Unshare(t.Context(), []string{"/bin/sh", "-c", command}); code != want || err != nil {
			t.Errorf("%s: got %d, %v, want %d", command, code, err, want)
		}
	}
	_, err := b.Unshare(t.Context(), []string{"no-such-command"})
	if f := Describe(err); err == nil || f.Code != 127 {
		t.Errorf("got %v, want code 127", err)
	}
}

func TestTheNewestSizeOfATerminalWins(t *testing.T) {
	sizes := make(chan [2]uint16, 1)
	for i := range uint16(3) {
		replace(sizes, [2]uint16{i, 80})
	}
	if got := <-sizes; got != [2]uint16{2, 80} {
		t.Errorf("got %v, want the last size", got)
	}
}
