package cache_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/storagetest"
)

// record is a result of a COPY whose source had the layer from.
func record(layer, from storage.LayerID) storage.StepRecord {
	return storage.StepRecord{Layer: storage.Layer{ID: layer, Identity: id(string(layer))}, From: []storage.LayerID{from}}
}

// contents digests chains of one layer, and counts.
type contents struct {
	of    map[storage.LayerID]string // a layer that is not here is gone
	asked []storage.LayerID
}

func (c *contents) digest(_ context.Context, layers []storage.LayerID) (storage.Digest, bool, error) {
	c.asked = append(c.asked, layers...)
	text, ok := c.of[layers[0]]
	if text == "broken" {
		return "", false, errors.New("read error")
	}
	return id(text), ok, nil
}

func TestACopyIsFoundByItsContent(t *testing.T) {
	cases := map[string]struct {
		of      map[storage.LayerID]string
		before  []string // contents that are recorded under their key, besides the shape
		disable bool
		ok      bool
		content string
		asked   []storage.LayerID
	}{
		"the same bytes are a hit":                         {of: map[storage.LayerID]string{"old": "x", "new": "x"}, ok: true, content: "x", asked: []storage.LayerID{"new", "old"}},
		"other bytes are a miss":                           {of: map[storage.LayerID]string{"old": "x", "new": "y"}, content: "y", asked: []storage.LayerID{"new", "old"}},
		"the old source is gone":                           {of: map[storage.LayerID]string{"new": "x"}, content: "x", asked: []storage.LayerID{"new", "old"}},
		"the new source is gone":                           {of: map[storage.LayerID]string{"old": "x"}, asked: []storage.LayerID{"new"}},
		"a content that is known needs no look at the old": {of: map[storage.LayerID]string{"new": "x"}, before: []string{"x"}, ok: true, content: "x", asked: []storage.LayerID{"new"}},
		"--no-cache reads nothing":                         {of: map[storage.LayerID]string{"old": "x", "new": "x"}, disable: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			steps := &cache.Cache{Steps: storagetest.NewIndex()}
			cp, want := copyStep(), record("result", "old")
			must(t, steps.Record(t.Context(), want, cache.ShapeKey(cp, id("chain"))))
			for _, text := range c.before {
				must(t, steps.Record(t.Context(), want, cache.ContentKey(cp, id("chain"), id(text))))
			}
			steps.Disabled = c.disable
			files := &contents{of: c.of}
			rec, content, ok, err := steps.FindByContent(t.Context(), cp, id("chain"), []storage.LayerID{"new"}, files.digest)
			if err != nil || ok != c.ok {
				t.Fatalf("got %t, %v, want %t", ok, err, c.ok)
			}
			if ok && rec.Layer.ID != "result" {
				t.Errorf("got layer %s, want result", rec.Layer.ID)
			}
			if wantContent := digestOf(c.content); content != wantContent {
				t.Errorf("got content %s, want %s", content, wantContent)
			}
			if !slices.Equal(files.asked, c.asked) {
				t.Errorf("read %q, want %q", files.asked, c.asked)
			}
		})
	}
}

// digestOf is the digest of a content, "" for none.
func digestOf(text string) storage.Digest {
	if text == "" {
		return ""
	}
	return id(text)
}

func TestNoFileIsReadForACopyOfAShapeThatIsNotKnown(t *testing.T) {
	steps := &cache.Cache{Steps: storagetest.NewIndex()}
	other := copyStep()
	other.Dest = "/elsewhere"
	must(t, steps.Record(t.Context(), record("r", "old"), cache.ShapeKey(other, id("chain")), cache.ShapeKey(copyStep(), id("another chain"))))
	files := &contents{of: map[storage.LayerID]string{"old": "x", "new": "x"}}
	_, content, ok, err := steps.FindByContent(t.Context(), copyStep(), id("chain"), []storage.LayerID{"new"}, files.digest)
	if ok || err != nil || content != "" || files.asked != nil {
		t.Errorf("got %t, %v, content %q and read %q, want a miss without a look", ok, err, content, files.asked)
	}
}

