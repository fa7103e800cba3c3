package registry

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

// withTokens makes a registry ask for tokens of its own, at /token. It returns
// the requests for them.
func withTokens(t *testing.T, f *fake, uses int) *[]*http.Request {
	t.Helper()
	var asked []*http.Request
	valid := map[string]int{}
	realm := f.URL + "/token"
	f.handle("/token", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r)
		token := fmt.Sprintf("token-%d", len(asked))
		valid[token] = uses
		fmt.Fprintf(w, `{"token":%q,"expires_in":60}`, token)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers["/v2/"] = http.NotFound
	for path, answer := range f.answers {
		if !strings.HasPrefix(path, "/v2/") {
			continue
		}
		f.answers[path] = func(w http.ResponseWriter, r *http.Request) {
			token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			if valid[token] == 0 {
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="test",scope="repository:x:pull"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			valid[token]--
			answer(w, r)
		}
	}
	return &asked
}

func TestTokensAreAskedForWithAScopeAndAgainWhenTheyExpire(t *testing.T) {
	for name, uses := range map[string]int{"a token for all": 100, "a new token each time": 1} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, false)
			f.put(t, "x", "latest", content)
			d := f.putBlob("x", "", content)
			asked := withTokens(t, f, uses)
			c := newClient(isolated(t))
			img, err := c.Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := readBlob(t, c, img, d); err != nil || got != content {
				t.Fatalf("got %q, %v", got, err)
			}
			for _, r := range *asked {
				if q := r.URL.Query(); q.Get("scope") != "repository:x:pull" || q.Get("service") != "test" || r.Header.Get("Authorization") != "" {
					t.Errorf("token asked for by %v, %v, want the scope and nobody's name", q, r.Header)
				}
			}
			if n := len(*asked); (uses == 1) != (n > 1) {
				t.Errorf("%d tokens were asked for", n)
			}
		})
	}
}

func TestATokenEndpointThatMisbehaves(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		kind   Kind
	}{
		"endless":       {endless, Network},
		"no JSON":       {bytesOf("", []byte("hello")), Network},
		"no token":      {bytesOf("", []byte("{}")), Network},
		"unauthorized":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, Auth},
		"broken":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, Server},
		"endless error": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden); endless(w, r) }, Network},
		"too many":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, RateLimited},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, false)
			f.put(t, "x", "latest")
			withTokens(t, f, 1)
			f.handle("/token", c.answer)
			_, err := newClient(isolated(t)).Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
			wantError(t, err, c.kind, f.host())
		})
	}
}

// askForPassword makes a registry ask for a password.
func askForPassword(f *fake) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers["/v2/"] = func(http.ResponseWriter, *http.Request) {}
	for path, answer := range f.answers {
		f.answers[path] = func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			answer(w, r)
		}
	}
}

func TestCredentialsDontFollowARedirect(t *testing.T) {
	elsewhere, f := newFake(t, false), newFake(t, false)
	elsewhere.handle("/blob", bytesOf("", []byte(content)))
	f.put(t, "x", "latest", content)
	d := f.putBlob("x", "", content)
	f.handle(blobPath("x", d.Digest), func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/blob", http.StatusTemporaryRedirect)
	})
	askForPassword(f)
	o := isolated(t)
	o.Credentials = &Credentials{User: "me", Password: "secret"}
	c := newClient(o)
	img, err := c.Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readBlob(t, c, img, d); err != nil || got != content {
		t.Fatalf("got %q, %v, want the redirected blob", got, err)
	}
	if got := elsewhere.authorizations(); len(got) > 0 || elsewhere.asked("/blob") != 1 {
		t.Errorf("the other host got %q", got)
	}
	if got := f.authorizations(); len(got) != 1 {
		t.Errorf("the registry got %q, want the password", got)
	}
}

func TestPlainHTTPIsForLoopbackOnly(t *testing.T) {
	f := newFake(t, false)
	f.put(t, "x", "latest")
	askForPassword(f)
	o := isolated(t)
	o.Credentials = &Credentials{User: "me", Password: "secret"}
	for _, host := range []string{"registry.example", "10.1.2.3:5000", "registry.local", "192.168.1.1"} {
		c := newClient(o)
		c.named(host, f)
		_, err := c.Resolve(t.Context(), parse(t, host+"/x"), "linux/amd64")
		wantError(t, err, TLS, host+" does not speak TLS", "hint: ", "--tls-verify=false", "insecure=true")
		if got := f.authorizations(); len(got) > 0 {
			t.Fatalf("%s: a password went out: %q", host, got)
		}
	}
	insecure := o
	insecure.Insecure = true
	c := newClient(insecure)
	c.named("registry.example", f)
	if _, err := c.Resolve(t.Context(), parse(t, "registry.example/x"), "linux/amd64"); err != nil {
		t.Errorf("insecure: %v", err)
	}
}

