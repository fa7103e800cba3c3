package buildcontext

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// oracleTree has names that patterns like to trip over.
var oracleTree = []string{
	"a", "b.go", "ab", "dir/a", "dir/b.go", "dir/sub/a", "dir/sub/b.go", "dir/sub/sub/a.txt", "dir.d/x/y/z",
	"x/y/z", "x/a/b/c", "node/node/node", ".hidden/.a", "sp ace/a b", "new\nline/a.go", "ünï/ö.go", "[a]/b", "!x/!y", "a^b/c", "bad\xff/q",
}

// oracle is the set of visible paths by walking everything and asking
// patternmatcher about each, as BuildKit does without its pruning. ok is false
// when patternmatcher takes no patterns like these.
func oracle(t testing.TB, root string, ignore []byte) (visible []string, ok bool) {
	t.Helper()
	patterns, err := ignorefile.ReadAll(bytes.NewReader(ignore))
	if err != nil {
		return nil, false
	}
	pm, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, false
	}
	infos := map[string]patternmatcher.MatchInfo{}
	seen := map[string]bool{}
	ok = true
	must(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		must(t, err)
		rel, err := filepath.Rel(root, p)
		must(t, err)
		if rel == "." || !ok {
			return nil
		}
		ignored, info, err := pm.MatchesUsingParentResults(rel, infos[path.Dir(rel)])
		if err != nil {
			ok = false
			return nil //nolint:nilerr // told by ok
		}
		infos[rel] = info
		for !ignored && rel != "." {
			seen[rel] = true
			rel = path.Dir(rel)
		}
		return nil
	}))
	for p := range seen {
		visible = append(visible, p)
	}
	slices.Sort(visible)
	return visible, ok
}

// FuzzIgnore compares every pattern file with patternmatcher over a whole tree.
func FuzzIgnore(f *testing.F) {
	for _, seed := range []string{
		"", "*", "**", "a", "dir", "dir/\n!dir/sub", "*\n!dir/sub/a", "**/*.go", "*\n!**/*.go", "dir/**\n!dir/sub/**",
		"dir\n!dir/*\ndir/sub\n!dir/sub/sub", "a/b\n!a", "x/*/b\n!x/a", "?\n!a", "[a-b]*", "dir*/**/a", "**/sub", "d**b", "!a\na",
		"/\n*", "!!x", "!/ x", "./a/../dir", "..", "../dir", "\\a", "a\\", "dir/*/**\n!dir/*/sub/**", "*\n!*/*/**", "new*", "**/a.go",
		"a^b", "ü*", "*\xff", "dir.d", "dir?d/**/z", "**/**/a", "*/*\n!**/a\n**/sub", "dir/sub\n!dir\ndir/b.go", "x[^q]y\n!x/y/z", "**/?", "**/a**",
		"0/|*", "dir/{sub}", "a{1}*", "a|b*",
	} {
		f.Add([]byte(seed))
	}
	root := makeTree(f, oracleTree...)
	outside := f.TempDir()
	f.Fuzz(func(t *testing.T, ignore []byte) {
		if len(ignore) > 500 {
			return
		}
		dockerfile := filepath.Join(outside, "Dockerfile")
		must(t, os.WriteFile(dockerfile+".dockerignore", ignore, 0o600))
		want, ok := oracle(t, root, ignore)
		c, err := Open(t.Context(), Options{Root: root, DockerfilePath: dockerfile})
		if err != nil {
			// Every pattern is compiled here, not only those that are reached.
			return
		}
		defer func() { must(t, c.Close()) }()
		if !ok {
			t.Fatalf("%q: got no error, but patternmatcher takes no such patterns", ignore)
		}
		got := walked(t, c)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%q:\ngot  %q\nwant %q", ignore, strings.Join(got, " "), strings.Join(want, " "))
		}
	})
}
