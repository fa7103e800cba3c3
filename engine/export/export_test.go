package export_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/export"
	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/engine/image/imagetest"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
	"github.com/mstage/mstage/storage/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// sample is an image of two layers with all kinds of files.
func sample(tb testing.TB) (*imagetest.Store, storage.Image) {
	tb.Helper()
	s := imagetest.New(tb)
	var layers []storage.Layer
	for name, hs := range map[string][]*tar.Header{"1 base": base(), "2 top": top()} {
		layers = append(layers, s.AddLayer(tb, name, func(dir string) { fill(tb, dir, hs) }))
	}
	slices.SortFunc(layers, func(a, b storage.Layer) int { // map order is random, the base is first
		return strings.Compare(order(string(a.Identity)), order(string(b.Identity)))
	})
	created := time.Unix(1_700_000_000, 0).UTC()
	cfg := imageconfig.Config{OS: "linux", Architecture: "amd64", Created: &created, History: []imageconfig.History{{}, {}}}
	cfg.Config.Cmd = []string{"/bin/hello"}
	img, err := image.New(cfg, layers)
	must(tb, err)
	return s, img
}

func order(identity string) string {
	if identity == string(storage.DigestBytes([]byte("identity of 1 base"))) {
		return "1"
	}
	return "2"
}

func header(kind byte, name string, mode int64, uid int) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: name, Mode: mode, Uid: uid, Gid: uid, ModTime: time.Unix(1000, 0)}
}

func base() []*tar.Header {
	hard := header(tar.TypeLink, "bin/hello2", 0, 0)
	hard.Linkname = "bin/hello"
	long := header(tar.TypeSymlink, "link", 0o777, 0)
	long.Linkname = "/" + strings.Repeat("x/", 80)
	null := header(tar.TypeChar, "null", 0o666, 0)
	null.Devmajor, null.Devminor = 1, 3
	return []*tar.Header{
		header(tar.TypeDir, "bin", 0o755, 0), header(tar.TypeReg, "bin/hello", 0o4755, 0), hard, long, null,
		header(tar.TypeReg, "gone", 0o644, 0), header(tar.TypeDir, "var", 0o2775, 33), header(tar.TypeFifo, "var/pipe", 0o600, 33),
	}
}

func top() []*tar.Header {
	return []*tar.Header{header(tar.TypeReg, ".wh.gone", 0, 0), header(tar.TypeDir, "var", 0o2775, 33), header(tar.TypeReg, "var/mail", 0o600, 8)}
}

// fill unpacks the headers, regular files with a little content.
func fill(tb testing.TB, dir string, hs []*tar.Header) {
	tb.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range hs {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		must(tb, tw.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			_, err := tw.Write([]byte(h.Name))
			must(tb, err)
		}
	}
	must(tb, tw.Close())
	_, err := layertar.Unpack(tb.Context(), &buf, dir, layertar.UnpackOptions{})
	must(tb, err)
}

func run(tb testing.TB, s *imagetest.Store, img storage.Image, spec string, names ...string) (export.Result, []string) {
	tb.Helper()
	o, err := export.ParseOutput(spec)
	must(tb, err)
	var warnings []string
	sink := progress.SinkFunc(func(e progress.Event) { warnings = append(warnings, e.Message) })
	res, err := export.Export(tb.Context(), s.Stores(), img, names, o, sink)
	if err != nil {
		tb.Fatalf("-o %s: got %v, want no error", spec, err)
	}
	return res, warnings
}

// inspect asks skopeo about an image.
func inspect(tb testing.TB, ref string) (out struct {
	Digest string
	Layers []string
	Os     string
},
) {
	tb.Helper()
	b, err := exec.Command("skopeo", "inspect", ref).CombinedOutput()
	if err != nil {
		tb.Fatalf("skopeo inspect %s: %v\n%s", ref, err, b)
	}
	must(tb, json.Unmarshal(b, &out))
	return out
}

var names = []string{"docker.io/library/a:1", "localhost/b:2"}

