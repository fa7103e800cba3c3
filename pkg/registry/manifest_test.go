package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestAManifestIsWhatItSaysItIs(t *testing.T) {
	layers := `"layers":[]`
	for name, c := range map[string]struct {
		raw, announced string
		want, refusal  string // one of them
	}{
		"OCI image":                       {`{"mediaType":"` + typeOCIManifest + `",` + layers + `}`, typeOCIManifest, typeOCIManifest, ""},
		"OCI image without a type":        {`{` + layers + `}`, typeOCIManifest, typeOCIManifest, ""},
		"docker image":                    {`{"schemaVersion":2,"mediaType":"` + typeDockerManifest + `",` + layers + `}`, typeDockerManifest, typeDockerManifest, ""},
		"its own word, an unknown header": {`{"mediaType":"` + typeDockerManifest + `",` + layers + `}`, "text/plain", typeDockerManifest, ""},
		"OCI index":                       {`{"mediaType":"` + typeOCIIndex + `","manifests":[]}`, typeOCIIndex, typeOCIIndex, ""},
		"docker list":                     {`{"mediaType":"` + typeDockerList + `","manifests":[]}`, "", typeDockerList, ""},
		"an unknown field":                {`{"x":1,` + layers + `}`, typeOCIManifest, typeOCIManifest, ""},

		"nothing":                       {``, typeOCIManifest, "", "no JSON"},
		"no object":                     {`[]`, typeOCIManifest, "", "no JSON"},
		"HTML":                          {`<html>log in</html>`, "text/html", "", "no JSON"},
		"null":                          {`null`, typeOCIManifest, "", "not the type of an image"},
		"half":                          {`{"layers":[`, typeOCIManifest, "", "no JSON"},
		"schema 1":                      {`{"schemaVersion":1,"fsLayers":[]}`, "application/vnd.docker.distribution.manifest.v1+prettyjws", "", "schema 1"},
		"image and index":               {`{"manifests":[],` + layers + `}`, typeOCIManifest, "", "image and an index at once"},
		"image and index, other case":   {`{"Manifests":[],"LAYERS":[]}`, typeOCIManifest, "", "image and an index at once"},
		"an index sent as an image":     {`{"mediaType":"` + typeOCIIndex + `","manifests":[]}`, typeOCIManifest, "", "was sent as"},
		"an image called an index":      {`{"mediaType":"` + typeOCIIndex + `",` + layers + `}`, "", "", "not the type of an image"},
		"an index without manifests":    {`{"mediaType":"` + typeOCIIndex + `"}`, "", "", "not the type of an image"},
		"no type at all":                {`{` + layers + `}`, "", "", "not the type of an image"},
		"a long type of something else": {`{"mediaType":"` + strings.Repeat("x\n", 5000) + `",` + layers + `}`, "", "", "no JSON"},
		"a type with control characters": {
			`{"mediaType":"a` + `\u001b[2J` + strings.Repeat("x", 5000) + `",` + layers + `}`, "", "", "not the type of an image",
		},
		"numbers out of range": {`{"schemaVersion":1e400,` + layers + `}`, typeOCIManifest, "", "no JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			raw, got, err := checkManifest("x", []byte(c.raw), c.announced)
			if c.refusal != "" {
				wantError(t, err, Server, c.refusal)
				return
			}
			if err != nil || got != c.want || string(raw) != c.raw {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// anIndex lists manifests for "os/arch/variant", "" for no platform.
func anIndex(t testing.TB, platforms ...string) []byte {
	t.Helper()
	var list struct {
		Manifests []map[string]any `json:"manifests"`
	}
	for _, p := range platforms {
		m := map[string]any{"digest": digestOf([]byte(p)), "size": 1}
		if parts := strings.Split(p+"//", "/"); p != "" {
			m["platform"] = map[string]string{"os": parts[0], "architecture": parts[1], "variant": parts[2]}
		}
		list.Manifests = append(list.Manifests, m)
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnIndexIsChosenFromByPlatform(t *testing.T) {
	for name, c := range map[string]struct {
		platform string
		there    []string
		want     string
	}{
		"the one":                              {"linux/amd64", []string{"linux/arm64", "linux/amd64"}, "linux/amd64"},
		"the first of two":                     {"linux/amd64", []string{"linux/amd64", "linux/amd64"}, "linux/amd64"},
		"another system":                       {"linux/amd64", []string{"windows/amd64", "linux/amd64"}, "linux/amd64"},
		"no variant before one":                {"linux/arm64", []string{"linux/arm64/v8", "linux/arm64"}, "linux/arm64"},
		"arm64 is v8":                          {"linux/arm64", []string{"linux/arm64/v8"}, "linux/arm64/v8"},
		"arm64 is not v9":                      {"linux/arm64", []string{"linux/arm64/v9", "linux/arm64/v8"}, "linux/arm64/v8"},
		"arm is v7, and runs v6":               {"linux/arm", []string{"linux/arm/v5", "linux/arm/v6"}, "linux/arm/v6"},
		"arm is v7":                            {"linux/arm", []string{"linux/arm/v6", "linux/arm/v7", "linux/arm/v8"}, "linux/arm/v7"},
		"arm/v6 asked for":                     {"linux/arm/v6", []string{"linux/arm/v7", "linux/arm/v6", "linux/arm/v5"}, "linux/arm/v6"},
		"arm/v6 gets v5":                       {"linux/arm/v6", []string{"linux/arm/v7", "linux/arm/v5"}, "linux/arm/v5"},
		"amd64 is not v3":                      {"linux/amd64", []string{"linux/amd64/v3", "linux/amd64"}, "linux/amd64"},
		"amd64/v3 asked for":                   {"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v3", "linux/amd64/v4"}, "linux/amd64/v3"},
		"amd64/v3 gets v2 when there is no v3": {"linux/amd64/v3", []string{"linux/amd64/v2", "linux/amd64/v4"}, "linux/amd64/v2"},
		"attestations are nobody's":            {"linux/amd64", []string{"unknown/unknown", "linux/amd64"}, "linux/amd64"},
		"one without a platform":               {"linux/amd64", []string{""}, ""},
		"without a platform among others":      {"linux/amd64", []string{"", "linux/amd64"}, "linux/amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := choose("x", anIndex(t, c.there...), c.platform)
			if want := digestOf([]byte(c.want)); err != nil || got != want {
				t.Errorf("got %s, %v, want %s, for %q", got, err, want, c.want)
			}
		})
	}
	for name, c := range map[string]struct {
		index []byte
		kind  Kind
		text  string
	}{
		"another processor": {anIndex(t, "linux/arm64/v8", "unknown/unknown", "windows/amd64"), NotFound, "no image for linux/amd64; there are: linux/arm64/v8, windows/amd64"},
		"none":              {anIndex(t), NotFound, "there are: none"},
		"attestations only": {anIndex(t, "unknown/unknown"), NotFound, "there are: none"},
		"two for nobody":    {anIndex(t, "", ""), NotFound, "there are: none"},
		"very many":         {anIndex(t, strings.Split(strings.Repeat("linux/arm64,", 50000), ",")...), NotFound, "…"},
		"nasty names":       {anIndex(t, "linux/\x1b[2J\n"+strings.Repeat("x", 9000)), NotFound, "no image for"},
		"no index":          {[]byte(`{"manifests":7}`), Server, "index: "},
		"a digest that is a path": {
			[]byte(`{"manifests":[{"digest":"../../x","platform":{"os":"linux","architecture":"amd64"}}]}`), Server, "not a sha256 digest",
		},
	} {
		t.Run("refused: "+name, func(t *testing.T) {
			_, err := choose("x", c.index, "linux/amd64")
			wantError(t, err, c.kind, c.text)
		})
	}
}

func TestResolveVerifiesWhatItGets(t *testing.T) {
	for name, c := range map[string]struct {
		serve func(t *testing.T, f *fake) (version string)
		kind  Kind
		text  string
	}{
		"another manifest than the digest says": {func(t *testing.T, f *fake) string {
			d := f.put(t, "x", "a")
			f.handle(manifestPath("x", d.Digest), bytesOf(typeOCIManifest, []byte(`{"layers":[]}`)))
			return "@" + d.Digest
		}, Mismatch, "manifest is sha256:"},
		"another manifest than the index says": {func(t *testing.T, f *fake) string {
			d := f.put(t, "x", "a")
			f.putManifest("x", "all", typeOCIIndex, []byte(`{"manifests":[{"digest":"`+d.Digest+`"}]}`))
			f.handle(manifestPath("x", d.Digest), bytesOf(typeOCIManifest, []byte(`{"layers":[]}`)))
			return ":all"
		}, Mismatch, "manifest is sha256:"},
		"an index that leads nowhere": {func(_ *testing.T, f *fake) string {
			f.putManifest("x", "all", typeOCIIndex, []byte(`{"manifests":[{"digest":"`+digestOf(nil)+`"}]}`))
			return ":all"
		}, NotFound, "404"},
		"indexes without end": {func(_ *testing.T, f *fake) string {
			raw := `{"manifests":[]}`
			for range 5 {
				d := f.putManifest("x", "all", typeOCIIndex, []byte(raw))
				raw = `{"manifests":[{"digest":"` + d.Digest + `"}]}`
			}
			f.putManifest("x", "all", typeOCIIndex, []byte(raw))
			return ":all"
		}, Server, "nested"},
		"an endless manifest": {func(_ *testing.T, f *fake) string {
			f.handle(manifestPath("x", "a"), endless)
			return ":a"
		}, Server, "more than"},
		"an endless error": {func(_ *testing.T, f *fake) string {
			f.handle(manifestPath("x", "a"), func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusTeapot)
				endless(w, r)
			})
			return ":a"
		}, Network, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, false)
			_, err := newClient(isolated(t)).Resolve(t.Context(), parse(t, f.host()+"/x"+c.serve(t, f)), "linux/amd64")
			wantError(t, err, c.kind, c.text, f.host()+"/x")
		})
	}
}

