package layertar_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/layertar"
)

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func write(tb testing.TB, dir string) []byte {
	tb.Helper()
	var buf bytes.Buffer
	res, err := layertar.Write(tb.Context(), &buf, dir, layertar.WriteOptions{})
	if err != nil {
		tb.Fatalf("Write: got %v, want no error", err)
	}
	if res.TarBytes != int64(buf.Len()) {
		tb.Errorf("got %d tar bytes, want %d", res.TarBytes, buf.Len())
	}
	return buf.Bytes()
}

func headers(tb testing.TB, b []byte) []*tar.Header {
	tb.Helper()
	var hs []*tar.Header
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return hs
		}
		if err != nil {
			tb.Fatal(err)
		}
		for k := range h.PAXRecords {
			if !strings.HasPrefix(k, "SCHILY.xattr.") {
				delete(h.PAXRecords, k)
			}
		}
		hs = append(hs, h)
	}
}

// compressed returns b in every format; bzip2 and xz by the programs.
func compressed(tb testing.TB, b []byte) map[string][]byte {
	tb.Helper()
	var gz, zs bytes.Buffer
	zw := gzip.NewWriter(&gz)
	sw, err := zstd.NewWriter(&zs)
	if err != nil {
		tb.Fatal(err)
	}
	for _, w := range []io.WriteCloser{zw, sw} {
		if _, err := w.Write(b); err != nil {
			tb.Fatal(err)
		}
		if err := w.Close(); err != nil {
			tb.Fatal(err)
		}
	}
	out := map[string][]byte{"": b, "gzip": gz.Bytes(), "zstd": zs.Bytes()}
	for _, name := range []string{"bzip2", "xz"} {
		cmd := exec.Command(name, "-c")
		cmd.Stdin = bytes.NewReader(b)
		if out[name], err = cmd.Output(); err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
	}
	return out
}

