package overlay_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layout"
	"github.com/mstage/mstage/storage/overlay"
	"github.com/mstage/mstage/storage/storagetest"
)

func TestStoreHoldsTheContract(t *testing.T) {
	storagetest.TestLayers(t, func(t *testing.T) storage.Layers { return open(t, newRoot(t)) })
	storagetest.TestLeases(t, func(t *testing.T) (storage.Layers, storagetest.Leaser) {
		s := open(t, newRoot(t))
		return s, s
	})
}

func TestBothMountAPIsHoldTheContract(t *testing.T) {
	for name, api := range map[string]overlay.MountAPI{"fsconfig": overlay.MountFsconfig, "mount": overlay.MountClassic, "automatic": overlay.MountAuto} {
		t.Run(name, func(t *testing.T) {
			storagetest.TestMounter(t, func(t *testing.T) storagetest.MountStore {
				return open(t, newRoot(t), func(o *overlay.Options) { o.MountAPI = api })
			})
		})
	}
}

// record makes a step of the build cache with a layer of its own.
func record(t *testing.T, s *overlay.Store, text string, sizeBytes int64) storage.Layer {
	t.Helper()
	key := storagetest.Key(text)
	l := storage.Layer{
		ID:       storagetest.Commit(t, s, storage.StepLayerName(key), map[string]string{"f": text}),
		Identity: key, SizeBytes: sizeBytes, Created: time.Unix(1, 0).UTC(),
	}
	if err := s.Index().RecordSteps(t.Context(), storage.StepRecord{Layer: l}, key); err != nil {
		t.Fatal(err)
	}
	return l
}

func wantSound(t *testing.T, s *overlay.Store) {
	t.Helper()
	problems, err := s.Check(t.Context())
	if err != nil || len(problems) > 0 {
		t.Errorf("check: %v, error %v; want no problem", problems, err)
	}
}

func wantLayers(t *testing.T, s *overlay.Store, want ...storage.LayerID) {
	t.Helper()
	got, err := s.All(t.Context())
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("layers %v, error %v; want %v", got, err, want)
	}
}

func gc(t *testing.T, s *overlay.Store, o overlay.GCOptions) overlay.GCReport {
	t.Helper()
	r, err := s.GC(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGarbageCollectionKeepsWhatIsWanted(t *testing.T) {
	root := newRoot(t)
	builder := open(t, root)
	oldest := record(t, builder, "oldest", 10)
	middle := record(t, builder, "middle", 10)
	newest := record(t, builder, "newest", 10)
	inImage := record(t, builder, "in an image", 10)
	garbage := storagetest.Commit(t, builder, "mstage-diff:garbage", nil)
	if err := builder.Index().PutImage(t.Context(), storagetest.Image("i", time.Now(), inImage), "x/y:1"); err != nil {
		t.Fatal(err)
	}
	collector := open(t, root)
	if r := gc(t, collector, overlay.GCOptions{All: true}); len(r.Layers) > 0 {
		t.Errorf("collected %v while the builder holds everything", r.Layers)
	}
	lease, err := collector.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Hold(t.Context(), oldest.ID); err != nil {
		t.Fatal(err)
	}
	if err := builder.Close(); err != nil {
		t.Fatal(err)
	}
	if r := gc(t, collector, overlay.GCOptions{}); !slices.Equal(r.Layers, []storage.LayerID{garbage}) {
		t.Errorf("collected %v, want the layer without a record %v", r.Layers, garbage)
	}
	r := gc(t, collector, overlay.GCOptions{KeepBytes: 15})
	if !slices.Equal(r.Layers, []storage.LayerID{middle.ID}) || r.LayerBytes != 10 {
		t.Errorf("collected %v of %d bytes, want the least recently used %v", r.Layers, r.LayerBytes, middle.ID)
	}
	if _, ok, err := collector.Index().Step(t.Context(), storagetest.Key("middle")); ok || err != nil {
		t.Errorf("step of a collected layer: ok %v, error %v; want false", ok, err)
	}
	if err := lease.Hold(t.Context(), middle.ID); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("hold a collected layer: error %v, want ErrNotFound", err)
	}
	err = collector.Index().PutImage(t.Context(), storagetest.Image("late", time.Now(), middle))
	if !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("image with a collected layer: error %v, want ErrNotFound", err)
	}
	wantLayers(t, collector, oldest.ID, newest.ID, inImage.ID)
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
	gc(t, collector, overlay.GCOptions{MaxLayers: 2})
	wantLayers(t, collector, newest.ID, inImage.ID)
	gc(t, collector, overlay.GCOptions{All: true})
	wantLayers(t, collector, inImage.ID)
	wantSound(t, collector)
}

