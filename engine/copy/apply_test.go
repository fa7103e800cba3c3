package copy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/chainfs/chainfstest"
	"github.com/mstage/mstage/storage/nstest"
	"github.com/mstage/mstage/storage/tree"
)

var must = chainfstest.Must

func TestMain(m *testing.M) { nstest.Main(m) }

// model is a naive COPY into one directory of the host: the oracle.
type model struct {
	root  string
	chown *copy.Owner
	// times are the directories whose time is known.
	times map[string]unix.Timespec
}

// newModel copies the merged view to a plain directory.
func newModel(t *testing.T, dirs []string, chown *copy.Owner) *model {
	t.Helper()
	m := &model{root: t.TempDir(), chown: chown, times: map[string]unix.Timespec{}}
	merged := chainfstest.Mount(t, dirs)
	m.merge(t, merged, m.root, false)
	m.cover(t, merged, m.root)
	if len(dirs) == 0 {
		delete(m.times, m.root)
	}
	return m
}

var errModel = errors.New("refused")

// merge copies the content of src into dst as fsutil does.
func (m *model) merge(t *testing.T, src, dst string, chown bool) error {
	t.Helper()
	listed, err := os.ReadDir(src)
	must(t, err)
	for _, d := range listed {
		from, to := filepath.Join(src, d.Name()), filepath.Join(dst, d.Name())
		if _, err := os.Lstat(from); errors.Is(err, os.ErrNotExist) {
			continue // a whiteout that overlayfs lists
		}
		st, err := os.Lstat(to)
		exists := err == nil
		if !d.IsDir() {
			if exists && st.IsDir() {
				return errModel
			}
			m.file(t, from, to, chown)
			continue
		}
		if exists && !st.IsDir() {
			return errModel
		}
		if !exists {
			must(t, os.Mkdir(to, 0o700))
		}
		if err := m.merge(t, from, to, chown); err != nil {
			return err
		}
		m.cover(t, from, to)
		if chown && m.chown != nil {
			must(t, os.Lchown(to, int(m.chown.UID), int(m.chown.GID)))
			m.cover2(t, from, to)
		}
	}
	return nil
}

// cover gives a directory the metadata of another.
func (m *model) cover(t *testing.T, from, to string) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(from, &st))
	must(t, os.Lchown(to, int(st.Uid), int(st.Gid)))
	m.cover2(t, from, to)
}

func (m *model) cover2(t *testing.T, from, to string) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(from, &st))
	must(t, unix.Chmod(to, st.Mode&0o7777))
	xattrs, err := chainfstest.Host(from).Xattrs(".")
	must(t, err)
	for name, value := range xattrs {
		must(t, unix.Setxattr(to, name, value, 0))
	}
	m.times[to] = st.Mtim
}

func (m *model) file(t *testing.T, from, to string, chown bool) {
	t.Helper()
	os.Remove(to)
	var st unix.Stat_t
	must(t, unix.Lstat(from, &st))
	xattrs := map[string][]byte{}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		link, err := os.Readlink(from)
		must(t, err)
		must(t, os.Symlink(link, to))
	case unix.S_IFIFO:
		must(t, unix.Mkfifo(to, 0o600))
	default:
		b, err := os.ReadFile(from)
		must(t, err)
		must(t, os.WriteFile(to, b, 0o600))
		xattrs, err = chainfstest.Host(filepath.Dir(from)).Xattrs(filepath.Base(from))
		must(t, err)
	}
	uid, gid := int(st.Uid), int(st.Gid)
	if chown && m.chown != nil {
		uid, gid = int(m.chown.UID), int(m.chown.GID)
	}
	must(t, os.Lchown(to, uid, gid))
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		must(t, unix.Chmod(to, st.Mode&0o7777))
	}
	for name, value := range xattrs {
		must(t, unix.Setxattr(to, name, value, 0))
	}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

// resolve follows links inside the model; a loop of them is an error.
func (m *model) resolve(name string) (string, error) {
	resolved, _, err := tree.Resolve(chainfstest.Host(m.root), name, true)
	return filepath.Join(m.root, resolved), err
}

