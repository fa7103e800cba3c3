package blobs_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/blobs"
	"github.com/mstage/mstage/storage/storagetest"
)

func open(t *testing.T) (*blobs.Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := blobs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func TestStoreHoldsTheContract(t *testing.T) {
	storagetest.TestBlobs(t, func(t *testing.T) storage.Blobs {
		s, _ := open(t)
		return s
	})
}

func TestAWriteBeyondTheLimitIsRefused(t *testing.T) {
	s, _ := open(t)
	s.LimitBytes = 5
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write([]byte("12345")); err != nil {
		t.Errorf("write at the limit: %v", err)
	}
	if _, err := w.Write([]byte("6")); !errors.Is(err, blobs.ErrTooLarge) {
		t.Errorf("write beyond the limit: error %v, want %v", err, blobs.ErrTooLarge)
	}
}

func TestOnlyWhatIsAbandonedIsRemoved(t *testing.T) {
	s, dir := open(t)
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "tmp", "blob-of-a-killed-process")
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := s.RemoveAbandoned(); n != 1 || err != nil {
		t.Errorf("removed %d, error %v; want 1", n, err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the abandoned file: error %v, want it gone", err)
	}
	if _, _, err := w.Commit(""); err != nil {
		t.Errorf("the blob in the making: %v", err)
	}
}

func TestAllListsCommittedBlobs(t *testing.T) {
	s, dir := open(t)
	if all, err := s.All(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("empty store: %v, error %v", all, err)
	}
	d := storagetest.PutBlob(t, s, "abc")
	if err := os.WriteFile(filepath.Join(dir, "sha256", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := s.All(t.Context())
	if err != nil || len(all) != 1 || all[0].Digest != d || all[0].SizeBytes != 3 {
		t.Errorf("got %v, error %v; want %s of 3 bytes", all, err, d)
	}
}