func TestGarbageCollectionRemovesUnsealedBlobsOfThePast(t *testing.T) {
	root := newRoot(t)
	s := open(t, root)
	layer := record(t, s, "a", 1)
	kept, dropped := storagetest.PutBlob(t, s.Blobs(), "kept"), storagetest.PutBlob(t, s.Blobs(), "dropped")
	if err := s.Index().PutSeal(t.Context(), layer.ID, storage.Seal{DiffID: kept, Blob: kept}); err != nil {
		t.Fatal(err)
	}
	if r := gc(t, s, overlay.GCOptions{}); r.Blobs != 0 {
		t.Errorf("%d blobs collected while their writer is at work, want 0", r.Blobs)
	}
	past := time.Now().Add(-time.Hour)
	for _, d := range []storage.Digest{kept, dropped} {
		if err := os.Chtimes(filepath.Join(s.Layout().Blobs(), "sha256", d.Hex()), past, past); err != nil {
			t.Fatal(err)
		}
	}
	if r := gc(t, s, overlay.GCOptions{}); r.Blobs != 1 || r.BlobBytes != int64(len("dropped")) {
		t.Errorf("%d blobs of %d bytes collected, want 1 of %d", r.Blobs, r.BlobBytes, len("dropped"))
	}
	if _, _, err := s.Blobs().Open(t.Context(), kept); err != nil {
		t.Errorf("sealed blob: %v", err)
	}
}

func TestALayerThatIsCollectedLosesItsNameToTheNext(t *testing.T) {
	s := open(t, newRoot(t))
	old := storagetest.Commit(t, s, "name", map[string]string{"f": "old"})
	// As a collection that was killed before it deleted the layer.
	if _, err := s.Index().DropLayers(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find(t.Context(), "name"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("find: error %v, want ErrNotFound", err)
	}
	id := storagetest.Commit(t, s, "name", map[string]string{"f": "new"})
	if found, err := s.Find(t.Context(), "name"); err != nil || found != id || id == old {
		t.Errorf("found %v, error %v; want %v", found, err, id)
	}
}

const (
	childRole = "MSTAGE_OVERLAY_TEST_CHILD"
	childRoot = "MSTAGE_OVERLAY_TEST_ROOT"
)

// child opens the store, says "ready" when its role is played, and waits to be
// killed.
func child(role string) int {
	run, err := os.MkdirTemp(filepath.Dir(os.Getenv(childRoot)), "run")
	if err != nil {
		panic(err)
	}
	bg := context.Background()
	s, err := overlay.Open(bg, overlay.Options{Root: os.Getenv(childRoot), RunRoot: run})
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		st, err := s.Stage(bg)
		if err != nil {
			panic(err)
		}
		name := filepath.Join(st.Dir(), "d")
		if err := errors.Join(os.Mkdir(name, 0o755), os.WriteFile(filepath.Join(name, "f"), make([]byte, 1000), 0o600)); err != nil {
			panic(err)
		}
		if role == "staging" {
			if err := os.Mkdir(filepath.Join(st.WorkDir(), "work"), 0); err != nil {
				panic(err)
			}
			w, err := s.Blobs().Create(bg)
			if err != nil {
				panic(err)
			}
			if _, err := w.Write([]byte("x")); err != nil {
				panic(err)
			}
			fmt.Fprintln(os.Stdout, "ready")
			select {}
		}
		if _, _, err := st.Commit(bg, fmt.Sprint(os.Getpid(), " ", i)); err != nil {
			panic(err)
		}
		if i == 0 {
			fmt.Fprintln(os.Stdout, "ready")
		}
	}
}

// start starts a child in a role and returns when it is ready.
func start(t *testing.T, root, role string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"="+role, childRoot+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Errorf("child said %q, error %v", line, err)
	}
	return cmd
}

// kill kills a child, which must have been alive until then.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("child ended with %v, want it killed", err)
	}
}

func TestCollectionsDoNotDisturbBuildersAtWork(t *testing.T) {
	root := newRoot(t)
	s := open(t, root)
	builders := []*exec.Cmd{start(t, root, "committing"), start(t, root, "committing")}
	for range 10 {
		if r := gc(t, s, overlay.GCOptions{All: true}); len(r.Layers)+r.Staged > 0 {
			t.Errorf("collected %+v of builders at work", r)
		}
	}
	all, err := s.All(t.Context())
	if err != nil || len(all) < len(builders) {
		t.Errorf("%d layers, error %v; want one of each builder at least", len(all), err)
	}
	for _, b := range builders {
		kill(t, b)
	}
	gc(t, s, overlay.GCOptions{})
	wantLayers(t, s)
	wantSound(t, s)
}

