package fetch_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/nstest"
	"github.com/mstage/mstage/storage/storagetest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// layerTar is a tar with files of these contents.
func layerTar(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		name, data, _ := strings.Cut(f, "=")
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o640, Uid: 5, Gid: 6, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// stores are a fake store with a lease that remembers.
func stores(t *testing.T) (*storagetest.Store, fetch.Stores, *lease) {
	t.Helper()
	s := storagetest.New(t)
	inner, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := &lease{Lease: inner}
	return s, fetch.Stores{Layers: s.Layers, Lease: l}, l
}

type lease struct {
	storage.Lease
	held []storage.LayerID
	err  error
}

func (l *lease) Hold(ctx context.Context, ids ...storage.LayerID) error {
	l.held = append(l.held, ids...)
	return errors.Join(l.err, l.Lease.Hold(ctx, ids...))
}

func TestALayerIsUnpackedHeldAndNamedByItsContent(t *testing.T) {
	store, s, l := stores(t)
	plain := layerTar(t, "etc/f=hello", "g=1")
	got, err := fetch.Layer(t.Context(), s, bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	if want := storage.DigestBytes(plain); got.Identity != want {
		t.Errorf("got identity %s, want the digest of the tar %s", got.Identity, want)
	}
	if got.SizeBytes != 6 || got.Created.IsZero() || got.Created.Nanosecond() != 0 {
		t.Errorf("got %d bytes, made %v, want 6 and a time in whole seconds", got.SizeBytes, got.Created)
	}
	if id, err := store.Find(t.Context(), storage.DiffLayerName(got.Identity)); err != nil || id != got.ID {
		t.Errorf("got %s, %v by its name, want %s", id, err, got.ID)
	}
	if len(l.held) != 1 || l.held[0] != got.ID {
		t.Errorf("held %v, want %s", l.held, got.ID)
	}
	dir, err := store.Dir(got.ID)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "etc/f")); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v, want the file", b, err)
	}
}

func TestTheSameContentIsOneLayerHoweverItIsCompressed(t *testing.T) {
	store, s, _ := stores(t)
	plain := layerTar(t, "f=hello")
	var ids []storage.LayerID
	for _, b := range [][]byte{plain, plain, gzipped(t, plain)} {
		l, err := fetch.Layer(t.Context(), s, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, l.ID)
	}
	if ids[0] != ids[1] || ids[0] != ids[2] {
		t.Errorf("got layers %v, want one", ids)
	}
	if all, err := store.All(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("got %d layers, %v, want 1", len(all), err)
	}
}

func TestABrokenLayerLeavesNothing(t *testing.T) {
	plain := layerTar(t, "f="+strings.Repeat("x", 5000))
	cases := map[string]io.Reader{
		"no tar":         strings.NewReader(strings.Repeat("hello", 1000)),
		"half a tar":     bytes.NewReader(plain[:2000]),
		"half a gzip":    bytes.NewReader(gzipped(t, plain)[:30]),
		"a reader fails": io.MultiReader(bytes.NewReader(plain[:1000]), failing{}),
		"a way out":      bytes.NewReader(layerTar(t, "../../f=x")),
	}
	for name, r := range cases {
		store, s, _ := stores(t)
		l, err := fetch.Layer(t.Context(), s, r)
		all, listErr := store.All(t.Context())
		if listErr != nil {
			t.Fatal(listErr)
		}
		if name == "a way out" && err == nil {
			dir, dirErr := store.Dir(l.ID) // confined to the layer is as good as refused
			if _, err := os.Stat(filepath.Join(dir, "f")); err != nil || dirErr != nil {
				t.Errorf("%s: got %v, want the file inside the layer", name, err)
			}
			continue
		}
		if err == nil || len(all) != 0 {
			t.Errorf("%s: got %v and layers %v, want an error and none", name, err, all)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut off") }

func TestALayerThatCantBeHeldIsAnError(t *testing.T) {
	_, s, l := stores(t)
	l.err = errors.New("disk full")
	if _, err := fetch.Layer(t.Context(), s, bytes.NewReader(layerTar(t, "f=x"))); !errors.Is(err, l.err) {
		t.Errorf("got %v, want the lease's error", err)
	}
}

func TestACancelStopsTheFetch(t *testing.T) {
	store, s, _ := stores(t)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := fetch.Layer(ctx, s, bytes.NewReader(layerTar(t, "f=x"))); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
	if all, err := store.All(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("got layers %v, %v, want none", all, err)
	}
}
