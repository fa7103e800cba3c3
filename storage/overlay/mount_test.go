package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lowerDirs makes n directories with a file of the directory's number each.
func lowerDirs(t testing.TB, n int) (dirs []string) {
	t.Helper()
	base := t.TempDir()
	for i := range n {
		dir := filepath.Join(base, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "f"+strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

func tmpfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestALayerThatIsThereTwiceCountsWhereItIsHighest(t *testing.T) {
	dirs := lowerDirs(t, 3)
	a, b, c := dirs[0], dirs[1], dirs[2]
	if got, want := firstOfEach([]string{a, b, a, c, b}), []string{a, b, c}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFiveHundredLowersAreMountedAndMoreRefused(t *testing.T) {
	lowers := lowerDirs(t, maxLowers+1)
	for name, api := range map[string]MountAPI{"fsconfig": MountFsconfig, "mount": MountClassic} {
		t.Run(name, func(t *testing.T) {
			ms := mounts{links: tmpfs(t), api: api}
			dirs := lowerDirs(t, 2)
			m := overlayMount{lowers: lowers[:maxLowers], upper: dirs[0], work: dirs[1], target: t.TempDir()}
			if err := os.Remove(filepath.Join(dirs[1], "f1")); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := ms.mount(m); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d layers: %v", len(m.lowers), time.Since(start))
			entries, err := os.ReadDir(m.target)
			if err != nil || len(entries) != maxLowers {
				t.Errorf("%d entries, error %v; want %d", len(entries), err, maxLowers)
			}
			if err := unmountDir(m.target); err != nil {
				t.Error(err)
			}
			m.lowers = lowers
			if err := ms.mount(m); err == nil || !strings.Contains(err.Error(), "limit of 500") {
				t.Errorf("%d layers: error %v, want one that names the limit", len(lowers), err)
			}
		})
	}
}

func TestDeviceNodesOfLayersCanNotBeOpened(t *testing.T) {
	for name, api := range map[string]MountAPI{"fsconfig": MountFsconfig, "mount": MountClassic} {
		for access, upper := range map[string]bool{"read-only": false, "writable": true} {
			t.Run(name+" "+access, func(t *testing.T) {
				ms := mounts{links: tmpfs(t), api: api}
				m := overlayMount{lowers: lowerDirs(t, 2), target: t.TempDir()}
				if upper {
					fs := tmpfs(t)
					m.upper, m.work = filepath.Join(fs, "upper"), filepath.Join(fs, "work")
					if err := errors.Join(os.Mkdir(m.upper, 0o755), os.Mkdir(m.work, 0o755)); err != nil {
						t.Fatal(err)
					}
				}
				if err := ms.mount(m); err != nil {
					t.Fatal(err)
				}
				var st unix.Statfs_t
				if err := unix.Statfs(m.target, &st); err != nil || st.Flags&unix.ST_NODEV == 0 {
					t.Errorf("got flags %#x (%v), want nodev among them", st.Flags, err)
				}
				if err := unmountDir(m.target); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func BenchmarkMount(b *testing.B) {
	lowers := lowerDirs(b, 10)
	for name, api := range map[string]MountAPI{"fsconfig": MountFsconfig, "mount": MountClassic} {
		b.Run(name, func(b *testing.B) {
			ms := mounts{links: tmpfs(b), api: api}
			m := overlayMount{lowers: lowers, target: b.TempDir()}
			for b.Loop() {
				if err := ms.mount(m); err != nil {
					b.Fatal(err)
				}
				if err := unmountDir(m.target); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
