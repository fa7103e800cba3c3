package buildcontext

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/tree"
)

// makeTree writes files: "dir/" is a directory, "a -> b" a link, everything
// else a file that holds its own name.
func makeTree(t testing.TB, names ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range names {
		link, target, isLink := strings.Cut(name, " -> ")
		path := filepath.Join(root, link)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch {
		case isLink:
			must(t, os.Symlink(target, path))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(path, 0o755))
		default:
			must(t, os.WriteFile(path, []byte(name), 0o644))
		}
	}
	return root
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, o Options) *Context {
	t.Helper()
	c, err := Open(context.Background(), o)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// walked lists what Walk shows, "." left out.
func walked(t testing.TB, c *Context) []string {
	t.Helper()
	var got []string
	must(t, c.Walk(t.Context(), ".", func(e tree.Entry) error {
		if e.Path != "." {
			got = append(got, e.Path)
		}
		return nil
	}))
	return got
}

func wantNames(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestIgnoredFilesAreInvisible(t *testing.T) {
	all := []string{
		".git/HEAD", "src/main.go", "src/main_test.go", "src/deep/er/x.go", "docs/a.md", "docs/b.txt",
		"README.md", "node_modules/x/index.js", "node_modules/keep/me.js", "build/out", "build/sub/out.bin",
	}
	for name, c := range map[string]struct {
		ignore string
		want   []string
	}{
		"nothing is ignored without patterns": {"# nothing\n\n", append([]string{
			".git", "src", "src/deep", "src/deep/er", "docs", "node_modules", "node_modules/x", "node_modules/keep", "build", "build/sub",
		}, all...)},
		"everything can be ignored": {"*", nil},
		"an exception shows its directories": {"*\n!src/deep/er/x.go", []string{
			"src", "src/deep", "src/deep/er", "src/deep/er/x.go",
		}},
		"an exception below an excluded directory shows only itself": {"*\n!node_modules/keep", []string{
			"node_modules", "node_modules/keep", "node_modules/keep/me.js",
		}},
		"an exception with a wildcard reaches any depth": {"**\n!**/*.go", []string{
			"src", "src/main.go", "src/main_test.go", "src/deep", "src/deep/er", "src/deep/er/x.go",
		}},
		"the last matching line decides": {"*\n!src\nsrc/deep\n!docs/*.md", []string{
			"src", "src/main.go", "src/main_test.go", "docs", "docs/a.md",
		}},
		"an exception of one level reaches below a directory": {"*\n!build/*/*", []string{
			"build", "build/sub", "build/sub/out.bin",
		}},
		"leading slashes and a byte order mark are dropped": {"\ufeff/*\n!/build/\nbuild/sub", []string{"build", "build/out"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := makeTree(t, all...)
			must(t, os.WriteFile(filepath.Join(root, "Dockerfile"), nil, 0o644))
			must(t, os.WriteFile(filepath.Join(root, "Dockerfile.dockerignore"), []byte(c.ignore+"\nDockerfile*"), 0o644))
			ctx := open(t, Options{Root: root, DockerfilePath: filepath.Join(root, "Dockerfile")})
			wantNames(t, "visible", walked(t, ctx), c.want)
			for _, name := range all {
				_, err := ctx.Lstat(name)
				if got, want := err == nil, slices.Contains(c.want, name); got != want {
					t.Errorf("Lstat(%s): got visible %v (%v), want %v", name, got, err, want)
				}
			}
		})
	}
}

func TestIgnoreFilePrecedence(t *testing.T) {
	root := makeTree(t, "a", "b", "c/Dockerfile")
	must(t, os.WriteFile(filepath.Join(root, ".dockerignore"), []byte("a"), 0o644))
	dockerfile := filepath.Join(root, "c/Dockerfile")

	general := open(t, Options{Root: root, DockerfilePath: dockerfile})
	wantNames(t, "with .dockerignore", walked(t, general), []string{".dockerignore", "b", "c", "c/Dockerfile"})

	must(t, os.WriteFile(dockerfile+".dockerignore", []byte("b\nc/Dockerfile"), 0o644))
	own := open(t, Options{Root: root, DockerfilePath: dockerfile})
	wantNames(t, "with the Dockerfile's own", walked(t, own), []string{".dockerignore", "a", "c", "c/Dockerfile.dockerignore"})
	if got, want := own.IgnoreFile(), dockerfile+".dockerignore"; got != want {
		t.Errorf("IgnoreFile: got %s, want %s", got, want)
	}
	d, err := FindDockerfile(root, "c/Dockerfile")
	if err != nil || string(d.Data) != "c/Dockerfile" || d.Path != dockerfile {
		t.Errorf("an ignored Dockerfile: got %+v, %v, want its text", d, err)
	}
}

func TestInvalidPatternsNameTheirLine(t *testing.T) {
	for name, c := range map[string]struct {
		ignore string
		line   int
	}{
		"an open class":                  {"ok\n\n# note\n[a", 4},
		"an exception of nothing":        {"!", 1},
		"an exception of blanks":         {"a\n!  \n", 2},
		"a range that runs backwards":    {"*\n![z-a]", 2},
		"text that is not UTF-8":         {"a\n\xff*", 2},
		"an escape of nothing":           {"x\\", 1},
		"a line longer than the scanner": {"a\n" + strings.Repeat("b", 70_000), 2},
	} {
		t.Run(name, func(t *testing.T) {
			root := makeTree(t, "f")
			must(t, os.WriteFile(filepath.Join(root, ".dockerignore"), []byte(c.ignore), 0o644))
			_, err := Open(t.Context(), Options{Root: root})
			var e *IgnoreError
			if !errors.As(err, &e) || e.Line != c.line {
				t.Fatalf("got %v, want an IgnoreError of line %d", err, c.line)
			}
			if want := fmt.Sprintf("%s/.dockerignore:%d: ", root, c.line); !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got %q, want prefix %q", err, want)
			}
		})
	}
}

func TestLinksAreEntriesAndNeverFollowed(t *testing.T) {
	outside := makeTree(t, "secret")
	root := makeTree(t, "dir/file", "link -> dir", "out -> "+outside, "self -> self")
	c := open(t, Options{Root: root})
	e, err := c.Lstat("link")
	if err != nil || !e.IsSymlink() || e.Link != "dir" {
		t.Errorf("Lstat(link): got %+v, %v, want a link to dir", e, err)
	}
	for _, path := range []string{"link/file", "out/secret", "../x", "/dir", "dir/../dir", "", "dir/"} {
		if _, err := c.Lstat(path); err == nil {
			t.Errorf("Lstat(%q): got no error, want one", path)
		}
	}
	if _, err := c.Open("out"); !errors.Is(err, errNotRegular) {
		t.Errorf("Open(out): got %v, want %v", err, errNotRegular)
	}
	if _, err := c.ReadDir("link"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadDir(link): got %v, want fs.ErrNotExist", err)
	}
	resolved, exists, err := tree.Resolve(c, "link/file", true)
	if resolved != "dir/file" || !exists || err != nil {
		t.Errorf("Resolve(link/file): got %s %v %v, want dir/file", resolved, exists, err)
	}
}

func TestAContextThatChangesUnderTheBuild(t *testing.T) {
	outside := makeTree(t, "file")
	root := makeTree(t, "gone", "dir/file", "swapped/file", "fifo")
	c := open(t, Options{Root: root})
	walked(t, c)
	must(t, os.Remove(filepath.Join(root, "gone")))
	must(t, os.RemoveAll(filepath.Join(root, "swapped")))
	must(t, os.Symlink(outside, filepath.Join(root, "swapped")))
	must(t, os.Remove(filepath.Join(root, "fifo")))
	must(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))

	for _, path := range []string{"gone", "swapped/file"} {
		if _, err := c.Open(path); !errors.Is(err, errVanished) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%s): got %v, want %v", path, err, errVanished)
		}
		if _, err := c.FileDigest(context.Background(), tree.Entry{Path: path}); !errors.Is(err, errVanished) {
			t.Errorf("FileDigest(%s): got %v, want %v", path, err, errVanished)
		}
	}
	if _, err := c.Open("fifo"); !errors.Is(err, errNotRegular) {
		t.Errorf("Open(fifo): got %v, want %v", err, errNotRegular)
	}
}

