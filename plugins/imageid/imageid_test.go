package imageid_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/pluginapi/plugintest"
	"github.com/mstage/mstage/plugins/imageid"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
)

// hex returns a digest's hex digits that begin with prefix.
func hex(prefix string) string { return prefix + strings.Repeat("0", 64-len(prefix)) }

// open returns an index with two images whose IDs share "abcd".
func open(t *testing.T) storage.Images {
	t.Helper()
	ix, err := index.Open(filepath.Join(t.TempDir(), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range []storage.Image{
		{ID: storage.Digest("sha256:" + hex("abcd1")), Config: []byte("{}"), Sealed: &storage.SealedImage{
			ConfigDigest: storage.Digest("sha256:" + hex("5ea1")), Config: []byte("{}"),
		}},
		{ID: storage.Digest("sha256:" + hex("abcd2")), Config: []byte("{}")},
	} {
		if err := ix.PutImage(t.Context(), img); err != nil {
			t.Fatal(err)
		}
	}
	return ix
}

func ask(words ...string) []pluginapi.Request {
	var qs []pluginapi.Request
	for _, w := range words {
		qs = append(qs, pluginapi.Request{Reference: w, Use: pluginapi.UseFrom, Platform: "linux/amd64"})
	}
	return qs
}

func TestTheSourceOfFullIDsHoldsTheContract(t *testing.T) {
	plugintest.Run(t, func(t *testing.T) plugintest.Fixture {
		return plugintest.Fixture{
			Source:  imageid.Full(open(t)),
			Known:   ask(hex("abcd1"), "sha256:"+hex("abcd2"), hex("5ea1")),
			Unknown: ask(hex("9"), "abcd1", "sha256:abcd1", "busybox", strings.ToUpper(hex("abcd1")), "sha512:"+hex("abcd1")),
		}
	})
}

func TestTheSourceOfShortIDsHoldsTheContract(t *testing.T) {
	plugintest.Run(t, func(t *testing.T) plugintest.Fixture {
		return plugintest.Fixture{
			Source:  imageid.Prefix(open(t)),
			Known:   ask("abcd1", "sha256:abcd2", hex("abcd1")[:63], "5ea1"),
			Unknown: ask("abc", "9999", hex("abcd1"), "busybox", "ABCD1", "sha256:", ""),
			Refused: ask("abcd", "sha256:abcd"),
		}
	})
}

func TestAnAmbiguousPrefixListsTheImages(t *testing.T) {
	_, err := imageid.Prefix(open(t)).Resolve(t.Context(), pluginapi.Request{Reference: "abcd"})
	var refusal *pluginapi.Error
	if !errors.As(err, &refusal) || !errors.Is(err, storage.ErrAmbiguous) {
		t.Fatalf("got %v, want a refusal that wraps ErrAmbiguous", err)
	}
	for _, want := range []string{"abcd10000000", "abcd20000000"} {
		if !strings.Contains(refusal.Message, want) {
			t.Errorf("got %q, want it to list %s", refusal.Message, want)
		}
	}
	if refusal.Hint == "" {
		t.Error("got no hint")
	}
}
