package buildcontext

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tarOf makes a tar. A header of type 0 is a file of body's bytes.
func tarOf(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Typeflag = cmp.Or(h.Typeflag, tar.TypeReg)
		if h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = cmp.Or(h.Mode, 0o644)
			h.Size = int64(len(e.body))
		}
		must(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(e.body))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

type tarEntry struct {
	tar.Header
	body string
}

func file(name, body string) tarEntry { return tarEntry{tar.Header{Name: name}, body} }
func link(name, target string) tarEntry {
	return tarEntry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}, ""}
}

func hardLink(name, target string) tarEntry {
	return tarEntry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, ""}
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

func TestStandardInputIsADockerfileOrATar(t *testing.T) {
	archive := tarOf(t, file("./Dockerfile", "FROM scratch\n"))
	long := "FROM scratch\n" + strings.Repeat("# long\n", 200)
	for name, c := range map[string]struct {
		in         []byte
		dockerfile string
		isTar      bool
	}{
		"a short Dockerfile": {[]byte("FROM scratch\n"), "FROM scratch\n", false},
		"a long Dockerfile":  {[]byte(long), long, false},
		"nothing at all":     {nil, "", false},
		"a tar":              {archive, "", true},
		"a gzipped tar":      {gzipped(t, archive), "", true},
		"an empty tar":       {tarOf(t), "", true},
		"a tar whose first name needs a record": {
			tarOf(t, file(strings.Repeat("n/", 200)+"n", ""), file("Dockerfile", "FROM scratch\n")), "", true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			in, err := ReadStream(t.Context(), bytes.NewReader(c.in), dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			if (in.Dir == dir) != c.isTar || string(in.Dockerfile) != c.dockerfile {
				t.Errorf("got dir %q, Dockerfile %q, want tar %v, Dockerfile %q", in.Dir, in.Dockerfile, c.isTar, c.dockerfile)
			}
		})
	}
}

func TestATarIsUnpackedAsItSays(t *testing.T) {
	then := time.Unix(1_000_000_000, 0)
	archive := tarOf(
		t,
		tarEntry{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "commit"}}, ""},
		tarEntry{tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o500, ModTime: then}, ""},
		tarEntry{tar.Header{Name: "dir/tool", Mode: 0o4755, ModTime: then}, "old"},
		tarEntry{tar.Header{Name: "/dir/tool", Mode: 0o4755, ModTime: then}, "new"},
		hardLink("dir/same", "dir/tool"), link("absolute", "/etc/passwd"), file("deep/er/f", "f"), link("deep/l", "er"), file("deep/l/g", "g"),
	)
	dir := t.TempDir()
	_, err := ReadStream(t.Context(), bytes.NewReader(archive), dir, nil)
	must(t, err)
	c := open(t, Options{Root: dir})
	wantNames(t, "unpacked", walked(t, c), []string{
		"absolute", "deep", "deep/er", "deep/er/f", "deep/er/g", "deep/l", "dir", "dir/same", "dir/tool",
	})
	tool, err := c.Lstat("dir/tool")
	must(t, err)
	same, err := c.Lstat("dir/same")
	must(t, err)
	if tool.Mode&0o7777 != 0o4755 || !tool.ModTime.Equal(then) || tool.Ino != same.Ino || tool.Size != 3 {
		t.Errorf("got %+v and %+v, want mode 4755, time %v, one inode of 3 bytes", tool, same, then)
	}
	if d, err := c.Lstat("dir"); err != nil || d.Mode&0o7777 != 0o700 || !d.ModTime.Equal(then) {
		t.Errorf("dir: got %+v, %v, want mode 0700 and time %v", d, err, then)
	}
	if got, want := digestOf(t, c, "dir/same"), sumOf("new"); got != want {
		t.Errorf("the later entry wins: got %s, want %s", got, want)
	}
}