func (m *model) mkdirs(t *testing.T, dir string) error {
	t.Helper()
	if st, err := os.Lstat(dir); err == nil {
		if !st.IsDir() {
			return errModel
		}
		return nil
	}
	if err := m.mkdirs(t, filepath.Dir(dir)); err != nil {
		return err
	}
	must(t, os.Mkdir(dir, 0o755)) // 0:0, or the setgid bit and group of its parent
	if m.chown != nil {
		must(t, os.Lchown(dir, int(m.chown.UID), int(m.chown.GID)))
	}
	return nil
}

// copy is COPY src dest, src a path in the mounted source.
func (m *model) copy(t *testing.T, mounted, src, dest string) error {
	t.Helper()
	resolved, exists, err := tree.Resolve(chainfstest.Host(mounted), src, true)
	if err != nil || !exists {
		return errModel
	}
	from := filepath.Join(mounted, resolved)
	to, err := m.resolve(dest)
	if err != nil {
		return errModel
	}
	st, err := os.Lstat(from)
	must(t, err)
	if st.IsDir() {
		if err := m.mkdirs(t, to); err != nil {
			return err
		}
		if resolved != "." && to != m.root {
			m.times[to] = unix.NsecToTimespec(st.ModTime().UnixNano())
		}
		return m.merge(t, from, to, true)
	}
	if strings.HasSuffix(dest, "/") {
		if err := m.mkdirs(t, to); err != nil {
			return err
		}
	}
	if d, err := os.Lstat(to); err == nil && d.IsDir() {
		to = filepath.Join(to, path.Base(src))
	}
	if err := m.mkdirs(t, filepath.Dir(to)); err != nil {
		return err
	}
	if d, err := os.Lstat(to); err == nil && d.IsDir() {
		return errModel
	}
	m.file(t, from, to, true)
	return nil
}

// settle sets the known times of directories, which copying changed.
func (m *model) settle(t *testing.T) {
	t.Helper()
	for dir, when := range m.times {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{when, when}, 0))
	}
}

// comparable drops the times of directories that the copy made.
func (m *model) comparable(l chainfstest.Listing) chainfstest.Listing {
	out := chainfstest.Listing{}
	for name, line := range l {
		if _, known := m.times[filepath.Join(m.root, name)]; !known && strings.HasPrefix(line, "4") {
			before, after, _ := strings.Cut(line, " mtime=")
			_, after, _ = strings.Cut(after, " ")
			line = before + " " + after
		}
		out[name] = line
	}
	return out
}

func TestCopyOfRandomTreesIsWhatANaiveCopyMakes(t *testing.T) {
	sources := []string{"a", "b", "a/b", "c/d", ".", "e", "d"}
	dests := []string{"/a", "/b/", "/a/b/c", "/", "/new/dir/", "/c/d", "/e", "/d/e/"}
	refused := 0
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 2))
		chain := chainfstest.RandomLayers(t, r, r.IntN(4))
		from := chainfstest.RandomLayers(t, r, 1+r.IntN(4))
		source, dest := sources[r.IntN(len(sources))], dests[r.IntN(len(dests))]
		var chown *copy.Owner
		if r.IntN(3) == 0 {
			chown = &copy.Owner{UID: 33, GID: 44}
		}
		o := copy.Options{Chown: chown}
		if r.IntN(2) == 0 {
			o.HardLink = func(layer int) bool { return layer%2 == 0 }
		}
		where := fmt.Sprintf("seed %d: COPY %s %s onto %v", seed, source, dest, chain)

		m := newModel(t, chain, chown)
		wantErr := m.copy(t, chainfstest.Mount(t, from), source, dest)
		m.settle(t)
		staged, res, err := apply(t, chainfs.New(from), copy.Spec{Sources: []string{source}}, chain, dest, o)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("%s: got error %v, want %v", where, err, wantErr)
		}
		if err != nil {
			refused++
			continue
		}
		got := chainfstest.ListDir(t, chainfstest.Mount(t, append(chain, staged)))
		want := chainfstest.ListDir(t, m.root)
		if diff := chainfstest.Diff(m.comparable(got), m.comparable(want)); diff != "" {
			t.Fatalf("%s (%+v):\n%s", where, res, diff)
		}
	}
	if refused > 100 {
		t.Errorf("got %d refused of 150, want most to be copied", refused)
	}
}