func TestARedirectNeverLeadsToPlainHTTP(t *testing.T) {
	plain, f := newFake(t, false), newFake(t, true)
	plain.handle("/blob", bytesOf("", []byte(content)))
	f.put(t, "x", "latest", content)
	d := f.putBlob("x", "", content)
	for name, c := range map[string]struct {
		to   string
		kind Kind
		text string
	}{
		"of another host":                     {"http://blobs.example/blob", TLS, "without TLS"},
		"of the registry: it is asked by TLS": {"http://registry.example/blob", Mismatch, "not the blob"},
		"of this host":                        {plain.URL + "/blob", TLS, "without TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			f.handle(blobPath("x", d.Digest), func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, c.to, http.StatusFound) })
			client := newClient(isolated(t))
			client.named("registry.example", f)
			client.named("blobs.example", plain)
			img, err := client.Resolve(t.Context(), parse(t, "registry.example/x"), "linux/amd64")
			if err != nil {
				t.Fatal(err)
			}
			_, err = readBlob(t, client, img, d)
			wantError(t, err, c.kind, "registry.example", c.text)
			if n := plain.asked("/blob"); n > 0 {
				t.Error("it was asked for")
			}
		})
	}
}

func TestACertificateHasToBeTrusted(t *testing.T) {
	f := newFake(t, true)
	f.put(t, "x", "latest")
	_, err := newClient(isolated(t)).Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
	wantError(t, err, TLS, f.host(), "unknown authority", "certs.d/"+f.host())
	pem := pemOf(t, f.Server)
	o := isolated(t)
	o.CABundle = filepath.Join(t.TempDir(), "ca.pem")
	for what, c := range map[string]struct {
		content string
		want    string
	}{
		"the certificate": {pem, ""}, "none": {"hello", "holds no certificate"},
	} {
		if err := os.WriteFile(o.CABundle, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := newClient(o).Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
		if c.want == "" && err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if c.want != "" {
			wantError(t, err, Config, c.want, o.CABundle)
		}
	}
	o.CABundle += "-gone"
	_, err = newClient(o).Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
	wantError(t, err, Config, o.CABundle)
}

// pemOf is the certificate of a server.
func pemOf(t *testing.T, s *httptest.Server) string {
	t.Helper()
	return "-----BEGIN CERTIFICATE-----\n" + base64.StdEncoding.EncodeToString(s.Certificate().Raw) + "\n-----END CERTIFICATE-----\n"
}

func TestABusyRegistryIsAskedAgain(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout} {
		f := newFake(t, false)
		d := f.put(t, "x", "latest")
		n := 0
		raw := f.answers[manifestPath("x", "latest")]
		f.handle(manifestPath("x", "latest"), func(w http.ResponseWriter, r *http.Request) {
			if n++; n < 3 {
				w.WriteHeader(status)
				return
			}
			raw(w, r)
		})
		img, err := newClient(isolated(t)).Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
		if err != nil || img.Digest != d.Digest {
			t.Errorf("%d: got %v, %v", status, img, err)
		}
	}
}

func TestWhatARegistrySaysIsExplained(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		kind   Kind
		texts  []string
	}{
		"401":                     {401, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`, Auth, []string{"401", "who are you", "hint: mstage login"}},
		"403":                     {403, `{"errors":[{"code":"DENIED"}]}`, Auth, []string{"403", "DENIED", "hint: mstage login"}},
		"404":                     {404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, NotFound, []string{"404", "no such image"}},
		"429":                     {429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`, RateLimited, []string{"429", "slow down", "hint: "}},
		"500":                     {500, `oops`, Server, []string{"500 Internal Server Error"}},
		"503 for good":            {503, ``, Server, []string{"503"}},
		"a status that is none":   {299, ``, Server, []string{"299"}},
		"control characters":      {404, `{"errors":[{"code":"X","message":"a\u001b[2J\u0007\nb` + strings.Repeat("y", 5000) + `"}]}`, NotFound, []string{"a?[2J??b", "…"}},
		"an error that is none":   {404, `{"errors":7}`, NotFound, []string{"404"}},
		"a page for people's eye": {404, `<html>\x1b[2J</html>`, NotFound, []string{"404"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, false)
			f.handle(manifestPath("x", "latest"), func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			_, err := newClient(isolated(t)).Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
			wantError(t, err, c.kind, append(c.texts, f.host())...)
		})
	}
}

