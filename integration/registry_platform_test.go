package integration

import (
	"strings"
	"testing"
)

// platform is a manifest's platform as an index has it.
type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// index is an index of manifests.
func (r *testRegistry) putIndex(repo, tag string, manifests ...descriptor) descriptor {
	r.t.Helper()
	return r.putManifest(repo, tag, ociIndex, toJSON(r.t, map[string]any{
		"schemaVersion": 2, "mediaType": ociIndex, "manifests": manifests,
	}))
}

// putFor puts an image of one file for a processor, and returns it for an index.
func (r *testRegistry) putFor(repo, arch, file string) descriptor {
	r.t.Helper()
	d, _ := r.putImage(repo, "for-"+arch, imageSpec{arch: arch, files: []string{file}})
	d.Platform = platform{OS: "linux", Architecture: arch}
	return d
}

func TestAnIndexHasAnImageForEachPlatform(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	other := map[string]string{"amd64": "arm64"}[hostArch]
	if other == "" {
		other = "amd64"
	}
	foreign, own := reg.putFor("multi", other, "foreign=1"), reg.putFor("multi", hostArch, "own=1")
	attestation := reg.putFor("multi", "unknown", "attestation=1")
	attestation.Platform = platform{OS: "unknown", Architecture: "unknown"}
	index := reg.putIndex("multi", "all", foreign, attestation, own)
	reg.putIndex("multi", "foreign", foreign, attestation)
	reg.putIndex("multi", "nested", index)
	s := registryStore(t)
	for _, word := range []string{"multi:all", "multi@" + index.Digest, "multi:nested"} {
		s.dockerfile("FROM " + reg.host + "/" + word)
		if word == "multi:nested" { // an index in an index tells its platform nowhere
			s.mustRun("build", "-q", "ctx")
			continue
		}
		if tree := s.builtTree("ctx"); tree["/own"] == "" || tree["/foreign"] != "" {
			t.Errorf("%s: got %v, want the image for this host", word, tree)
		}
		reg.asked()
		s.mustRun("build", "-q", "ctx")
		if asked := reg.asked(); len(asked) > 0 {
			t.Errorf("%s: the second build asked %q", word, asked)
		}
	}
	s.dockerfile("FROM " + reg.host + "/multi:foreign")
	text := s.fails(4, []string{"Dockerfile:1:6", "no image for linux/" + hostArch, "linux/" + other}, "build", "ctx")
	if strings.Contains(text, "unknown") {
		t.Errorf("an attestation is offered as a platform: %s", text)
	}
	s.fails(4, []string{"no image for linux/" + hostArch, "linux/" + other}, "pull", reg.host+"/multi:foreign")
	s.mustRun("pull", "-q", "--platform", "linux/"+other, reg.host+"/multi:foreign")
	s.sound()
}

func TestAnUnchangedIndexIsNotPulledAgain(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	reg.putIndex("multi", "1", reg.putFor("multi", hostArch, "own=1"))
	s := registryStore(t)
	s.mustRun("pull", "-q", reg.host+"/multi:1")
	reg.asked()
	s.mustRun("pull", "-q", reg.host+"/multi:1")
	if asked := reg.asked(); len(asked) != 2 || count(asked, "/manifests/") != 2 {
		t.Errorf("asked %q, want the index and the manifest", asked)
	}
}

func TestManifestsThatAreNoImagesAreRefused(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	real, layers := reg.putImage("x", "real", imageSpec{files: []string{"a=1"}})
	_ = real
	both := map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": layers[0], "layers": layers, "manifests": layers}
	for tag, c := range map[string]struct {
		mediaType string
		manifest  any
		want      string
	}{
		"schema1":  {"application/vnd.docker.distribution.manifest.v1+prettyjws", map[string]any{"schemaVersion": 1, "name": "x", "fsLayers": []any{}}, "schema 1"},
		"both":     {ociManifest, both, "image and an index at once"},
		"artifact": {ociManifest, map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.example+json", "layers": layers}, "not the type of an image"},
		"text":     {ociManifest, "just text", "manifest is no JSON"},
	} {
		t.Run(tag, func(t *testing.T) {
			reg.intercept(answerManifest("/v2/x/manifests/"+tag, c.mediaType, toJSON(t, c.manifest)))
			s := registryStore(t)
			s.dockerfile("FROM " + reg.host + "/x:" + tag)
			s.fails(6, []string{c.want, reg.host + "/x"}, "pull", reg.host+"/x:"+tag)
			s.fails(6, []string{c.want, "Dockerfile:1:6"}, "build", "ctx")
		})
	}
}
