package index_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
	"github.com/mstage/mstage/storage/storagetest"
)

func open(t testing.TB) (*index.Index, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index.db")
	ix, err := index.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return ix, path
}

func TestIndexHoldsTheContract(t *testing.T) {
	storagetest.TestSteps(t, func(t *testing.T) storage.Steps { ix, _ := open(t); return ix })
	storagetest.TestImages(t, func(t *testing.T) storage.Images { ix, _ := open(t); return ix })
	storagetest.TestSeals(t, func(t *testing.T) storage.Seals { ix, _ := open(t); return ix })
}

func record(t testing.TB, ix *index.Index, layer string, keys ...string) storage.Layer {
	t.Helper()
	l := storagetest.Layer(layer, 10)
	var digests []storage.Digest
	for _, k := range keys {
		digests = append(digests, storagetest.Key(k))
	}
	if err := ix.RecordSteps(t.Context(), storage.StepRecord{Layer: l}, digests...); err != nil {
		t.Fatal(err)
	}
	return l
}

func wantStep(t *testing.T, ix *index.Index, key string, want bool) {
	t.Helper()
	if _, ok, err := ix.Step(t.Context(), storagetest.Key(key)); ok != want || err != nil {
		t.Errorf("step %s: ok %v, error %v; want %v", key, ok, err, want)
	}
}

func TestLookUpsMakeNoFile(t *testing.T) {
	ix, path := open(t)
	wantStep(t, ix, "k", false)
	if _, err := ix.AllImages(t.Context()); err != nil {
		t.Error(err)
	}
	if err := errors.Join(ix.Sync(t.Context()), ix.Check(t.Context()), ix.Touch(t.Context(), storagetest.Key("k"))); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) > 0 {
		t.Errorf("directory holds %v, error %v; want nothing", entries, err)
	}
}

func TestDroppedLayersTakeTheirStepsSealsAndImagesAlong(t *testing.T) {
	ix, _ := open(t)
	gone, stays := record(t, ix, "gone", "g1", "g2"), record(t, ix, "stays", "s")
	if err := ix.PutSeal(t.Context(), gone.ID, storage.Seal{DiffID: storagetest.Key("x")}); err != nil {
		t.Fatal(err)
	}
	for _, img := range []storage.Image{storagetest.Image("needs", time.Time{}, stays, gone), storagetest.Image("free", time.Time{}, stays)} {
		if err := ix.PutImage(t.Context(), img, "name/"+string(img.Config[7:8])+":1"); err != nil {
			t.Fatal(err)
		}
	}
	images, err := ix.DropLayers(t.Context(), gone.ID)
	if err != nil || len(images) != 1 || images[0].ID != storagetest.Key("needs") || len(images[0].Names) != 1 {
		t.Errorf("dropped images %v, error %v; want the one that needs the layer, with its name", images, err)
	}
	wantStep(t, ix, "g1", false)
	wantStep(t, ix, "g2", false)
	wantStep(t, ix, "s", true)
	if _, ok, err := ix.Seal(t.Context(), gone.ID); ok || err != nil {
		t.Errorf("seal: ok %v, error %v; want false", ok, err)
	}
	refused := map[string]error{
		"steps": ix.RecordSteps(t.Context(), storage.StepRecord{Layer: gone}, storagetest.Key("g3")),
		"seals": ix.PutSeal(t.Context(), gone.ID, storage.Seal{}),
		"image": ix.PutImage(t.Context(), storagetest.Image("late", time.Time{}, gone)),
	}
	for what, err := range refused {
		if !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s of a dropped layer: error %v, want ErrNotFound", what, err)
		}
	}
}

func TestCollectNeverTakesAnImagesLayer(t *testing.T) {
	ix, _ := open(t)
	inImage, cached := record(t, ix, "in image", "a"), record(t, ix, "cached", "b")
	if err := ix.PutImage(t.Context(), storagetest.Image("i", time.Time{}, inImage)); err != nil {
		t.Fatal(err)
	}
	unknown := storagetest.Layer("unknown", 0).ID
	dropped, err := ix.Collect(t.Context(), func(uses []index.LayerUse) []storage.LayerID {
		ids := []storage.LayerID{unknown}
		for _, u := range uses {
			ids = append(ids, u.ID)
		}
		return ids
	})
	slices.Sort(dropped)
	want := []storage.LayerID{cached.ID, unknown}
	slices.Sort(want)
	if err != nil || !slices.Equal(dropped, want) {
		t.Errorf("dropped %v, error %v; want %v", dropped, err, want)
	}
	wantStep(t, ix, "a", true)
	wantStep(t, ix, "b", false)
}

