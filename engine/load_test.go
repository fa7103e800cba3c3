package engine

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
)

// tarOf is a tar of these files.
func tarOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}))
		_, err := w.Write(files[name])
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return b
}

// layered is the tar of a layer with a file of that content, and the config of an
// image that has it.
func layered(t *testing.T, content string) (layer, config []byte) {
	t.Helper()
	layer = tarOf(t, map[string][]byte{"file": []byte(content)})
	return layer, asJSON(t, map[string]any{
		"os": "linux", "architecture": "amd64", "created": "2020-01-01T00:00:00Z",
		"rootfs": map[string]any{"type": "layers", "diff_ids": []storage.Digest{storage.DigestBytes(layer)}},
	})
}

// dockerArchive writes a docker archive of one image of one plain layer for each
// content, named x:CONTENT.
func dockerArchive(t *testing.T, contents ...string) (path string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{}
	var manifest []map[string]any
	for _, c := range contents {
		layer, config := layered(t, c)
		files[c+"/layer.tar"], files[c+".json"] = layer, config
		manifest = append(manifest, map[string]any{"Config": c + ".json", "RepoTags": []string{"x:" + c}, "Layers": []string{c + "/layer.tar"}})
	}
	files["manifest.json"] = asJSON(t, manifest)
	return writeTar(t, files), files
}

