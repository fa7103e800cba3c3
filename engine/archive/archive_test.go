package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/mstage/mstage/engine/archive"
	"github.com/mstage/mstage/storage"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// layerTar is the tar of a layer with one file.
func layerTar(tb testing.TB, name, content string) []byte {
	tb.Helper()
	return pack(tb, []tar.Header{{Name: name, Mode: 0o644}}, map[string][]byte{name: []byte(content)})
}

// pack writes a tar of these headers with the contents by name.
func pack(tb testing.TB, headers []tar.Header, content map[string][]byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			h.Size = int64(len(content[h.Name]))
		}
		must(tb, w.WriteHeader(&h))
		if h.Size > 0 {
			_, err := w.Write(content[h.Name])
			must(tb, err)
		}
	}
	must(tb, w.Close())
	return b.Bytes()
}

// tree are the files of an archive.
type tree map[string][]byte

// pack returns the tree as a tar, with more members at the end.
func (t tree) pack(tb testing.TB, more ...tar.Header) []byte {
	tb.Helper()
	var headers []tar.Header
	for _, name := range slices.Sorted(maps.Keys(t)) {
		headers = append(headers, tar.Header{Name: name, Mode: 0o644})
	}
	return pack(tb, append(headers, more...), t)
}

// json adds a file.
func (t tree) json(name string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	t[name] = b
}

// object is a JSON object.
type object = map[string]any

// blob adds a blob and returns its descriptor.
func (t tree) blob(mediaType string, b []byte) object {
	d := storage.DigestBytes(b)
	t["blobs/sha256/"+d.Hex()] = b
	return object{"mediaType": mediaType, "digest": string(d), "size": len(b)}
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeGzip     = "application/vnd.oci.image.layer.v1.tar+gzip"
	typeTar      = "application/vnd.oci.image.layer.v1.tar"
)

func gzipped(tb testing.TB, b []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	must(tb, errors.Join(err, w.Close()))
	return out.Bytes()
}

// config returns the config of an image with these plain layers.
func config(arch string, layers ...[]byte) []byte {
	ids := []string{}
	for _, l := range layers {
		ids = append(ids, string(storage.DigestBytes(l)))
	}
	b, err := json.Marshal(object{"os": "linux", "architecture": arch, "rootfs": object{"type": "layers", "diff_ids": ids}})
	if err != nil {
		panic(err)
	}
	return b
}

// image adds an OCI image of one layer for a platform and returns the descriptor
// of its manifest.
func (t tree) image(tb testing.TB, arch, content string) object {
	tb.Helper()
	layer := layerTar(tb, "f", content)
	return t.manifest(config(arch, layer), t.blob(typeGzip, gzipped(tb, layer)))
}

func (t tree) manifest(config []byte, layers ...object) object {
	return t.blob(typeManifest, marshal(object{"schemaVersion": 2, "config": t.blob(typeConfig, config), "layers": layers}))
}

