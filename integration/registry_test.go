package integration

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestAnImageGoesToARegistryAndComesBackTheSame(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	s := newBusyboxStore(t)
	s.isolate()
	name := reg.host + "/team/app:1"
	s.write("ctx/file", "content")
	s.dockerfile("FROM busybox", "COPY file /file", "RUN echo made >/made && chown 7:8 /made", "ENV GREETING=hello")
	metadata := filepath.Join(s.dir, "metadata.json")
	s.mustRun("build", "-q", "-t", name, "-o", "type=image", "--push", "--metadata-file", metadata, "ctx")
	pushed := reg.asked()
	if n := count(pushed, "^PUT .*/blobs/"); n != 4 {
		t.Errorf("sent %d blobs, want 3 layers and a config: %q", n, pushed)
	}
	var said map[string]any
	if b, err := os.ReadFile(metadata); err != nil || json.Unmarshal(b, &said) != nil {
		t.Fatalf("metadata %q: %v", b, err)
	}
	digest, _ := said["containerimage.digest"].(string)

	t.Run("nothing is sent twice", func(t *testing.T) {
		if again := strings.TrimSpace(s.mustRun("push", "-q", name)); again != digest {
			t.Errorf("pushed again as %s, want %s", again, digest)
		}
		if asked := reg.asked(); count(asked, "^(PUT|PATCH|POST) .*/blobs/") != 0 {
			t.Errorf("blobs were sent again: %q", asked)
		}
	})
	t.Run("what is there is not downloaded", func(t *testing.T) {
		s.mustRun("pull", "-q", name)
		if asked := reg.asked(); count(asked, "^GET .*/blobs/") > 1 {
			t.Errorf("got layers that the store has: %q", asked)
		}
	})
	t.Run("the pulled image is the same tree and keeps its digest", func(t *testing.T) {
		other := registryStore(t)
		other.dockerfile("FROM " + name)
		other.mustRun("pull", "-q", name)
		sameTree(t, other.builtTree("ctx"), s.builtTree("ctx"))
		reg.asked()
		if got := strings.TrimSpace(other.mustRun("push", "-q", name, reg.host+"/elsewhere/app:2")); got != digest {
			t.Errorf("pushed elsewhere as %s, want %s", got, digest)
		}
		other.sound()
	})
	t.Run("skopeo reads it", func(t *testing.T) {
		skopeo, err := exec.LookPath("skopeo")
		if err != nil {
			t.Skipf("no skopeo: %v", err)
		}
		nobody := s.write("nobody.json", "{}")
		out, err := exec.Command(skopeo, "inspect", "--authfile", nobody, "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+name).Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != digest {
			t.Errorf("skopeo says %q, %v, want %s\n%s", got, err, digest, stderrOf(err))
		}
		layout := filepath.Join(t.TempDir(), "layout")
		if out, err := exec.Command(skopeo, "--insecure-policy", "copy", "--src-authfile", nobody, "--src-tls-verify=false", "docker://"+name, "oci:"+layout).CombinedOutput(); err != nil {
			t.Errorf("skopeo copy: %v\n%s", err, out)
		}
	})
	s.sound()
}

// count says how many of the texts have the pattern.
func count(texts []string, pattern string) int {
	re := regexp.MustCompile(pattern)
	n := 0
	for _, s := range texts {
		if re.MatchString(s) {
			n++
		}
	}
	return n
}

func TestFromAndCopyFromAnImageOfARegistry(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	_, layers := reg.putImage("base", "1", imageSpec{files: []string{"a=first", "b=second"}})
	reg.putImage("other", "1", imageSpec{files: []string{"tool=a tool"}})
	s := registryStore(t)
	s.dockerfile("FROM "+reg.host+"/base:1", "COPY --from="+reg.host+"/other:1 /tool /bin/tool")
	tree := s.builtTree("ctx")
	for _, path := range []string{"/a", "/b", "/bin/tool"} {
		if tree[path] == "" {
			t.Errorf("no %s in the image", path)
		}
	}
	asked := reg.asked()
	for _, l := range layers {
		if n := count(asked, "GET .*/base/blobs/"+l.Digest); n != 1 {
			t.Errorf("layer %s asked for %d times, want once: %q", l.Digest, n, asked)
		}
	}
	s.builtTree("ctx")
	if asked := reg.asked(); len(asked) > 0 {
		t.Errorf("the second build asked %q, want nothing", asked)
	}
	s.sound()
	t.Run("a step that is in the cache needs no image to copy from", func(t *testing.T) {
		s.mustRun("rmi", reg.host+"/other:1")
		s.mustRun("build", "-q", "ctx")
		if asked := reg.asked(); count(asked, "GET .*/blobs/"+layers[0].Digest) > 0 || count(asked, "^GET .*/other/blobs/") > 1 {
			t.Errorf("got layers for a cached build: %q", asked)
		}
	})
}

func TestADigestIsAskedForOnce(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	manifest, _ := reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	s := registryStore(t)
	s.dockerfile("FROM "+reg.host+"/base@"+manifest.Digest, "ENV A=b")
	s.mustRun("build", "-q", "ctx")
	reg.asked()
	for _, pull := range []string{"--pull=missing", "--pull=never", "--pull=always"} {
		s.mustRun("build", "-q", pull, "ctx")
		if asked := reg.asked(); len(asked) > 0 {
			t.Errorf("%s asked %q, want nothing: the digest says what it is", pull, asked)
		}
	}
	s.dockerfile("FROM "+reg.host+"/base:other@"+manifest.Digest, "ENV A=b")
	s.mustRun("build", "-q", "--pull=never", "ctx")
	s.sound()
}