func writeTar(t *testing.T, files map[string][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive.tar")
	must(t, os.WriteFile(path, tarOf(t, files), 0o600))
	return path
}

// ociArchive writes an OCI archive of one image and returns its manifest.
func ociArchive(t *testing.T, content, name string) (path string, manifest []byte) {
	t.Helper()
	layer, config := layered(t, content)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err := w.Write(layer)
	must(t, errors.Join(err, w.Close()))
	files := map[string][]byte{}
	add := func(mediaType string, b []byte) map[string]any {
		d := storage.DigestBytes(b)
		files["blobs/sha256/"+d.Hex()] = b
		return map[string]any{"mediaType": mediaType, "digest": d, "size": len(b)}
	}
	manifest = asJSON(t, map[string]any{
		"schemaVersion": 2, "config": add("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{add("application/vnd.oci.image.layer.v1.tar+gzip", packed.Bytes())}, "annotations": map[string]string{"kept": "too"},
	})
	line := add("application/vnd.oci.image.manifest.v1+json", manifest)
	line["annotations"] = map[string]string{"io.containerd.image.name": name}
	files["index.json"] = asJSON(t, map[string]any{"manifests": []any{line}})
	return writeTar(t, files), manifest
}

// load loads an archive that has to be right.
func (b *bed) load(path string) []worker.Loaded {
	b.t.Helper()
	loaded, err := b.Load(b.t.Context(), LoadRequest{Path: path, Sink: b})
	must(b.t, err)
	return loaded
}

// told lists the events of a kind.
func (b *bed) told(kind progress.Kind) []progress.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	events := slices.DeleteFunc(slices.Clone(b.events), func(e progress.Event) bool { return e.Kind != kind })
	b.events = nil
	return events
}

func TestAClassicArchiveKeepsConfigAndTars(t *testing.T) {
	b := newBed(t)
	path, files := dockerArchive(t, "a", "b")
	loaded := b.load(path)
	if len(loaded) != 2 || loaded[0].Image != storage.DigestBytes(files["a.json"]) || !slices.Equal(loaded[1].Names, []string{"docker.io/library/x:b"}) {
		t.Fatalf("got %+v, want x:a and x:b with docker's IDs", loaded)
	}
	img, err := b.index.ByName(t.Context(), "docker.io/library/x:a")
	must(t, err)
	if !bytes.Equal(img.Config, files["a.json"]) || img.Sealed == nil || img.Sealed.Manifest != nil {
		t.Errorf("got %+v, want the config, and no manifest", img)
	}
	seal, ok, err := b.store.Index.Seal(t.Context(), img.Layers[0].ID)
	must(t, err)
	if plain := storage.DigestBytes(files["a/layer.tar"]); !ok || seal.Blob != plain || seal.DiffID != plain {
		t.Errorf("got seal %+v, want the tar as it was, %s", seal, plain)
	}
	dir, err := b.store.Dir(img.Layers[0].ID)
	must(t, err)
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "a" {
		t.Errorf("got %q (%v), want the file", got, err)
	}
	// Saved and loaded again it is the same image.
	out := filepath.Join(t.TempDir(), "out.tar")
	must(t, b.Save(t.Context(), []worker.Saved{{Image: img.ID, Names: []string{"docker.io/library/y:1"}}}, export.Output{Type: export.TypeDocker, Dest: out}))
	other := newBed(t)
	if again := other.load(out); len(again) != 1 || again[0].Image != img.ID || again[0].Names[0] != "docker.io/library/y:1" {
		t.Errorf("got %+v, want %s as y:1", again, img.ID)
	}
}

func TestAnOCIArchiveKeepsItsManifest(t *testing.T) {
	b := newBed(t)
	path, manifest := ociArchive(t, "a", "x:1")
	b.load(path)
	img, err := b.index.ByName(t.Context(), "docker.io/library/x:1")
	must(t, err)
	if m := img.Sealed.Manifest; m == nil || !bytes.Equal(m.Raw, manifest) {
		t.Errorf("got %+v, want the manifest of the archive", m)
	}
	events := b.told(progress.StepProgress)
	if last := events[len(events)-1]; last.Status != progress.TransferDone || last.Current != last.Total || last.Vertex != 1 {
		t.Errorf("got %+v, want the layer done", last)
	}
	out := filepath.Join(t.TempDir(), "out.tar")
	must(t, b.Save(t.Context(), []worker.Saved{{Image: img.ID}}, export.Output{Type: export.TypeOCI, Dest: out}))
	other := newBed(t)
	other.load(out)
	got, err := other.index.Image(t.Context(), img.ID)
	must(t, err)
	if !bytes.Equal(got.Sealed.Manifest.Raw, manifest) {
		t.Errorf("got manifest %s after a save and a load, want %s", got.Sealed.Manifest.Raw, manifest)
	}
}

func TestWhatTheStoreHasIsNotUnpackedAgain(t *testing.T) {
	b := newBed(t)
	path, _ := ociArchive(t, "a", "x:1")
	b.load(path)
	before, err := b.store.All(t.Context())
	must(t, err)
	b.told("")
	renamed, _ := ociArchive(t, "a", "y:2")
	b.load(renamed)
	if events := b.told(progress.StepProgress); len(events) != 0 {
		t.Errorf("a known image: got %v, want nothing of its layers", events)
	}
	must(t, b.index.RemoveImage(t.Context(), b.load(path)[0].Image))
	b.load(path)
	if events := b.told(progress.StepProgress); len(events) != 1 || events[0].Status != progress.TransferExists {
		t.Errorf("a known layer: got %v, want that it exists", events)
	}
	after, err := b.store.All(t.Context())
	must(t, err)
	if len(before) != len(after) {
		t.Errorf("got %d layers, want %d", len(after), len(before))
	}
}

func TestAnImageThatWasBuiltHereIsKnownByDockersID(t *testing.T) {
	b := newBed(t)
	_, config := layered(t, "a")
	built := storage.Image{
		ID: storage.DigestBytes([]byte("built")), Config: []byte("{}"),
		Sealed: &storage.SealedImage{Config: config, ConfigDigest: storage.DigestBytes(config)},
	}
	must(t, b.index.PutImage(t.Context(), built))
	path, _ := dockerArchive(t, "a")
	b.load(path)
	if img, err := b.index.ByName(t.Context(), "docker.io/library/x:a"); err != nil || img.ID != built.ID {
		t.Errorf("got image %s (%v), want the one that was built, %s", img.ID, err, built.ID)
	}
}

func TestANameMovesToTheLoadedImageWithAWarning(t *testing.T) {
	b := newBed(t)
	first, _ := ociArchive(t, "a", "x:1")
	second, _ := ociArchive(t, "b", "x:1")
	b.load(first)
	b.told("")
	id := b.load(second)[0].Image
	if img, err := b.index.ByName(t.Context(), "docker.io/library/x:1"); err != nil || img.ID != id {
		t.Errorf("got image %s (%v), want %s", img.ID, err, id)
	}
	if w := b.told(progress.Warning); len(w) != 1 || !strings.Contains(w[0].Message, "docker.io/library/x:1") {
		t.Errorf("got warnings %v, want one", w)
	}
}

func TestABrokenArchiveNamesNothing(t *testing.T) {
	cases := map[string]struct {
		change func(files map[string][]byte)
		want   string
	}{
		"a layer of other bytes": {func(f map[string][]byte) {
			f["b/layer.tar"] = bytes.Replace(f["b/layer.tar"], []byte("b"), []byte("c"), 1)
		}, "blob: got sha256:"},
		"a layer that is no tar": {func(f map[string][]byte) { f["b/layer.tar"] = []byte("text") }, "blob: got sha256:"},
		"half a layer":           {func(f map[string][]byte) { f["b/layer.tar"] = f["b/layer.tar"][:600] }, "blob: got sha256:"},
		"no layer":               {func(f map[string][]byte) { delete(f, "b/layer.tar") }, "lacks the layer"},
		"a broken config":        {func(f map[string][]byte) { f["b.json"] = []byte("{") }, "config"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			_, files := dockerArchive(t, "a", "b")
			c.change(files)
			_, err := b.Load(t.Context(), LoadRequest{Path: writeTar(t, files), Sink: b})
			var f *worker.Failure
			if !errors.As(err, &f) || f.Code != ExitUsage || f.Hint != "" || !strings.Contains(f.Message, c.want) {
				t.Errorf("got %v, want exit code %d and %q", err, ExitUsage, c.want)
			}
			if all, err := b.index.AllImages(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("got images %v (%v), want none", all, err)
			}
		})
	}
}

func TestSaveOfAnImageThatIsGone(t *testing.T) {
	b := newBed(t)
	err := b.Save(t.Context(), []worker.Saved{{Image: storage.DigestBytes(nil)}}, export.Output{Type: export.TypeDocker, Dest: filepath.Join(t.TempDir(), "x")})
	var f *worker.Failure
	if !errors.As(err, &f) || f.Code != ExitNotFound {
		t.Errorf("got %v, want exit code %d", err, ExitNotFound)
	}
}
