package fetch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/storagetest"
)

// blobStores are a fake store with all that a blob needs.
func blobStores(t *testing.T) (*storagetest.Store, fetch.Stores) {
	t.Helper()
	store, s, _ := stores(t)
	s.Blobs, s.Seals, s.Steps, s.Images = store.Blobs, store.Index, store.Index, store.Index
	return store, s
}

// blobOf describes a layer's tar and the bytes in which it comes.
func blobOf(plain, packed []byte) storage.Blob {
	return storage.Blob{
		Digest: storage.DigestBytes(packed), DiffID: storage.DigestBytes(plain), SizeBytes: int64(len(packed)),
		MediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
	}
}

// nothing fails the test when the store has a layer or a blob.
func nothing(t *testing.T, store *storagetest.Store) {
	t.Helper()
	layers, err := store.All(t.Context())
	if err != nil || len(layers) > 0 {
		t.Errorf("layers %v, %v, want none", layers, err)
	}
	blobs, err := store.Blobs.All(t.Context())
	if err != nil || len(blobs) > 0 {
		t.Errorf("blobs %v, %v, want none", blobs, err)
	}
}

func TestABlobBecomesALayerThatIsKnown(t *testing.T) {
	store, s := blobStores(t)
	plain := layerTar(t, "etc/f=hello")
	packed := gzipped(t, plain)
	want := blobOf(plain, packed)
	if _, ok, err := fetch.Known(t.Context(), s, want); ok || err != nil {
		t.Fatalf("known before it came: %v, %v", ok, err)
	}
	layer, err := fetch.Blob(t.Context(), s, want, bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	if layer.Identity != want.DiffID {
		t.Errorf("identity %s, want the diff ID %s", layer.Identity, want.DiffID)
	}
	if seal, ok, err := store.Index.Seal(t.Context(), layer.ID); err != nil || !ok || seal.Blob != want.Digest || seal.DiffID != want.DiffID {
		t.Errorf("seal %+v, %v, %v, want the blob", seal, ok, err)
	}
	r, size, err := store.Blobs.Open(t.Context(), want.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, packed) || size != want.SizeBytes {
		t.Errorf("the blob is not kept as it came: %v", err)
	}
	known, ok, err := fetch.Known(t.Context(), s, want)
	if err != nil || !ok || known.ID != layer.ID {
		t.Errorf("got %+v, %v, %v, want the layer", known, ok, err)
	}
	t.Run("not by another size", func(t *testing.T) {
		other := want
		other.SizeBytes++
		if _, ok, err := fetch.Known(t.Context(), s, other); ok || err != nil {
			t.Errorf("got %v, %v", ok, err)
		}
	})
	t.Run("not by another blob of the same layer", func(t *testing.T) {
		if _, ok, err := fetch.Known(t.Context(), s, blobOf(plain, plain)); ok || err != nil {
			t.Errorf("got %v, %v", ok, err)
		}
	})
	t.Run("not without its blob", func(t *testing.T) {
		if err := store.Blobs.Remove(t.Context(), want.Digest); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := fetch.Known(t.Context(), s, want); ok || err != nil {
			t.Errorf("got %v, %v", ok, err)
		}
	})
}

func TestALayerThatWasCollectedIsNotKnown(t *testing.T) {
	store, s := blobStores(t)
	plain := layerTar(t, "f=x")
	layer, err := fetch.Blob(t.Context(), s, blobOf(plain, plain), bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Remove(t.Context(), layer.ID); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := fetch.Known(t.Context(), s, blobOf(plain, plain)); ok || err != nil {
		t.Errorf("got %v, %v, want a layer that has to come again", ok, err)
	}
}

func TestOneLayerInTwoBlobsIsOneLayer(t *testing.T) {
	store, s := blobStores(t)
	plain := layerTar(t, "f=x")
	first, err := fetch.Blob(t.Context(), s, blobOf(plain, plain), bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	packed := gzipped(t, plain)
	second, err := fetch.Blob(t.Context(), s, blobOf(plain, packed), bytes.NewReader(packed))
	if err != nil || first.ID != second.ID {
		t.Errorf("got %s and %s, %v, want one layer", first.ID, second.ID, err)
	}
	for _, b := range []storage.Blob{blobOf(plain, plain), blobOf(plain, packed)} {
		if l, ok, err := fetch.Known(t.Context(), s, b); err != nil || !ok || l.ID != first.ID {
			t.Errorf("blob %s: got %v, %v, %v", b.Digest, l, ok, err)
		}
	}
	if all, err := store.All(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("got layers %v, %v, want one", all, err)
	}
}

func TestABlobThatIsNotWhatWasPromisedLeavesNothing(t *testing.T) {
	plain := layerTar(t, "f="+strings.Repeat("x", 5000))
	packed := gzipped(t, plain)
	other := layerTar(t, "g=other")
	flipped := bytes.Clone(packed)
	flipped[len(flipped)/2] ^= 0xff
	for name, c := range map[string]struct {
		want  storage.Blob
		bytes []byte
		// mismatch says that the sender is to blame.
		mismatch bool
		text     string
	}{
		"another layer of the same size":    {resized(blobOf(plain, packed), len(other)), other, true, "blob: got sha256:"},
		"a flipped bit":                     {blobOf(plain, packed), flipped, true, "blob: got sha256:"},
		"half":                              {blobOf(plain, packed), packed[:len(packed)/2], true, "bytes"},
		"nothing":                           {blobOf(plain, packed), nil, true, "got 0"},
		"a byte more":                       {blobOf(plain, packed), append(bytes.Clone(packed), 0), true, "got more"},
		"a byte less is promised":           {resized(blobOf(plain, packed), len(packed)-1), packed, true, "got more"},
		"nothing is promised":               {resized(blobOf(plain, packed), 0), packed, true, "got more"},
		"another diff ID":                   {storage.Blob{Digest: storage.DigestBytes(packed), DiffID: storage.DigestBytes(nil), SizeBytes: int64(len(packed))}, packed, true, "diff ID"},
		"no tar, as promised":               {blobOf([]byte("hello"), []byte("hello")), []byte("hello"), false, "unpack layer"},
		"half a tar, as promised":           {blobOf(plain[:700], plain[:700]), plain[:700], false, "unpack layer"},
		"garbage behind a gzip, promised":   {blobOf(plain, append(bytes.Clone(packed), "junk"...)), append(bytes.Clone(packed), "junk"...), false, "unpack layer"},
		"an empty layer, as promised":       {blobOf(nil, nil), nil, false, "unpack layer"},
		"a gzip in a gzip, as promised":     {blobOf(plain, gzipped(t, packed)), gzipped(t, packed), false, "unpack layer"},
		"longer than a buffer, and endless": {blobOf(plain, packed), append(bytes.Clone(packed), make([]byte, 1<<20)...), true, "got more"},
	} {
		t.Run(name, func(t *testing.T) {
			store, s := blobStores(t)
			_, err := fetch.Blob(t.Context(), s, c.want, bytes.NewReader(c.bytes))
			if _, ok := errors.AsType[*fetch.MismatchError](err); err == nil || ok != c.mismatch || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want one with %q, mismatch: %v", err, c.text, c.mismatch)
			}
			nothing(t, store)
		})
	}
}

func resized(b storage.Blob, n int) storage.Blob {
	b.SizeBytes = int64(n)
	return b
}

// endless never ends, and counts what was read.
type endless struct{ n int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.n += int64(len(p))
	return len(p), nil
}

func TestReadingEndsAtTheFirstByteTooMany(t *testing.T) {
	store, s := blobStores(t)
	plain := layerTar(t, "f=x")
	want := resized(blobOf(plain, plain), 100_000)
	tail := &endless{}
	_, err := fetch.Blob(t.Context(), s, want, io.MultiReader(bytes.NewReader(plain), tail))
	if _, ok := errors.AsType[*fetch.MismatchError](err); !ok {
		t.Errorf("got %v, want a mismatch", err)
	}
	if read := tail.n + int64(len(plain)); read != want.SizeBytes+1 {
		t.Errorf("read %d bytes of %d promised", read, want.SizeBytes)
	}
	nothing(t, store)
}

func TestACancelOrAFailureOfTheReaderIsTheError(t *testing.T) {
	plain := layerTar(t, "f="+strings.Repeat("x", 5000))
	want := blobOf(plain, plain)
	cause := errors.New("enough")
	t.Run("cancel", func(t *testing.T) {
		store, s := blobStores(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		if _, err := fetch.Blob(ctx, s, want, bytes.NewReader(plain)); !errors.Is(err, cause) {
			t.Errorf("got %v, want the cause", err)
		}
		nothing(t, store)
	})
	t.Run("reader", func(t *testing.T) {
		store, s := blobStores(t)
		_, err := fetch.Blob(t.Context(), s, want, io.MultiReader(bytes.NewReader(plain[:600]), failing{}))
		if err == nil || !strings.Contains(err.Error(), "cut off") {
			t.Errorf("got %v, want the reader's", err)
		}
		nothing(t, store)
	})
}

// manifestOf writes a manifest as text and the config that it names.
func manifestOf(t *testing.T, diffIDs []string, layers ...string) (raw, config []byte) {
	t.Helper()
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": "amd64", "created": "2020-02-02T02:02:02+01:00",
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		t.Fatal(err)
	}
	return []byte(`{"schemaVersion":2,"mediaType":"own","config":{"digest":"` + string(storage.DigestBytes(config)) +
		`","size":3},"layers":[` + strings.Join(layers, ",") + `]}`), config
}

const (
	digest0   = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	goodLayer = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + digest0 + `","size":7}`
)

func TestAManifestIsReadWithItsConfig(t *testing.T) {
	raw, config := manifestOf(t, []string{digest0, digest0}, goodLayer, strings.ReplaceAll(goodLayer, "gzip", "zstd"))
	m, err := fetch.Manifest(raw, "announced", config)
	if err != nil {
		t.Fatal(err)
	}
	if m.MediaType != "announced" || !bytes.Equal(m.Raw, raw) || len(m.Blobs) != 2 || m.Blobs[0].SizeBytes != 7 || string(m.Blobs[1].DiffID) != digest0 {
		t.Errorf("got %+v", m)
	}
	if m, err := fetch.Manifest(raw, "", config); err != nil || m.MediaType != "own" {
		t.Errorf("got %v, %v, want the manifest's own type", m.MediaType, err)
	}
	if d, size, err := fetch.ConfigOf(raw); err != nil || d != storage.DigestBytes(config) || size != 3 {
		t.Errorf("got config %s of %d bytes, %v", d, size, err)
	}
	img, err := fetch.Image(m, config, []storage.Layer{{ID: "a"}, {ID: "a"}})
	if err != nil || img.ID != storage.DigestBytes(config) || img.Sealed.ConfigDigest != img.ID || img.Sealed.Manifest == nil || len(img.Layers) != 2 {
		t.Errorf("got %+v, %v", img, err)
	}
	if got := img.Created.Format("15:04:05Z07:00"); got != "01:02:02Z" {
		t.Errorf("created %s, want UTC", got)
	}
	if _, err := fetch.Image(m, []byte("{"), nil); err == nil {
		t.Error("got no error for a config that is no JSON")
	}
}

func TestAManifestThatCantBeUsedIsRefused(t *testing.T) {
	many := strings.Split(strings.Repeat(goodLayer+";", 500), ";")[:500]
	manyIDs := strings.Split(strings.Repeat(digest0+";", 500), ";")[:500]
	for name, c := range map[string]struct {
		diffIDs []string
		layers  []string
		text    string
	}{
		"fewer diff IDs":         {[]string{digest0}, []string{goodLayer, goodLayer}, "2 layers and the config 1"},
		"no layers":              {[]string{digest0}, nil, "0 layers and the config 1"},
		"too many":               {manyIDs, many, "the limit is 499"},
		"a digest that is none":  {[]string{digest0}, []string{strings.ReplaceAll(goodLayer, digest0, "sha256:../x")}, "layer 0: "},
		"a diff ID that is none": {[]string{"x"}, []string{goodLayer}, "diff ID"},
		"a negative size":        {[]string{digest0}, []string{strings.ReplaceAll(goodLayer, ":7", ":-7")}, "size of -7"},
		"a huge size":            {[]string{digest0}, []string{strings.ReplaceAll(goodLayer, ":7", ":99999999999999999999")}, "manifest: "},
		"another media type":     {[]string{digest0}, []string{strings.ReplaceAll(goodLayer, "gzip", "gzip+encrypted")}, "not one of an image layer"},
		"a foreign layer":        {[]string{digest0}, []string{`{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"` + digest0 + `"}`}, "not one of an image layer"},
		"no object":              {[]string{digest0}, []string{"7"}, "manifest: "},
	} {
		t.Run(name, func(t *testing.T) {
			raw, config := manifestOf(t, c.diffIDs, c.layers...)
			_, err := fetch.Manifest(raw, "", config)
			if _, ok := errors.AsType[*fetch.ContentError](err); !ok || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want a ContentError with %q", err, c.text)
			}
		})
	}
	raw, config := manifestOf(t, nil)
	if _, err := fetch.Manifest(raw, "", append(config, ' ')); err == nil || !strings.Contains(err.Error(), "image config") {
		t.Errorf("got %v for another config", err)
	}
	for name, raw := range map[string]string{
		"too long":            `{"x":"` + strings.Repeat("x", fetch.MaxManifestBytes) + `"}`,
		"no JSON":             "hello",
		"no config":           "{}",
		"a huge config":       `{"config":{"digest":"` + digest0 + `","size":8388609}}`,
		"less than no config": `{"config":{"digest":"` + digest0 + `","size":-1}}`,
	} {
		if _, _, err := fetch.ConfigOf([]byte(raw)); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"layers":[`+goodLayer+`],"config":{"digest":"`+digest0+`"}}`), []byte(`{"rootfs":{"diff_ids":["`+digest0+`"]}}`))
	f.Fuzz(func(t *testing.T, raw, config []byte) {
		m, err := fetch.Manifest(raw, "", config)
		if err != nil {
			return
		}
		for _, b := range m.Blobs {
			if _, err := storage.ParseDigest(string(b.Digest)); err != nil || b.SizeBytes < 0 {
				t.Errorf("got blob %+v", b)
			}
		}
		if _, err := fetch.Image(m, config, make([]storage.Layer, len(m.Blobs))); err != nil {
			t.Errorf("a manifest whose config is none: %v", err)
		}
	})
}