func TestUsesTellWhatALayerIsFor(t *testing.T) {
	ix, _ := open(t)
	before := time.Now()
	l := record(t, ix, "l", "k1", "k2")
	if err := ix.PutSeal(t.Context(), l.ID, storage.Seal{Blob: storagetest.Key("blob")}); err != nil {
		t.Fatal(err)
	}
	if err := ix.RecordSteps(t.Context(), storage.StepRecord{}, storagetest.Key("no layer")); err != nil {
		t.Fatal(err)
	}
	uses, err := ix.Uses(t.Context())
	if err != nil || len(uses) != 1 {
		t.Fatalf("uses %v, error %v; want one layer", uses, err)
	}
	u := uses[0]
	if u.ID != l.ID || len(u.Keys) != 2 || u.SizeBytes != 10 || u.Image || !slices.Equal(u.Blobs, []storage.Digest{storagetest.Key("blob")}) || u.LastUse.Before(before) {
		t.Errorf("got %+v", u)
	}
}

func TestAViewSeesWhatIsWrittenAndLetsWritersPass(t *testing.T) {
	ix, _ := open(t)
	record(t, ix, "a", "a")
	v, err := ix.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := v.Step(t.Context(), storagetest.Key("a")); !ok || err != nil {
		t.Errorf("step a: ok %v, error %v", ok, err)
	}
	// The view has the file open now, and nobody closes it but itself.
	record(t, ix, "b", "b")
	if _, ok, err := v.Step(t.Context(), storagetest.Key("b")); !ok || err != nil {
		t.Errorf("step b: ok %v, error %v", ok, err)
	}
	if err := errors.Join(v.Close(), v.Close()); err != nil {
		t.Error(err)
	}
}

func TestAWaitForTheLockEndsWithTheContext(t *testing.T) {
	ix, _ := open(t)
	record(t, ix, "a", "a")
	cause := errors.New("cancelled by the test")
	v, err := ix.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	err = ix.RecordSteps(ctx, storage.StepRecord{}, storagetest.Key("b"))
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

func TestManyWritersAndReadersShareTheFile(t *testing.T) {
	_, path := open(t)
	const workers, steps = 4, 10
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			ix, err := index.Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range steps {
				key := storagetest.Key(fmt.Sprint(w, " ", i))
				if err := ix.RecordSteps(t.Context(), storage.StepRecord{Layer: storagetest.Layer(string(key), 1)}, key); err != nil {
					t.Error(err)
				}
				if _, ok, err := ix.Step(t.Context(), key); !ok || err != nil {
					t.Errorf("step: ok %v, error %v", ok, err)
				}
			}
		})
	}
	group.Wait()
	ix, _ := index.Open(path)
	if uses, err := ix.Uses(t.Context()); err != nil || len(uses) != workers*steps {
		t.Errorf("%d layers, error %v; want %d", len(uses), err, workers*steps)
	}
}

func TestADamagedFileIsNamedAndRebuilt(t *testing.T) {
	cases := map[string]func(t *testing.T, path string){
		"no database": func(t *testing.T, path string) { write(t, path, 0, make([]byte, 1<<14)) },
		"truncated": func(t *testing.T, path string) {
			if err := os.Truncate(path, 3*int64(os.Getpagesize())); err != nil {
				t.Fatal(err)
			}
		},
		"pages of zeros": func(t *testing.T, path string) {
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			meta := 2 * int64(os.Getpagesize())
			write(t, path, meta, make([]byte, fi.Size()-meta))
		},
		"noise": func(t *testing.T, path string) {
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			noise := make([]byte, fi.Size()-2*int64(os.Getpagesize()))
			for i := range noise {
				noise[i] = byte(i * 7)
			}
			write(t, path, 2*int64(os.Getpagesize()), noise)
		},
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			ix, path := open(t)
			whole, gone := record(t, ix, "whole", "a"), record(t, ix, "gone", "b")
			img := storagetest.Image("good", time.Unix(5, 0).UTC(), whole)
			put(t, ix, img, "x/y:1")
			put(t, ix, storagetest.Image("bad", time.Time{}, whole, gone), "x/y:2")
			damage(t, path)
			err := ix.Check(t.Context())
			damaged, ok := errors.AsType[*index.DamagedError](err)
			if !ok || !errors.Is(err, index.ErrDamaged) || damaged.File != path || damaged.Hint == "" {
				t.Fatalf("check: error %v, want a *DamagedError for %s with a hint", err, path)
			}
			if _, _, err := ix.Step(t.Context(), storagetest.Key("a")); err != nil && !errors.Is(err, index.ErrDamaged) {
				t.Errorf("step: error %v, want ErrDamaged", err)
			}
			r, err := ix.Rebuild(t.Context(), []storage.LayerID{whole.ID})
			if err != nil || r.Images != 1 || len(r.Lost) != 1 {
				t.Fatalf("rebuilt %+v, error %v; want one image and one lost", r, err)
			}
			if got, err := ix.ByName(t.Context(), "x/y:1"); err != nil || got.ID != img.ID {
				t.Errorf("image %v, error %v; want %v", got.ID, err, img.ID)
			}
			if err := ix.Check(t.Context()); err != nil {
				t.Errorf("check after the rebuild: %v", err)
			}
		})
	}
}

