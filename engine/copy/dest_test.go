package copy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/storage/chainfs/chainfstest"
)

func TestNewDirectoriesOnTheWay(t *testing.T) {
	for name, c := range map[string]struct {
		dest string
		o    copy.Options
		want string // of the directory new
	}{
		"are plain":                        {"/new/", copy.Options{}, "0:0 755"},
		"belong to --chown":                {"/new/", copy.Options{Chown: &copy.Owner{UID: 3, GID: 4}}, "3:4 755"},
		"have an octal --chmod":            {"/new/", copy.Options{Chmod: "4710"}, "0:0 710"},
		"have no symbolic --chmod":         {"/new/", copy.Options{Chmod: "go="}, "0:0 755"},
		"inherit setgid and its group":     {"/set/new/", copy.Options{}, "0:9 2755"},
		"inherit setgid and keep --chown":  {"/set/new/", copy.Options{Chown: &copy.Owner{UID: 3, GID: 4}}, "3:4 2755"},
		"inherit setgid through a new one": {"/set/other/new/", copy.Options{}, "0:9 2755"},
	} {
		t.Run(name, func(t *testing.T) {
			lower := write(t, "set/")
			must(t, os.Chown(filepath.Join(lower, "set"), 0, 9))
			must(t, unix.Chmod(filepath.Join(lower, "set"), 0o2755))
			staged, _, err := apply(t, chainfstest.Host(write(t, "f")), copy.Spec{Sources: []string{"f"}, Context: true}, []string{lower}, c.dest, c.o)
			must(t, err)
			st := stat(t, staged, strings.Trim(c.dest, "/"))
			if got := fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestADirectoryGivesItsTimeToTheOneItGoesTo(t *testing.T) {
	lower, src := write(t, "old/x"), write(t, "d/f")
	for _, dir := range []string{filepath.Join(src, "d"), src} {
		must(t, os.Chmod(dir, 0o700))
		must(t, os.Chtimes(dir, zeroTime, zeroTime))
	}
	for dest, c := range map[string]struct {
		source string
		takes  bool
	}{"/old": {"d", true}, "/new": {"d", true}, "/root": {".", false}} {
		staged, _, err := apply(t, chainfstest.Host(src), copy.Spec{Sources: []string{c.source}, Context: true}, []string{lower}, dest, copy.Options{})
		must(t, err)
		st := stat(t, staged, strings.Trim(dest, "/"))
		if got := time.Unix(st.Mtim.Unix()).Equal(zeroTime); got != c.takes || st.Mode&0o7777 != 0o755 {
			t.Errorf("COPY %s %s: got the source's time %v and mode %o, want %v and 755", c.source, dest, got, st.Mode&0o7777, c.takes)
		}
	}
}
