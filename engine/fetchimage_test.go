package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

// remoteSource has one image, "remote.example/x:1", whose layers a test may
// spoil.
type remoteSource struct {
	manifest, config []byte
	layers           [][]byte
	// deliver replaces the delivery of what was asked for.
	deliver func(ctx context.Context, ask []string, to pluginapi.Receiver) error

	mu    sync.Mutex
	asked [][]string // guarded by mu: the layers of each Fetch
}

// fileTar is a layer of one file.
func fileTar(t *testing.T, name, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}))
	_, err := io.WriteString(w, text)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

func digestOf(b []byte) string { return string(storage.DigestBytes(b)) }

// newRemoteBed is a bed whose last source has an image of these layers.
func newRemoteBed(t *testing.T, layers ...[]byte) (*bed, *remoteSource) {
	t.Helper()
	s := &remoteSource{layers: layers}
	var diffIDs []string
	descriptors := []map[string]any{}
	for _, l := range layers {
		diffIDs = append(diffIDs, digestOf(l))
		descriptors = append(descriptors, map[string]any{
			"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digestOf(l), "size": len(l),
		})
	}
	var err error
	s.config, err = json.Marshal(map[string]any{
		"os": "linux", "architecture": "amd64", "config": map[string]any{"Env": []string{"A=b"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	must(t, err)
	s.manifest, err = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": descriptors,
		"config": map[string]any{"digest": digestOf(s.config), "size": len(s.config)},
	})
	must(t, err)
	b := newBed(t)
	b.o.Sources = append(b.o.Sources, s)
	return b, s
}

func (*remoteSource) Describe(context.Context) (pluginapi.Description, error) {
	return pluginapi.Description{Name: "remote", Protocol: pluginapi.Protocol, Capabilities: []string{pluginapi.CapabilityNetwork}}, nil
}

func (s *remoteSource) Resolve(_ context.Context, r pluginapi.Request) (pluginapi.Resolved, error) {
	if r.Reference != "remote.example/x:1" {
		return pluginapi.Resolved{}, fmt.Errorf("%s: %w", r.Reference, pluginapi.ErrNotFound)
	}
	return pluginapi.Resolved{Source: "remote", Reference: r.Reference, Content: &pluginapi.Content{
		Digest: digestOf(s.manifest), Manifest: s.manifest, Config: s.config,
	}}, nil
}

func (s *remoteSource) Fetch(ctx context.Context, _ pluginapi.Resolved, sel pluginapi.Selection, to pluginapi.Receiver) error {
	s.mu.Lock()
	s.asked = append(s.asked, sel.Layers)
	s.mu.Unlock()
	if s.deliver != nil {
		return s.deliver(ctx, sel.Layers, to)
	}
	for _, l := range s.layers {
		if slices.Contains(sel.Layers, digestOf(l)) {
			if err := layer(ctx, to, digestOf(l), bytes.NewReader(l)); err != nil {
				return err
			}
		}
	}
	return nil
}

// layer delivers bytes as the layer with a digest.
func layer(ctx context.Context, to pluginapi.Receiver, digest string, r io.Reader) error {
	return to.Layer(ctx, pluginapi.Layer{Digest: digest}, r)
}

func TestAnImageIsFetchedForAllStagesAtOnceAndOnlyOnce(t *testing.T) {
	a, c := fileTar(t, "a", "1"), fileTar(t, "c", "2")
	b, s := newRemoteBed(t, a, c, a)
	text := "FROM remote.example/x:1 AS one\nRUN one\nFROM remote.example/x:1 AS two\nRUN two\n" +
		"FROM remote.example/x:1\nCOPY --from=one / /1\nCOPY --from=two / /2\n"
	res := b.build(text)
	if len(s.asked) != 1 || !slices.Equal(s.asked[0], []string{digestOf(a), digestOf(c)}) {
		t.Errorf("asked for %q, want both layers, once", s.asked)
	}
	img, err := b.index.ByName(t.Context(), "remote.example/x:1")
	if err != nil || string(img.ID) != digestOf(s.config) || len(img.Layers) != 3 || img.Sealed == nil || !bytes.Equal(img.Sealed.Manifest.Raw, s.manifest) {
		t.Errorf("the image in the store is %+v, %v, want it as it came, under its name", img, err)
	}
	if got := b.build(text); got.Image.ID != res.Image.ID || len(s.asked) != 1 {
		t.Errorf("built again: %s, %d fetches, want %s and no other fetch", got.Image.ID, len(s.asked), res.Image.ID)
	}
}

func TestLayersOfTheStoreAreNotFetched(t *testing.T) {
	a, c := fileTar(t, "a", "1"), fileTar(t, "c", "2")
	b, s := newRemoteBed(t, a, c)
	_, err := b.Pull(t.Context(), "remote.example/x:1", "", b)
	must(t, err)
	// What came for one image is there for another.
	other, more := newRemoteBed(t, a, fileTar(t, "new", "3"))
	b.o.Sources[len(b.o.Sources)-1] = other.o.Sources[len(other.o.Sources)-1]
	_, err = b.Pull(t.Context(), "remote.example/x:1", "", b)
	must(t, err)
	if want := [][]string{{digestOf(more.layers[1])}}; len(s.asked) != 1 || fmt.Sprint(more.asked) != fmt.Sprint(want) {
		t.Errorf("asked for %q, then %q, want the new layer only", s.asked, more.asked)
	}
}

func TestACopyFromAFetchedImageThatIsCachedFetchesNothing(t *testing.T) {
	b, s := newRemoteBed(t, fileTar(t, "tool", "x"))
	text := "FROM scratch\nCOPY --from=remote.example/x:1 /tool /tool\n"
	want := b.build(text)
	for _, img := range []string{"remote.example/x:1"} {
		found, err := b.index.ByName(t.Context(), img)
		must(t, err)
		must(t, b.index.RemoveImage(t.Context(), found.ID))
	}
	got := b.build(text)
	if got.Image.ID != want.Image.ID || len(s.asked) != 1 || !got.Cached {
		t.Errorf("got %s, cached %v, %d fetches, want %s from the cache", got.Image.ID, got.Cached, len(s.asked), want.Image.ID)
	}
}

func TestASourceThatDeliversSomethingElseFailsTheBuild(t *testing.T) {
	a, c := fileTar(t, "a", strings.Repeat("1", 10_000)), fileTar(t, "c", "2")
	refused := errors.New("the source's own reason")
	for name, tc := range map[string]struct {
		deliver func(ctx context.Context, ask []string, to pluginapi.Receiver) error
		code    int
		text    string
	}{
		"an unasked layer": {func(ctx context.Context, _ []string, to pluginapi.Receiver) error {
			return layer(ctx, to, digestOf(nil), bytes.NewReader(a))
		}, ExitInternal, "was not asked for"},
		"too few": {func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
			return layer(ctx, to, ask[0], bytes.NewReader(a))
		}, ExitInternal, "did not come"},
		"nothing": {func(context.Context, []string, pluginapi.Receiver) error { return nil }, ExitInternal, "did not come"},
		"wrong bytes": {func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
			return layer(ctx, to, ask[0], bytes.NewReader(c))
		}, ExitNetwork, "bytes"},
		"other bytes of that size": {func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
			return layer(ctx, to, ask[0], bytes.NewReader(bytes.Replace(a, []byte("1111"), []byte("2222"), 1)))
		}, ExitNetwork, "blob: got sha256:"},
		"endless": {func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
			return layer(ctx, to, ask[0], io.MultiReader(bytes.NewReader(a), zeros{}))
		}, ExitNetwork, "got more"},
		"a root file system": {func(ctx context.Context, _ []string, to pluginapi.Receiver) error {
			return to.RootFS(ctx, bytes.NewReader(a))
		}, ExitInternal, "was not asked for"},
		"its own error": {func(context.Context, []string, pluginapi.Receiver) error { return refused }, ExitInternal, refused.Error()},
		"its own error in the middle": {func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
			return layer(ctx, to, ask[0], io.MultiReader(bytes.NewReader(a[:100]), failingReader{refused}))
		}, ExitInternal, refused.Error()},
		"no credentials": {func(context.Context, []string, pluginapi.Receiver) error {
			return &pluginapi.Error{Message: "who are you", Hint: "log in", Err: pluginapi.ErrAuth}
		}, ExitAuth, "who are you"},
		"one wrong, another that hangs": {func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
			var wg sync.WaitGroup
			wg.Go(func() { _ = layer(ctx, to, ask[1], hanging{ctx}) })
			err := layer(ctx, to, ask[0], bytes.NewReader(c))
			wg.Wait()
			return err
		}, ExitNetwork, "bytes"},
		"the same layer twice": {func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
			return errors.Join(layer(ctx, to, ask[0], bytes.NewReader(a)), layer(ctx, to, ask[0], bytes.NewReader(a)))
		}, ExitInternal, "did not come"},
	} {
		t.Run(name, func(t *testing.T) {
			b, s := newRemoteBed(t, a, c)
			s.deliver = tc.deliver
			_, err := b.Build(t.Context(), b.request("FROM remote.example/x:1\n"))
			f := Describe(err)
			if err == nil || f.Code != tc.code || !strings.Contains(f.Message, tc.text) {
				t.Errorf("got code %d, %v, want %d and %q", f.Code, err, tc.code, tc.text)
			}
			if !strings.Contains(f.Message, "Dockerfile:1") {
				t.Errorf("no place in %q", f.Message)
			}
			if _, err := b.index.ByName(t.Context(), "remote.example/x:1"); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("the image got its name: %v", err)
			}
			s.deliver = nil
			b.build("FROM remote.example/x:1\n")
		})
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

