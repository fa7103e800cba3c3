package image_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/engine/image/imagetest"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func config(layers int) imageconfig.Config {
	created := time.Unix(1_700_000_000, 5).UTC()
	c := imageconfig.Config{OS: "linux", Architecture: "amd64", Created: &created, Config: imageconfig.Container{Cmd: []string{"sh", "-c", "a && b"}}}
	for range layers {
		c.History = append(c.History, imageconfig.History{CreatedBy: "RUN x"})
	}
	c.History = append(c.History, imageconfig.History{CreatedBy: "CMD", EmptyLayer: true})
	return c
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// layer makes a layer with one file.
func layer(tb testing.TB, s *imagetest.Store, name, content string) storage.Layer {
	return s.AddLayer(tb, name, func(dir string) {
		must(tb, os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o644))
		must(tb, os.Chtimes(filepath.Join(dir, "file"), time.Unix(9, 0), time.Unix(9, 0)))
		must(tb, os.Chtimes(dir, time.Unix(9, 0), time.Unix(9, 0)))
	})
}

func TestLocalIDFollowsConfigAndIdentitiesOnly(t *testing.T) {
	a := storage.Layer{ID: "1", Identity: storage.DigestBytes([]byte("a"))}
	sameContent := storage.Layer{ID: "2", Identity: a.Identity, SizeBytes: 7}
	other := storage.Layer{ID: "1", Identity: storage.DigestBytes([]byte("b"))}
	id := image.LocalID(config(1), []storage.Layer{a})
	if got := image.LocalID(config(1), []storage.Layer{sameContent}); got != id {
		t.Errorf("same identity: got %s, want %s", got, id)
	}
	if got := image.LocalID(config(1), []storage.Layer{other}); got == id {
		t.Error("other identity: got the same ID, want another")
	}
	changed := config(1)
	changed.Config.User = "x"
	if got := image.LocalID(changed, []storage.Layer{a}); got == id {
		t.Error("other config: got the same ID, want another")
	}
	img, err := image.New(config(1), []storage.Layer{a})
	must(t, err)
	if img.ID != id || storage.DigestBytes(img.Config) != id {
		t.Errorf("got ID %s of config %s, want %s for both", img.ID, storage.DigestBytes(img.Config), id)
	}
}