func (t tree) nested(manifests ...object) object {
	return t.blob(typeIndex, marshal(object{"schemaVersion": 2, "mediaType": typeIndex, "manifests": manifests}))
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// named gives a descriptor a name.
func named(d object, annotation, name string) object {
	c := maps.Clone(d)
	c["annotations"] = object{annotation: name}
	return c
}

func platform(d object, arch string) object {
	c := maps.Clone(d)
	c["platform"] = object{"os": "linux", "architecture": arch}
	return c
}

const (
	byContainerd = "io.containerd.image.name"
	byRef        = "org.opencontainers.image.ref.name"
)

// layout returns an OCI layout of these descriptors.
func (t tree) layout(manifests ...object) tree {
	t["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	t.json("index.json", object{"schemaVersion": 2, "manifests": manifests})
	return t
}

// read reads the images of an archive's bytes.
func read(tb testing.TB, b []byte) ([]archive.Image, error) {
	tb.Helper()
	f := filepath.Join(tb.TempDir(), "archive")
	must(tb, os.WriteFile(f, b, 0o600))
	return open(tb, f)
}

func open(tb testing.TB, path string) ([]archive.Image, error) {
	tb.Helper()
	a, err := archive.Open(tb.Context(), path, archive.Options{TempDir: tb.TempDir(), Platform: "linux/amd64"})
	if err != nil {
		return nil, err
	}
	images, err := a.Images(tb.Context())
	return images, errors.Join(err, a.Close())
}

// classic returns a docker archive as docker before 25 writes it.
func classic(tb testing.TB) (t tree, id storage.Digest) {
	tb.Helper()
	a, b := layerTar(tb, "a", "A"), layerTar(tb, "b", "B")
	c := config("amd64", a, b)
	id = storage.DigestBytes(c)
	t = tree{
		"1111/VERSION": []byte("1.0"), "1111/json": []byte("{}"), "1111/layer.tar": a,
		"2222/VERSION": []byte("1.0"), "2222/json": []byte("{}"), "2222/layer.tar": b,
		id.Hex() + ".json": c,
		"repositories":     []byte(`{"hello":{"1":"2222"}}`),
	}
	t.json("manifest.json", []object{{
		"Config": id.Hex() + ".json", "RepoTags": []string{"hello:1", "localhost:5000/x:y"},
		"Layers": []string{"1111/layer.tar", "2222/layer.tar"},
	}})
	return t, id
}

// layerBytes reads one layer of the first image.
func layerBytes(tb testing.TB, packed []byte, layer int) []byte {
	tb.Helper()
	name := filepath.Join(tb.TempDir(), "archive")
	must(tb, os.WriteFile(name, packed, 0o600))
	a, err := archive.Open(tb.Context(), name, archive.Options{Platform: "linux/amd64"})
	must(tb, err)
	images, err := a.Images(tb.Context())
	must(tb, err)
	r, err := a.Open(images[0].Layers[layer])
	must(tb, err)
	b, err := io.ReadAll(r)
	must(tb, errors.Join(err, r.Close(), a.Close()))
	return b
}

func TestAClassicDockerArchive(t *testing.T) {
	files, id := classic(t)
	got, err := read(t, files.pack(t))
	must(t, err)
	if len(got) != 1 || got[0].ID() != id || got[0].Manifest != nil || len(got[0].Layers) != 2 {
		t.Fatalf("got %+v, want image %s of two layers without a manifest", got, id)
	}
	if want := []string{"docker.io/library/hello:1", "localhost:5000/x:y"}; !slices.Equal(got[0].Names, want) {
		t.Errorf("got names %q, want %q", got[0].Names, want)
	}
	l := got[0].Layers[1]
	if b := layerBytes(t, files.pack(t), 1); storage.DigestBytes(b) != l.Digest {
		t.Errorf("got %q, want the layer's bytes", b)
	}
	if l.Digest != l.DiffID || l.DiffID != storage.DigestBytes(files["2222/layer.tar"]) || l.MediaType != typeTar {
		t.Errorf("got layer %+v, want a plain tar known by its diff ID", l)
	}
}

func TestLinksWithinAnArchiveAreFollowed(t *testing.T) {
	files, _ := classic(t)
	same := layerTar(t, "a", "A")
	c := config("amd64", same, same, same)
	id := storage.DigestBytes(c)
	files["blob"] = same
	delete(files, "1111/layer.tar")
	delete(files, "2222/layer.tar")
	files["c.json"] = c
	files.json("manifest.json", []object{{"Config": "c.json", "Layers": []string{"1111/layer.tar", "2222/layer.tar", "./3333//layer.tar"}}})
	got, err := read(t, files.pack(t,
		tar.Header{Name: "1111/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../blob"},
		tar.Header{Name: "2222/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../1111/layer.tar"},
		tar.Header{Name: "3333/layer.tar", Typeflag: tar.TypeLink, Linkname: "blob"}))
	must(t, err)
	if len(got) != 1 || got[0].ID() != id || got[0].Names != nil {
		t.Errorf("got %+v, want image %s without a name", got, id)
	}
}

func TestAPackedLayerOfADockerArchiveIsReadForItsDigest(t *testing.T) {
	files := tree{}
	plain := layerTar(t, "a", "A")
	files["l.tar.gz"], files["c"] = gzipped(t, plain), config("amd64", plain)
	files.json("manifest.json", []object{{"Config": "c", "RepoTags": []string{"<none>:<none>"}, "Layers": []string{"l.tar.gz"}}})
	got, err := read(t, files.pack(t))
	must(t, err)
	if l := got[0].Layers[0]; l.Digest != storage.DigestBytes(files["l.tar.gz"]) || l.MediaType != typeGzip || got[0].Names != nil {
		t.Errorf("got %+v, want the digest of the packed layer", got[0])
	}
}

// ids lists images as "ID name,name".
func ids(images []archive.Image) []string {
	var lines []string
	for _, img := range images {
		lines = append(lines, img.ID().Short()+" "+strings.Join(img.Names, ","))
	}
	return lines
}

func TestImagesOfAnOCILayout(t *testing.T) {
	base := tree{}
	a, b, arm := base.image(t, "amd64", "a"), base.image(t, "amd64", "b"), base.image(t, "arm64", "arm")
	signature := base.blob(typeManifest, marshal(object{"config": base.blob("application/vnd.oci.empty.v1+json", []byte("{}"))}))
	attestation := maps.Clone(platform(base.blob(typeManifest, []byte("{}")), "unknown"))
	attestation["annotations"] = object{"vnd.docker.reference.type": "attestation-manifest"}
	gone := platform(object{"mediaType": typeManifest, "digest": string(storage.DigestBytes([]byte("not here"))), "size": 8}, "s390x")
	id := func(d object) string {
		var m struct {
			Config struct{ Digest storage.Digest }
		}
		must(t, json.Unmarshal(base["blobs/sha256/"+storage.Digest(d["digest"].(string)).Hex()], &m))
		return m.Config.Digest.Short()
	}
	multi := base.nested(platform(arm, "arm64"), attestation, gone, platform(a, "amd64"))
	cases := map[string]struct {
		manifests []object
		want      []string
	}{
		"one without a name":           {[]object{a}, []string{id(a) + " "}},
		"one named by containerd":      {[]object{named(a, byContainerd, "docker.io/library/x:1")}, []string{id(a) + " docker.io/library/x:1"}},
		"one named by a reference":     {[]object{named(a, byRef, "x:1")}, []string{id(a) + " docker.io/library/x:1"}},
		"a tag is no name":             {[]object{named(a, byRef, "latest")}, []string{id(a) + " "}},
		"what is no reference":         {[]object{named(a, byRef, "not a/reference")}, []string{id(a) + " "}},
		"two names of one":             {[]object{named(a, byRef, "y:2"), named(a, byRef, "x:1")}, []string{id(a) + " docker.io/library/x:1,docker.io/library/y:2"}},
		"a name with its digest":       {[]object{named(a, byContainerd, "x@"+a["digest"].(string))}, []string{id(a) + " docker.io/library/x@" + a["digest"].(string)}},
		"a name with its index":        {[]object{named(multi, byContainerd, "x@"+multi["digest"].(string))}, []string{id(a) + " docker.io/library/x@" + multi["digest"].(string)}},
		"several images":               {[]object{a, named(b, byRef, "b:1")}, []string{id(a) + " ", id(b) + " docker.io/library/b:1"}},
		"another platform alone":       {[]object{arm}, []string{id(arm) + " "}},
		"platforms side by side":       {[]object{platform(arm, "arm64"), platform(a, "amd64")}, []string{id(a) + " "}},
		"platforms told by configs":    {[]object{arm, a}, []string{id(a) + " "}},
		"one name for all platforms":   {[]object{named(arm, byRef, "x:1"), named(a, byRef, "x:1")}, []string{id(a) + " docker.io/library/x:1"}},
		"an index, others not there":   {[]object{named(multi, byRef, "x:1")}, []string{id(a) + " docker.io/library/x:1"}},
		"an index of an index":         {[]object{base.nested(base.nested(multi))}, []string{id(a) + " "}},
		"an image and its attestation": {[]object{a, attestation}, []string{id(a) + " "}},
		"an image and a signature":     {[]object{signature, a}, []string{id(a) + " "}},
		"a manifest of no media type":  {[]object{{"digest": a["digest"], "size": a["size"]}}, []string{id(a) + " "}},
		"an index of no media type":    {[]object{{"digest": multi["digest"], "size": multi["size"]}}, []string{id(a) + " "}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := read(t, maps.Clone(base).layout(c.manifests...).pack(t))
			if err != nil || !slices.Equal(ids(got), c.want) {
				t.Errorf("got %q (%v), want %q", ids(got), err, c.want)
			}
		})
	}
}

func TestAnArchiveOfBothKindsHasTheManifestAndAllNames(t *testing.T) {
	files := tree{}
	d := files.image(t, "amd64", "a")
	files.layout(named(d, byContainerd, "docker.io/library/x:1"))
	images, err := read(t, files.pack(t))
	must(t, err)
	img := images[0]
	other := layerTar(t, "other", "")
	files["other.tar"], files["other.json"] = other, config("amd64", other)
	files.json("manifest.json", []object{
		{"Config": "blobs/sha256/" + img.ID().Hex(), "RepoTags": []string{"y:2"}, "Layers": []string{"not looked at"}},
		{"Config": "other.json", "RepoTags": []string{"z:3"}, "Layers": []string{"other.tar"}},
	})
	got, err := read(t, files.pack(t))
	must(t, err)
	want := []string{
		img.ID().Short() + " docker.io/library/x:1,docker.io/library/y:2",
		storage.DigestBytes(files["other.json"]).Short() + " docker.io/library/z:3",
	}
	if !slices.Equal(ids(got), want) || got[0].Manifest == nil || string(got[0].Manifest.Digest()) != d["digest"] {
		t.Errorf("got %q, want %q and the manifest of the first", ids(got), want)
	}
}

func TestEveryFormAndCompression(t *testing.T) {
	files, id := classic(t)
	plain := files.pack(t)
	var z, x bytes.Buffer
	zw, err := zstd.NewWriter(&z)
	must(t, err)
	xw, err := xz.NewWriter(&x)
	must(t, err)
	for _, w := range []io.WriteCloser{zw, xw} {
		_, err := w.Write(plain)
		must(t, errors.Join(err, w.Close()))
	}
	for name, b := range map[string][]byte{"plain": plain, "gzip": gzipped(t, plain), "zstd": z.Bytes(), "xz": x.Bytes()} {
		t.Run(name, func(t *testing.T) {
			got, err := read(t, b)
			if err != nil || len(got) != 1 || got[0].ID() != id {
				t.Errorf("a file: got %v (%v), want %s", ids(got), err, id)
			}
			if got, err := readPipe(t, b); err != nil || len(got) != 1 || got[0].ID() != id {
				t.Errorf("a pipe: got %v (%v), want %s", ids(got), err, id)
			}
		})
	}
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		for name, b := range files {
			must(t, errors.Join(os.MkdirAll(filepath.Join(dir, path.Dir(name)), 0o700), os.WriteFile(filepath.Join(dir, name), b, 0o600)))
		}
		if got, err := open(t, dir); err != nil || len(got) != 1 || got[0].ID() != id {
			t.Errorf("got %v (%v), want %s", ids(got), err, id)
		}
		must(t, os.Remove(filepath.Join(dir, "manifest.json")))
		must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "manifest.json")))
		if _, err := open(t, dir); err == nil || !strings.Contains(err.Error(), "escapes") {
			t.Errorf("a link out of it: got %v, want it refused", err)
		}
	})
	t.Run("from where a file stands", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(name, append([]byte("before"), plain...), 0o600))
		f, err := os.Open(name)
		must(t, err)
		defer f.Close()
		_, err = f.Seek(6, io.SeekStart)
		must(t, err)
		a, err := archive.Read(t.Context(), f, archive.Options{Platform: "linux/amd64"})
		must(t, err)
		if got, err := a.Images(t.Context()); err != nil || len(got) != 1 {
			t.Errorf("got %v (%v), want one image", got, err)
		}
		must(t, a.Close())
	})
}