func TestSkopeoReadsEveryImageFormat(t *testing.T) {
	s, img := sample(t)
	dir := t.TempDir()
	res, _ := run(t, s, img, "type=oci,dest="+dir+"/oci.tar", names...)
	run(t, s, img, "type=oci,tar=false,dest="+dir+"/layout", names...)
	run(t, s, img, "type=docker,dest="+dir+"/docker.tar", names...)
	refs := map[string]bool{
		"oci-archive:" + dir + "/oci.tar:1": true, "oci:" + dir + "/layout:2": true, "oci-archive:" + dir + "/docker.tar:1": true,
		"docker-archive:" + dir + "/docker.tar:a:1": false, "docker-archive:" + dir + "/docker.tar:localhost/b:2": false,
	}
	for ref, sameManifest := range refs {
		got := inspect(t, ref)
		if got.Os != "linux" || len(got.Layers) != 2 || (sameManifest && got.Digest != string(res.Manifest)) {
			t.Errorf("%s: got %+v, want linux, two layers and %s", ref, got, res.Manifest)
		}
		copied := filepath.Join(t.TempDir(), "copy")
		if b, err := exec.Command("skopeo", "copy", "--insecure-policy", ref, "dir:"+copied).CombinedOutput(); err != nil {
			t.Errorf("skopeo copy %s: %v\n%s", ref, err, b)
		}
	}
}

func TestDockerArchiveNamesTheImage(t *testing.T) {
	s, img := sample(t)
	dest := filepath.Join(t.TempDir(), "d.tar")
	res, _ := run(t, s, img, "type=docker,dest="+dest, names...)
	files := members(t, dest)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	must(t, json.Unmarshal(files["manifest.json"], &manifest))
	if got, want := manifest[0].RepoTags, []string{"a:1", "localhost/b:2"}; !slices.Equal(got, want) {
		t.Errorf("got names %q, want %q", got, want)
	}
	if got := storage.DigestBytes(files[manifest[0].Config]); got != res.Image.Sealed.ConfigDigest {
		t.Errorf("got config %s, want %s", got, res.Image.Sealed.ConfigDigest)
	}
	for _, l := range manifest[0].Layers {
		if got := string(storage.DigestBytes(files[l])); got != "sha256:"+filepath.Base(l) {
			t.Errorf("layer %s: got content %s", l, got)
		}
	}
	if !strings.Contains(string(files["repositories"]), `"a":{"1":`) {
		t.Errorf("got repositories %s, want a:1 in it", files["repositories"])
	}
}

func TestSeveralImagesShareTheirBlobs(t *testing.T) {
	s, whole := sample(t)
	cfg := imageconfig.Config{OS: "linux", Architecture: "amd64"}
	below, err := image.New(cfg, whole.Layers[:1])
	must(t, err)
	dest := filepath.Join(t.TempDir(), "d.tar")
	images := []export.Named{{Image: whole, Names: []string{"docker.io/library/whole:1"}}, {Image: below}}
	done, err := export.Images(t.Context(), s.Stores(), images, export.Output{Type: export.TypeDocker, Dest: dest})
	must(t, err)
	files := members(t, dest)
	var manifest []struct {
		RepoTags, Layers []string
	}
	must(t, json.Unmarshal(files["manifest.json"], &manifest))
	if len(manifest) != 2 || len(manifest[0].Layers) != 2 || !slices.Equal(manifest[1].Layers, manifest[0].Layers[:1]) || manifest[1].RepoTags != nil {
		t.Errorf("got %+v, want two images with one layer in common, the second without a name", manifest)
	}
	var index struct {
		Manifests []struct{ Digest storage.Digest }
	}
	must(t, json.Unmarshal(files["index.json"], &index))
	for i, m := range index.Manifests {
		if m.Digest != done[i].Manifest {
			t.Errorf("image %d: got manifest %s in the index, want %s", i, m.Digest, done[i].Manifest)
		}
	}
	// Two layers, two configs, two manifests.
	blobs := 0
	for name := range files {
		if strings.HasPrefix(name, "blobs/sha256/") && !strings.HasSuffix(name, "/") {
			blobs++
		}
	}
	if blobs != 6 || len(index.Manifests) != 2 {
		t.Errorf("got %d blobs and %d manifests, want 6 and 2", blobs, len(index.Manifests))
	}
	if _, err := export.Images(t.Context(), s.Stores(), images, export.Output{Type: export.TypeTar, Dest: dest}); err == nil {
		t.Error("a root file system of two images: got no error")
	}
}

func members(tb testing.TB, name string) map[string][]byte {
	tb.Helper()
	f, err := os.Open(name)
	must(tb, err)
	defer f.Close()
	out := map[string][]byte{}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(tb, err)
		b, err := io.ReadAll(tr)
		must(tb, err)
		if !h.ModTime.Equal(time.Unix(0, 0)) || h.Uid != 0 || h.Uname != "" {
			tb.Errorf("%s: got time %v and owner %d %q, want none", h.Name, h.ModTime, h.Uid, h.Uname)
		}
		out[h.Name] = b
	}
}