func write(t *testing.T, path string, offset int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(data, offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, ix *index.Index, img storage.Image, names ...string) {
	t.Helper()
	if err := ix.PutImage(t.Context(), img, names...); err != nil {
		t.Fatal(err)
	}
}

func TestTheRebuiltIndexHasTheNamesOfTheLastChange(t *testing.T) {
	ix, _ := open(t)
	a, b := storagetest.Image("a", time.Time{}), storagetest.Image("b", time.Time{})
	put(t, ix, a, "x:1", "x:2", "x:3")
	put(t, ix, b, "x:1")
	if err := ix.Untag(t.Context(), "x:2"); err != nil {
		t.Fatal(err)
	}
	put(t, ix, storagetest.Image("removed", time.Time{}), "x:4")
	if err := ix.RemoveImage(t.Context(), storagetest.Key("removed")); err != nil {
		t.Fatal(err)
	}
	if r, err := ix.Rebuild(t.Context(), nil); err != nil || r.Images != 2 || len(r.Lost) > 0 {
		t.Fatalf("rebuilt %+v, error %v; want two images", r, err)
	}
	for name, want := range map[string]storage.Digest{"x:1": b.ID, "x:2": "", "x:3": a.ID, "x:4": ""} {
		if got, err := ix.ByName(t.Context(), name); got.ID != want || (err != nil) != (want == "") {
			t.Errorf("%s is %q, error %v; want %q", name, got.ID, err, want)
		}
	}
}

func TestImagesOverTheLimitsAreRefused(t *testing.T) {
	ix, _ := open(t)
	huge := storagetest.Image("a", time.Time{})
	huge.Config = make([]byte, 17<<20)
	deep := storagetest.Image("b", time.Time{}, make([]storage.Layer, 501)...)
	for name, img := range map[string]storage.Image{"config": huge, "layers": deep, "ID": {ID: "x"}} {
		if err := ix.PutImage(t.Context(), img); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := ix.PutImage(t.Context(), storagetest.Image("c", time.Time{}), string(make([]byte, 2000))); err == nil {
		t.Error("name: no error")
	}
}

// fill makes n step records.
func fill(b *testing.B, n int) (*index.Index, []storage.Digest) {
	ix, _ := open(b)
	keys := make([]storage.Digest, n)
	for i := range keys {
		keys[i] = storagetest.Key(fmt.Sprint(i))
		if err := ix.RecordSteps(b.Context(), storage.StepRecord{Layer: storagetest.Layer(fmt.Sprint(i), 1)}, keys[i]); err != nil {
			b.Fatal(err)
		}
	}
	return ix, keys
}

func BenchmarkView200LookUps(b *testing.B) {
	ix, keys := fill(b, 1000)
	for b.Loop() {
		v, err := ix.View(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for _, k := range keys[:200] {
			if _, ok, err := v.Step(b.Context(), k); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
		if err := v.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStep(b *testing.B) {
	ix, keys := fill(b, 1000)
	for b.Loop() {
		if _, ok, err := ix.Step(b.Context(), keys[0]); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

func BenchmarkRecordStep(b *testing.B) {
	ix, keys := fill(b, 1000)
	rec := storage.StepRecord{Layer: storagetest.Layer("x", 1)}
	for b.Loop() {
		if err := ix.RecordSteps(b.Context(), rec, keys[0], keys[1]); err != nil {
			b.Fatal(err)
		}
	}
}
