package storagetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/mstage/mstage/storage"
)

// TestLayers holds an implementation of storage.Layers to its contract. open
// returns an empty store that ends with t.
func TestLayers(t *testing.T, open func(t *testing.T) storage.Layers) {
	cases := map[string]func(*testing.T, storage.Layers){
		"what is staged becomes the layer's directory":       stagedBecomesLayer,
		"a staged layer is empty and has a work directory":   stagedIsEmpty,
		"the loser of a race for a name gets the winner":     loserGetsWinner,
		"discard leaves nothing":                             discardLeavesNothing,
		"commit takes effect once":                           commitOnce,
		"a name that could be an ID is refused":              idAsNameRefused,
		"what is not there wraps ErrNotFound":                missingLayers,
		"removed layers are gone and removing twice is fine": removeLayers,
		"many are staged and committed side by side":         manyAtOnce,
	}
	for name, check := range cases {
		t.Run(name, func(t *testing.T) { check(t, open(t)) })
	}
}

// Commit stages a layer with files (path → content) under a name.
func Commit(t testing.TB, l storage.Layers, name string, files map[string]string) storage.LayerID {
	t.Helper()
	st, err := l.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Discard()
	WriteFiles(t, st.Dir(), files)
	id, won, err := st.Commit(t.Context(), name)
	if err != nil || !won {
		t.Fatalf("commit %s: won %v, error %v", name, won, err)
	}
	return id
}

// WriteFiles writes files (path → content) below dir.
func WriteFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for path, content := range files {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q, error %v; want %q", path, got, err, want)
	}
}

func wantNotFound(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("%s: error %v, want one that wraps ErrNotFound", what, err)
	}
}

func stagedBecomesLayer(t *testing.T, l storage.Layers) {
	st, err := l.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Discard()
	WriteFiles(t, st.Dir(), map[string]string{"etc/motd": "hello"})
	if err := os.Chmod(st.Dir(), 0o751); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(st.Dir(), "etc/motd"))
	if err != nil {
		t.Fatal(err)
	}
	name := storage.StepLayerName(storage.DigestBytes([]byte("a")))
	id, won, err := st.Commit(t.Context(), name)
	if err != nil || !won || !storage.IsHex64(string(id)) {
		t.Fatalf("commit: ID %q, won %v, error %v", id, won, err)
	}
	dir, err := l.Dir(id)
	if err != nil || !filepath.IsAbs(dir) {
		t.Fatalf("Dir: %q, error %v", dir, err)
	}
	wantFile(t, filepath.Join(dir, "etc/motd"), "hello")
	after, err := os.Stat(filepath.Join(dir, "etc/motd"))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was copied: error %v", err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o751 {
		t.Errorf("root directory has mode %v, error %v; want 0751", fi.Mode(), err)
	}
	if found, err := l.Find(t.Context(), name); err != nil || found != id {
		t.Errorf("Find: %q, error %v; want %q", found, err, id)
	}
	if all, err := l.All(t.Context()); err != nil || !slices.Equal(all, []storage.LayerID{id}) {
		t.Errorf("All: %v, error %v; want %q", all, err, id)
	}
}

func stagedIsEmpty(t *testing.T, l storage.Layers) {
	st, err := l.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Discard()
	fi, err := os.Stat(st.Dir())
	if err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("directory has mode %v, error %v; want 0755", fi.Mode(), err)
	}
	for _, dir := range []string{st.Dir(), st.WorkDir()} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%s holds %v, error %v; want an empty directory", dir, entries, err)
		}
	}
	// A rename between the two only works on one file system.
	probe := filepath.Join(st.WorkDir(), "probe")
	if err := errors.Join(os.WriteFile(probe, nil, 0o600), os.Rename(probe, filepath.Join(st.Dir(), "probe"))); err != nil {
		t.Errorf("work directory on another file system: %v", err)
	}
}

func loserGetsWinner(t *testing.T, l storage.Layers) {
	winner := Commit(t, l, "mstage-diff:x", map[string]string{"who": "first"})
	st, err := l.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Discard()
	WriteFiles(t, st.Dir(), map[string]string{"who": "second"})
	id, won, err := st.Commit(t.Context(), "mstage-diff:x")
	if err != nil || won || id != winner {
		t.Fatalf("commit: ID %q, won %v, error %v; want %q, false", id, won, err, winner)
	}
	dir, err := l.Dir(id)
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "who"), "first")
	wantGone(t, st.Dir())
}

func wantGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: error %v, want it gone", path, err)
	}
}