func TestEntriesTellWhatLstatTells(t *testing.T) {
	root := makeTree(t, "dir/z", "dir/a", "dir/m -> "+strings.Repeat("x/", 400))
	must(t, unix.Chmod(filepath.Join(root, "dir/z"), 0o4751))
	must(t, os.Link(filepath.Join(root, "dir/z"), filepath.Join(root, "dir/y")))
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(root, "dir/s"))
	must(t, err)
	defer func() { must(t, l.Close()) }()

	c := open(t, Options{Root: root})
	entries, err := c.ReadDir("dir")
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Path)
		want, err := os.Lstat(filepath.Join(root, e.Path))
		must(t, err)
		if e.Size != want.Size() || !e.ModTime.Equal(want.ModTime()) || os.FileMode(e.Mode&0o777) != want.Mode().Perm() {
			t.Errorf("%s: got %+v, want %v", e.Path, e, want)
		}
	}
	if want := []string{"dir/a", "dir/m", "dir/y", "dir/z"}; !slices.Equal(names, want) {
		t.Errorf("ReadDir: got %q, want %q: sorted, without the socket", names, want)
	}
	if got := entries[1].Link; got != strings.Repeat("x/", 400) {
		t.Errorf("a long link: got %d bytes, want 800", len(got))
	}
	if y, z := entries[2], entries[3]; y.Ino != z.Ino || y.Nlink != 2 || z.Mode&0o7777 != 0o4751 {
		t.Errorf("hard links: got %+v and %+v, want one inode with two links and mode 4751", y, z)
	}
	f, err := c.Open("dir/a")
	must(t, err)
	data, err := io.ReadAll(f)
	if string(data) != "dir/a" || err != nil {
		t.Errorf("Open(dir/a): got %q, %v", data, err)
	}
	must(t, f.Close())
}

