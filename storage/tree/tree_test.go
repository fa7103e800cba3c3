package tree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/mstage/mstage/storage/tree"
)

// links is a tree of symbolic links: path to target, "/" for a directory and ""
// for a file.
type links map[string]string

func (l links) Lstat(name string) (tree.Entry, error) {
	if name == "." {
		return tree.Entry{Path: name, Mode: tree.TypeDir | 0o755}, nil
	}
	// A component but the last that is no real directory has no names below it.
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if l[dir] != "/" {
			return tree.Entry{}, fmt.Errorf("lstat %s: %w", name, fs.ErrNotExist)
		}
	}
	target, ok := l[name]
	switch {
	case !ok:
		return tree.Entry{}, fmt.Errorf("lstat %s: %w", name, fs.ErrNotExist)
	case target == "/":
		return tree.Entry{Path: name, Mode: tree.TypeDir | 0o755}, nil
	case target == "":
		return tree.Entry{Path: name, Mode: tree.TypeRegular | 0o644}, nil
	case target == "broken":
		return tree.Entry{}, fs.ErrPermission
	}
	return tree.Entry{Path: name, Mode: tree.TypeSymlink | 0o777, Link: strings.TrimPrefix(target, "root:")}, nil
}

// image has the links that images have, and hostile ones.
var image = links{
	"bin": "usr/bin", "usr": "/", "usr/bin": "/", "usr/bin/sh": "dash", "usr/bin/dash": "",
	"etc": "/", "etc/mtab": "../proc/self/mounts", "etc/abs": "root:/usr/bin", "etc/up": "../../../../usr", "etc/self": "self",
	"etc/root": "root:/", "etc/here": ".", "etc/gone": "nowhere/file", "a": "b", "b": "a", "locked": "broken",
}

func TestResolveFollowsLinksConfinedToTheRoot(t *testing.T) {
	cases := map[string]struct {
		name    string
		keep    bool // the last link stays
		want    string
		missing bool
	}{
		"the root":                            {name: "/", want: "."},
		"nothing":                             {name: "", want: "."},
		"an absolute name":                    {name: "/usr/bin/dash", want: "usr/bin/dash"},
		"dots and slashes":                    {name: "//usr/./bin//dash/", want: "usr/bin/dash"},
		"a link in the middle":                {name: "/bin/dash", want: "usr/bin/dash"},
		"a link at the end":                   {name: "/bin/sh", want: "usr/bin/dash"},
		"a link at the end that stays":        {name: "/bin/sh", keep: true, want: "usr/bin/sh"},
		"a link in the middle does not stay":  {name: "/etc/abs/sh", keep: true, want: "usr/bin/sh"},
		"an absolute link":                    {name: "etc/abs/dash", want: "usr/bin/dash"},
		"a link above the root":               {name: "etc/up/bin", want: "usr/bin"},
		"dots above the root":                 {name: "../../../usr/../etc", want: "etc"},
		"dots behind a link leave its target": {name: "etc/abs/..", want: "usr"},
		"a link to the root":                  {name: "etc/root/usr", want: "usr"},
		"a link to its own directory":         {name: "etc/here/here/abs", want: "usr/bin"},
		"what is missing stays as it is":      {name: "new/dir/file", want: "new/dir/file", missing: true},
		"a missing part below a link":         {name: "bin/new/file", want: "usr/bin/new/file", missing: true},
		"a link to what is missing":           {name: "etc/gone", want: "etc/nowhere/file", missing: true},
		"dots take back what is missing":      {name: "new/../etc", want: "etc", missing: true},
		"below a file":                        {name: "usr/bin/dash/x", want: "usr/bin/dash/x", missing: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, exists, err := tree.Resolve(image, c.name, !c.keep)
			if err != nil || got != c.want || exists == c.missing {
				t.Errorf("got %q, exists %t, %v, want %q, %t", got, exists, err, c.want, !c.missing)
			}
		})
	}
}

func TestResolveEndsInALoop(t *testing.T) {
	for _, name := range []string{"a", "b/x", "etc/self"} {
		if got, _, err := tree.Resolve(image, name, true); err == nil || !strings.Contains(err.Error(), "too many levels") {
			t.Errorf("%s: got %q, %v, want an error", name, got, err)
		}
	}
	if got, exists, err := tree.Resolve(image, "a", false); got != "a" || !exists || err != nil {
		t.Errorf("the link itself: got %q, %t, %v", got, exists, err)
	}
}

func TestResolveFollowsAsManyLinksAsTheKernel(t *testing.T) {
	chain := func(n int) links {
		l := links{"end": ""}
		for i := range n {
			l[fmt.Sprint(i)] = fmt.Sprint(i + 1)
		}
		l[fmt.Sprint(n-1)] = "end"
		return l
	}
	if got, _, err := tree.Resolve(chain(40), "0", true); err != nil || got != "end" {
		t.Errorf("40 links: got %q, %v, want the end", got, err)
	}
	if got, _, err := tree.Resolve(chain(41), "0", true); err == nil {
		t.Errorf("41 links: got %q, want an error", got)
	}
}

func TestResolveTellsWhatCantBeRead(t *testing.T) {
	if _, _, err := tree.Resolve(image, "locked/x", true); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v, want a permission error", err)
	}
}

func TestEntryTypes(t *testing.T) {
	for mode, want := range map[uint32]string{
		tree.TypeDir | 0o1777: "dir", tree.TypeRegular | 0o4755: "regular", tree.TypeSymlink | 0o777: "symlink", 0o020000 | 0o600: "other",
	} {
		e := tree.Entry{Mode: mode}
		got := "other"
		switch {
		case e.IsDir():
			got = "dir"
		case e.IsRegular():
			got = "regular"
		case e.IsSymlink():
			got = "symlink"
		}
		if got != want || e.Type()&^tree.TypeMask != 0 {
			t.Errorf("mode %o: got %s, type %o, want %s", mode, got, e.Type(), want)
		}
	}
}
