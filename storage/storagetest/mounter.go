package storagetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mstage/mstage/storage"
)

// MountStore is what TestMounter needs of a store.
type MountStore interface {
	storage.Layers
	storage.Mounter
}

// TestMounter holds an implementation of storage.Mounter to its contract.
func TestMounter(t *testing.T, open func(t *testing.T) MountStore) {
	cases := map[string]func(*testing.T, MountStore){
		"the upper directory gets the changes and becomes a layer": upperIsLayer,
		"higher layers hide lower ones":                            higherHides,
		"whiteouts and opaque directories of a layer hide":         whiteoutsHide,
		"without an upper directory nothing can be written":        readOnlyMount,
		"mounts with few or no layers work":                        fewLayers,
		"the stub is below all layers":                             stubIsLowest,
		"many layers are shown in their order":                     manyLayers,
		"odd characters in paths":                                  oddPaths,
		"a layer that is gone wraps ErrNotFound":                   mountMissing,
		"file numbers stay the same at a copy-up":                  inodesStay,
	}
	for name, check := range cases {
		t.Run(name, func(t *testing.T) { check(t, open(t)) })
	}
}

// mountAt mounts o on a new directory until the test ends, or until the
// returned function is called.
func mountAt(t *testing.T, s MountStore, o storage.MountOptions) (target string, unmount func()) {
	t.Helper()
	if o.Target == "" {
		o.Target = t.TempDir()
	}
	end, err := s.Mount(t.Context(), o)
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	done := false
	unmount = func() {
		t.Helper()
		if done {
			return
		}
		done = true
		if err := end(); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}
	t.Cleanup(unmount)
	return o.Target, unmount
}

func stage(t *testing.T, s MountStore) storage.Staged {
	t.Helper()
	st, err := s.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Discard(); err != nil {
			t.Error(err)
		}
	})
	return st
}