// hanging says nothing until its context ends.
type hanging struct{ ctx context.Context }

func (h hanging) Read([]byte) (int, error) { <-h.ctx.Done(); return 0, context.Cause(h.ctx) }

func TestACancelEndsASourceThatHangs(t *testing.T) {
	b, s := newRemoteBed(t, fileTar(t, "a", "1"))
	cause := &Interrupted{Signal: syscall.SIGINT}
	ctx, cancel := context.WithCancelCause(t.Context())
	s.deliver = func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
		return layer(ctx, to, ask[0], io.MultiReader(bytes.NewReader(s.layers[0][:100]), cancelling{cancel, cause}, hanging{ctx}))
	}
	_, err := b.Build(ctx, b.request("FROM remote.example/x:1\n"))
	if !errors.Is(err, cause) || Describe(err).Code != ExitInterrupted {
		t.Errorf("got %v, want the signal", err)
	}
}

// cancelling cancels when it is read.
type cancelling struct {
	cancel context.CancelCauseFunc
	cause  error
}

func (c cancelling) Read([]byte) (int, error) { c.cancel(c.cause); return 0, io.EOF }

func TestAFailedRunEndsAFetchThatHangs(t *testing.T) {
	b, s := newRemoteBed(t, fileTar(t, "a", "1"))
	begun := make(chan struct{})
	s.deliver = func(ctx context.Context, ask []string, to pluginapi.Receiver) error {
		close(begun)
		return layer(ctx, to, ask[0], hanging{ctx})
	}
	b.script(map[string]func(context.Context, sandbox.Spec) error{"fail": func(context.Context, sandbox.Spec) error {
		<-begun
		return &sandbox.ExitError{Code: 9}
	}})
	_, err := b.Build(t.Context(), b.request("FROM scratch AS a\nRUN fail\nFROM remote.example/x:1\nCOPY --from=a / /\n"))
	if f := Describe(err); f.Code != ExitRun {
		t.Errorf("got %v, want the RUN's failure", err)
	}
}

func TestAPullReturnsTheImageAndTellsItsBytes(t *testing.T) {
	a := fileTar(t, "a", "1")
	b, s := newRemoteBed(t, a)
	img, err := b.Pull(t.Context(), "remote.example/x:1", "", b)
	if err != nil || string(img.ID) != digestOf(s.config) {
		t.Fatalf("got %s, %v, want the digest of the config", img.ID, err)
	}
	var statuses []string
	for _, e := range b.events {
		if e.Kind == progress.StepProgress && e.Item == digestOf(a) {
			statuses = append(statuses, e.Status)
		}
	}
	if len(statuses) == 0 || statuses[len(statuses)-1] != progress.TransferDone {
		t.Errorf("told %q, want the layer's way to %s", statuses, progress.TransferDone)
	}
	if _, err := b.Pull(t.Context(), "remote.example/nothing", "", b); !pluginapi.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
}