func TestExtendedAttributesOfTheContentOnly(t *testing.T) {
	root := makeTree(t, "f", "d/", "l -> f")
	for name, value := range map[string]string{"user.note": "1", "user.overlay.opaque": "y", "user.mstage.owner": "0:0"} {
		if err := unix.Setxattr(filepath.Join(root, "f"), name, []byte(value), 0); err != nil {
			t.Skipf("the temporary directory's file system has no user attributes: %v", err)
		}
	}
	c := open(t, Options{Root: root})
	got, err := c.Xattrs("f")
	if err != nil || len(got) != 1 || string(got["user.note"]) != "1" {
		t.Errorf("Xattrs(f): got %q, %v, want user.note only", got, err)
	}
	for _, path := range []string{".", "d", "l"} {
		if got, err := c.Xattrs(path); err != nil || len(got) != 0 {
			t.Errorf("Xattrs(%s): got %q, %v, want none", path, got, err)
		}
	}
}

func TestAnIgnoredDirectoryNeedNotBeReadable(t *testing.T) {
	if os.Getuid() == 0 {
		t.Log("root reads everything: the directory is read, and holds nothing")
	}
	root := makeTree(t, "f", "private/x")
	must(t, os.WriteFile(filepath.Join(root, ".dockerignore"), []byte("private\n!**/*.go"), 0o644))
	must(t, os.Chmod(filepath.Join(root, "private"), 0))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(root, "private"), 0o700) })
	wantNames(t, "visible", walked(t, open(t, Options{Root: root})), []string{".dockerignore", "f"})
}

func TestFindDockerfile(t *testing.T) {
	outside := makeTree(t, "Dockerfile")
	for name, c := range map[string]struct {
		files []string
		file  string
		want  string // Path below the root; "" for an error
	}{
		"the first default":              {[]string{"Containerfile", "dockerfile", "Dockerfile"}, "", "Dockerfile"},
		"the last default":               {[]string{"Containerfile"}, "", "Containerfile"},
		"a named one in the context":     {[]string{"build/x.Dockerfile"}, "build/x.Dockerfile", "build/x.Dockerfile"},
		"none":                           {[]string{"other"}, "", ""},
		"a named one that is missing":    {[]string{"Dockerfile"}, "missing", ""},
		"a default that links inside":    {[]string{"sub/D", "Dockerfile -> sub/D"}, "", "Dockerfile"},
		"a default that links outside":   {[]string{"Dockerfile -> " + outside + "/Dockerfile"}, "", ""},
		"a default that is a directory":  {[]string{"Dockerfile/"}, "", ""},
		"a named one that leads outside": {[]string{"f"}, "../" + filepath.Base(outside) + "/Dockerfile", ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := makeTree(t, c.files...)
			d, err := FindDockerfile(root, c.file)
			if c.want == "" {
				if err == nil {
					t.Fatalf("got %s, want an error", d.Path)
				}
				return
			}
			if want := filepath.Join(root, c.want); err != nil || d.Path != want {
				t.Errorf("got %s, %v, want %s", d.Path, err, want)
			}
		})
	}
}