func upperIsLayer(t *testing.T, s MountStore) {
	base := Commit(t, s, "base", map[string]string{"keep": "1", "gone": "2", "dir/old": "3", "change": "4"})
	st := stage(t, s)
	target, unmount := mountAt(t, s, storage.MountOptions{Layers: []storage.LayerID{base}, Upper: st.Dir(), Work: st.WorkDir()})
	err := errors.Join(
		os.Remove(filepath.Join(target, "gone")),
		os.RemoveAll(filepath.Join(target, "dir")),
		os.WriteFile(filepath.Join(target, "change"), []byte("new"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	WriteFiles(t, target, map[string]string{"dir/new": "5"})
	unmount()
	wantGone(t, filepath.Join(target, "keep"))
	id, won, err := st.Commit(t.Context(), "top")
	if err != nil || !won {
		t.Fatalf("commit: won %v, error %v", won, err)
	}
	dir, err := s.Dir(base)
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "change"), "4")
	target, _ = mountAt(t, s, storage.MountOptions{Layers: []storage.LayerID{base, id}})
	wantFile(t, filepath.Join(target, "keep"), "1")
	wantFile(t, filepath.Join(target, "change"), "new")
	wantFile(t, filepath.Join(target, "dir/new"), "5")
	wantGone(t, filepath.Join(target, "gone"))
	wantGone(t, filepath.Join(target, "dir/old"))
}

func higherHides(t *testing.T, s MountStore) {
	var ids []storage.LayerID
	for _, name := range []string{"low", "middle", "high"} {
		ids = append(ids, Commit(t, s, name, map[string]string{"who": name, name: name}))
	}
	target, _ := mountAt(t, s, storage.MountOptions{Layers: ids})
	wantFile(t, filepath.Join(target, "who"), "high")
	for _, name := range []string{"low", "middle", "high"} {
		wantFile(t, filepath.Join(target, name), name)
	}
}

// whiteoutsHide makes the traces by hand, as an unpacked layer has them.
func whiteoutsHide(t *testing.T, s MountStore) {
	low := Commit(t, s, "low", map[string]string{"gone": "1", "dir/old": "2"})
	st := stage(t, s)
	err := errors.Join(
		syscall.Mknod(filepath.Join(st.Dir(), "gone"), syscall.S_IFCHR, 0),
		os.Mkdir(filepath.Join(st.Dir(), "dir"), 0o755),
		syscall.Setxattr(filepath.Join(st.Dir(), "dir"), "user.overlay.opaque", []byte("y"), 0))
	if err != nil {
		t.Fatal(err)
	}
	high, _, err := st.Commit(t.Context(), "high")
	if err != nil {
		t.Fatal(err)
	}
	for name, layers := range map[string][]storage.LayerID{"over a layer": {low, high}, "alone": {high}} {
		target, _ := mountAt(t, s, storage.MountOptions{Layers: layers})
		wantGone(t, filepath.Join(target, "gone"))
		wantGone(t, filepath.Join(target, "dir/old"))
		if _, err := os.Stat(filepath.Join(target, "dir")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func readOnlyMount(t *testing.T, s MountStore) {
	id := Commit(t, s, "a", map[string]string{"f": "1"})
	target, _ := mountAt(t, s, storage.MountOptions{Layers: []storage.LayerID{id}})
	if err := os.WriteFile(filepath.Join(target, "g"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write: error %v, want %v", err, syscall.EROFS)
	}
}

func fewLayers(t *testing.T, s MountStore) {
	id := Commit(t, s, "a", map[string]string{"f": "1"})
	for name, layers := range map[string][]storage.LayerID{"none": nil, "one": {id}} {
		t.Run(name, func(t *testing.T) {
			mountAt(t, s, storage.MountOptions{Layers: layers})
			st := stage(t, s)
			target, unmount := mountAt(t, s, storage.MountOptions{Layers: layers, Upper: st.Dir(), Work: st.WorkDir()})
			WriteFiles(t, target, map[string]string{"g": "2"})
			unmount()
			wantFile(t, filepath.Join(st.Dir(), "g"), "2")
		})
	}
}

func stubIsLowest(t *testing.T, s MountStore) {
	st := stage(t, s)
	WriteFiles(t, st.Dir(), map[string]string{"proc/.keep": "", "who": "stub"})
	id := Commit(t, s, "a", map[string]string{"who": "layer"})
	target, _ := mountAt(t, s, storage.MountOptions{Stub: st.Dir(), Layers: []storage.LayerID{id}})
	wantFile(t, filepath.Join(target, "who"), "layer")
	wantFile(t, filepath.Join(target, "proc/.keep"), "")
}

func manyLayers(t *testing.T, s MountStore) {
	const layers = 40
	var ids []storage.LayerID
	for i := range layers {
		ids = append(ids, Commit(t, s, fmt.Sprint("layer ", i), map[string]string{fmt.Sprint("f", i): "x", "last": fmt.Sprint(i)}))
	}
	st := stage(t, s)
	target, _ := mountAt(t, s, storage.MountOptions{Layers: ids, Upper: st.Dir(), Work: st.WorkDir()})
	for i := range layers {
		wantFile(t, filepath.Join(target, fmt.Sprint("f", i)), "x")
	}
	wantFile(t, filepath.Join(target, "last"), fmt.Sprint(layers-1))
}

func oddPaths(t *testing.T, s MountStore) {
	id := Commit(t, s, "a", map[string]string{"f": "1"})
	target := filepath.Join(t.TempDir(), `a,b:c\d"e f`+strings.Repeat("x", 200), strings.Repeat("y", 100))
	if err := os.MkdirAll(target, 0o700); err != nil {
		t.Fatal(err)
	}
	st := stage(t, s)
	stub := filepath.Join(st.Dir(), `a,b:c\d`, strings.Repeat("z", 250))
	if err := os.MkdirAll(stub, 0o755); err != nil {
		t.Fatal(err)
	}
	WriteFiles(t, stub, map[string]string{"s": "2"})
	mountAt(t, s, storage.MountOptions{Layers: []storage.LayerID{id}, Stub: stub, Target: target})
	wantFile(t, filepath.Join(target, "f"), "1")
	wantFile(t, filepath.Join(target, "s"), "2")
}

func mountMissing(t *testing.T, s MountStore) {
	gone := storage.LayerID(storage.DigestBytes([]byte("gone")).Hex())
	_, err := s.Mount(t.Context(), storage.MountOptions{Layers: []storage.LayerID{gone}, Target: t.TempDir()})
	wantNotFound(t, "Mount", err)
}

func inodesStay(t *testing.T, s MountStore) {
	id := Commit(t, s, "a", map[string]string{"f": "1"})
	st := stage(t, s)
	target, _ := mountAt(t, s, storage.MountOptions{Layers: []storage.LayerID{id}, Upper: st.Dir(), Work: st.WorkDir()})
	path := filepath.Join(target, "f")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil || before.Sys().(*syscall.Stat_t).Ino != after.Sys().(*syscall.Stat_t).Ino {
		t.Errorf("the inode changed at a chmod: error %v", err)
	}
}