// apply selects and applies into a new staged layer.
func apply(t testing.TB, src tree.Tree, s copy.Spec, chain []string, dest string, o copy.Options) (string, copy.Result, error) {
	t.Helper()
	staged := t.TempDir()
	sel, err := copy.Select(context.Background(), src, s)
	if err != nil {
		return staged, copy.Result{}, err
	}
	res, err := copy.Apply(context.Background(), sel, copy.Dest{Chain: chainfs.New(chain), Dir: staged, Path: dest}, o)
	return staged, res, err
}

// digestOf is the fileDigest for Selection.Digest.
func digestOf(src tree.Tree) func(tree.Entry) (storage.Digest, error) {
	return func(e tree.Entry) (storage.Digest, error) {
		f, err := src.Open(e.Path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		return storage.DigestBytes(b), err
	}
}

// write makes files of a directory: "dir/" is a directory, "name -> target" a
// link, anything else a file that holds its own name.
func write(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for _, name := range names {
		name, target, isLink := strings.Cut(name, " -> ")
		full := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(full), 0o755))
		switch {
		case isLink:
			must(t, os.Symlink(target, full))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(full, 0o755))
		default:
			must(t, os.WriteFile(full, []byte(name), 0o644))
		}
	}
	return dir
}

func TestTheDigestOfWhatWasCopiedIsThatOfTheSelection(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 3))
		view := chainfs.New(chainfstest.RandomLayers(t, r, 3))
		spec := copy.Spec{Sources: []string{"*"}, Context: seed%2 == 0, Inline: []copy.InlineFile{{Name: "x", Data: "y"}}}
		sel, err := copy.Select(context.Background(), view, spec)
		if errors.As(err, new(*copy.NotFoundError)) {
			continue // a link to nowhere
		}
		must(t, err)
		want, err := sel.Digest(context.Background(), digestOf(view))
		must(t, err)
		_, res, err := apply(t, view, spec, nil, "/d/", copy.Options{})
		if err != nil && strings.Contains(err.Error(), "cannot ") {
			continue // two sources with the same names
		}
		must(t, err)
		if res.Digest != want {
			t.Errorf("seed %d: got %s, want %s", seed, res.Digest, want)
		}
	}
}

func TestTheDigestChangesWithContentAndNeverWithTime(t *testing.T) {
	digest := func(dir string, context_ bool) storage.Digest {
		src := chainfstest.Host(dir)
		sel, err := copy.Select(context.Background(), src, copy.Spec{Sources: []string{"."}, Context: context_})
		must(t, err)
		d, err := sel.Digest(context.Background(), digestOf(src))
		must(t, err)
		return d
	}
	dir := write(t, "d/f", "g", "l -> g")
	f := filepath.Join(dir, "d/f")
	first := digest(dir, true)
	for name, c := range map[string]struct {
		change func()
		same   bool
	}{
		"another time":                {func() { must(t, os.Chtimes(f, zeroTime, zeroTime)) }, true},
		"another owner, of a context": {func() { must(t, os.Chown(f, 1, 2)) }, true},
		"another mode":                {func() { must(t, os.Chmod(f, 0o600)) }, false},
		"a directory's mode":          {func() { must(t, os.Chmod(filepath.Dir(f), 0o700)) }, false},
		"other bytes":                 {func() { must(t, os.WriteFile(f, []byte("D/F"), 0o600)) }, false},
		"an attribute":                {func() { must(t, unix.Setxattr(f, "user.a", []byte("b"), 0)) }, false},
		"a hard link": {func() {
			must(t, os.Remove(filepath.Join(dir, "g")))
			must(t, os.Link(f, filepath.Join(dir, "g")))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir = write(t, "d/f", "g", "l -> g")
			f = filepath.Join(dir, "d/f")
			c.change()
			if got := digest(dir, true); (got == first) != c.same {
				t.Errorf("got the same digest: %v, want %v", got == first, c.same)
			}
		})
	}
}
