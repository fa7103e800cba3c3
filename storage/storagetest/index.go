package storagetest

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/storage"
)

// Key returns a digest for tests, another one for each text.
func Key(text string) storage.Digest { return storage.DigestBytes([]byte(text)) }

// Layer returns a layer record for tests; no store has such a layer.
func Layer(text string, sizeBytes int64) storage.Layer {
	return storage.Layer{
		ID:        storage.LayerID(Key("id of " + text).Hex()),
		Identity:  Key(text),
		SizeBytes: sizeBytes,
		Created:   time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// Image returns an image for tests with these layers.
func Image(text string, created time.Time, layers ...storage.Layer) storage.Image {
	return storage.Image{ID: Key(text), Config: []byte(`{"of":"` + text + `"}`), Layers: layers, Created: created}
}

// TestSteps holds an implementation of storage.Steps to its contract.
func TestSteps(t *testing.T, open func(t *testing.T) storage.Steps) {
	t.Run("a record is found under each of its keys", func(t *testing.T) {
		s := open(t)
		rec := storage.StepRecord{Layer: Layer("a", 5)}
		if err := s.RecordSteps(t.Context(), rec, Key("fast"), Key("content")); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"fast", "content"} {
			wantStep(t, s, Key(text), rec)
		}
		if _, ok, err := s.Step(t.Context(), Key("other")); ok || err != nil {
			t.Errorf("other key: ok %v, error %v; want false", ok, err)
		}
	})
	t.Run("a later record replaces an earlier one", func(t *testing.T) {
		s := open(t)
		for _, text := range []string{"a", "b"} {
			if err := s.RecordSteps(t.Context(), storage.StepRecord{Layer: Layer(text, 1)}, Key("k")); err != nil {
				t.Fatal(err)
			}
		}
		wantStep(t, s, Key("k"), storage.StepRecord{Layer: Layer("b", 1)})
	})
	t.Run("a step without a layer is a record too", func(t *testing.T) {
		s := open(t)
		if err := s.RecordSteps(t.Context(), storage.StepRecord{}, Key("k")); err != nil {
			t.Fatal(err)
		}
		wantStep(t, s, Key("k"), storage.StepRecord{})
	})
	t.Run("a forgotten record is gone, its other keys are not", func(t *testing.T) {
		s := open(t)
		rec := storage.StepRecord{Layer: Layer("a", 5)}
		if err := s.RecordSteps(t.Context(), rec, Key("one"), Key("two")); err != nil {
			t.Fatal(err)
		}
		if err := s.ForgetSteps(t.Context(), Key("one"), Key("never")); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := s.Step(t.Context(), Key("one")); ok || err != nil {
			t.Errorf("forgotten: ok %v, error %v; want false", ok, err)
		}
		wantStep(t, s, Key("two"), rec)
	})
}

func wantStep(t *testing.T, s storage.Steps, key storage.Digest, want storage.StepRecord) {
	t.Helper()
	got, ok, err := s.Step(t.Context(), key)
	if !ok || err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("step: %+v, ok %v, error %v; want %+v", got, ok, err, want)
	}
}

// TestSeals holds an implementation of storage.Seals to its contract.
func TestSeals(t *testing.T, open func(t *testing.T) storage.Seals) {
	t.Run("a seal is found again and can be replaced", func(t *testing.T) {
		s := open(t)
		id := Layer("a", 1).ID
		if _, ok, err := s.Seal(t.Context(), id); ok || err != nil {
			t.Errorf("empty: ok %v, error %v; want false", ok, err)
		}
		for _, want := range []storage.Seal{
			{DiffID: Key("tar"), TarBytes: 10},
			{DiffID: Key("tar"), TarBytes: 10, Blob: Key("blob"), MediaType: "x/y", BlobBytes: 3},
		} {
			if err := s.PutSeal(t.Context(), id, want); err != nil {
				t.Fatal(err)
			}
			if got, ok, err := s.Seal(t.Context(), id); !ok || err != nil || got != want {
				t.Errorf("seal: %+v, ok %v, error %v; want %+v", got, ok, err, want)
			}
		}
	})
}

// TestImages holds an implementation of storage.Images to its contract.
func TestImages(t *testing.T, open func(t *testing.T) storage.Images) {
	cases := map[string]func(*testing.T, storage.Images){
		"an image is found by ID, name and prefix":             imageFound,
		"a sealed image is found by its config digest too":     sealedFound,
		"a seal stays when the image is put again":             sealStays,
		"a name moves to the image that was tagged last":       nameMoves,
		"untagged images stay, without the name":               untagged,
		"a removed image is gone with its names":               imageRemoved,
		"a prefix of several images is ambiguous":              ambiguousPrefix,
		"images are listed newest first with sorted names":     imagesListed,
		"what is not there wraps ErrNotFound":                  imagesMissing,
		"a config digest removes the image that it stands for": removedBySeal,
	}
	for name, check := range cases {
		t.Run(name, func(t *testing.T) { check(t, open(t)) })
	}
}

func put(t *testing.T, s storage.Images, img storage.Image, names ...string) {
	t.Helper()
	if err := s.PutImage(t.Context(), img, names...); err != nil {
		t.Fatal(err)
	}
}

func wantImage(t *testing.T, what string, got storage.Image, err error, want storage.Image) {
	t.Helper()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, error %v; want %+v", what, got, err, want)
	}
}

var day = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

