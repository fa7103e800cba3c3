package integration

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/progress"
)

// answerManifest answers requests for one manifest.
func answerManifest(path, mediaType string, raw []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != path {
			return false
		}
		w.Header().Set("Content-Type", mediaType)
		_, _ = w.Write(raw)
		return true
	}
}

// nothingKept fails the test when the store has an image, or bytes of nobody.
func (s *testStore) nothingKept() {
	s.t.Helper()
	if out := s.mustRun("images", "-q"); out != "" {
		s.t.Errorf("the store has images %q, want none", out)
	}
	if _, err := os.Stat(s.root); err == nil {
		s.sound()
	}
}

// damage changes a blob where the registry keeps it.
func (r *testRegistry) damage(digest string, change func([]byte) []byte) {
	r.t.Helper()
	file := r.blobFile(digest)
	data, err := os.ReadFile(file)
	if err != nil {
		r.t.Fatal(err)
	}
	if change == nil {
		err = os.Remove(file)
	} else {
		err = os.WriteFile(file, change(data), 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestADamagedRegistryLeavesNothing(t *testing.T) {
	flip := func(b []byte) []byte { b[len(b)/2] ^= 0xff; return b }
	for what, c := range map[string]struct {
		config bool // damage that instead of a layer
		change func([]byte) []byte
		want   string
	}{
		"a changed layer":     {false, flip, "blob: got sha256:"},
		"a recompressed one":  {false, func(b []byte) []byte { return append(b, make([]byte, 8)...) }, "more"},
		"a truncated layer":   {false, func(b []byte) []byte { return b[:len(b)/2] }, "bytes of blob sha256:"},
		"an empty layer":      {false, func([]byte) []byte { return nil }, "0 bytes of blob"},
		"a layer too long":    {false, func(b []byte) []byte { return append(b, b...) }, "more"},
		"a missing layer":     {false, nil, "not the blob sha256:"},
		"a changed config":    {true, flip, "image config is sha256:"},
		"a truncated config":  {true, func(b []byte) []byte { return b[:len(b)/2] }, "bytes of blob sha256:"},
		"a config too long":   {true, func(b []byte) []byte { return append(b, ' ') }, "more"},
		"a missing config":    {true, nil, "not the blob sha256:"},
		"another layer there": {false, func([]byte) []byte { return gzipOf(t, tarOf(t, "b=another")) }, "blob"},
	} {
		t.Run(what, func(t *testing.T) {
			reg := newRegistry(t, registryOptions{})
			_, layers := reg.putImage("base", "1", imageSpec{files: []string{"a=first", "b=" + noise(1, 100<<10), "c=third"}})
			digest := layers[1].Digest
			if c.config {
				digest = reg.configOf("base", "1").Digest
			}
			reg.damage(digest, c.change)
			s := registryStore(t)
			s.dockerfile("FROM "+reg.host+"/base:1", "ENV A=b")
			s.fails(6, []string{reg.host + "/base:1", c.want}, "pull", reg.host+"/base:1")
			s.nothingKept()
			s.fails(6, []string{"Dockerfile:1", reg.host + "/base:1", c.want}, "build", "-t", "never", "ctx")
			s.nothingKept()
		})
	}
}

// configOf is the descriptor of an image's config.
func (r *testRegistry) configOf(repo, tag string) descriptor {
	r.t.Helper()
	var m struct{ Config descriptor }
	fromJSON(r.t, r.manifest(repo, tag, ociManifest), &m)
	return m.Config
}

func TestAChangedManifestIsRefused(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	real, _ := reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	other, _ := reg.putImage("base", "2", imageSpec{files: []string{"a=second"}})
	raw := reg.manifest("base", "2", ociManifest)
	reg.intercept(answerManifest("/v2/base/manifests/"+real.Digest, ociManifest, raw))
	s := registryStore(t)
	s.dockerfile("FROM " + reg.host + "/base@" + real.Digest)
	s.fails(6, []string{"Dockerfile:1:6", real.Digest, other.Digest, "hint: "}, "build", "ctx")
	s.nothingKept()
}

func TestACutDownloadGoesOnWhereItWas(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	_, layers := reg.putImage("base", "1", imageSpec{files: []string{"a=" + noise(1, 1<<20)}})
	var ranges []string
	cut := reg.cut(layers[0].Digest, 300_000, 1)
	reg.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if v := r.Header.Get("Range"); v != "" {
			ranges = append(ranges, v)
		}
		return cut(w, r)
	})
	s := registryStore(t)
	s.mustRun("pull", "-q", reg.host+"/base:1")
	if len(ranges) != 1 || !strings.HasPrefix(ranges[0], "bytes=") || ranges[0] == "bytes=0-" {
		t.Errorf("got ranges %q, want the rest of one blob", ranges)
	}
	if n := reg.askedFor("GET .*/blobs/" + layers[0].Digest); n != 2 {
		t.Errorf("the layer was asked for %d times, want 2", n)
	}
	s.sound()
}

func TestADownloadThatIsCutAlwaysFails(t *testing.T) {
	for _, n := range []int64{0, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			reg := newRegistry(t, registryOptions{})
			_, layers := reg.putImage("base", "1", imageSpec{files: []string{"a=" + noise(1, 1<<20), "b=x"}})
			reg.intercept(reg.cut(layers[0].Digest, n, 1000))
			s := registryStore(t)
			s.dockerfile("FROM " + reg.host + "/base:1")
			begin := time.Now()
			s.fails(6, []string{reg.host + " ended the connection"}, "pull", reg.host+"/base:1")
			if took := time.Since(begin); took > 60*time.Second {
				t.Errorf("gave up after %v", took)
			}
			s.nothingKept()
		})
	}
}

