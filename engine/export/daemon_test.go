package export_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/image"
)

// fakeDaemon is a daemon on a socket that answers with handle.
func fakeDaemon(t *testing.T, handle http.HandlerFunc) export.Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handle, ReadHeaderTimeout: time.Minute}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return export.Daemon{Host: "unix://" + l.Addr().String()}
}

// loaded is a sealed image, handed to the daemon.
func loaded(t *testing.T, d export.Daemon) ([]string, error) {
	t.Helper()
	s, img := sample(t)
	img, layers, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	var last, total int64
	said, err := d.Load(t.Context(), s.Stores().Blobs, img, layers, []string{"docker.io/library/a:1", "localhost/b:2"}, func(sent, of int64) { last, total = sent, of })
	if err == nil && (last != total || total == 0) {
		t.Errorf("told %d of %d bytes at the end", last, total)
	}
	return said, err
}

func TestADaemonGetsADockerArchive(t *testing.T) {
	var members []string
	d := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/images/load" {
			t.Errorf("got %s %s, want POST /images/load", r.Method, r.URL.Path)
		}
		for tr := tar.NewReader(r.Body); ; {
			h, err := tr.Next()
			if err != nil {
				break
			}
			members = append(members, h.Name)
		}
		io.WriteString(w, "{\"stream\":\"Loaded image: a:1\\n\"}\n{\"stream\":\"Loaded image: localhost/b:2\\n\"}\n")
	})
	said, err := loaded(t, d)
	if want := []string{"Loaded image: a:1", "Loaded image: localhost/b:2"}; err != nil || !slices.Equal(said, want) {
		t.Errorf("got %q, %v, want %q", said, err, want)
	}
	for _, want := range []string{"manifest.json", "index.json", "oci-layout"} {
		if !slices.Contains(members, want) {
			t.Errorf("the archive has %q, not %s", members, want)
		}
	}
}

func TestWhatADaemonRefusesIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		code         int
		answer, want string
	}{
		"in the stream":      {200, `{"errorDetail":{"message":"no space left"},"error":"no space left"}`, "refuses the image: no space left"},
		"with a status":      {500, `{"message":"broken"}`, "refuses the image: broken"},
		"without words":      {404, "", "answers 404 Not Found"},
		"in a foreign voice": {502, "<html>proxy</html>", "refuses the image: <html>proxy</html>"},
		"endlessly":          {200, strings.Repeat("x", 1<<20+1), "token too long"},
	} {
		t.Run(name, func(t *testing.T) {
			d := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(c.code)
				io.WriteString(w, c.answer)
			})
			_, err := loaded(t, d)
			var refusal *export.DaemonError
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.want) || refusal.Unreachable {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestADaemonThatIsNotThereIsToldBeforeTheBuild(t *testing.T) {
	dir := t.TempDir()
	for host, want := range map[string]string{
		"unix://" + dir + "/none": "nobody listens there",
		"ssh://user@host":         "ssh:// is not a way to a daemon",
		"npipe:////./pipe/docker": "npipe:// is not a way to a daemon",
	} {
		err := export.Daemon{Host: host}.Check()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", host, err, want)
		}
	}
	if err := fakeDaemon(t, nil).Check(); err != nil {
		t.Errorf("a socket that is there: %v", err)
	}
	gone := export.Daemon{Host: "unix://" + dir + "/none"}
	var refusal *export.DaemonError
	if _, err := loaded(t, gone); !errors.As(err, &refusal) || !refusal.Unreachable || refusal.Hint == "" {
		t.Errorf("got %v, want a daemon out of reach", err)
	}
}

func TestACancelledLoadReturnsTheCause(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	d := fakeDaemon(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel(cause)
		<-r.Context().Done()
	})
	s, img := sample(t)
	img, layers, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load(ctx, s.Stores().Blobs, img, layers, nil, nil); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}
