package layertar_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/mstage/mstage/storage/layertar"
)

// FuzzUnpack unpacks any bytes: nothing beside the directory changes, and what
// was unpacked is written the same again after another round.
func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, file("a/b"), link(tar.TypeLink, "c", "a/b"), link(tar.TypeSymlink, "s", ".."), file("s/x")))
	f.Add(archive(f, file(".wh.a"), dirEntry("a"), file("a/.wh..wh..opq"), device(tar.TypeChar, "n", 1, 3)))
	f.Add(archive(f, link(tar.TypeSymlink, "up", "/../.."), file("up/outside"), entry(tar.TypeFifo, "p")))
	f.Add(compressed(f, archive(f, file("z", xattr("user.a", "b"))))["gzip"])
	opts := layertar.UnpackOptions{MaxEntries: 100, MaxBytes: 1 << 20}
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "deep", "layer")
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(outer, "canary"), []byte("alive"), 0o600))
		_, err := layertar.Unpack(t.Context(), bytes.NewReader(b), dir, opts)
		for p, want := range map[string]int{outer: 2, filepath.Join(outer, "deep"): 1} {
			if es, rerr := os.ReadDir(p); rerr != nil || len(es) != want {
				t.Fatalf("beside the layer: got %v (%v), want %d entries", es, rerr, want)
			}
		}
		if got, rerr := os.ReadFile(filepath.Join(outer, "canary")); rerr != nil || string(got) != "alive" {
			t.Fatalf("file beside the layer: got %q (%v), want it unchanged", got, rerr)
		}
		if err != nil {
			return
		}
		var first, second bytes.Buffer
		if _, err := layertar.Write(t.Context(), &first, dir, layertar.WriteOptions{}); err != nil {
			return // a name with "=" in an attribute, say
		}
		again := filepath.Join(outer, "deep", "again")
		must(t, os.Mkdir(again, 0o755))
		_, err = layertar.Unpack(t.Context(), bytes.NewReader(first.Bytes()), again, layertar.UnpackOptions{})
		must(t, err)
		_, err = layertar.Write(t.Context(), &second, again, layertar.WriteOptions{})
		must(t, err)
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatal("the second round gave other bytes, want the same")
		}
	})
}