func TestLoginKeepsWhatTheRegistryTakes(t *testing.T) {
	f := newFake(t, false)
	f.put(t, "x", "latest")
	askForPassword(f)
	o := isolated(t)
	c := newClient(o)
	_, err := c.Login(t.Context(), f.host(), Credentials{"me", "wrong"})
	wantError(t, err, Auth, f.host())
	if user, err := c.LoggedIn(f.host()); user != "" || err != nil {
		t.Errorf("logged in as %q, %v", user, err)
	}
	kept, err := c.Login(t.Context(), f.host(), Credentials{"me", "secret"})
	if err != nil || kept != o.AuthFile {
		t.Errorf("kept in %q, %v, want %s", kept, err, o.AuthFile)
	}
	if user, err := c.LoggedIn(f.host()); user != "me" || err != nil {
		t.Errorf("logged in as %q, %v", user, err)
	}
	if _, err := newClient(o).Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64"); err != nil {
		t.Error(err)
	}
	if err := c.Logout(f.host()); err != nil {
		t.Error(err)
	}
	wantError(t, c.Logout(f.host()), Config, "not logged in")
	if err := c.LogoutAll(); err != nil {
		t.Error(err)
	}
	_, err = c.Login(t.Context(), "not a host", Credentials{"me", "secret"})
	wantError(t, err, Config, "not the name of a registry")
}