func TestAConfigIsVerified(t *testing.T) {
	for name, c := range map[string]struct {
		config string // in the manifest
		serve  http.HandlerFunc
		kind   Kind
		text   string
	}{
		"other bytes":   {descriptorOf("{}", 2), bytesOf("", []byte("[]")), Mismatch, "image config is sha256:"},
		"too short":     {descriptorOf("{}", 2), bytesOf("", []byte("{")), Mismatch, "1 bytes"},
		"endless":       {descriptorOf("{}", 2), endless, Mismatch, "more"},
		"too big":       {descriptorOf("{}", maxConfigBytes+1), nil, Mismatch, "the limit"},
		"negative":      {descriptorOf("{}", -1), nil, Mismatch, "the limit"},
		"no digest":     {`{"digest":"x","size":1}`, nil, Server, "not a sha256 digest"},
		"no number":     {`{"digest":"x","size":"1"}`, nil, Server, "manifest: "},
		"a huge number": {`{"digest":"x","size":99999999999999999999}`, nil, Server, "manifest: "},
		"missing":       {descriptorOf("{}", 2), http.NotFound, Mismatch, "not the blob"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, false)
			f.putManifest("x", "a", typeOCIManifest, []byte(`{"layers":[],"config":`+c.config+`}`))
			if c.serve != nil {
				f.handle(blobPath("x", digestOf([]byte("{}"))), c.serve)
			}
			client := newClient(isolated(t))
			img, err := client.Resolve(t.Context(), parse(t, f.host()+"/x:a"), "linux/amd64")
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.Config(t.Context(), img)
			wantError(t, err, c.kind, c.text, f.host()+"/x")
		})
	}
}