func TestZstdLayersAreUnpackedForDocker(t *testing.T) {
	s, img := sample(t)
	img, layers, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	must(t, err)
	seal := layers[0].Seal
	r, _, err := s.Open(t.Context(), seal.Blob)
	must(t, err)
	plain, _, err := layertar.Decompress(r)
	must(t, err)
	bw, err := s.Create(t.Context())
	must(t, err)
	zw, err := zstd.NewWriter(bw)
	must(t, err)
	_, err = io.Copy(zw, plain)
	must(t, errors.Join(err, zw.Close(), plain.Close(), r.Close()))
	seal.Blob, seal.BlobBytes, err = bw.Commit("")
	must(t, err)
	seal.MediaType, seal.TarBytes = "application/vnd.oci.image.layer.v1.tar+zstd", 0
	must(t, s.PutSeal(t.Context(), layers[0].ID, seal))
	dest := filepath.Join(t.TempDir(), "d.tar")
	run(t, s, img, "type=docker,dest="+dest, names...)
	if _, ok := members(t, dest)["blobs/sha256/"+seal.DiffID.Hex()]; !ok {
		t.Error("got no uncompressed layer, want one named by its diff ID")
	}
	if got := inspect(t, "docker-archive:"+dest+":a:1"); len(got.Layers) != 2 {
		t.Errorf("got %d layers, want 2", len(got.Layers))
	}
}

func TestArchivesHaveTheSameBytesEveryTime(t *testing.T) {
	for _, typ := range []string{"oci", "docker", "tar"} {
		var first []byte
		for range 2 {
			s, img := sample(t)
			var buf bytes.Buffer
			o := export.Output{Type: typ, Dest: export.Stdout, Stdout: &buf}
			_, err := export.Export(t.Context(), s.Stores(), img, names, o, nil)
			must(t, err)
			if first == nil {
				first = buf.Bytes()
			} else if !bytes.Equal(first, buf.Bytes()) {
				t.Errorf("%s: got other bytes for the same image, want the same", typ)
			}
		}
	}
}

func TestLayoutDirectoryTakesMoreImages(t *testing.T) {
	s, img := sample(t)
	dir := filepath.Join(t.TempDir(), "new", "layout")
	run(t, s, img, "type=oci,tar=false,dest="+dir, "docker.io/library/a:1")
	run(t, s, img, "type=oci,tar=false,dest="+dir, "docker.io/library/a:1", "docker.io/library/c:3")
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	must(t, err)
	if got := strings.Count(string(b), "io.containerd.image.name"); got != 2 {
		t.Errorf("got %d names in %s, want 2", got, b)
	}
	other := t.TempDir()
	must(t, os.WriteFile(filepath.Join(other, "precious"), nil, 0o600))
	o := export.Output{Type: "oci", Dest: other, Attrs: map[string]string{"tar": "false"}}
	if _, err := export.Export(t.Context(), s.Stores(), img, nil, o, nil); err == nil || !strings.Contains(err.Error(), "neither empty nor") {
		t.Errorf("got %v, want a refusal of a directory with other files", err)
	}
}

func TestTarKeepsOwnersAndDevices(t *testing.T) {
	s, img := sample(t)
	dest := filepath.Join(t.TempDir(), "root.tar")
	run(t, s, img, "type=tar,dest="+dest)
	f, err := os.Open(dest)
	must(t, err)
	defer f.Close()
	got := map[string]*tar.Header{}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		got[h.Name] = h
	}
	if got["gone"] != nil || got[".wh.gone"] != nil {
		t.Error("got a deleted file, want none")
	}
	if h := got["var/mail"]; h == nil || h.Uid != 8 || h.Mode != 0o600 {
		t.Errorf("var/mail: got %+v, want owner 8 and mode 600", h)
	}
	if h := got["null"]; h == nil || h.Typeflag != tar.TypeChar || h.Devminor != 3 {
		t.Errorf("null: got %+v, want the device 1:3", h)
	}
	if h := got["bin/hello2"]; h == nil || h.Linkname != "bin/hello" {
		t.Errorf("bin/hello2: got %+v, want a hard link", h)
	}
	if h := got["bin/hello"]; h == nil || h.Mode != 0o4755 {
		t.Errorf("bin/hello: got %+v, want setuid", h)
	}
}