// readPipe reads the images of an archive that comes through a pipe.
func readPipe(t *testing.T, b []byte) ([]archive.Image, error) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	done := make(chan error, 1)
	go func() {
		_, err := w.Write(b)
		done <- errors.Join(err, w.Close())
	}()
	dir := t.TempDir()
	a, err := archive.Read(t.Context(), r, archive.Options{TempDir: dir, Platform: "linux/amd64"})
	must(t, err)
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) > 0 {
		t.Errorf("got files %v while it is read, want none that has a name", entries)
	}
	images, err := a.Images(t.Context())
	return images, errors.Join(err, a.Close(), <-done)
}

func TestACancelEndsTheWaitForAPipe(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() {
		_, err := archive.Read(ctx, r, archive.Options{TempDir: t.TempDir(), Platform: "linux/amd64"})
		done <- err
	}()
	_, err = w.Write(make([]byte, 512))
	must(t, err)
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}

func TestHostileArchivesAreRefused(t *testing.T) {
	oci := func(change func(tree) []object) func(*testing.T) []byte {
		return func(t *testing.T) []byte {
			files := tree{}
			return files.layout(change(files)...).pack(t)
		}
	}
	docker := func(change func(tree, storage.Digest)) func(*testing.T) []byte {
		return func(t *testing.T) []byte {
			files, id := classic(t)
			change(files, id)
			return files.pack(t)
		}
	}
	more := func(h ...tar.Header) func(*testing.T) []byte {
		return func(t *testing.T) []byte { f, _ := classic(t); return f.pack(t, h...) }
	}
	manifestJSON := func(v any) func(*testing.T) []byte {
		return docker(func(f tree, _ storage.Digest) { f.json("manifest.json", v) })
	}
	deep := func(f tree) []object {
		d := f.image(t, "amd64", "a")
		for range 10 {
			d = f.nested(d)
		}
		return []object{d}
	}
	cases := map[string]struct {
		archive func(*testing.T) []byte
		want    string
	}{
		"nothing":            {func(*testing.T) []byte { return nil }, "archive is empty"},
		"a text":             {func(*testing.T) []byte { return bytes.Repeat([]byte("text "), 500) }, "not a tar archive"},
		"a tar of nothing":   {func(t *testing.T) []byte { return pack(t, nil, nil) }, "no members"},
		"a root file system": {func(t *testing.T) []byte { return layerTar(t, "etc/passwd", "root") }, "neither a docker archive"},
		"only repositories":  {docker(func(f tree, _ storage.Digest) { delete(f, "manifest.json") }), "before 1.10"},
		"half":               {func(t *testing.T) []byte { f, _ := classic(t); b := f.pack(t); return b[:2700] }, "cut short"},
		"half a gzip":        {func(t *testing.T) []byte { f, _ := classic(t); b := gzipped(t, f.pack(t)); return b[:len(b)/2] }, "cut short"},
		"a broken gzip": {func(t *testing.T) []byte {
			f, _ := classic(t)
			b := gzipped(t, f.pack(t))
			b[len(b)/2] ^= 255
			return b
		}, ""},
		"a way out":                  {more(tar.Header{Name: "../x", Typeflag: tar.TypeDir}), "leads out"},
		"an absolute name":           {more(tar.Header{Name: "/x", Typeflag: tar.TypeDir}), "leads out"},
		"a link that leads out":      {more(tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "../../etc/passwd"}), "leads out"},
		"an absolute link":           {more(tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}), "leads out"},
		"a hard link that leads out": {more(tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../passwd"}), "leads out"},
		"a long name":                {more(tar.Header{Name: strings.Repeat("d/", 400), Typeflag: tar.TypeDir}), "limit is 512"},
		"a member twice":             {func(t *testing.T) []byte { f, _ := classic(t); return f.pack(t, tar.Header{Name: "manifest.json"}) }, "twice"},
		"a layer twice":              {func(t *testing.T) []byte { f, _ := classic(t); return f.pack(t, tar.Header{Name: "1111/layer.tar"}) }, "twice"},
		"a link instead of a layer":  {more(tar.Header{Name: "1111/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "VERSION"}), "twice"},
		"links in a circle": {func(t *testing.T) []byte {
			f, _ := classic(t)
			delete(f, "1111/layer.tar")
			return f.pack(t, tar.Header{Name: "1111/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "x"}, tar.Header{Name: "1111/x", Typeflag: tar.TypeSymlink, Linkname: "layer.tar"})
		}, "more than 8 links"},
		"a FIFO for a layer": {func(t *testing.T) []byte {
			f, _ := classic(t)
			delete(f, "1111/layer.tar")
			return f.pack(t, tar.Header{Name: "1111/layer.tar", Typeflag: tar.TypeFifo})
		}, "no regular file"},
		"a directory for a layer": {func(t *testing.T) []byte {
			f, _ := classic(t)
			delete(f, "1111/layer.tar")
			return f.pack(t, tar.Header{Name: "1111/layer.tar", Typeflag: tar.TypeDir})
		}, "a directory"},
		"no JSON":             {docker(func(f tree, _ storage.Digest) { f["manifest.json"] = []byte("[{") }), "manifest.json"},
		"another JSON":        {manifestJSON("text"), "manifest.json"},
		"no image":            {manifestJSON([]object{}), "holds no image"},
		"an image of nothing": {manifestJSON([]object{{}}), ""},
		"a config outside":    {manifestJSON([]object{{"Config": "../c"}}), "leads out"},
		"no config":           {docker(func(f tree, id storage.Digest) { delete(f, id.Hex()+".json") }), "lacks"},
		"another config":      {docker(func(f tree, id storage.Digest) { f[id.Hex()+".json"] = []byte("{}") }), "has the digest"},
		"no layer":            {docker(func(f tree, _ storage.Digest) { delete(f, "2222/layer.tar") }), "lacks the layer"},
		"a layer too few": {docker(func(f tree, id storage.Digest) {
			f.json("manifest.json", []object{{"Config": id.Hex() + ".json", "Layers": []string{"1111/layer.tar"}}})
		}), "1 layers and the config 2"},
		"a layer of xz": {docker(func(f tree, _ storage.Digest) { f["1111/layer.tar"] = []byte("\xfd7zXZ\x00") }), "packed by xz"},
		"no name": {docker(func(f tree, id storage.Digest) {
			f.json("manifest.json", []object{{"Config": id.Hex() + ".json", "RepoTags": []string{"No Name"}}})
		}), "invalid reference"},
		"scratch": {docker(func(f tree, id storage.Digest) {
			f.json("manifest.json", []object{{"Config": id.Hex() + ".json", "RepoTags": []string{"scratch"}}})
		}), "reserved"},
		"a large manifest.json":    {docker(func(f tree, _ storage.Digest) { f["manifest.json"] = make([]byte, archive.MaxIndexBytes+1) }), "limit"},
		"a large config":           {docker(func(f tree, id storage.Digest) { f[id.Hex()+".json"] = make([]byte, 9<<20) }), "limit"},
		"too many images":          {manifestJSON(slices.Repeat([]object{{"Config": "x"}}, archive.MaxImages+1)), "limit is 1000"},
		"a large index":            {oci(func(f tree) []object { return slices.Repeat([]object{f.image(t, "amd64", "a")}, archive.MaxImages+1) }), "limit is 1000"},
		"an index of indexes":      {oci(deep), "nested"},
		"an empty index":           {oci(func(tree) []object { return nil }), "holds no image"},
		"no digest":                {oci(func(tree) []object { return []object{{"digest": "../../x"}} }), "not a sha256 digest"},
		"a missing manifest":       {oci(func(tree) []object { return []object{{"digest": string(storage.DigestBytes(nil))}} }), "lacks blobs/sha256"},
		"a manifest of other size": {oci(func(f tree) []object { d := f.image(t, "amd64", "a"); d["size"] = 7; return []object{d} }), "instead of 7"},
		"a manifest of other bytes": {oci(func(f tree) []object {
			d := f.image(t, "amd64", "a")
			name := "blobs/sha256/" + storage.Digest(d["digest"].(string)).Hex()
			f[name] = bytes.Replace(f[name], []byte("2"), []byte("3"), 1)
			return []object{d}
		}), "has the digest"},
		"a media type of nothing": {oci(func(f tree) []object {
			d := f.image(t, "amd64", "a")
			d["mediaType"] = "text/plain"
			return []object{d}
		}), "text/plain"},
		"a missing config": {oci(func(f tree) []object {
			d := f.manifest(config("amd64"))
			delete(f, "blobs/sha256/"+storage.DigestBytes(config("amd64")).Hex())
			return []object{d}
		}), "lacks blobs/sha256"},
		"a missing layer": {oci(func(f tree) []object {
			l := layerTar(t, "f", "x")
			return []object{f.manifest(config("amd64", l), object{"mediaType": typeTar, "digest": string(storage.DigestBytes(l)), "size": len(l)})}
		}), "lacks the layer"},
		"a layer of other size": {oci(func(f tree) []object {
			l := layerTar(t, "f", "x")
			d := f.blob(typeTar, l)
			d["size"] = len(l) + 1
			return []object{f.manifest(config("amd64", l), d)}
		}), "instead of"},
		"a config of more layers": {oci(func(f tree) []object { return []object{f.manifest(config("amd64", []byte("x")))} }), "0 layers and the config 1"},
		"a layer that is none": {oci(func(f tree) []object {
			return []object{f.manifest(config("amd64", []byte("x")), f.blob("text/plain", []byte("x")))}
		}), "media type"},
		"a config that claims a lot": {oci(func(f tree) []object {
			return []object{f.blob(typeManifest, marshal(object{"config": object{"digest": string(storage.DigestBytes(nil)), "size": 1 << 40}}))}
		}), "limit"},
		"a name with another's digest": {oci(func(f tree) []object {
			return []object{named(f.image(t, "amd64", "a"), byContainerd, "x@"+string(storage.DigestBytes(nil)))}
		}), "digest of another image"},
		"a name of two images": {oci(func(f tree) []object {
			return []object{named(f.image(t, "amd64", "a"), byRef, "x:1"), named(f.image(t, "amd64", "b"), byRef, "x:1")}
		}), "name of two images"},
		"other platforms": {oci(func(f tree) []object {
			return []object{f.nested(platform(f.image(t, "arm64", "a"), "arm64"), platform(f.image(t, "s390x", "b"), "s390x"))}
		}), "image is for linux/arm64, linux/s390x and not for linux/amd64"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := read(t, c.archive(t))
			var bad *archive.Error
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v and %v, want an *archive.Error with %q", ids(got), err, c.want)
			}
		})
	}
}

func TestTheNumberOfMembersHasALimit(t *testing.T) {
	headers := make([]tar.Header, archive.MaxMembers+1)
	for i := range headers {
		headers[i] = tar.Header{Name: fmt.Sprint("d/", i), Typeflag: tar.TypeDir}
	}
	if _, err := read(t, pack(t, headers, nil)); err == nil || !strings.Contains(err.Error(), "more than 65536 members") {
		t.Errorf("got %v, want the limit", err)
	}
}

// FuzzImages reads an archive whose describing files are anything.
func FuzzImages(f *testing.F) {
	docker, _ := classic(f)
	f.Add(docker["manifest.json"], []byte(nil), []byte(nil))
	files := tree{}
	d := files.image(f, "amd64", "a")
	raw := files["blobs/sha256/"+storage.Digest(d["digest"].(string)).Hex()]
	files.layout(named(d, byRef, "x:1"))
	f.Add([]byte(nil), files["index.json"], raw)
	f.Fuzz(func(t *testing.T, manifestJSON, index, blob []byte) {
		t.Parallel()
		all := maps.Clone(docker)
		maps.Copy(all, files)
		delete(all, "manifest.json")
		delete(all, "index.json")
		if len(manifestJSON) > 0 {
			all["manifest.json"] = manifestJSON
		}
		if len(index) > 0 {
			all["index.json"] = index
		}
		all["blobs/sha256/"+storage.DigestBytes(blob).Hex()] = blob
		images, err := read(t, all.pack(t))
		if err == nil && len(images) == 0 {
			t.Error("got neither an image nor an error")
		}
		for _, img := range images {
			if len(img.Config) == 0 {
				t.Errorf("got an image without a config: %+v", img)
			}
		}
	})
}

// FuzzRead reads anything as an archive.
func FuzzRead(f *testing.F) {
	docker, _ := classic(f)
	f.Add(docker.pack(f))
	f.Add(docker.pack(f, tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "y"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := read(t, b); err != nil && err.Error() == "" {
			t.Error("got an error without a text")
		}
	})
}