func descriptorOf(content string, size int) string {
	return fmt.Sprintf(`{"digest":%q,"size":%d}`, digestOf([]byte(content)), size)
}

func TestManifestsAreFoundByTagDigestAndIndex(t *testing.T) {
	f := newFake(t, false)
	d := f.put(t, "x", "a", "layer")
	index := f.putManifest("x", "all", typeOCIIndex, []byte(`{"manifests":[{"digest":"`+d.Digest+`"}]}`))
	nested := f.putManifest("x", "nested", typeOCIIndex, []byte(`{"manifests":[{"digest":"`+index.Digest+`"}]}`))
	for word, wantIndex := range map[string]string{
		":a": "", "@" + d.Digest: "", ":other@" + d.Digest: "", ":all": index.Digest, "@" + index.Digest: index.Digest, ":nested": nested.Digest,
	} {
		client := newClient(isolated(t))
		img, err := client.Resolve(t.Context(), parse(t, f.host()+"/x"+word), "linux/amd64")
		if err != nil || img.Digest != d.Digest || img.IndexDigest != wantIndex || img.MediaType != typeOCIManifest {
			t.Errorf("%s: got %+v, %v, want manifest %s by index %q", word, img, err, d.Digest, wantIndex)
			continue
		}
		if config, err := client.Config(t.Context(), img); err != nil || !strings.Contains(string(config), `"name":"a"`) {
			t.Errorf("%s: config %q, %v", word, config, err)
		}
	}
}

func FuzzCheckManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"`+typeOCIManifest+`","config":{},"layers":[]}`), typeOCIManifest)
	f.Add([]byte(`{"manifests":[{"platform":{"os":"linux"}}]}`), typeOCIIndex)
	f.Fuzz(func(t *testing.T, raw []byte, announced string) {
		out, mediaType, err := checkManifest("x", raw, announced)
		if err != nil {
			wantError(t, err, Server)
			return
		}
		if string(out) != string(raw) || !known(mediaType) {
			t.Errorf("got %q of type %q", out, mediaType)
		}
	})
}

func FuzzChoose(f *testing.F) {
	f.Add(anIndex(f, "linux/amd64", "linux/arm/v7", ""), "linux/arm/v7")
	f.Add(anIndex(f, "a/b/c"), "")
	f.Fuzz(func(t *testing.T, index []byte, platform string) {
		digest, err := choose("x", index, platform)
		if err == nil {
			err = checkDigest(digest)
		}
		if err != nil && kindOf(err) != Server && kindOf(err) != NotFound {
			t.Errorf("got %v", err)
		}
	})
}