func TestLocalMergesIntoADirectory(t *testing.T) {
	s, img := sample(t)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "hello"), []byte("mine"), 0o600))
	dest := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dest, "mine"), nil, 0o600))
	must(t, os.Symlink(outside, filepath.Join(dest, "bin")))
	must(t, os.MkdirAll(filepath.Join(dest, "link", "sub"), 0o700))
	for range 2 {
		_, warnings := run(t, s, img, "type=local,dest="+dest)
		if len(warnings) != 1 || !strings.Contains(warnings[0], "/null (device") {
			t.Errorf("got warnings %q, want one about /null", warnings)
		}
	}
	if b, err := os.ReadFile(filepath.Join(outside, "hello")); err != nil || string(b) != "mine" {
		t.Errorf("outside: got %q (%v), want it untouched", b, err)
	}
	for name, want := range map[string]os.FileMode{
		"mine": 0o600, "bin": 0o755 | os.ModeDir, "bin/hello": 0o755 | os.ModeSetuid,
		"var": 0o775 | os.ModeDir | os.ModeSetgid, "var/mail": 0o600, "var/pipe": 0o600 | os.ModeNamedPipe, "link": 0o777 | os.ModeSymlink,
	} {
		st, err := os.Lstat(filepath.Join(dest, name))
		if err != nil || st.Mode() != want {
			t.Errorf("%s: got %v (%v), want %v", name, st, err, want)
		}
	}
	var a, b, mail unix.Stat_t
	must(t, unix.Stat(filepath.Join(dest, "bin/hello"), &a))
	must(t, unix.Stat(filepath.Join(dest, "bin/hello2"), &b))
	must(t, unix.Stat(filepath.Join(dest, "var/mail"), &mail))
	if a.Ino != b.Ino || a.Mtim.Sec != 1000 {
		t.Errorf("got inodes %d and %d of time %d, want one of time 1000", a.Ino, b.Ino, a.Mtim.Sec)
	}
	if mail.Uid != 0 {
		t.Errorf("got owner %d, want the caller", mail.Uid)
	}
	es, err := os.ReadDir(dest)
	must(t, err)
	for _, e := range es {
		if strings.HasPrefix(e.Name(), ".mstage") || e.Name() == "gone" || e.Name() == "null" {
			t.Errorf("got %s, want no such name", e.Name())
		}
	}
}

func TestAnImageWithoutLayersExports(t *testing.T) {
	s := imagetest.New(t)
	img, err := image.New(imageconfig.Config{OS: "linux", Architecture: "amd64"}, nil)
	must(t, err)
	dir := t.TempDir()
	for _, spec := range []string{"type=oci,dest=" + dir + "/o", "type=docker,dest=" + dir + "/d", "type=tar,dest=" + dir + "/t", dir + "/l"} {
		run(t, s, img, spec)
	}
	if es, err := os.ReadDir(dir + "/l"); err != nil || len(es) != 0 {
		t.Errorf("got %v (%v), want an empty directory", es, err)
	}
}

func TestAFailedExportLeavesWhatWasThere(t *testing.T) {
	s, img := sample(t)
	dir := t.TempDir()
	dest := filepath.Join(dir, "out.tar")
	must(t, os.WriteFile(dest, []byte("old"), 0o600))
	_, layers, err := image.Seal(t.Context(), s.Stores(), img, image.SealOptions{Compress: true})
	must(t, err)
	seal := layers[1].Seal
	seal.BlobBytes++ // a blob that is shorter than announced
	must(t, s.PutSeal(t.Context(), layers[1].ID, seal))
	for _, o := range []export.Output{
		{Type: "oci", Dest: dest}, {Type: "oci", Dest: filepath.Join(dir, "new"), Attrs: map[string]string{"tar": "false"}},
	} {
		if _, err := export.Export(t.Context(), s.Stores(), img, nil, o, nil); err == nil {
			t.Errorf("%v: got no error, want one", o)
		}
	}
	es, err := os.ReadDir(dir)
	must(t, err)
	if b, err := os.ReadFile(dest); err != nil || string(b) != "old" || len(es) != 1 {
		t.Errorf("got %q (%v) among %v, want only the old file", b, err, es)
	}
}

func TestAPipeIsWrittenToAndNotReplaced(t *testing.T) {
	s, img := sample(t)
	run(t, s, img, "type=tar,dest=/dev/null")
	if st, err := os.Stat("/dev/null"); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		t.Fatalf("got %v (%v), want /dev/null still a device", st, err)
	}
}
