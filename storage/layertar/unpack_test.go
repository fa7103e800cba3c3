package layertar_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

var when = time.Unix(1_700_000_000, 0)

// file returns the header of a small regular file; its content is its name.
func file(name string, mods ...func(*tar.Header)) *tar.Header {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(name)), ModTime: when}
	for _, m := range mods {
		m(h)
	}
	return h
}

func dirEntry(name string, mods ...func(*tar.Header)) *tar.Header {
	return entry(tar.TypeDir, name, append([]func(*tar.Header){func(h *tar.Header) { h.Mode = 0o755 }}, mods...)...)
}

func entry(kind byte, name string, mods ...func(*tar.Header)) *tar.Header {
	h := &tar.Header{Typeflag: kind, Name: name, Mode: 0o644, ModTime: when}
	for _, m := range mods {
		m(h)
	}
	return h
}

func link(kind byte, name, target string) *tar.Header {
	return entry(kind, name, func(h *tar.Header) { h.Linkname = target })
}

func device(kind byte, name string, major, minor int64) *tar.Header {
	return entry(kind, name, func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor })
}

func owner(uid, gid int) func(*tar.Header) {
	return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
}

func mode(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }

func xattr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

// archive returns the tar of the headers.
func archive(tb testing.TB, hs ...*tar.Header) []byte {
	tb.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range hs {
		if err := tw.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			if _, err := io.CopyN(tw, strings.NewReader(strings.Repeat(h.Name, int(h.Size)/len(h.Name)+1)), h.Size); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func unpack(tb testing.TB, b []byte) (string, layertar.Result) {
	tb.Helper()
	dir := tb.TempDir()
	res, err := layertar.Unpack(tb.Context(), bytes.NewReader(b), dir, layertar.UnpackOptions{})
	if err != nil {
		tb.Fatalf("Unpack: got %v, want no error", err)
	}
	return dir, res
}

// list returns the tree as lines "type mode uid:gid path".
func list(tb testing.TB, dir string) string {
	tb.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		kind := map[uint32]string{
			unix.S_IFREG: "f", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFIFO: "p", unix.S_IFCHR: "c", unix.S_IFBLK: "b",
		}[st.Mode&unix.S_IFMT]
		rel, _ := filepath.Rel(dir, p)
		opaque := ""
		if v := getxattr(p, "user.overlay.opaque"); v != "" {
			opaque = " opaque=" + v
		}
		if kind == "c" && st.Rdev == 0 {
			fmt.Fprintf(&out, "w %s\n", rel)
			return nil
		}
		perm := st.Mode & 0o7777
		if kind == "l" {
			perm = 0
		}
		fmt.Fprintf(&out, "%s %04o %d:%d %s%s\n", kind, perm, st.Uid, st.Gid, rel, opaque)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out.String()
}

func getxattr(p, name string) string {
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(p, name, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func TestUnpackMakesTheDiffDirectory(t *testing.T) {
	cases := map[string]struct {
		in   []*tar.Header
		want string
	}{
		"owners and setuid survive, in this order": {
			[]*tar.Header{dirEntry("d/", owner(5, 6), mode(0o1777)), file("d/su", owner(7, 8), mode(0o4755))},
			"d 1777 5:6 d\nf 4755 7:8 d/su\n",
		},
		"a missing parent belongs to root": {
			[]*tar.Header{file("a/b/c", owner(3, 3))}, "d 0755 0:0 a\nd 0755 0:0 a/b\nf 0644 3:3 a/b/c\n",
		},
		"a later entry replaces a file": {
			[]*tar.Header{file("a"), link(tar.TypeSymlink, "a", "b")}, "l 0000 0:0 a\n",
		},
		"a file replaces a directory with all in it": {
			[]*tar.Header{file("a/b/c"), file("a")}, "f 0644 0:0 a\n",
		},
		"a directory entry updates a directory and keeps what is in it": {
			[]*tar.Header{file("a/b"), dirEntry("a/", mode(0o700), owner(9, 9))}, "d 0700 9:9 a\nf 0644 0:0 a/b\n",
		},
		"a directory replaces a symbolic link": {
			[]*tar.Header{dirEntry("real"), link(tar.TypeSymlink, "a", "real"), dirEntry("a"), file("a/x")},
			"d 0755 0:0 a\nf 0644 0:0 a/x\nd 0755 0:0 real\n",
		},
		"a parent that is a link is followed inside the root": {
			[]*tar.Header{dirEntry("usr/bin"), link(tar.TypeSymlink, "bin", "/usr/bin"), file("bin/sh")},
			"l 0000 0:0 bin\nd 0755 0:0 usr\nd 0755 0:0 usr/bin\nf 0644 0:0 usr/bin/sh\n",
		},
		"a parent link that climbs stops at the root": {
			[]*tar.Header{link(tar.TypeSymlink, "up", "../../../../.."), file("up/x")},
			"l 0000 0:0 up\nf 0644 0:0 x\n",
		},
		"whiteouts": {
			[]*tar.Header{file("a/.wh.gone"), file(".wh.top")}, "w top\nd 0755 0:0 a\nw a/gone\n",
		},
		"an opaque directory, marker first": {
			[]*tar.Header{file("a/.wh..wh..opq"), dirEntry("a/", mode(0o711))}, "d 0711 0:0 a opaque=y\n",
		},
		"a whiteout does not hide the same layer's file": {
			[]*tar.Header{file("a"), file(".wh.a")}, "f 0644 0:0 a\n",
		},
		"a whiteout before a directory of the same layer makes it opaque": {
			[]*tar.Header{file(".wh.a"), dirEntry("a/")}, "d 0755 0:0 a opaque=y\n",
		},
		"a whiteout after a directory of the same layer makes it opaque": {
			[]*tar.Header{dirEntry("a/"), file(".wh.a")}, "d 0755 0:0 a opaque=y\n",
		},
		"metadata of AUFS is left out": {
			[]*tar.Header{file(".wh..wh.plnk/1"), file(".wh..wh.aufs"), file("x")}, "f 0644 0:0 x\n",
		},
		"a FIFO": {
			[]*tar.Header{entry(tar.TypeFifo, "p", mode(0o660), owner(1, 2))}, "p 0660 1:2 p\n",
		},
		"leading slashes and dots": {
			[]*tar.Header{file("/abs"), file("./rel"), file("a/../b")}, "f 0644 0:0 abs\nf 0644 0:0 b\nf 0644 0:0 rel\n",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir, _ := unpack(t, archive(t, c.in...))
			got := strings.Split(strings.TrimSpace(list(t, dir)), "\n")
			want := strings.Split(strings.TrimSpace(c.want), "\n")
			if strings.Join(sorted(got), "\n") != strings.Join(sorted(want), "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	small := layertar.UnpackOptions{MaxEntries: 2, MaxBytes: 4096}
	cases := map[string]struct {
		in   []byte
		want string
	}{
		"a path that leads out":              {archive(t, file("../x")), "leads out of the layer"},
		"a hard link that leads out":         {archive(t, link(tar.TypeLink, "x", "../../etc/passwd")), "leads out"},
		"a hard link to nothing":             {archive(t, link(tar.TypeLink, "x", "y")), "does not have"},
		"a hard link to a directory":         {archive(t, dirEntry("d"), link(tar.TypeLink, "x", "d")), "not a file"},
		"a hard link to a whiteout":          {archive(t, file(".wh.d"), link(tar.TypeLink, "x", "d")), "not a file"},
		"a file as parent":                   {archive(t, file("a"), file("a/b")), "not a directory"},
		"a dangling link as parent":          {archive(t, link(tar.TypeSymlink, "a", "nowhere"), file("a/b")), "link to nothing"},
		"a link loop as parent":              {archive(t, link(tar.TypeSymlink, "a", "a"), file("a/b")), "too many levels"},
		"a whiteout without a name":          {archive(t, file("a/.wh.")), "whiteout without a name"},
		"a whiteout of the directory itself": {archive(t, file("a/.wh..")), "whiteout without a name"},
		"a whiteout as directory":            {archive(t, file(".wh.a/b")), "not a directory"},
		"a file as root":                     {archive(t, link(tar.TypeSymlink, ".", "x")), "not a directory"},
		"an owner of minus one":              {archive(t, file("a", owner(1<<32-1, 0))), "not a user or group ID"},
		"an unknown type":                    {archive(t, entry('V', "x")), "not supported"},
		"an impossible device":               {archive(t, device(tar.TypeChar, "x", 1<<20, 0)), "no such number"},
		"an empty input":                     {nil, "empty input"},
		"something that is no tar":           {bytes.Repeat([]byte("no tar "), 200), "invalid tar header"},
		"a file cut short":                   {archive(t, file("aaaa"))[:514], "unexpected EOF"},
		"too many entries":                   {archive(t, file("a"), file("b"), file("c")), "more than 2 entries"},
		"too many bytes":                     {archive(t, file("a", func(h *tar.Header) { h.Size = 5000 })), "more than 4096 bytes"},
		"a path that is too long":            {archive(t, file(strings.Repeat("a/", 2100)+"x")), "over the limit"},
		"an attribute that is too large":     {archive(t, file("a", xattr("user.x", strings.Repeat("v", 70_000)))), "over the limit"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			opts := small
			if strings.Contains(name, "too l") {
				opts.MaxBytes = 0
			}
			_, err := layertar.Unpack(t.Context(), bytes.NewReader(c.in), t.TempDir(), opts)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestUnpackReportsAnOwnerThatTheNamespaceLacks(t *testing.T) {
	b := archive(t, file("x", owner(4_000_000_000, 12)))
	_, err := layertar.Unpack(t.Context(), bytes.NewReader(b), t.TempDir(), layertar.UnpackOptions{})
	var oe *layertar.OwnerError
	if initialUserNamespace(t) {
		if err != nil {
			t.Fatalf("got %v, want no error where every ID exists", err)
		}
		return
	}
	if !errors.As(err, &oe) || oe.Path != "x" || oe.UID != 4_000_000_000 || oe.GID != 12 || !errors.Is(err, unix.EINVAL) {
		t.Fatalf("got %#v, want an *OwnerError for x, 4000000000:12 with EINVAL", err)
	}
}

// initialUserNamespace reports whether every user ID is mapped.
func initialUserNamespace(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

func TestUnpackKeepsDevicesOneWayOrTheOther(t *testing.T) {
	in := archive(t,
		device(tar.TypeChar, "null", 1, 3), device(tar.TypeBlock, "sda", 8, 0), device(tar.TypeChar, "zero0", 0, 0))
	dir, res := unpack(t, in)
	want := 3
	if initialUserNamespace(t) {
		want = 1 // only 0:0, which would be a whiteout on disk
	}
	if len(res.Devices) != want {
		t.Errorf("got placeholders %v, want %d", res.Devices, want)
	}
	hs := headers(t, write(t, dir))
	for i, w := range []string{"null 51 1:3", "sda 52 8:0", "zero0 51 0:0"} {
		h := hs[i+1]
		if got := fmt.Sprintf("%s %d %d:%d", h.Name, h.Typeflag, h.Devmajor, h.Devminor); got != w {
			t.Errorf("exported device: got %s, want %s", got, w)
		}
	}
}

func TestARootWithoutAnEntryHasATimeFromTheTar(t *testing.T) {
	dir, _ := unpack(t, archive(t, file("a"), file("b")))
	st, err := os.Stat(dir)
	if err != nil || !st.ModTime().Equal(when) {
		t.Errorf("got %v (%v), want %v", st.ModTime(), err, when)
	}
}

func TestUnpackKeepsTimesOfDirectoriesThatChangeLater(t *testing.T) {
	old := func(h *tar.Header) { h.ModTime = time.Unix(1000, 0) }
	dir, _ := unpack(t, archive(t, dirEntry("d/", old), file("d/x"), link(tar.TypeSymlink, "d/l", "x"), dirEntry("./", old)))
	for name, want := range map[string]int64{"d": 1000, "d/x": when.Unix(), "d/l": when.Unix(), ".": 1000} {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.ModTime().Unix(); got != want {
			t.Errorf("time of %s: got %d, want %d", name, got, want)
		}
	}
}

// capNetRaw is cap_net_raw+ep as a revision 2 value.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestAttributesSurviveButThoseOfTheHostDoNot(t *testing.T) {
	v3 := "\x01\x00\x00\x03" + capNetRaw[4:] + "\xa0\x86\x01\x00"
	dir, res := unpack(t, archive(t,
		file("ping", owner(0, 0), xattr("security.capability", capNetRaw)),
		file("ping3", xattr("security.capability", v3)),
		file("x", xattr("user.note", "hello"), xattr("user.overlay.opaque", "y"), xattr("trusted.overlay.opaque", "y"),
			xattr("user.mstage.device", "c 1 3"), xattr("security.selinux", "label"))))
	if len(res.Skipped) != 4 {
		t.Errorf("got %v, want four attributes skipped", res.Skipped)
	}
	if got := getxattr(filepath.Join(dir, "x"), "user.mstage.device"); got != "" {
		t.Errorf("a tar made a placeholder: got %q, want none", got)
	}
	hs := headers(t, write(t, dir))
	for i, want := range []map[string]string{
		{}, {"SCHILY.xattr.security.capability": capNetRaw}, {"SCHILY.xattr.security.capability": capNetRaw}, {"SCHILY.xattr.user.note": "hello"},
	} {
		if got := hs[i].PAXRecords; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got records %q, want %q", hs[i].Name, got, want)
		}
	}
}

func TestDiffIDCoversThePaddingOfTheUncompressedStream(t *testing.T) {
	plain := append(archive(t, file("a")), make([]byte, 7*512)...)
	sum := sha256.Sum256(plain)
	want := storage.Digest("sha256:" + hex.EncodeToString(sum[:]))
	for format, packed := range compressed(t, plain) {
		_, res := unpack(t, packed)
		if res.DiffID != want || res.TarBytes != int64(len(plain)) {
			t.Errorf("%s: got %s of %d bytes, want %s of %d", format, res.DiffID, res.TarBytes, want, len(plain))
		}
	}
}

func TestSizeCountsEachInodeOnceAndNothingReplaced(t *testing.T) {
	_, res := unpack(t, archive(t,
		file("aaaa"), link(tar.TypeLink, "b", "aaaa"), file("dd/x"), file("dd"), file("cc"), file("cc")))
	if want := int64(4 + 2 + 2); res.SizeBytes != want {
		t.Errorf("got %d bytes, want %d", res.SizeBytes, want)
	}
}

func TestLongRunsOfZerosBecomeHoles(t *testing.T) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	const size = 32<<20 + 5
	content := make([]byte, size)
	content[10<<20] = 1
	if err := tw.WriteHeader(file("sparse", func(h *tar.Header) { h.Size = size })); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	dir, _ := unpack(t, buf.Bytes())
	got, err := os.ReadFile(filepath.Join(dir, "sparse"))
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("content differs (%d bytes, %v)", len(got), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "sparse"), &st); err != nil {
		t.Fatal(err)
	}
	if onDisk := st.Blocks * 512; onDisk > 1<<20 {
		t.Errorf("got %d bytes on disk, want less than 1 MiB", onDisk)
	}
}
