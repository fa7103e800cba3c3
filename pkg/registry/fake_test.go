package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mstage/mstage/pkg/reference"
)

// fake is a registry that answers what a test tells it to.
type fake struct {
	*httptest.Server

	mu       sync.Mutex
	answers  map[string]http.HandlerFunc // guarded by mu: by path
	requests []*http.Request             // guarded by mu
}

// newFake starts a registry on loopback. With withTLS its certificate is signed
// by nobody whom others trust.
func newFake(t testing.TB, withTLS bool) *fake {
	t.Helper()
	f := &fake{answers: map[string]http.HandlerFunc{}}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	if withTLS {
		f.StartTLS()
	} else {
		f.Start()
	}
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

// ServeHTTP answers as handle said; else it has nothing but is a registry.
func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	answer := f.answers[r.URL.Path]
	f.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
	case r.URL.Path != "/v2/":
		http.NotFound(w, r)
	}
}

// handle sets the answer to requests for a path.
func (f *fake) handle(path string, answer http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[path] = answer
}

// host is the registry's "127.0.0.1:PORT".
func (f *fake) host() string { return f.Listener.Addr().String() }

// asked counts the requests for a path.
func (f *fake) asked(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if r.URL.Path == path {
			n++
		}
	}
	return n
}

// authorizations lists what requests had as Authorization, each once.
func (f *fake) authorizations() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, r := range f.requests {
		if a := r.Header.Get("Authorization"); a != "" && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

// bytesOf answers with bytes.
func bytesOf(contentType string, b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(b)
	}
}

// put makes an image of these layers at repo:tag and returns its manifest.
func (f *fake) put(t testing.TB, repo, tag string, layers ...string) Descriptor {
	t.Helper()
	var m struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        Descriptor   `json:"config"`
		Layers        []Descriptor `json:"layers"`
	}
	m.SchemaVersion, m.MediaType, m.Layers = 2, typeOCIManifest, []Descriptor{}
	m.Config = f.putBlob(repo, "application/vnd.oci.image.config.v1+json", fmt.Sprintf(`{"os":"linux","architecture":"amd64","name":%q}`, tag))
	for _, l := range layers {
		m.Layers = append(m.Layers, f.putBlob(repo, "application/vnd.oci.image.layer.v1.tar+gzip", l))
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return f.putManifest(repo, tag, typeOCIManifest, raw)
}

func (f *fake) putBlob(repo, mediaType, content string) Descriptor {
	d := Descriptor{MediaType: mediaType, Digest: digestOf([]byte(content)), SizeBytes: int64(len(content))}
	f.handle(blobPath(repo, d.Digest), func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
	})
	return d
}

func (f *fake) putManifest(repo, tag, mediaType string, raw []byte) Descriptor {
	d := Descriptor{MediaType: mediaType, Digest: digestOf(raw), SizeBytes: int64(len(raw))}
	f.handle(manifestPath(repo, tag), bytesOf(mediaType, raw))
	f.handle(manifestPath(repo, d.Digest), bytesOf(mediaType, raw))
	return d
}

func manifestPath(repo, version string) string { return "/v2/" + repo + "/manifests/" + version }
func blobPath(repo, digest string) string      { return "/v2/" + repo + "/blobs/" + digest }

// isolated are options that read nothing of this host.
func isolated(t testing.TB) Options {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"registries.conf", "auth.json"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"[:2*strings.Count(name, "json")]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Options{
		AuthFile: filepath.Join(dir, "auth.json"), RegistriesConf: filepath.Join(dir, "registries.conf"),
		CertDirs: []string{filepath.Join(dir, "certs.d")},
	}
}

// conf replaces the registries.conf.
func conf(t testing.TB, o Options, lines ...string) {
	t.Helper()
	if err := os.WriteFile(o.RegistriesConf, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newClient returns a client that is quick to try again.
func newClient(o Options) *Client {
	c := New(o)
	c.resumeAfter = time.Millisecond
	return c
}

// named makes a client reach a fake under a host's name, with the certificate
// that is needed.
func (c *Client) named(host string, f *fake) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	if f.TLS != nil {
		t.TLSClientConfig = f.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		t.TLSClientConfig.ServerName = "example.com" // httptest's certificate has it
	}
	t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, f.host())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, insecure := range []bool{false, true} {
		c.hosts[fmt.Sprint(insecure, " ", host)] = t
	}
}

func parse(t testing.TB, word string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(word)
	if err != nil {
		t.Fatal(err)
	}
	return ref.WithDefaultTag()
}

// wantError fails the test unless err is an *Error of the kind with the texts.
func wantError(t testing.TB, err error, kind Kind, texts ...string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != kind {
		t.Errorf("got %v (%T, kind %v), want kind %v", err, err, kindOf(err), kind)
		return
	}
	for _, text := range texts {
		if !strings.Contains(e.Error()+" hint: "+e.Hint, text) {
			t.Errorf("no %q in %q, hint %q", text, e.Error(), e.Hint)
		}
	}
	if strings.ContainsFunc(e.Error(), func(r rune) bool { return r < ' ' }) {
		t.Errorf("control characters in %q", e.Error())
	}
	if len(e.Error()) > 1000 {
		t.Errorf("an error of %d bytes", len(e.Error()))
	}
}

func kindOf(err error) any {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return "none"
}
