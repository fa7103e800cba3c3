package storagetest_test

import (
	"errors"
	"testing"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/storagetest"
)

func TestFakeHoldsTheContract(t *testing.T) {
	storagetest.TestLayers(t, func(t *testing.T) storage.Layers { return storagetest.New(t).Layers })
	storagetest.TestLeases(t, func(t *testing.T) (storage.Layers, storagetest.Leaser) {
		s := storagetest.New(t)
		return s, s
	})
	storagetest.TestSteps(t, func(*testing.T) storage.Steps { return storagetest.NewIndex() })
	storagetest.TestImages(t, func(*testing.T) storage.Images { return storagetest.NewIndex() })
	storagetest.TestSeals(t, func(*testing.T) storage.Seals { return storagetest.NewIndex() })
	storagetest.TestBlobs(t, func(t *testing.T) storage.Blobs { return storagetest.New(t).Blobs })
}

func TestTheFakeRefusesToMount(t *testing.T) {
	_, err := storagetest.New(t).Mount(t.Context(), storage.MountOptions{Target: t.TempDir()})
	if !errors.Is(err, storagetest.ErrNoMounts) {
		t.Errorf("error %v, want %v", err, storagetest.ErrNoMounts)
	}
}