func TestNothingIsLeftOfAKilledProcess(t *testing.T) {
	cases := map[string]string{"while it stages": "staging", "while it commits": "committing"}
	for name, role := range cases {
		t.Run(name, func(t *testing.T) {
			root := newRoot(t)
			keeper := open(t, root)
			layer := record(t, keeper, "kept", 1)
			before := tree(t, root)
			for i := range 8 {
				cmd := start(t, root, role)
				<-time.After(time.Duration(i) * time.Millisecond) // the moment of the kill is what is varied
				kill(t, cmd)
			}
			s := open(t, root)
			if r := gc(t, s, overlay.GCOptions{}); len(r.Layers)+r.Staged == 0 {
				t.Errorf("collected nothing: %+v", r)
			}
			wantLayers(t, s, layer.ID)
			wantSound(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if after := tree(t, root); !slices.Equal(after, before) {
				t.Errorf("store after the kills:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

// tree lists a store without the names of lock and state files that stay, and
// without the contents of layers.
func tree(t *testing.T, root string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch {
		case d.Name() == "diff":
			return fs.SkipDir
		case strings.HasSuffix(rel, ".lock"), strings.HasPrefix(rel, "locks/"), strings.HasPrefix(rel, "blobs/"),
			strings.HasPrefix(rel, "containers/overlay/tempdirs"), strings.HasPrefix(rel, "containers/overlay-layers/"):
			return nil
		}
		paths = append(paths, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// TestTheDriversLinksAreRestored has the state of a process that was killed
// between making and writing the driver's link file.
func TestTheDriversLinksAreRestored(t *testing.T) {
	root := newRoot(t)
	s := open(t, root)
	layer := record(t, s, "kept", 1)
	half := storagetest.Commit(t, s, "half", nil)
	driver := filepath.Join(s.Layout().Graph(), "overlay")
	if err := os.Truncate(filepath.Join(driver, string(half), "link"), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, filepath.Join(driver, "l")) // else the driver was mended, and restoreLinks can go
	gc(t, s, overlay.GCOptions{})
	name, err := os.ReadFile(filepath.Join(driver, string(layer.ID), "link"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(driver, "l", string(name))); err != nil {
		t.Error(err)
	}
	wantSound(t, s)
}

func TestAnUncleanEndOfTheMachineDropsWhatWasNotSynced(t *testing.T) {
	root := newRoot(t)
	s := open(t, root)
	synced := record(t, s, "synced", 1)
	lost := record(t, s, "lost before", 1)
	if err := s.Remove(t.Context(), lost.ID); err != nil {
		t.Fatal(err)
	}
	good := storagetest.Image("good", time.Now().UTC(), synced)
	if err := s.Index().PutImage(t.Context(), good, "good:1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, s.Layout().Unsynced(), s.Layout().Index()+".unsynced")
	unsynced := record(t, s, "unsynced", 1)
	bad := storagetest.Image("bad", time.Now(), synced, unsynced)
	if err := s.Index().PutImage(t.Context(), bad, "bad:1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, marker := range []string{s.Layout().Unsynced(), s.Layout().Index() + ".unsynced"} {
		if err := os.WriteFile(marker, []byte("another boot"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var warnings []string
	s = open(t, root, func(o *overlay.Options) { o.Warn = func(text string) { warnings = append(warnings, text) } })
	wantLayers(t, s, synced.ID)
	if _, ok, err := s.Index().Step(t.Context(), storagetest.Key("unsynced")); ok || err != nil {
		t.Errorf("step of an unsynced layer: ok %v, error %v; want false", ok, err)
	}
	if _, err := s.Index().ByName(t.Context(), "good:1"); err != nil {
		t.Errorf("synced image: %v", err)
	}
	if _, err := s.Index().ByName(t.Context(), "bad:1"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("image with an unsynced layer: error %v, want ErrNotFound", err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "bad:1") {
		t.Errorf("warnings %q, want one about bad:1", warnings)
	}
	wantMissing(t, s.Layout().Unsynced())
	wantSound(t, s)
}

func wantMissing(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: error %v, want it gone", p, err)
		}
	}
}

func TestATornCatalogueAndIndexAreMended(t *testing.T) {
	root := newRoot(t)
	s := open(t, root)
	record(t, s, "a", 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	catalog := filepath.Join(s.Layout().Graph(), "overlay-layers", "volatile-layers.json")
	err := errors.Join(
		os.WriteFile(catalog, []byte(`[{"id":"`), 0o600),
		os.Truncate(s.Layout().Index(), 5000),
		os.WriteFile(s.Layout().Unsynced(), []byte("another boot"), 0o600),
		os.WriteFile(s.Layout().Index()+".unsynced", []byte("another boot"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	wantLayers(t, s)
	wantSound(t, s)
	record(t, s, "a", 1)
	wantSound(t, s)
}

func TestADamagedIndexIsRebuiltFromTheImageRecords(t *testing.T) {
	root := newRoot(t)
	s := open(t, root)
	layer := record(t, s, "a", 1)
	img := storagetest.Image("i", time.Now().UTC(), layer)
	if err := s.Index().PutImage(t.Context(), img, "x/y:1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Layout().Index(), []byte("not a database, and short"), 0o600); err != nil {
		t.Fatal(err)
	}
	gc(t, s, overlay.GCOptions{})
	got, err := s.Index().ByName(t.Context(), "x/y:1")
	if err != nil || got.ID != img.ID {
		t.Errorf("image after the rebuild: %v, error %v; want %v", got.ID, err, img.ID)
	}
	wantLayers(t, s, layer.ID)
}

func TestStoresThatCanNotBeUsedAreRefused(t *testing.T) {
	cases := map[string]struct {
		prepare func(t *testing.T, root string) string
		problem layout.Problem
	}{
		"on an overlay file system": {func(t *testing.T, root string) string {
			s := open(t, root)
			st, err := s.Stage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			target := t.TempDir()
			unmount, err := s.Mount(t.Context(), storage.MountOptions{Upper: st.Dir(), Work: st.WorkDir(), Target: target})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := errors.Join(unmount(), st.Discard()); err != nil {
					t.Error(err)
				}
			})
			return filepath.Join(target, "store")
		}, layout.ProblemFilesystem},
		"of another user": {func(t *testing.T, root string) string {
			if err := errors.Join(os.Mkdir(root, 0o700), os.Chown(root, 1, 1)); err != nil {
				t.Fatal(err)
			}
			return root
		}, layout.ProblemOwner},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root := c.prepare(t, newRoot(t))
			_, err := overlay.Open(t.Context(), overlay.Options{Root: root, RunRoot: runRoot(t)})
			refusal, ok := errors.AsType[*layout.Error](err)
			if !ok || refusal.Problem != c.problem || refusal.Hint == "" {
				t.Errorf("error %v (%+v), want problem %d with a hint", err, refusal, c.problem)
			}
		})
	}
}

func TestTheUsersStorageConfIsNotRead(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "storage.conf")
	if err := os.WriteFile(conf, []byte("not toml ["), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_STORAGE_CONF", conf)
	open(t, newRoot(t))
	if got := os.Getenv("CONTAINERS_STORAGE_CONF"); got != conf {
		t.Errorf("the variable is %q afterwards, want %q", got, conf)
	}
}

func TestLayersAreVolatileAndHaveNoParent(t *testing.T) {
	s := open(t, newRoot(t))
	id := storagetest.Commit(t, s, "a", nil)
	raw, err := os.ReadFile(filepath.Join(s.Layout().Graph(), "overlay-layers", "volatile-layers.json"))
	if err != nil {
		t.Fatal(err)
	}
	var layers []struct {
		ID     string   `json:"id"`
		Parent string   `json:"parent"`
		Names  []string `json:"names"`
	}
	if err := json.Unmarshal(raw, &layers); err != nil {
		t.Fatal(err)
	}
	if len(layers) != 1 || layers[0].ID != string(id) || layers[0].Parent != "" || !slices.Equal(layers[0].Names, []string{"a"}) {
		t.Errorf("catalogue %s, want the layer %s named a without a parent", raw, id)
	}
}

func BenchmarkOpenAgain(b *testing.B) {
	root := newRoot(b)
	open(b, root)
	base := runRoot(b)
	n := 0
	for b.Loop() {
		n++
		s, err := overlay.Open(b.Context(), overlay.Options{Root: root, RunRoot: filepath.Join(base, fmt.Sprint(n))})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStageAndCommit(b *testing.B) {
	s := open(b, newRoot(b))
	n := 0
	for b.Loop() {
		n++
		storagetest.Commit(b, s, fmt.Sprint("layer ", n), nil)
	}
}