func TestWriteTellsAllThatALayerHolds(t *testing.T) {
	long := strings.Repeat("l", 120)
	in := archive(t,
		dirEntry("./", mode(0o755)),
		file("apt", owner(100, 65534), mode(0o640)),
		dirEntry("d/"), file("d/.wh..wh..opq"), file("d/.wh.gone"), file("d/"+long),
		link(tar.TypeLink, "d/zhard", "apt"), link(tar.TypeSymlink, "link", "/"+strings.Repeat("t/", 100)),
		entry(tar.TypeFifo, "pipe"), file("su", mode(0o6755)), file("späß\nx"))
	dir, _ := unpack(t, in)
	var got []string
	for _, h := range headers(t, write(t, dir)) {
		got = append(got, fmt.Sprintf("%c %04o %d:%d %s>%s %q%q", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Name, h.Linkname, h.Uname, h.Gname))
	}
	want := []string{
		`5 0755 0:0 ./> """"`,
		`0 0640 100:65534 apt> """"`,
		`5 0755 0:0 d/> """"`,
		`0 0000 0:0 d/.wh..wh..opq> """"`,
		`0 0000 0:0 d/.wh.gone> """"`,
		`0 0644 0:0 d/` + long + `> """"`,
		`1 0640 100:65534 d/zhard>apt """"`,
		`2 0777 0:0 link>/` + strings.Repeat("t/", 100) + ` """"`,
		`6 0644 0:0 pipe> """"`,
		"0 0644 0:0 späß\nx> \"\"\"\"",
		`0 6755 0:0 su> """"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestHardLinksAreFoundByInodeAndNotByCount(t *testing.T) {
	dir, other := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere")
	must(t, os.WriteFile(other, []byte("x"), 0o600))
	must(t, os.Link(other, filepath.Join(dir, "alone")))
	for _, h := range headers(t, write(t, dir)) {
		if h.Typeflag == tar.TypeLink {
			t.Errorf("got %s as a hard link to %s, want a file of its own", h.Name, h.Linkname)
		}
	}
}

func TestWriteOfTheSameDirectoryIsTheSame(t *testing.T) {
	dir, _ := unpack(t, archive(t, file("b"), file("a/x"), file("a.b"), link(tar.TypeLink, "c", "b")))
	sub := time.Unix(5, 999_999_999)
	must(t, os.Chtimes(filepath.Join(dir, "b"), sub, sub))
	first := write(t, dir)
	again, _ := unpack(t, first)
	if !bytes.Equal(first, write(t, dir)) || !bytes.Equal(first, write(t, again)) {
		t.Error("got other bytes for the same tree, want the same")
	}
}

func TestSocketsAreSkippedAndReported(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(t, err)
	defer l.Close()
	res, err := layertar.Write(t.Context(), io.Discard, dir, layertar.WriteOptions{})
	must(t, err)
	if len(res.Skipped) != 1 || res.Skipped[0].Path != "s" {
		t.Errorf("got %v, want s skipped", res.Skipped)
	}
}

func TestReservedNamesAreRefusedInLayersOnly(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, ".wh.x"), nil, 0o600))
	if _, err := layertar.Write(t.Context(), io.Discard, dir, layertar.WriteOptions{}); err == nil {
		t.Error("got no error for a layer, want one")
	}
	if _, err := layertar.Write(t.Context(), io.Discard, dir, layertar.WriteOptions{Merged: true}); err != nil {
		t.Errorf("got %v for a merged view, want no error", err)
	}
}

func TestOverlayFSTakesTheDiffDirectory(t *testing.T) {
	base, _ := unpack(t, archive(t, file("d/old"), file("gone"), file("keep"), file("r/old")))
	top, _ := unpack(t, archive(t, dirEntry("d"), file("d/.wh..wh..opq"), file("d/new"), file(".wh.gone"), file("r/.wh.old")))
	target := t.TempDir()
	must(t, unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "userxattr,index=off,lowerdir="+top+":"+base))
	defer func() { must(t, unix.Unmount(target, 0)) }()
	var buf bytes.Buffer
	_, err := layertar.Write(t.Context(), &buf, target, layertar.WriteOptions{Merged: true})
	must(t, err)
	var got []string
	for _, h := range headers(t, buf.Bytes()) {
		got = append(got, h.Name)
	}
	if want := []string{"d/", "d/new", "keep", "r/"}; !slices.Equal(got[len(got)-4:], want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDetectTarLooksAtContent(t *testing.T) {
	plain := archive(t, file("a"))
	for format, b := range compressed(t, plain) {
		if !layertar.DetectTar(bytes.NewReader(b)) {
			t.Errorf("%q: got no tar, want a tar", format)
		}
		r, got, err := layertar.Decompress(bytes.NewReader(b))
		must(t, err)
		all, err := io.ReadAll(r)
		must(t, errors.Join(err, r.Close()))
		if got != format || !bytes.Equal(all, plain) {
			t.Errorf("got format %q and %d bytes, want %q and %d", got, len(all), format, len(plain))
		}
	}
	for _, b := range [][]byte{nil, []byte("x"), make([]byte, 4096), {0x1f, 0x8b, 0x08}, compressed(t, []byte("text"))["gzip"]} {
		if layertar.DetectTar(bytes.NewReader(b)) {
			t.Errorf("%.20q: got a tar, want none", b)
		}
	}
}

func TestXzDictionaryIsBounded(t *testing.T) {
	cmd := exec.Command("xz", "-c", "--lzma2=dict=512MiB")
	cmd.Stdin = strings.NewReader("x")
	b, err := cmd.Output()
	must(t, err)
	if _, _, err := layertar.Decompress(bytes.NewReader(b)); !errors.Is(err, layertar.ErrLimit) {
		t.Errorf("got %v, want ErrLimit", err)
	}
}

func TestCancelEndsBothWays(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	dir, _ := unpack(t, archive(t, file("a")))
	if _, err := layertar.Write(ctx, io.Discard, dir, layertar.WriteOptions{}); !errors.Is(err, why) {
		t.Errorf("Write: got %v, want the cause", err)
	}
	if _, err := layertar.Unpack(ctx, bytes.NewReader(archive(t, file("a"))), t.TempDir(), layertar.UnpackOptions{}); !errors.Is(err, why) {
		t.Errorf("Unpack: got %v, want the cause", err)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
