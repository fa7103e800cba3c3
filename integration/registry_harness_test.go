package integration

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// registryVariable names the distribution registry; scripts/test.sh sets it.
const registryVariable = "MSTAGE_REGISTRY"

// registryProgram is the path of distribution's registry.
func registryProgram(t testing.TB) string {
	t.Helper()
	path := os.Getenv(registryVariable)
	if path == "" {
		path = filepath.Join("..", "bin", "tools", "registry")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no registry (scripts/registry.sh builds one): %v", err)
	}
	return path
}

// The user whom a registry with passwords knows.
const (
	registryUser     = "builder"
	registryPassword = "secret"
	registryHtpasswd = registryUser + ":$2a$04$czi7e9lWT/yQSaUkxtUOdO373i6Uwb90MV4hzWGeHm/9PKH/gFPKu\n"
)

// registryOptions say what a registry is like.
type registryOptions struct {
	// passwords makes it ask for registryUser and registryPassword.
	passwords bool
	// certificate is what its front shows; nil for plain HTTP.
	certificate *tls.Certificate
}

// testRegistry is a distribution registry of a test's own on loopback, and a
// front before it that remembers every request.
type testRegistry struct {
	t testing.TB
	// host is the front's "127.0.0.1:PORT", storage where its files are.
	host, storage string
	front         *httptest.Server
	backend       *url.URL

	mu       sync.Mutex
	requests []string                                                 // guarded by mu: "METHOD PATH"
	before   func(w http.ResponseWriter, r *http.Request) (done bool) // guarded by mu
}

// newRegistry starts a registry; it ends with the test.
func newRegistry(t testing.TB, o registryOptions) *testRegistry {
	t.Helper()
	r := &testRegistry{t: t, storage: t.TempDir()}
	r.backend = &url.URL{Scheme: "http", Host: startDistribution(t, distributionConfig(t, r.storage, o.passwords))}
	proxy := httputil.NewSingleHostReverseProxy(r.backend)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	r.front = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		before := r.before
		r.mu.Unlock()
		if before == nil || !before(w, req) {
			proxy.ServeHTTP(w, req)
		}
	}))
	r.front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	if o.certificate != nil {
		r.front.TLS = &tls.Config{Certificates: []tls.Certificate{*o.certificate}}
		r.front.StartTLS()
	} else {
		r.front.Start()
	}
	t.Cleanup(r.front.Close)
	r.host = r.front.Listener.Addr().String()
	return r
}

// distributionConfig writes a configuration file for a registry.
func distributionConfig(t testing.TB, storage string, passwords bool, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	lines := []string{
		"version: 0.1",
		"log: {level: info}",
		"storage: {filesystem: {rootdirectory: " + storage + "}, delete: {enabled: true}}",
		"http:", "  addr: 127.0.0.1:0", "  relativeurls: true",
	}
	lines = append(lines, more...)
	if passwords {
		file := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(file, []byte(registryHtpasswd), 0o600); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, "auth: {htpasswd: {realm: test, path: "+file+"}}")
	}
	conf := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return conf
}

// listeningOn is where the registry's log says its port.
var listeningOn = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// startDistribution runs a registry until the test ends and returns its address.
func startDistribution(t testing.TB, config string) string {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, registryProgram(t), "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	t.Cleanup(func() {
		stop()
		<-drained
		_ = cmd.Wait() // it was killed
	})
	lines := bufio.NewScanner(log)
	var all strings.Builder
	for lines.Scan() {
		fmt.Fprintln(&all, lines.Text())
		if m := listeningOn.FindStringSubmatch(lines.Text()); m != nil {
			go func() {
				defer close(drained)
				_, _ = io.Copy(io.Discard, log)
			}()
			return m[1]
		}
	}
	close(drained)
	t.Fatalf("the registry does not listen:\n%s", all.String())
	return ""
}

// intercept lets f see every request first; true means that it answered.
func (r *testRegistry) intercept(f func(w http.ResponseWriter, req *http.Request) (done bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = f
}

// asked returns the requests since the last call, and forgets them. Whether
// there is a registry at all (GET /v2/) is left out.
func (r *testRegistry) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.DeleteFunc(r.requests, func(s string) bool { return s == "GET /v2/" })
	r.requests = nil
	return all
}

// askedFor counts the requests since the last call whose text has the pattern.
func (r *testRegistry) askedFor(pattern string) int {
	r.t.Helper()
	re := regexp.MustCompile(pattern)
	n := 0
	for _, s := range r.asked() {
		if re.MatchString(s) {
			n++
		}
	}
	return n
}

