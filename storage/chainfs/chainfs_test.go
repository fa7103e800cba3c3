package chainfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/chainfs/chainfstest"
	"github.com/mstage/mstage/storage/nstest"
	"github.com/mstage/mstage/storage/tree"
)

var must = chainfstest.Must

func TestMain(m *testing.M) { nstest.Main(m) }

func TestTheViewOfRandomLayersIsWhatOverlayShows(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		dirs := chainfstest.RandomLayers(t, r, 1+r.IntN(6))
		got := chainfstest.List(t, chainfs.New(dirs))
		want := chainfstest.ListDir(t, chainfstest.Mount(t, dirs))
		if diff := chainfstest.Diff(got, want); diff != "" {
			t.Fatalf("seed %d, layers in %s:\n%s", seed, filepath.Dir(dirs[0]), diff)
		}
	}
}

func TestLocateNamesTheInodeThatTheViewShows(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	dirs := chainfstest.RandomLayers(t, r, 6)
	view := chainfs.New(dirs)
	for name := range chainfstest.List(t, view) {
		layer, hostPath, err := view.Locate(name)
		must(t, err)
		e, err := view.Lstat(name)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(hostPath, &st))
		if st.Ino != e.Ino || st.Dev != e.Dev {
			t.Errorf("%s: got inode %d in layer %d, want %d", name, st.Ino, layer, e.Ino)
		}
	}
}

func TestAViewOfNoLayerIsAnEmptyDirectory(t *testing.T) {
	view := chainfs.New(nil)
	e, err := view.Lstat(".")
	must(t, err)
	if e.Mode != tree.TypeDir|0o755 {
		t.Errorf("got mode %o, want a directory of 0755", e.Mode)
	}
	entries, err := view.ReadDir(".")
	if err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v, want no entries", entries, err)
	}
	if _, err := view.Lstat("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

func TestPathsThatLeaveTheViewAreRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	must(t, os.Symlink("/etc", filepath.Join(dir, "etc")))
	must(t, os.Symlink("file", filepath.Join(dir, "link")))
	view := chainfs.New([]string{dir})
	for name, want := range map[string]error{
		"../etc/passwd": fs.ErrInvalid,
		"..":            fs.ErrInvalid,
		"/etc":          fs.ErrInvalid,
		"a/../b":        fs.ErrInvalid,
		"":              fs.ErrInvalid,
		"a\x00b":        fs.ErrInvalid,
		"etc/passwd":    fs.ErrNotExist,
		"file/x":        fs.ErrNotExist,
	} {
		if _, err := view.Lstat(name); !errors.Is(err, want) {
			t.Errorf("Lstat(%q): got %v, want %v", name, err, want)
		}
	}
	if _, err := view.Open("link"); err == nil {
		t.Error("Open followed a link, want an error")
	}
}

func TestALayerThatIsGoneIsNotAMissingName(t *testing.T) {
	_, err := chainfs.New([]string{filepath.Join(t.TempDir(), "gone")}).Lstat("x")
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want an error other than ErrNotExist", err)
	}
}

func TestAPlaceholderReadsAsTheDeviceItStandsFor(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "null")
	must(t, os.WriteFile(name, nil, 0o666))
	must(t, unix.Setxattr(name, chainfs.DeviceXattr, []byte("c 1 3"), 0))
	e, err := chainfs.New([]string{dir}).Lstat("null")
	must(t, err)
	if e.Type() != unix.S_IFCHR || e.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("got type %o rdev %x, want char device 1:3", e.Type(), e.Rdev)
	}
	if got := chainfs.DeviceValue(e); got != "c 1 3" {
		t.Errorf("got %q, want %q", got, "c 1 3")
	}
}

func TestXattrWhiteoutsHideNames(t *testing.T) {
	base := t.TempDir()
	lower, upper := filepath.Join(base, "lower"), filepath.Join(base, "upper")
	for _, dir := range []string{lower, upper} {
		must(t, os.MkdirAll(filepath.Join(dir, "d"), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(lower, "d/gone"), []byte("x"), 0o600))
	must(t, os.WriteFile(filepath.Join(upper, "d/gone"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(upper, "d/empty"), nil, 0o600))
	must(t, unix.Setxattr(filepath.Join(upper, "d/gone"), "user.overlay.whiteout", nil, 0))
	for _, name := range []string{".", "d"} {
		must(t, unix.Setxattr(filepath.Join(upper, name), "user.overlay.opaque", []byte("x"), 0))
	}
	dirs := []string{lower, upper}
	got := chainfstest.List(t, chainfs.New(dirs))
	if diff := chainfstest.Diff(got, chainfstest.ListDir(t, chainfstest.Mount(t, dirs))); diff != "" {
		t.Error(diff)
	}
	if _, ok := got["d/gone"]; ok {
		t.Error("got d/gone, want it hidden")
	}
}

func TestAHundredLayersNeedFewDescriptors(t *testing.T) {
	base := t.TempDir()
	var dirs []string
	for i := range 100 {
		dir := filepath.Join(base, fmt.Sprint(i))
		must(t, os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "usr/lib", fmt.Sprint("f", i)), nil, 0o600))
		dirs = append(dirs, dir)
	}
	d, err := chainfs.New(dirs).OpenDir("usr/lib")
	must(t, err)
	defer d.Close()
	before := openFiles(t)
	entries, err := d.Entries()
	must(t, err)
	if len(entries) != 100 {
		t.Errorf("got %d entries, want 100", len(entries))
	}
	if grown := openFiles(t) - before; grown > 10 {
		t.Errorf("got %d more descriptors, want at most 10", grown)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(fds)
}

func BenchmarkLookupDeepInAHundredLayers(b *testing.B) {
	base := b.TempDir()
	var dirs []string
	for i := range 100 {
		dir := filepath.Join(base, fmt.Sprint(i))
		must(b, os.MkdirAll(filepath.Join(dir, "usr/share/x/y"), 0o755))
		dirs = append(dirs, dir)
	}
	must(b, os.WriteFile(filepath.Join(dirs[0], "usr/share/x/y/z"), nil, 0o600))
	view := chainfs.New(dirs)
	for b.Loop() {
		if _, err := view.Lstat("usr/share/x/y/z"); err != nil {
			b.Fatal(err)
		}
	}
}
