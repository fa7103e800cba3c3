package copy_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/storage/chainfs"
)

var zeroTime = time.Unix(0, 0)

func stat(t testing.TB, elem ...string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(elem...), &st))
	return st
}

var always = func(int) bool { return true }

func TestAFileIsLinkedFromItsLayerUnlessItChanges(t *testing.T) {
	for name, c := range map[string]struct {
		o    copy.Options
		want bool
	}{
		"as it is":               {copy.Options{HardLink: always}, true},
		"the owner it has":       {copy.Options{HardLink: always, Chown: &copy.Owner{}}, true},
		"the mode it has":        {copy.Options{HardLink: always, Chmod: "u=rw,go=r"}, true},
		"another owner":          {copy.Options{HardLink: always, Chown: &copy.Owner{UID: 5}}, false},
		"another mode":           {copy.Options{HardLink: always, Chmod: "600"}, false},
		"a layer that may not":   {copy.Options{HardLink: func(int) bool { return false }}, false},
		"without the permission": {copy.Options{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			src := write(t, "d/f")
			staged, res, err := apply(t, chainfs.New([]string{src}), copy.Spec{Sources: []string{"d"}}, nil, "/x", c.o)
			must(t, err)
			same := stat(t, src, "d/f").Ino == stat(t, staged, "x/f").Ino
			if same != c.want || (res.Linked == 1) != c.want || (res.Copied == 0) != c.want {
				t.Errorf("got linked %v, %+v, want %v", same, res, c.want)
			}
			if linked := res.LinkedBytes == 3; res.SizeBytes != 3 || linked != c.want {
				t.Errorf("got %+v, want 3 bytes", res)
			}
		})
	}
}

func TestAnInodeIsLinkedOncePerCopyExceptForItsOwnNames(t *testing.T) {
	src := write(t, "d/f", "e/")
	must(t, os.Link(filepath.Join(src, "d/f"), filepath.Join(src, "d/g")))
	staged, res, err := apply(t, chainfs.New([]string{src}), copy.Spec{Sources: []string{"d", "d/f"}}, nil, "/x/", copy.Options{HardLink: always})
	must(t, err)
	// d/f is replaced by the second source, which must not share its inode.
	if f, g := stat(t, staged, "x/f").Ino, stat(t, staged, "x/g").Ino; f == g {
		t.Error("two sources share an inode, want a copy")
	}
	if res.Copied != 1 || res.Linked != 2 {
		t.Errorf("got %+v, want 2 linked and 1 copied", res)
	}
}

func TestHardLinksWithinACopyStayLinks(t *testing.T) {
	src := write(t, "d/a", "d/s/", "d/z/")
	must(t, os.Link(filepath.Join(src, "d/a"), filepath.Join(src, "d/s/b")))
	must(t, os.Link(filepath.Join(src, "d/a"), filepath.Join(src, "d/z/c")))
	for name, o := range map[string]copy.Options{"copied": {}, "linked": {HardLink: always}, "changed": {HardLink: always, Chmod: "700"}} {
		staged, res, err := apply(t, chainfs.New([]string{src}), copy.Spec{Sources: []string{"d"}}, nil, "/", o)
		must(t, err)
		a, b, c := stat(t, staged, "a"), stat(t, staged, "s/b"), stat(t, staged, "z/c")
		if a.Ino != b.Ino || a.Ino != c.Ino {
			t.Errorf("%s: got inodes %d %d %d, want one", name, a.Ino, b.Ino, c.Ino)
		}
		if res.SizeBytes != 3 || res.Linked+res.Copied != 3 {
			t.Errorf("%s: got %+v, want 3 bytes in 3 names", name, res)
		}
	}
}

func TestAFileWithTooManyNamesIsCopied(t *testing.T) {
	src := write(t, "d/f")
	f := filepath.Join(src, "d/f")
	names := t.TempDir()
	for i := 0; ; i++ {
		err := os.Link(f, filepath.Join(names, fmt.Sprint(i)))
		if errors.Is(err, unix.EMLINK) {
			break
		}
		must(t, err)
		if i > 70_000 {
			t.Skip("this file system has no limit of links")
		}
	}
	staged, res, err := apply(t, chainfs.New([]string{src}), copy.Spec{Sources: []string{"d"}}, nil, "/x", copy.Options{HardLink: always})
	must(t, err)
	if stat(t, src, "d/f").Ino == stat(t, staged, "x/f").Ino || res.Copied != 1 {
		t.Errorf("got %+v, want a copy", res)
	}
}

func TestWritingToALinkedCopyLeavesTheSource(t *testing.T) {
	src := write(t, "d/f")
	staged, _, err := apply(t, chainfs.New([]string{src}), copy.Spec{Sources: []string{"d"}}, nil, "/x", copy.Options{HardLink: always})
	must(t, err)
	upper, work, target := t.TempDir(), t.TempDir(), t.TempDir()
	must(t, unix.Mount("overlay", target, "overlay", 0,
		fmt.Sprintf("userxattr,index=off,lowerdir=%s,upperdir=%s,workdir=%s", staged, upper, work)))
	t.Cleanup(func() { must(t, unix.Unmount(target, unix.MNT_DETACH)) })
	must(t, os.WriteFile(filepath.Join(target, "x/f"), []byte("changed"), 0o600))
	must(t, os.Chmod(filepath.Join(target, "x/f"), 0o777))
	got, err := os.ReadFile(filepath.Join(src, "d/f"))
	must(t, err)
	if string(got) != "d/f" || stat(t, src, "d/f").Mode&0o777 != 0o644 {
		t.Errorf("got source %q of mode %o, want it unchanged", got, stat(t, src, "d/f").Mode&0o777)
	}
}

// bulk makes files of sizeBytes each, 100 to a directory.
func bulk(b *testing.B, files, sizeBytes int) string {
	b.Helper()
	dir := b.TempDir()
	content := make([]byte, sizeBytes)
	for i := range files {
		sub := filepath.Join(dir, "tree", fmt.Sprintf("d%04d", i/100))
		if i%100 == 0 {
			must(b, os.MkdirAll(sub, 0o755))
		}
		must(b, os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%d", i)), content, 0o644))
	}
	return dir
}

func BenchmarkCopyFrom(b *testing.B) {
	for name, size := range map[string][2]int{"5k files 100 MB": {5_000, 20_000}, "50k files 1 GB": {50_000, 20_000}} {
		b.Run(name, func(b *testing.B) {
			src := bulk(b, size[0], size[1])
			b.Run("linked", func(b *testing.B) { benchmark(b, src, copy.Options{HardLink: always}) })
			b.Run("copied", func(b *testing.B) { benchmark(b, src, copy.Options{NoDigest: true}) })
			b.Run("digested", func(b *testing.B) { benchmark(b, src, copy.Options{}) })
			b.Run("cp -a", func(b *testing.B) {
				for b.Loop() {
					dst := b.TempDir()
					must(b, exec.Command("cp", "-a", filepath.Join(src, "tree"), dst).Run())
					discard(b, dst)
				}
			})
		})
	}
}

func benchmark(b *testing.B, src string, o copy.Options) {
	for b.Loop() {
		staged, _, err := apply(b, chainfs.New([]string{src}), copy.Spec{Sources: []string{"tree"}}, nil, "/x", o)
		must(b, err)
		discard(b, staged)
	}
}

// discard removes a result outside the measured time.
func discard(b *testing.B, dir string) {
	b.StopTimer()
	must(b, os.RemoveAll(dir))
	b.StartTimer()
}
