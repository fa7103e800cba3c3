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

func TestImagesThatContradictThemselvesAreRefused(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	_, layers := reg.putImage("x", "real", imageSpec{files: []string{"a=1", "b=2"}})
	diffIDs := []string{digestOf(tarOf(t, "a=1")), digestOf(tarOf(t, "b=2"))}
	config := func(diffIDs []string) map[string]any {
		return map[string]any{"os": "linux", "architecture": hostArch, "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}}
	}
	other := layers[1]
	other.MediaType = "application/vnd.example.chart.v1+gzip"
	swapped := []string{diffIDs[1], diffIDs[0]}
	for tag, c := range map[string]struct {
		config any
		layers []descriptor
		want   string
	}{
		"fewer-diff-ids": {config(diffIDs[:1]), layers, "2 layers and the config 1 diff IDs"},
		"no-layers":      {config(diffIDs), []descriptor{}, "0 layers and the config 2 diff IDs"},
		"no-image":       {config(diffIDs), []descriptor{layers[0], other}, "not one of an image layer"},
		"text-config":    {"hello", layers, "image config"},
		"swapped":        {config(swapped), layers, "diff ID"},
		"bad-diff-id":    {config([]string{"sha256:1", "x"}), layers, "not a sha256 digest"},
		"same-blob":      {config(diffIDs), []descriptor{layers[0], layers[0]}, "diff ID"},
	} {
		t.Run(tag, func(t *testing.T) {
			reg.putManifest("x", tag, ociManifest, toJSON(t, map[string]any{
				"schemaVersion": 2, "mediaType": ociManifest, "config": reg.putBlob("x", ociConfig, toJSON(t, c.config)), "layers": c.layers,
			}))
			s := registryStore(t)
			s.dockerfile("FROM "+reg.host+"/x:"+tag, "ENV A=b")
			s.fails(6, []string{c.want, reg.host + "/x:" + tag}, "pull", reg.host+"/x:"+tag)
			s.fails(6, []string{c.want, reg.host + "/x:" + tag, "Dockerfile:1"}, "build", "ctx")
			s.nothingKept()
		})
	}
}

func TestALayerTwiceInAnImageIsDownloadedOnce(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	_, layers := reg.putImage("x", "1", imageSpec{files: []string{"a=1", "b=2", "a=1"}})
	s := registryStore(t)
	s.mustRun("pull", "-q", reg.host+"/x:1")
	if n := reg.askedFor("GET .*/blobs/" + layers[0].Digest); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	s.dockerfile("FROM " + reg.host + "/x:1")
	if tree := s.builtTree("ctx"); tree["/a"] == "" || tree["/b"] == "" {
		t.Errorf("got %v", tree)
	}
	s.sound()
}

func TestOneLayerInTwoCompressionsKeepsBothBlobs(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	first, _ := reg.putImage("x", "1", imageSpec{files: []string{"a=" + noise(1, 10000)}})
	// The same layer, stored instead of deflated: another blob with the same diff ID.
	layer := tarOf(t, "a="+noise(1, 10000))
	stored := reg.putBlob("x", ociLayer, gzipStored(t, layer))
	second := reg.putManifest("x", "2", ociManifest, toJSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "config": reg.configOf("x", "1"), "layers": []descriptor{stored},
	}))
	s := registryStore(t)
	for range 2 {
		for tag, want := range map[string]string{"1": first.Digest, "2": second.Digest} {
			s.mustRun("pull", "-q", reg.host+"/x:"+tag)
			if got := strings.TrimSpace(s.mustRun("push", "-q", reg.host+"/x:"+tag, reg.host+"/copy:"+tag)); got != want {
				t.Errorf("tag %s: pushed %s, want %s", tag, got, want)
			}
		}
		s.sound()
	}
	s.mustRun("prune", "-f")
	s.sound()
}

func TestAnImageOfAnotherPlatformInTheStoreIsWarnedOf(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	other := map[string]string{"amd64": "arm64"}[hostArch]
	if other == "" {
		other = "amd64"
	}
	reg.putIndex("multi", "1", reg.putFor("multi", other, "foreign=1"), reg.putFor("multi", hostArch, "own=1"))
	s := registryStore(t)
	s.dockerfile("FROM "+reg.host+"/multi:1", "ENV A=b")
	want := reg.host + "/multi:1 in the store is for linux/" + other + ", not for linux/" + hostArch
	s.mustRun("pull", "-q", "--platform", "linux/"+other, reg.host+"/multi:1")
	if r := s.run("build", "ctx"); r.code != 0 || !strings.Contains(r.stderr, want) {
		t.Errorf("exit code %d, no %q in\n%s", r.code, want, r.stderr)
	}
	s.mustRun("pull", "-q", reg.host+"/multi:1")
	if r := s.run("build", "ctx"); r.code != 0 || strings.Contains(r.stderr, "in the store is for") {
		t.Errorf("exit code %d, a warning in\n%s", r.code, r.stderr)
	}
}