func imageFound(t *testing.T, s storage.Images) {
	want := Image("a", day, Layer("x", 1), Layer("y", 2))
	put(t, s, want, "docker.io/library/a:latest")
	got, err := s.Image(t.Context(), want.ID)
	wantImage(t, "Image", got, err, want)
	got, err = s.ByName(t.Context(), "docker.io/library/a:latest")
	wantImage(t, "ByName", got, err, want)
	for _, n := range []int{4, 12, 64} {
		got, err = s.ByPrefix(t.Context(), want.ID.Hex()[:n])
		wantImage(t, "ByPrefix", got, err, want)
	}
}

func sealed(text string) storage.Image {
	img := Image(text, day)
	img.Sealed = &storage.SealedImage{ConfigDigest: Key("sealed " + text), Config: []byte("{}")}
	return img
}

func sealedFound(t *testing.T, s storage.Images) {
	want := sealed("a")
	put(t, s, want)
	got, err := s.Image(t.Context(), want.Sealed.ConfigDigest)
	wantImage(t, "Image", got, err, want)
	got, err = s.ByPrefix(t.Context(), want.Sealed.ConfigDigest.Hex()[:8])
	wantImage(t, "ByPrefix", got, err, want)
}

func sealStays(t *testing.T, s storage.Images) {
	want := sealed("a")
	put(t, s, want)
	put(t, s, Image("a", day), "x/y:1")
	got, err := s.ByName(t.Context(), "x/y:1")
	wantImage(t, "ByName", got, err, want)
}

func nameMoves(t *testing.T, s storage.Images) {
	old, young := Image("old", day), Image("young", day)
	put(t, s, old, "x/y:1")
	put(t, s, young, "x/y:1")
	got, err := s.ByName(t.Context(), "x/y:1")
	wantImage(t, "ByName", got, err, young)
	got, err = s.Image(t.Context(), old.ID)
	wantImage(t, "the old image", got, err, old)
}

func untagged(t *testing.T, s storage.Images) {
	img := Image("a", day)
	put(t, s, img, "x/y:1", "x/y:2")
	if err := s.Untag(t.Context(), "x/y:1"); err != nil {
		t.Fatal(err)
	}
	_, err := s.ByName(t.Context(), "x/y:1")
	wantNotFound(t, "ByName", err)
	got, err := s.ByName(t.Context(), "x/y:2")
	wantImage(t, "the other name", got, err, img)
}

func imageRemoved(t *testing.T, s storage.Images) {
	img := sealed("a")
	put(t, s, img, "x/y:1")
	if err := s.RemoveImage(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	for _, id := range []storage.Digest{img.ID, img.Sealed.ConfigDigest} {
		_, err := s.Image(t.Context(), id)
		wantNotFound(t, "Image", err)
	}
	_, err := s.ByName(t.Context(), "x/y:1")
	wantNotFound(t, "ByName", err)
	if all, err := s.AllImages(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("AllImages: %v, error %v; want none", all, err)
	}
}

func removedBySeal(t *testing.T, s storage.Images) {
	img := sealed("a")
	put(t, s, img)
	if err := s.RemoveImage(t.Context(), img.Sealed.ConfigDigest); err != nil {
		t.Fatal(err)
	}
	_, err := s.Image(t.Context(), img.ID)
	wantNotFound(t, "Image", err)
}

func ambiguousPrefix(t *testing.T, s storage.Images) {
	a, b := Image("a", day), Image("b", day)
	a.ID = storage.Digest("sha256:abcd" + strings.Repeat("0", 60))
	b.ID = storage.Digest("sha256:abcd" + strings.Repeat("1", 60))
	put(t, s, a)
	put(t, s, b)
	_, err := s.ByPrefix(t.Context(), "abcd")
	if !errors.Is(err, storage.ErrAmbiguous) {
		t.Fatalf("error %v, want one that wraps ErrAmbiguous", err)
	}
	for _, img := range []storage.Image{a, b} {
		if !strings.Contains(err.Error(), img.ID.Short()) {
			t.Errorf("error %q does not name %s", err, img.ID.Short())
		}
	}
	got, err := s.ByPrefix(t.Context(), "abcd1")
	wantImage(t, "the longer prefix", got, err, b)
}

func imagesListed(t *testing.T, s storage.Images) {
	put(t, s, Image("middle", day), "m:2", "m:1")
	put(t, s, Image("never", time.Time{}))
	put(t, s, Image("new", day.Add(time.Hour)))
	all, err := s.AllImages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []storage.Digest
	for _, img := range all {
		ids = append(ids, img.ID)
	}
	if want := []storage.Digest{Key("new"), Key("middle"), Key("never")}; !slices.Equal(ids, want) {
		t.Fatalf("order %v, want %v", ids, want)
	}
	if want := []string{"m:1", "m:2"}; !slices.Equal(all[1].Names, want) {
		t.Errorf("names %v, want %v", all[1].Names, want)
	}
}

func imagesMissing(t *testing.T, s storage.Images) {
	_, err := s.Image(t.Context(), Key("none"))
	wantNotFound(t, "Image", err)
	_, err = s.ByName(t.Context(), "none:1")
	wantNotFound(t, "ByName", err)
	_, err = s.ByPrefix(t.Context(), "0123")
	wantNotFound(t, "ByPrefix", err)
	wantNotFound(t, "Untag", s.Untag(t.Context(), "none:1"))
	wantNotFound(t, "RemoveImage", s.RemoveImage(t.Context(), Key("none")))
	if all, err := s.AllImages(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("AllImages: %v, error %v; want none", all, err)
	}
}
