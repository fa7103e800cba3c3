package integration

import (
	"net/http"
	"strings"
	"testing"
)

func TestMirrorsAreAskedInOrder(t *testing.T) {
	down := newRegistry(t, registryOptions{})
	down.front.Close()
	empty, mirror, own := newRegistry(t, registryOptions{}), newRegistry(t, registryOptions{}), newRegistry(t, registryOptions{})
	mirror.putImage("library/busybox", "latest", imageSpec{files: []string{"from=the mirror"}})
	own.putImage("library/busybox", "own", imageSpec{files: []string{"from=itself"}})
	s := registryStore(t)
	s.registriesConf(
		"[[registry]]", `prefix="docker.io"`, `location="`+own.host+`"`,
		"[[registry.mirror]]", `location="`+down.host+`"`,
		"[[registry.mirror]]", `location="`+empty.host+`"`,
		"[[registry.mirror]]", `location="`+mirror.host+`"`,
	)
	s.dockerfile("FROM busybox")
	if tree := s.builtTree("ctx"); tree["/from"] == "" {
		t.Errorf("the mirror's image is not there: %v", tree)
	}
	if empty.askedFor("GET /v2/library/busybox/manifests/latest") != 1 || mirror.askedFor("GET .*/blobs/") != 2 || len(own.asked()) > 0 {
		t.Error("want one request to the mirror without the image, all of it from the next one, nothing from the registry itself")
	}
	if out := s.mustRun("images", "--format", "{{.Repository}}"); out != "busybox\n" {
		t.Errorf("the image is called %q, want busybox", out)
	}
	s.mustRun("pull", "-q", "busybox:own")
	if own.askedFor("GET .*/blobs/") != 2 {
		t.Error("what no mirror has does not come from the registry itself")
	}
	s.fails(4, []string{"docker.io/library/busybox:none", own.host, "404", "mirror: " + down.host + " refuses"}, "pull", "busybox:none")
	s.sound()
}

func TestALayerThatAMirrorLacksComesFromTheNextPlace(t *testing.T) {
	mirror, own := newRegistry(t, registryOptions{}), newRegistry(t, registryOptions{})
	_, layers := mirror.putImage("x/base", "1", imageSpec{files: []string{"a=first", "b=second"}})
	own.putImage("x/base", "1", imageSpec{files: []string{"a=first", "b=second"}})
	mirror.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, layers[1].Digest) {
			return false
		}
		http.NotFound(w, r)
		return true
	})
	s := registryStore(t)
	s.registriesConf("[[registry]]", `location="`+own.host+`"`, "[[registry.mirror]]", `location="`+mirror.host+`"`)
	s.mustRun("pull", "-q", own.host+"/x/base:1")
	if got := own.asked(); len(got) != 1 || !strings.HasSuffix(got[0], layers[1].Digest) {
		t.Errorf("the registry itself was asked %q, want the one layer", got)
	}
	s.sound()
}

func TestNamesAreRewritten(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	reg.putImage("deep/below/app", "1", imageSpec{files: []string{"a=first"}})
	s := registryStore(t)
	s.registriesConf("[[registry]]", `prefix="example.com/apps"`, `location="`+reg.host+`/deep/below"`)
	s.dockerfile("FROM example.com/apps/app:1")
	s.mustRun("build", "-q", "ctx")
	if out := s.mustRun("images", "--format", "{{.Repository}}"); !strings.Contains(out, "example.com/apps/app\n") {
		t.Errorf("images %q, want the name that was asked for", out)
	}
}

func TestABlockedRegistryIsNotAsked(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	s := registryStore(t)
	s.registriesConf("[[registry]]", `location="`+reg.host+`"`, "blocked=true")
	s.dockerfile("FROM " + reg.host + "/base:1")
	s.fails(2, []string{"Dockerfile:1:6", "blocked", "hint: "}, "build", "ctx")
	s.fails(2, []string{"blocked", "hint: "}, "pull", reg.host+"/base:1")
	if asked := reg.asked(); len(asked) > 0 {
		t.Errorf("asked %q", asked)
	}
}

func TestShortNames(t *testing.T) {
	first, second := newRegistry(t, registryOptions{}), newRegistry(t, registryOptions{})
	first.putImage("tool", "1", imageSpec{files: []string{"a=first"}})
	second.putImage("tool", "1", imageSpec{files: []string{"a=second"}})
	second.putImage("team/other", "2", imageSpec{files: []string{"a=other"}})
	second.putImage("aliased/long", "3", imageSpec{files: []string{"a=aliased"}})
	s := registryStore(t)
	s.registriesConf(
		`unqualified-search-registries=["`+first.host+`", "`+second.host+`"]`,
		"[aliases]", `"short"="`+second.host+`/aliased/long"`,
	)
	for word, want := range map[string]string{
		"tool:1":       first.host + "/tool:1",
		"team/other:2": second.host + "/team/other:2",
		"short:3":      second.host + "/aliased/long:3",
	} {
		s.mustRun("pull", "-q", word)
		if out := s.mustRun("images", "--format", "{{.Repository}}:{{.Tag}}"); !strings.Contains(out, want+"\n") {
			t.Errorf("%s: images %q, want %s", word, out, want)
		}
		s.dockerfile("FROM " + word)
		first.asked()
		second.asked()
		s.mustRun("build", "-q", "ctx")
		if a, b := first.asked(), second.asked(); len(a)+len(b) > 0 {
			t.Errorf("%s: asked %q and %q for an image that is there", word, a, b)
		}
	}
	s.fails(4, []string{first.host + "/nothing:1", second.host + "/nothing:1"}, "pull", "nothing:1")
}

func TestABrokenRegistriesConfIsNamed(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	s := registryStore(t)
	s.mustRun("pull", "-q", reg.host+"/base:1")
	for what, lines := range map[string][]string{
		"no TOML":      {"[[registry"},
		"wrong type":   {"[[registry]]", "location=7"},
		"no location":  {"[[registry]]", "insecure=true"},
		"unknown mode": {`short-name-mode="never heard of"`},
	} {
		s.registriesConf(lines...)
		s.dockerfile("FROM " + reg.host + "/other:1")
		text := s.fails(2, []string{"Dockerfile:1:6", "registries.conf"}, "build", "ctx")
		if strings.Contains(text, "panic") {
			t.Errorf("%s: %s", what, text)
		}
		s.dockerfile("FROM "+reg.host+"/base:1", "ENV A=b")
		s.mustRun("build", "-q", "ctx") // what is there needs no registry
	}
	if asked := reg.askedFor("other"); asked > 0 {
		t.Error("a registry was asked all the same")
	}
}
