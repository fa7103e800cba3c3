package registry_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	fake "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/pluginapi/plugintest"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/pkg/registry"
	source "github.com/mstage/mstage/plugins/registry"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
)

// bed is a source before a registry with the image x:1 of 3 layers.
type bed struct {
	*source.Source
	t      *testing.T
	client *registry.Client
	index  *index.Index
	server *httptest.Server
	host   string
	image  v1.Image
}

func newBed(t *testing.T, ask bool) *bed {
	t.Helper()
	b := &bed{t: t, server: httptest.NewServer(fake.New(fake.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))}
	t.Cleanup(b.server.Close)
	b.host = strings.TrimPrefix(b.server.URL, "http://")
	dir := t.TempDir()
	conf, auth := filepath.Join(dir, "registries.conf"), filepath.Join(dir, "auth.json")
	for file, text := range map[string]string{
		conf: "[[registry]]\nlocation=\"blocked.example\"\nblocked=true\n", auth: "{}",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.client = registry.New(registry.Options{RegistriesConf: conf, AuthFile: auth, CertDirs: []string{dir}})
	var err error
	if b.index, err = index.Open(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	if b.image, err = random.Image(1000, 3); err != nil {
		t.Fatal(err)
	}
	b.push(b.image)
	b.Source = source.New(b.client, b.index, ask)
	return b
}

// push makes an image x:1.
func (b *bed) push(img v1.Image) {
	b.t.Helper()
	ref, err := reference.Parse(b.host + "/x:1")
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.client.Push(b.t.Context(), ref, img, registry.PushOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) digest() string {
	b.t.Helper()
	d, err := b.image.Digest()
	if err != nil {
		b.t.Fatal(err)
	}
	return d.String()
}

func ask(words ...string) []pluginapi.Request {
	var qs []pluginapi.Request
	for _, w := range words {
		qs = append(qs, pluginapi.Request{Reference: w, Use: pluginapi.UseFrom, Platform: "linux/amd64"})
	}
	return qs
}

func TestTheSourceHoldsTheContract(t *testing.T) {
	plugintest.Run(t, func(t *testing.T) plugintest.Fixture {
		b := newBed(t, false)
		return plugintest.Fixture{
			Source:  b,
			Known:   ask(b.host+"/x:1", b.host+"/x@"+b.digest(), b.host+"/x:other@"+b.digest()),
			Unknown: ask(b.host+"/x", b.host+"/x:2", b.host+"/y:1"),
			Refused: ask("X", b.host+"/x:", "a b", "", "../x", "blocked.example/x"),
		}
	})
}

// layers keeps what a Fetch delivers.
type layers struct {
	mu  sync.Mutex
	got []string // guarded by mu
	// fail is returned for each layer, nil for none.
	fail error
}

func (l *layers) Layer(_ context.Context, layer pluginapi.Layer, tar io.Reader) error {
	if l.fail != nil {
		return l.fail
	}
	_, err := io.Copy(io.Discard, tar)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got = append(l.got, layer.Digest)
	return err
}

func (*layers) RootFS(context.Context, io.Reader) error { return errors.New("a root file system") }

func TestOnlyTheLayersAskedForAreDelivered(t *testing.T) {
	b := newBed(t, false)
	r, err := b.Resolve(t.Context(), ask(b.host + "/x:1")[0])
	if err != nil {
		t.Fatal(err)
	}
	all, err := b.image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	second, err := all[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		ask  []string
		want int
	}{
		"all": {nil, 3}, "none": {[]string{}, 0}, "one": {[]string{second.String()}, 1}, "one twice": {[]string{second.String(), second.String()}, 1},
		"what it has not": {[]string{"sha256:x", b.digest()}, 0},
	} {
		to := &layers{}
		if err := b.Fetch(t.Context(), r, pluginapi.Selection{Layers: c.ask}, to); err != nil || len(to.got) != c.want {
			t.Errorf("%s: got %q, %v, want %d layers", name, to.got, err, c.want)
		}
		if name == "one" && !slices.Contains(to.got, second.String()) {
			t.Errorf("got %q, want %s", to.got, second)
		}
	}
}

func TestAReceiversErrorComesBackAsItIs(t *testing.T) {
	b := newBed(t, false)
	r, err := b.Resolve(t.Context(), ask(b.host + "/x:1")[0])
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("full")
	if err := b.Fetch(t.Context(), r, pluginapi.Selection{}, &layers{fail: full}); !errors.Is(err, full) {
		t.Errorf("got %v, want the receiver's", err)
	}
}

// keep puts the image into the store under a name, with its manifest.
func (b *bed) keep(name string) storage.Image {
	b.t.Helper()
	raw, err := b.image.RawManifest()
	if err != nil {
		b.t.Fatal(err)
	}
	config := []byte("{}")
	id := storage.DigestBytes(config)
	img := storage.Image{ID: id, Config: config, Sealed: &storage.SealedImage{ConfigDigest: id, Config: config, Manifest: &storage.Manifest{Raw: raw}}}
	if err := b.index.PutImage(b.t.Context(), img, name); err != nil {
		b.t.Fatal(err)
	}
	return img
}

func TestAnImageOfTheStoreIsAskedAboutOnlyWhenThatIsWanted(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		b := newBed(t, fresh)
		img := b.keep(b.host + "/x:1")
		r, err := b.Resolve(t.Context(), ask(b.host + "/x:1")[0])
		if err != nil || r.Image != string(img.ID) || r.Content != nil {
			t.Errorf("fresh %v: got %+v, %v, want the store's image: it is the same", fresh, r, err)
		}
		if b.image, err = random.Image(10, 1); err != nil {
			t.Fatal(err)
		}
		b.push(b.image)
		r, err = b.Resolve(t.Context(), ask(b.host + "/x:1")[0])
		if err != nil || (r.Content != nil) != fresh {
			t.Errorf("fresh %v: got %+v, %v for a new image", fresh, r, err)
		}
		pinned := b.host + "/y@" + b.digest()
		b.keep(pinned)
		b.server.Close()
		if r, err := b.Resolve(t.Context(), ask(pinned)[0]); err != nil || r.Image == "" {
			t.Errorf("fresh %v: got %+v, %v for a digest that is there, want no request", fresh, r, err)
		}
		if _, err := b.Resolve(t.Context(), ask(b.host + "/x:2")[0]); !errors.Is(err, pluginapi.ErrNetwork) {
			t.Errorf("got %v of a registry that is gone, want ErrNetwork", err)
		}
	}
}

func TestOfflineNobodyIsAsked(t *testing.T) {
	b := newBed(t, true)
	b.server.Close()
	q := ask(b.host + "/x:1")[0]
	q.Offline = true
	if _, err := b.Resolve(t.Context(), q); !pluginapi.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	cause := errors.New("cause")
	for kind, want := range map[registry.Kind]error{
		registry.Auth: pluginapi.ErrAuth, registry.NotFound: pluginapi.ErrNotFound, registry.Network: pluginapi.ErrNetwork,
		registry.TLS: pluginapi.ErrNetwork, registry.DNS: pluginapi.ErrNetwork, registry.Timeout: pluginapi.ErrNetwork,
		registry.RateLimited: pluginapi.ErrNetwork, registry.Server: pluginapi.ErrNetwork, registry.Mismatch: pluginapi.ErrNetwork,
		registry.Blocked: cause, registry.Config: cause,
	} {
		err := source.Refusal(&registry.Error{Kind: kind, Ref: "x", Message: "no", Hint: "do", Err: cause})
		refusal, ok := errors.AsType[*pluginapi.Error](err)
		if !ok || refusal.Hint != "do" || refusal.Message != "x: no" || !errors.Is(err, want) || !errors.Is(err, cause) {
			t.Errorf("%v: got %+v, want %v", kind, err, want)
		}
		for _, other := range []error{pluginapi.ErrAuth, pluginapi.ErrNotFound, pluginapi.ErrNetwork} {
			if !errors.Is(want, other) && errors.Is(err, other) {
				t.Errorf("%v: is %v too", kind, other)
			}
		}
	}
	if err := source.Refusal(cause); !errors.Is(err, cause) {
		t.Errorf("got %v, want the error as it was", err)
	}
}
