package localtag_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/pluginapi/plugintest"
	"github.com/mstage/mstage/plugins/localtag"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
)

func open(t *testing.T) storage.Images {
	t.Helper()
	ix, err := index.Open(filepath.Join(t.TempDir(), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	img := storage.Image{ID: storage.DigestBytes([]byte("image")), Config: []byte("{}")}
	if err := ix.PutImage(t.Context(), img, "docker.io/library/busybox:latest", "localhost/x:1", "localhost:5000/me/x:latest",
		"docker.io/library/pinned@"+string(storage.DigestBytes([]byte("manifest")))); err != nil {
		t.Fatal(err)
	}
	return ix
}

func ask(words ...string) []pluginapi.Request {
	var qs []pluginapi.Request
	for _, w := range words {
		qs = append(qs, pluginapi.Request{Reference: w, Use: pluginapi.UseCopy, Platform: "linux/amd64"})
	}
	return qs
}

func TestTheSourceHoldsTheContract(t *testing.T) {
	digest := string(storage.DigestBytes([]byte("image")))
	plugintest.Run(t, func(t *testing.T) plugintest.Fixture {
		return plugintest.Fixture{
			Source: localtag.New(open(t)),
			Known: ask("busybox", "busybox:latest", "library/busybox", "docker.io/busybox", "index.docker.io/library/busybox:latest",
				"localhost/x:1", "localhost:5000/me/x",
				"pinned@"+string(storage.DigestBytes([]byte("manifest"))), "pinned:3@"+string(storage.DigestBytes([]byte("manifest")))),
			Unknown: ask("busybox:1", "x", "localhost/x", "me/x", "busybox@"+digest, strings.TrimPrefix(digest, "sha256:"), digest),
			Refused: ask("Busybox", "busybox:", "a b", "", "../x", "busybox@sha256:12"),
		}
	})
}

func TestTheAnswerNamesTheImageInFull(t *testing.T) {
	got, err := localtag.New(open(t)).Resolve(t.Context(), pluginapi.Request{Reference: "busybox"})
	want := pluginapi.Resolved{
		Source: "localtag", Reference: "docker.io/library/busybox:latest", Image: string(storage.DigestBytes([]byte("image"))),
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