func TestManyDownloadsConnectOnce(t *testing.T) {
	f, c, img, d := opened(t, isolated(t), nil)
	c.repos = map[string]*session{} // nobody is connected yet
	before := f.asked("/v2/")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := readBlob(t, c, img, d); err != nil || got != content {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	if n := f.asked("/v2/") - before; n != 1 {
		t.Errorf("connected %d times", n)
	}
}

func TestAnImageIsPushedWithItsDigest(t *testing.T) {
	f := httptest.NewServer(ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	defer f.Close()
	img, err := random.Image(1000, 3)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(f.URL, "http://")
	c := newClient(isolated(t))
	var mu sync.Mutex
	sent := map[string]int64{}
	for range 2 {
		got, err := c.Push(t.Context(), parse(t, host+"/x:1"), img, PushOptions{Progress: func(digest string, n, total int64) {
			mu.Lock()
			defer mu.Unlock()
			if sent[digest] = n; n > total {
				t.Errorf("%s: %d of %d bytes", digest, n, total)
			}
		}})
		if err != nil || got != want.String() {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
		if len(sent) != 3 {
			t.Errorf("told of %d layers, want 3 and none again", len(sent))
		}
	}
	found, err := c.Resolve(t.Context(), parse(t, host+"/x@"+want.String()), "linux/amd64")
	if err != nil || found.Digest != want.String() {
		t.Errorf("got %v, %v", found, err)
	}
	_, err = c.Push(t.Context(), parse(t, host+"/x@"+want.String()), img, PushOptions{})
	wantError(t, err, Config, "digest")
}

func TestASlowUploadIsNoSilence(t *testing.T) {
	f := newFake(t, false)
	o := isolated(t)
	o.Stall = 30 * time.Millisecond
	f.handle("/upload", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	g := &guard{client: newClient(o), host: f.host()}
	r, w := io.Pipe()
	go func() {
		for range 10 {
			<-time.After(o.Stall / 3)
			_, _ = w.Write([]byte("x")) // the server reads it
		}
		w.Close()
	}()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, f.URL+"/upload", r)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.RoundTrip(req)
	if err != nil {
		t.Fatalf("an upload of 100 ms, watched for silence of 30 ms: %v", err)
	}
	resp.Body.Close()
}

func TestNamesOfAWord(t *testing.T) {
	for name, c := range map[string]struct {
		conf []string
		want map[string][]string
	}{
		"without a configuration": {nil, map[string][]string{
			"busybox": {"docker.io/library/busybox:latest"}, "me/x:1": {"docker.io/me/x:1"},
			"localhost/x": {"localhost/x:latest"}, "h:5000/x": {"h:5000/x:latest"}, "example.com/a/b:c": {"example.com/a/b:c"},
			"docker.io/busybox":  {"docker.io/library/busybox:latest"},
			"x@" + digestOf(nil): {"docker.io/library/x@" + digestOf(nil)},
		}},
		"search registries": {[]string{`unqualified-search-registries=["a.example", "b.example:5000"]`}, map[string][]string{
			"busybox": {"a.example/busybox:latest", "b.example:5000/busybox:latest"}, "me/x:1": {"a.example/me/x:1", "b.example:5000/me/x:1"},
			"c.example/x": {"c.example/x:latest"}, "x@" + digestOf(nil): {"a.example/x@" + digestOf(nil), "b.example:5000/x@" + digestOf(nil)},
		}},
		"an alias": {[]string{`unqualified-search-registries=["a.example"]`, "[aliases]", `"short"="b.example/long/name"`}, map[string][]string{
			"short": {"b.example/long/name:latest"}, "short:1": {"b.example/long/name:1"}, "other": {"a.example/other:latest"},
			"short@" + digestOf(nil): {"b.example/long/name@" + digestOf(nil)},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := isolated(t)
			conf(t, o, c.conf...)
			for word, want := range c.want {
				refs, err := newClient(o).Names(word)
				var got []string
				for _, r := range refs {
					got = append(got, r.String())
				}
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("%s: got %q, %v, want %q", word, got, err, want)
				}
			}
		})
	}
	for _, word := range []string{"", "UPPER", "a b", "x:", "../x", "x@sha256:1", "http://x/y"} {
		if refs, err := newClient(isolated(t)).Names(word); err == nil {
			t.Errorf("%q: got %v, want an error", word, refs)
		}
	}
}

func TestABrokenConfigurationIsAnError(t *testing.T) {
	for name, lines := range map[string][]string{
		"no TOML":          {"[["},
		"an alias to what": {"[aliases]", `"short"="/no/reference"`},
		"search nowhere":   {`unqualified-search-registries=["a/b"]`},
	} {
		o := isolated(t)
		conf(t, o, lines...)
		c := newClient(o)
		_, err := c.Names("short")
		if err == nil {
			_, err = c.Resolve(t.Context(), parse(t, "a.example/x"), "linux/amd64")
		}
		wantError(t, err, Config, "registries.conf")
		if err == nil {
			t.Error(name)
		}
	}
}

func TestABlockedRegistryIsRefusedForAll(t *testing.T) {
	f := newFake(t, false)
	f.put(t, "x", "latest")
	o := isolated(t)
	conf(t, o, "[[registry]]", `location="`+f.host()+`"`, "blocked=true")
	c := newClient(o)
	_, err := c.Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
	wantError(t, err, Blocked, "blocked", f.host())
	_, err = c.Push(t.Context(), parse(t, f.host()+"/x"), nil, PushOptions{})
	wantError(t, err, Blocked, "blocked")
	_, err = c.Login(t.Context(), f.host(), Credentials{"me", "x"})
	wantError(t, err, Blocked, "blocked")
	if len(f.requests) > 0 {
		t.Errorf("it was asked %d times", len(f.requests))
	}
}

func TestAnErrorOfAMirrorIsToldWithTheRegistrys(t *testing.T) {
	mirror, f := newFake(t, false), newFake(t, false)
	mirror.handle(manifestPath("x", "latest"), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	o := isolated(t)
	conf(t, o, "[[registry]]", `location="`+f.host()+`"`, "[[registry.mirror]]", `location="`+mirror.host()+`"`)
	_, err := newClient(o).Resolve(t.Context(), parse(t, f.host()+"/x"), "linux/amd64")
	wantError(t, err, NotFound, f.host()+" has no such image", "mirror: "+mirror.host()+" answered 418")
}

func TestIdentityTokensAreReadFromTheFile(t *testing.T) {
	o := isolated(t)
	b, err := json.Marshal(map[string]any{"auths": map[string]any{"a.example": map[string]string{
		"auth": base64.StdEncoding.EncodeToString([]byte("me:")), "identitytoken": "abc",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.AuthFile, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ref, err := dockerName(parse(t, "a.example/x"))
	if err != nil {
		t.Fatal(err)
	}
	auth, err := newClient(o).authenticator(endpoint{ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := auth.Authorization(); err != nil || got.IdentityToken != "abc" {
		t.Errorf("got %+v, %v, want the token", got, err)
	}
}
