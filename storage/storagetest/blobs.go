package storagetest

import (
	"io"
	"testing"

	"github.com/mstage/mstage/storage"
)

// TestBlobs holds an implementation of storage.Blobs to its contract.
func TestBlobs(t *testing.T, open func(t *testing.T) storage.Blobs) {
	cases := map[string]func(*testing.T, storage.Blobs){
		"a blob is read back by its digest":              blobReadBack,
		"a blob with another digest is not published":    blobMismatch,
		"a blob that was not committed is not there":     blobDropped,
		"removed blobs are gone, and readable when open": blobRemoved,
		"digests from outside can't leave the store":     blobHostile,
	}
	for name, check := range cases {
		t.Run(name, func(t *testing.T) { check(t, open(t)) })
	}
}

// PutBlob keeps content and returns its digest.
func PutBlob(t testing.TB, s storage.Blobs, content string) storage.Digest {
	t.Helper()
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	d, size, err := w.Commit("")
	if err != nil || size != int64(len(content)) {
		t.Fatalf("commit: %d bytes, error %v; want %d", size, err, len(content))
	}
	return d
}

func blobReadBack(t *testing.T, s storage.Blobs) {
	for range 2 {
		d := PutBlob(t, s, "content")
		if want := Key("content"); d != want {
			t.Errorf("digest %s, want %s", d, want)
		}
		r, size, err := s.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != "content" || size != int64(len(got)) {
			t.Errorf("read %q of %d bytes, error %v", got, size, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func blobMismatch(t *testing.T, s storage.Blobs) {
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "one"); err != nil {
		t.Fatal(err)
	}
	if got := w.Sum(); got != Key("one") {
		t.Errorf("sum %s, want %s", got, Key("one"))
	}
	if _, _, err := w.Commit(Key("two")); err == nil {
		t.Error("commit: no error")
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"one", "two"} {
		_, _, err := s.Open(t.Context(), Key(text))
		wantNotFound(t, "Open", err)
	}
}

func blobDropped(t *testing.T, s storage.Blobs) {
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "one"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := w.Commit(""); err == nil {
		t.Error("commit after close: no error")
	}
	_, _, err = s.Open(t.Context(), Key("one"))
	wantNotFound(t, "Open", err)
}

func blobRemoved(t *testing.T, s storage.Blobs) {
	d := PutBlob(t, s, "content")
	r, _, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 {
		if err := s.Remove(t.Context(), d); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	_, _, err = s.Open(t.Context(), d)
	wantNotFound(t, "Open", err)
	if got, err := io.ReadAll(r); err != nil || string(got) != "content" {
		t.Errorf("open blob: %q, error %v", got, err)
	}
}

func blobHostile(t *testing.T, s storage.Blobs) {
	for _, d := range []storage.Digest{"", "sha256:", "sha256:../../index.db", "../x", "sha512:ab"} {
		if _, _, err := s.Open(t.Context(), d); err == nil {
			t.Errorf("open %q: no error", d)
		}
		if err := s.Remove(t.Context(), d); err == nil {
			t.Errorf("remove %q: no error", d)
		}
	}
}