func TestPullSaysWhenARegistryIsAsked(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	name := reg.host + "/base:1"
	s := registryStore(t)
	s.dockerfile("FROM "+name, "ENV A=b")
	s.fails(4, []string{name, "hint: "}, "build", "--pull=never", "ctx")
	if asked := reg.asked(); len(asked) > 0 {
		t.Errorf("--pull=never asked %q", asked)
	}
	first := s.mustRun("build", "-q", "ctx")
	reg.asked()
	if got := s.mustRun("build", "-q", "--pull", "ctx"); got != first {
		t.Errorf("built %s, want %s", got, first)
	}
	if asked := reg.asked(); len(asked) != 1 || !strings.HasSuffix(asked[0], "/manifests/1") {
		t.Errorf("an image that is the same cost %q, want one request for the manifest", asked)
	}
	reg.putImage("base", "1", imageSpec{files: []string{"a=second"}})
	reg.asked()
	if got := s.mustRun("build", "-q", "ctx"); got != first {
		t.Errorf("without --pull the image changed")
	}
	if asked := reg.asked(); len(asked) > 0 {
		t.Errorf("without --pull asked %q", asked)
	}
	if got := s.mustRun("build", "-q", "--pull=always", "ctx"); got == first {
		t.Errorf("with --pull the image is still the old one")
	}
	s.sound()
}

func TestABuildOfLocalImagesMakesNoConnection(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	reg := newRegistry(t, registryOptions{})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	s := registryStore(t)
	s.mustRun("pull", "-q", reg.host+"/base:1")
	s.write("ctx/file", "content")
	s.dockerfile("FROM "+reg.host+"/base:1 AS one", "COPY file /file", "FROM "+reg.host+"/base:1", "COPY --from=one /file /file")
	reg.asked()
	for _, what := range []string{"the first build", "a build from the cache"} {
		trace := filepath.Join(t.TempDir(), "trace")
		cmd := s.command("build", "-q", "ctx")
		cmd.Path, cmd.Args = strace, append([]string{"strace", "-f", "-o", trace, "-e", "trace=network", s.bin}, cmd.Args[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("trace: %v\n%s", err, out)
		}
		text, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "connect(") && strings.Contains(line, "AF_INET") {
				t.Errorf("%s: a connection: %s", what, line)
			}
		}
	}
	if asked := reg.asked(); len(asked) > 0 {
		t.Errorf("asked %q, want nothing", asked)
	}
}

func TestTwoPullsAtOnceShareOneStore(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	reg.putImage("base", "1", imageSpec{files: []string{"a=" + noise(1, 2<<20), "b=" + noise(2, 2<<20), "c=x"}})
	s := registryStore(t)
	var wg sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		wg.Go(func() {
			r := s.run("pull", "-q", reg.host+"/base:1")
			if ids[i] = r.stdout; r.code != 0 {
				t.Errorf("exit code %d, want 0\n%s", r.code, r.stderr)
			}
		})
	}
	wg.Wait()
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("got images %q, want one", ids)
	}
	s.sound()
}

func TestWhatIsNotThereEndsWith4(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	s := registryStore(t)
	for _, name := range []string{"/base:2", "/nothing/here:1", "/base@sha256:" + strings.Repeat("0", 64)} {
		s.dockerfile("FROM " + reg.host + name)
		s.fails(4, []string{"Dockerfile:1:6: ", reg.host + name, "404"}, "build", "ctx")
		s.fails(4, []string{reg.host + name, "404"}, "pull", reg.host+name)
		s.fails(125, []string{reg.host + name}, "run", reg.host+name, "true")
	}
	s.dockerfile("FROM scratch", "COPY --from="+reg.host+"/base:2 /a /a")
	s.fails(4, []string{"Dockerfile:2:", reg.host + "/base:2"}, "build", "ctx")
}

func TestManifestsStayBitByBit(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	manifest, _ := reg.putImage("base", "docker", imageSpec{docker: true, files: []string{"a=first", "b=second"}})
	// Another manifest of the same layers, with a field that nobody knows.
	var fields map[string]any
	raw := reg.manifest("base", "docker", dockerManifest)
	if err := json.Unmarshal(raw, &fields); err != nil {
		t.Fatal(err)
	}
	fields["annotations"] = map[string]string{"note": "kept as it is"}
	b, err := json.MarshalIndent(fields, "", "     ")
	if err != nil {
		t.Fatal(err)
	}
	noted := reg.putManifest("base", "noted", dockerManifest, b)
	s := registryStore(t)
	for tag, want := range map[string]descriptor{"docker": manifest, "noted": noted} {
		s.mustRun("pull", "-q", reg.host+"/base:"+tag)
		got := strings.TrimSpace(s.mustRun("push", "-q", reg.host+"/base:"+tag, reg.host+"/copy:"+tag))
		if got != want.Digest {
			t.Errorf("%s: pushed as %s, want %s", tag, got, want.Digest)
		}
		if copied := reg.manifest("copy", tag, dockerManifest); digestOf(copied) != want.Digest {
			t.Errorf("%s: the copy is %s, want the bytes of %s", tag, copied, want.Digest)
		}
	}
	s.sound()
}

// manifest returns the bytes of a manifest.
func (r *testRegistry) manifest(repo, version, mediaType string) []byte {
	r.t.Helper()
	to, err := r.backend.Parse("/v2/" + repo + "/manifests/" + version)
	if err != nil {
		r.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, to.String(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Accept", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if err := resp.Write(&b); err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %s, %v", to, resp.Status, err)
	}
	_, body, _ := strings.Cut(b.String(), "\r\n\r\n")
	return []byte(body)
}