func discardLeavesNothing(t *testing.T, l storage.Layers) {
	st, err := l.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	WriteFiles(t, st.Dir(), map[string]string{"a/b": "c"})
	// overlay makes such a directory in its work directory.
	if err := os.Mkdir(filepath.Join(st.WorkDir(), "work"), 0o000); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(st.Discard(), st.Discard()); err != nil {
		t.Errorf("discard: %v", err)
	}
	wantGone(t, st.Dir())
	wantGone(t, st.WorkDir())
	if all, err := l.All(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("All: %v, error %v; want none", all, err)
	}
	if _, _, err := st.Commit(t.Context(), "late"); err == nil {
		t.Error("commit after discard: no error")
	}
}

func commitOnce(t *testing.T, l storage.Layers) {
	st, err := l.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := st.Commit(t.Context(), "once")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := st.Commit(t.Context(), "twice"); err == nil {
		t.Error("second commit: no error")
	}
	if err := st.Discard(); err != nil {
		t.Errorf("discard after commit: %v", err)
	}
	if _, err := l.Dir(id); err != nil {
		t.Errorf("layer after discard: %v", err)
	}
	wantGone(t, st.WorkDir())
}

func idAsNameRefused(t *testing.T, l storage.Layers) {
	for _, name := range []string{"", storage.DigestBytes(nil).Hex()} {
		st, err := l.Stage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := st.Commit(t.Context(), name); err == nil {
			t.Errorf("commit as %q: no error", name)
		}
		if err := st.Discard(); err != nil {
			t.Error(err)
		}
	}
}

func missingLayers(t *testing.T, l storage.Layers) {
	for _, id := range []storage.LayerID{"", "../..", "abc", storage.LayerID(storage.DigestBytes(nil).Hex())} {
		_, err := l.Dir(id)
		wantNotFound(t, fmt.Sprintf("Dir(%q)", id), err)
	}
	_, err := l.Find(t.Context(), "mstage-step:none")
	wantNotFound(t, "Find", err)
}

func removeLayers(t *testing.T, l storage.Layers) {
	a := Commit(t, l, "a", map[string]string{"f": "a"})
	b := Commit(t, l, "b", map[string]string{"f": "b"})
	dir, err := l.Dir(a)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Remove(t.Context(), a); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	wantGone(t, dir)
	_, err = l.Dir(a)
	wantNotFound(t, "Dir", err)
	_, err = l.Find(t.Context(), "a")
	wantNotFound(t, "Find", err)
	if _, err := l.Dir(b); err != nil {
		t.Errorf("the other layer: %v", err)
	}
}

func manyAtOnce(t *testing.T, l storage.Layers) {
	const workers, names = 8, 4
	ids := make([]storage.LayerID, workers)
	won := make([]bool, workers)
	var group sync.WaitGroup
	for i := range workers {
		group.Go(func() {
			st, err := l.Stage(context.WithoutCancel(t.Context()))
			if err != nil {
				t.Error(err)
				return
			}
			defer st.Discard()
			if err := os.WriteFile(filepath.Join(st.Dir(), "f"), nil, 0o600); err != nil {
				t.Error(err)
			}
			ids[i], won[i], err = st.Commit(t.Context(), fmt.Sprint("layer ", i%names))
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	winners := 0
	for i := range workers {
		if ids[i] != ids[i%names] {
			t.Errorf("worker %d has layer %q, worker %d of the same name %q", i, ids[i], i%names, ids[i%names])
		}
		if won[i] {
			winners++
		}
	}
	if all, err := l.All(t.Context()); err != nil || winners != names || len(all) != names {
		t.Errorf("%d winners and %d layers, error %v; want %d of each", winners, len(all), err, names)
	}
}

// Leaser makes leases.
type Leaser interface {
	Lease(ctx context.Context) (storage.Lease, error)
}

// TestLeases holds leases to their contract, as far as one process can see it.
func TestLeases(t *testing.T, open func(t *testing.T) (storage.Layers, Leaser)) {
	t.Run("a lease holds what is there and refuses what is gone", func(t *testing.T) {
		l, leaser := open(t)
		id := Commit(t, l, "a", nil)
		lease, err := leaser.Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := lease.Hold(t.Context(), id, id); err != nil {
			t.Errorf("hold: %v", err)
		}
		gone := storage.LayerID(storage.DigestBytes([]byte("gone")).Hex())
		wantNotFound(t, "hold", lease.Hold(t.Context(), id, gone))
		if err := errors.Join(lease.Release(), lease.Release()); err != nil {
			t.Errorf("release: %v", err)
		}
	})
}