// hang answers requests for a blob with its first bytes and then says no more,
// until the test or the client ends.
func (r *testRegistry) hang(digest string, begun chan<- struct{}) func(http.ResponseWriter, *http.Request) bool {
	data, err := os.ReadFile(r.blobFile(digest))
	if err != nil {
		r.t.Fatal(err)
	}
	return func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, digest) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = io.Copy(w, bytes.NewReader(data[:len(data)/2]))
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		begun <- struct{}{}
		<-req.Context().Done()
		return true
	}
}

func TestCtrlCDuringAPullEndsAtOnce(t *testing.T) {
	for _, command := range []string{"pull", "build"} {
		t.Run(command, func(t *testing.T) {
			reg := newRegistry(t, registryOptions{})
			_, layers := reg.putImage("base", "1", imageSpec{files: []string{"a=x", "b=" + noise(1, 4<<20)}})
			begun := make(chan struct{}, 10)
			reg.intercept(reg.hang(layers[1].Digest, begun))
			s := registryStore(t)
			s.ownBinary()
			s.dockerfile("FROM " + reg.host + "/base:1")
			args := []string{"pull", "--progress", "json", reg.host + "/base:1"}
			if command == "build" {
				args = []string{"build", "--progress", "json", "ctx"}
			}
			v := s.begin(args...)
			<-begun
			begin := time.Now()
			v.signal(syscall.SIGINT)
			if code := v.ended(); code != 130 {
				t.Errorf("exit code %d, want 130\n%s", code, v.log.String())
			}
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			_, pidNS := v.worker()
			s.nothingLeft(pidNS)
			s.nothingKept()
			reg.intercept(nil)
			s.mustRun("pull", "-q", reg.host+"/base:1")
			s.sound()
		})
	}
}

func TestCtrlCEndsAWaitForAnAnswer(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	begun := make(chan struct{}, 10)
	reg.intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/v2/base/") {
			begun <- struct{}{}
			<-r.Context().Done()
		}
		return false
	})
	s := newBusyboxStore(t)
	s.isolate()
	s.ownBinary()
	s.dockerfile("FROM " + reg.host + "/base:1")
	for _, args := range [][]string{
		{"pull", reg.host + "/base:1"}, {"build", "ctx"}, {"run", reg.host + "/base:1", "true"}, {"push", "busybox", reg.host + "/base:1"},
	} {
		v := s.begin(args...)
		<-begun
		begin := time.Now()
		v.signal(syscall.SIGINT)
		if code := v.ended(); code != 130 && (args[0] != "run" || code != 125) {
			t.Errorf("%s: exit code %d, want 130\n%s", args[0], code, v.log.String())
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("%s: it took %v", args[0], took)
		}
		_, pidNS := v.worker()
		s.nothingLeft(pidNS)
	}
	s.sound()
}

// downloads: a layer's bytes begin to come.
func downloads(v *victim) bool {
	return v.await(func(e progress.Event) bool { return e.Status == progress.TransferDownload })
}

func TestAKilledPullLeavesNothingAndTheNextOneWorks(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	_, layers := reg.putImage("base", "1", imageSpec{files: []string{"a=x", "b=" + noise(1, 4<<20), "c=y"}})
	name := reg.host + "/base:1"
	for what, c := range map[string]struct {
		hang   bool
		worker bool
		reach  reach
	}{
		"process is there":                  {false, false, processIsThere},
		"worker is there":                   {false, false, workerIsThere},
		"a download begins":                 {true, false, downloads},
		"a download hangs":                  {true, false, later(downloads, 50*time.Millisecond)},
		"the worker when a download begins": {true, true, downloads},
		"the worker when a download hangs":  {true, true, later(downloads, 50*time.Millisecond)},
		"a download not in the way":         {false, false, downloads},
		"10 ms into it":                     {false, false, later(downloads, 10*time.Millisecond)},
		"40 ms into it":                     {false, false, later(downloads, 40*time.Millisecond)},
	} {
		t.Run(what, func(t *testing.T) {
			reg.intercept(nil)
			if c.hang {
				reg.intercept(reg.hang(layers[1].Digest, make(chan struct{}, 100)))
			}
			s := registryStore(t)
			s.ownBinary()
			v := s.begin("pull", "--progress", "json", name)
			c.reach(v)
			target := v.cmd.Process.Pid
			if c.worker {
				if target, _ = v.worker(); target == 0 {
					t.Fatalf("no worker:\n%s", v.log.String())
				}
			}
			v.kill(target)
			_, pidNS := v.worker()
			s.nothingLeft(pidNS)
			reg.intercept(nil)
			s.mustRun("pull", "-q", name)
			// A pull that finds everything there starts no worker, which would tidy up.
			s.mustRun("prune", "-f")
			s.sound()
		})
	}
}