// descriptor is a blob as manifests have it.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
	Platform  any    `json:"platform,omitempty"`
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fromJSON(t testing.TB, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// do sends a request to the registry itself, past the front.
func (r *testRegistry) do(method, path, mediaType string, body []byte, want int) *http.Response {
	r.t.Helper()
	to, err := r.backend.Parse(path)
	if err != nil {
		r.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, to.String(), bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.SetBasicAuth(registryUser, registryPassword)
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != want {
		r.t.Fatalf("%s %s: %s, %v, want %d\n%s", method, path, resp.Status, err, want, text)
	}
	return resp
}

func (r *testRegistry) putBlob(repo, mediaType string, data []byte) descriptor {
	r.t.Helper()
	d := descriptor{MediaType: mediaType, Digest: digestOf(data), Size: len(data)}
	to := r.do(http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil, http.StatusAccepted).Header.Get("Location")
	join := "?"
	if strings.Contains(to, "?") {
		join = "&"
	}
	r.do(http.MethodPut, to+join+"digest="+d.Digest, "application/octet-stream", data, http.StatusCreated)
	return d
}

func (r *testRegistry) putManifest(repo, version, mediaType string, raw []byte) descriptor {
	r.t.Helper()
	r.do(http.MethodPut, "/v2/"+repo+"/manifests/"+version, mediaType, raw, http.StatusCreated)
	return descriptor{MediaType: mediaType, Digest: digestOf(raw), Size: len(raw)}
}

// The media types that tests write.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar+gzip"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// imageSpec is an image to put into a registry.
type imageSpec struct {
	// arch is the processor, "" for this host's.
	arch string
	// docker makes it docker's schema 2 instead of OCI.
	docker bool
	// files are "NAME=CONTENT"; each is a layer.
	files []string
	// layers are uncompressed layers above those of files.
	layers [][]byte
}

// putImage puts an image into a repository and returns what names it.
func (r *testRegistry) putImage(repo, tag string, o imageSpec) (manifest descriptor, layers []descriptor) {
	r.t.Helper()
	types := []string{ociManifest, ociConfig, ociLayer}
	if o.docker {
		types = []string{dockerManifest, dockerConfig, dockerLayer}
	}
	if o.arch == "" {
		o.arch = hostArch
	}
	for _, f := range o.files {
		o.layers = append(o.layers, tarOf(r.t, f))
	}
	var diffIDs []string
	for _, l := range o.layers {
		diffIDs = append(diffIDs, digestOf(l))
		layers = append(layers, r.putBlob(repo, types[2], gzipOf(r.t, l)))
	}
	config := r.putBlob(repo, types[1], toJSON(r.t, map[string]any{
		"os": "linux", "architecture": o.arch, "created": "2020-02-02T02:02:02Z",
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Labels": map[string]string{"made": "by hand"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	}))
	raw := toJSON(r.t, map[string]any{"schemaVersion": 2, "mediaType": types[0], "config": config, "layers": layers})
	return r.putManifest(repo, tag, types[0], raw), layers
}

// tarOf is the tar of one file, "NAME=CONTENT".
func tarOf(t testing.TB, file string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	name, data, _ := strings.Cut(file, "=")
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t testing.TB, b []byte) []byte {
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

// gzipStored is a gzip stream of the same bytes that compresses nothing.
func gzipStored(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// noise is a file's content that can't be compressed, the same for each seed.
func noise(seed byte, n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return string(b)
}

// blobFile is where the registry keeps a blob.
func (r *testRegistry) blobFile(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return filepath.Join(r.storage, "docker", "registry", "v2", "blobs", "sha256", hex[:2], hex, "data")
}

// cut is an interceptor that ends the connection after n bytes of the first
// answers to requests for the path, times of them.
func (r *testRegistry) cut(path string, n int64, times int) func(http.ResponseWriter, *http.Request) bool {
	var mu sync.Mutex
	return func(w http.ResponseWriter, req *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, path) || times == 0 {
			return false
		}
		times--
		own := req.Clone(req.Context())
		own.URL.Scheme, own.URL.Host, own.RequestURI = r.backend.Scheme, r.backend.Host, ""
		resp, err := http.DefaultClient.Do(own)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_, _ = io.CopyN(w, resp.Body, n)
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
}

// registryStore returns an empty store that knows no configuration of this
// host's, with home as its user's home directory.
func registryStore(t testing.TB) *testStore {
	t.Helper()
	if reason := userNamespaces(); reason != "" {
		t.Skip(reason)
	}
	s := newTestStore(t)
	s.isolate()
	return s
}

// isolate hides the host's registry configuration.
func (s *testStore) isolate() {
	s.t.Helper()
	s.home = s.t.TempDir()
	conf := s.write("registries.conf", "")
	s.env = append(s.env, "HOME="+s.home, "XDG_CONFIG_HOME=", "XDG_RUNTIME_DIR=", "REGISTRY_AUTH_FILE=", "DOCKER_CONFIG=",
		"CONTAINERS_REGISTRIES_CONF="+conf, "HTTP_PROXY=", "HTTPS_PROXY=", "http_proxy=", "https_proxy=")
}

// fails runs mstage, which must exit with the code, and returns its standard
// error, which must hold all of the texts.
func (s *testStore) fails(code int, texts []string, args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.code != code {
		s.t.Errorf("mstage %q: exit code %d, want %d\n%s", args, r.code, code, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			s.t.Errorf("mstage %q: no %q in\n%s", args, text, r.stderr)
		}
	}
	return r.stderr
}

// dockerfile writes a Dockerfile into the build context "ctx".
func (s *testStore) dockerfile(lines ...string) {
	s.t.Helper()
	s.write("ctx/Dockerfile", strings.Join(lines, "\n")+"\n")
}