func TestAHostileTarIsRefusedAndWritesNothingOutside(t *testing.T) {
	outside := makeTree(t, "victim")
	truncated := tarOf(t, file("f", strings.Repeat("x", 5000)))[:2000]
	bomb := gzipped(t, tarOf(t, file("f", strings.Repeat("\x00", 1<<20))))
	for name, in := range map[string][]byte{
		"a name with dots":                 tarOf(t, file("../victim", "x")),
		"a name with dots inside":          tarOf(t, file("a/../../victim", "x")),
		"a file through an absolute link":  tarOf(t, link("l", outside), file("l/victim", "x")),
		"a file through a relative link":   tarOf(t, link("l", ".."), file("l/victim", "x")),
		"a directory through a link":       tarOf(t, link("l", outside), tarEntry{tar.Header{Name: "l/d/", Typeflag: tar.TypeDir, Mode: 0o755}, ""}),
		"a hard link to the outside":       tarOf(t, hardLink("h", outside+"/victim")),
		"a hard link through a link":       tarOf(t, link("l", outside), hardLink("h", "l/victim")),
		"a hard link with dots":            tarOf(t, hardLink("h", "../victim")),
		"a device":                         tarOf(t, tarEntry{tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""}),
		"a FIFO":                           tarOf(t, tarEntry{tar.Header{Name: "p", Typeflag: tar.TypeFifo}, ""}),
		"a truncated tar":                  truncated,
		"a truncated gzip":                 bomb[:len(bomb)/2],
		"a gzip that is no tar":            gzipped(t, []byte("FROM scratch\n")),
		"xz without a decompressor":        []byte("\xfd7zXZ\x00rest"),
		"a Dockerfile larger than allowed": bytes.Repeat([]byte("#"), maxDockerfileBytes+1),
		"a name longer than a path":        tarOf(t, file(strings.Repeat("n/", 3000)+"n", "")),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ReadStream(t.Context(), bytes.NewReader(in), t.TempDir(), nil); err == nil {
				t.Error("got no error, want one")
			}
			data, err := os.ReadFile(filepath.Join(outside, "victim"))
			if string(data) != "victim" || err != nil {
				t.Errorf("the file outside: got %q, %v, want it untouched", data, err)
			}
			if files, err := os.ReadDir(outside); len(files) != 1 || err != nil {
				t.Errorf("the directory outside: got %v, %v, want one file", files, err)
			}
		})
	}
}

func TestAFileReplacesALinkAndDoesNotFollowIt(t *testing.T) {
	outside := makeTree(t, "victim")
	dir := t.TempDir()
	in := tarOf(t, link("f", outside+"/victim"), file("f", "mine"), link("d", outside), tarEntry{tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, ""}, file("d/x", "x"))
	_, err := ReadStream(t.Context(), bytes.NewReader(in), dir, nil)
	must(t, err)
	wantNames(t, "unpacked", walked(t, open(t, Options{Root: dir})), []string{"d", "d/x", "f"})
	wantNames(t, "outside", walked(t, open(t, Options{Root: outside})), []string{"victim"})
}

func TestTarLimits(t *testing.T) {
	in := tarOf(t, file("a", "12345"), file("b", "67890"))
	for name, c := range map[string]struct {
		limits unpackLimits
		ok     bool
	}{
		"within":           {unpackLimits{bytes: 10, entries: 2}, true},
		"one byte over":    {unpackLimits{bytes: 9, entries: 2}, false},
		"one entry over":   {unpackLimits{bytes: 10, entries: 1}, false},
		"nothing is a lot": {unpackLimits{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := unpackLimited(t.Context(), bytes.NewReader(in), t.TempDir(), c.limits)
			if (err == nil) != c.ok {
				t.Errorf("got %v, want ok %v", err, c.ok)
			}
		})
	}
}

func TestACancelEndsReadingStandardInput(t *testing.T) {
	cause := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := ReadStream(ctx, bytes.NewReader(tarOf(t)), t.TempDir(), nil); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
}

func TestTheCallersDecompressorIsUsed(t *testing.T) {
	archive := tarOf(t, file("f", "x"))
	dir := t.TempDir()
	_, err := ReadStream(t.Context(), strings.NewReader("\x28\xb5\x2f\xfd"), dir, func(io.Reader) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive)), nil
	})
	must(t, err)
	wantNames(t, "unpacked", walked(t, open(t, Options{Root: dir})), []string{"f"})
}

func FuzzReadStream(f *testing.F) {
	f.Add([]byte("FROM scratch\n"))
	f.Add(tarOf(f, file("a/b", "x"), link("l", "../.."), hardLink("h", "a/b")))
	f.Add(gzipped(f, tarOf(f, file("a", "x"))))
	f.Fuzz(func(t *testing.T, in []byte) {
		base := t.TempDir()
		dir := filepath.Join(base, "dir")
		must(t, os.Mkdir(dir, 0o700))
		_, _ = ReadStream(t.Context(), bytes.NewReader(in), dir, nil)
		if files, err := os.ReadDir(base); len(files) != 1 || err != nil {
			t.Fatalf("outside: got %v, %v, want dir only", files, err)
		}
	})
}