func TestNewRefuses(t *testing.T) {
	good := storage.Layer{ID: "1", Identity: storage.DigestBytes(nil)}
	cases := map[string]struct {
		cfg    imageconfig.Config
		layers []storage.Layer
		want   string
	}{
		"a history that does not fit":  {config(2), []storage.Layer{good}, "2 lines with a layer, but there are 1"},
		"a layer without an identity":  {config(1), []storage.Layer{{ID: "1"}}, "identity of layer 0"},
		"a layer that does not exist":  {config(1), []storage.Layer{{Identity: good.Identity}}, "no ID"},
		"a config without a platform":  {imageconfig.Config{}, nil, "without os"},
		"a time that JSON can't write": {func() imageconfig.Config { c := config(0); y := time.Unix(1e12, 0); c.Created = &y; return c }(), nil, "RFC 3339"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := image.New(c.cfg, c.layers); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestSealReadsEachLayerOnce(t *testing.T) {
	s := imagetest.New(t)
	a, b := layer(t, s, "a", "A"), layer(t, s, "b", strings.Repeat("B", 3<<20))
	img, err := image.New(config(3), []storage.Layer{a, b, a})
	must(t, err)
	first, layers, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	must(t, err)
	again, layers2, err := image.Seal(t.Context(), s.Stores(), first, image.SealOptions{Compress: true})
	must(t, err)
	for _, l := range []storage.Layer{a, b} {
		if got := s.Reads(l.ID); got != 1 {
			t.Errorf("layer %.6s: got %d reads, want 1", l.ID, got)
		}
	}
	if layers[0].Seal != layers[2].Seal || layers[0].Seal != layers2[0].Seal || layers[1].Seal.Blob == "" {
		t.Errorf("got seals %v and %v, want the same, with blobs", layers, layers2)
	}
	if first.Sealed.ConfigDigest != again.Sealed.ConfigDigest {
		t.Errorf("got config %s, want %s", again.Sealed.ConfigDigest, first.Sealed.ConfigDigest)
	}
	var c imageconfig.Config
	must(t, json.Unmarshal(first.Sealed.Config, &c))
	if len(c.RootFS.DiffIDs) != 3 || c.RootFS.DiffIDs[1] != string(layers[1].Seal.DiffID) || c.Config.Cmd[2] != "a && b" {
		t.Errorf("got config %s, want the diff IDs in it", first.Sealed.Config)
	}
	if kept, err := s.Stores().Images.Image(t.Context(), img.ID); err != nil || kept.Sealed == nil {
		t.Errorf("got %v (%v), want the sealed image kept", kept.Sealed, err)
	}
}

func TestSealWithoutBlobsAndWithThemGivesOneDiffID(t *testing.T) {
	s := imagetest.New(t)
	img, err := image.New(config(1), []storage.Layer{layer(t, s, "a", "A")})
	must(t, err)
	plain, layers, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{})
	must(t, err)
	if layers[0].Seal.Blob != "" {
		t.Errorf("got blob %s, want none", layers[0].Seal.Blob)
	}
	packed, layers, err := image.Seal(t.Context(), s.Stores(), plain, image.SealOptions{Compress: true})
	must(t, err)
	if layers[0].Seal.Blob == "" || plain.Sealed.ConfigDigest != packed.Sealed.ConfigDigest {
		t.Errorf("got %+v and config %s, want a blob and %s", layers[0].Seal, packed.Sealed.ConfigDigest, plain.Sealed.ConfigDigest)
	}
	must(t, s.Remove(t.Context(), layers[0].Seal.Blob))
	_, remade, err := image.Seal(t.Context(), s.Stores(), packed, image.SealOptions{Compress: true})
	must(t, err)
	if remade[0].Seal != layers[0].Seal {
		t.Errorf("blob made again: got %+v, want %+v", remade[0].Seal, layers[0].Seal)
	}
}

func TestALoadedImageKeepsItsConfigBitByBit(t *testing.T) {
	s := imagetest.New(t)
	l := layer(t, s, "a", "A")
	img, err := image.New(config(1), []storage.Layer{l})
	must(t, err)
	_, layers, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	must(t, err)
	loaded := []byte(`{ "vendor":{"x":1}, "os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + string(layers[0].Seal.DiffID) + `"]}}`)
	img.Sealed = &storage.SealedImage{Config: loaded, ConfigDigest: storage.DigestBytes(loaded)}
	kept, _, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	must(t, err)
	if !bytes.Equal(kept.Sealed.Config, loaded) {
		t.Errorf("got %s, want %s", kept.Sealed.Config, loaded)
	}
	img.Sealed.Config = bytes.Replace(loaded, []byte(layers[0].Seal.DiffID), []byte(storage.DigestBytes(nil)), 1)
	changed, _, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	must(t, err)
	if !bytes.Contains(changed.Sealed.Config, []byte(layers[0].Seal.DiffID)) || !bytes.Contains(changed.Sealed.Config, []byte(`"vendor":{"x":1}`)) {
		t.Errorf("got %s, want the layer's diff ID and the vendor's field", changed.Sealed.Config)
	}
}

func TestOCIImageIsValid(t *testing.T) {
	s := imagetest.New(t)
	img, err := image.New(config(2), []storage.Layer{layer(t, s, "a", "A"), layer(t, s, "b", "B")})
	must(t, err)
	img, layers, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	must(t, err)
	oci, err := image.NewOCI(t.Context(), s, img, layers)
	must(t, err)
	ls, err := oci.Layers()
	must(t, err)
	manifest := must1(oci.Manifest())
	for i, l := range ls {
		packed, plain := digest(t, l.Compressed), digest(t, l.Uncompressed)
		if packed != manifest.Layers[i].Digest.String() || plain != must1(l.DiffID()).String() {
			t.Errorf("layer %d: got blob %s and tar %s, want %s and %s", i, packed, plain, manifest.Layers[i].Digest, must1(l.DiffID()))
		}
		if same, err := oci.LayerByDiffID(must1(l.DiffID())); err != nil || same != l {
			t.Errorf("layer %d by diff ID: got %v (%v), want the layer", i, same, err)
		}
	}
	if got, want := must1(oci.Digest()).String(), string(storage.DigestBytes(must1(oci.RawManifest()))); got != want {
		t.Errorf("got manifest digest %s, want %s", got, want)
	}
	r, err := oci.LayerByDigest(must1(oci.ConfigName()))
	must(t, err)
	rc, err := r.Compressed()
	must(t, err)
	if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, img.Sealed.Config) {
		t.Errorf("config as a blob: got %q (%v), want %q", b, err, img.Sealed.Config)
	}
}

// digest returns the digest of what open gives.
func digest(tb testing.TB, open func() (io.ReadCloser, error)) string {
	tb.Helper()
	r, err := open()
	must(tb, err)
	b, err := io.ReadAll(r)
	must(tb, err)
	must(tb, r.Close())
	return string(storage.DigestBytes(b))
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