func TestWhatWasReadOfTheOldSourceIsRemembered(t *testing.T) {
	steps := &cache.Cache{Steps: storagetest.NewIndex()}
	cp := copyStep()
	must(t, steps.Record(t.Context(), record("result", "old"), cache.ShapeKey(cp, id("chain"))))
	first := &contents{of: map[storage.LayerID]string{"old": "x", "new": "y"}}
	if _, _, ok, err := steps.FindByContent(t.Context(), cp, id("chain"), []storage.LayerID{"new"}, first.digest); ok || err != nil {
		t.Fatalf("got %t, %v, want a miss", ok, err)
	}
	// The old source is collected; a third one has its bytes.
	second := &contents{of: map[storage.LayerID]string{"third": "x"}}
	rec, _, ok, err := steps.FindByContent(t.Context(), cp, id("chain"), []storage.LayerID{"third"}, second.digest)
	if !ok || err != nil || rec.Layer.ID != "result" {
		t.Errorf("got %v, %t, %v, want the first result", rec.Layer.ID, ok, err)
	}
	if !slices.Equal(second.asked, []storage.LayerID{"third"}) {
		t.Errorf("read %q, want the third source only", second.asked)
	}
}

func TestAReadErrorIsNoMiss(t *testing.T) {
	for _, broken := range []storage.LayerID{"old", "new"} {
		steps := &cache.Cache{Steps: storagetest.NewIndex()}
		must(t, steps.Record(t.Context(), record("r", "old"), cache.ShapeKey(copyStep(), id("chain"))))
		files := &contents{of: map[storage.LayerID]string{"old": "x", "new": "y"}}
		files.of[broken] = "broken"
		if _, _, ok, err := steps.FindByContent(t.Context(), copyStep(), id("chain"), []storage.LayerID{"new"}, files.digest); ok || err == nil {
			t.Errorf("%s can't be read: got %t, %v, want an error", broken, ok, err)
		}
	}
}

func TestWithoutTheCacheResultsAreRecordedAllTheSame(t *testing.T) {
	index := storagetest.NewIndex()
	off := &cache.Cache{Steps: index, Disabled: true}
	must(t, off.Record(t.Context(), record("r", "f"), id("key")))
	if _, ok, err := off.Find(t.Context(), id("key")); ok || err != nil {
		t.Errorf("got %t, %v, want a miss", ok, err)
	}
	on := &cache.Cache{Steps: index}
	if rec, ok, err := on.Find(t.Context(), id("key")); !ok || err != nil || rec.Layer.ID != "r" {
		t.Errorf("the next build: got %v, %t, %v, want a hit", rec, ok, err)
	}
	if got := off.Hits(); len(got) != 0 {
		t.Errorf("got hits %q, want none", got)
	}
	if got := on.Hits(); !slices.Equal(got, []storage.Digest{id("key")}) {
		t.Errorf("got hits %q, want the key", got)
	}
}

// failing is an index that can't be read.
type failing struct{ storage.Steps }

func (failing) Step(context.Context, storage.Digest) (storage.StepRecord, bool, error) {
	return storage.StepRecord{}, false, errors.New("damaged")
}

func TestADamagedIndexIsNoMiss(t *testing.T) {
	c := &cache.Cache{Steps: failing{}}
	if _, _, err := c.Find(t.Context(), id("key")); err == nil {
		t.Error("got no error, want the index's")
	}
	if _, _, _, err := c.FindByContent(t.Context(), &plan.Copy{}, id("chain"), nil, nil); err == nil {
		t.Error("by content: got no error, want the index's")
	}
}

// collected is an index whose layers are collected before anything is recorded
// again.
type collected struct{ storage.Steps }

func (collected) RecordSteps(context.Context, storage.StepRecord, ...storage.Digest) error {
	return storage.ErrNotFound
}

func TestAResultThatIsCollectedMeanwhileIsAMiss(t *testing.T) {
	index := storagetest.NewIndex()
	must(t, index.RecordSteps(t.Context(), record("r", "old"), cache.ShapeKey(copyStep(), id("chain"))))
	steps := &cache.Cache{Steps: collected{index}}
	files := &contents{of: map[storage.LayerID]string{"old": "x", "new": "x"}}
	_, content, ok, err := steps.FindByContent(t.Context(), copyStep(), id("chain"), []storage.LayerID{"new"}, files.digest)
	if ok || err != nil || content != id("x") {
		t.Errorf("got %t, %v, content %s, want a miss that knows the content", ok, err, content)
	}
}

func TestTheResultOfACommandHasAnIdentityOfItsOwnWithoutTheCache(t *testing.T) {
	on, off := &cache.Cache{}, &cache.Cache{Disabled: true}
	if got := on.ResultIdentity(id("key")); got != id("key") {
		t.Errorf("got %s, want the key", got)
	}
	one, two := off.ResultIdentity(id("key")), off.ResultIdentity(id("key"))
	if one == two || one == id("key") {
		t.Errorf("got %s and %s, want two of their own", one, two)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
