package executor

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

func TestOnlyInodesThatTheDestinationDoesNotShowMayBeLinked(t *testing.T) {
	layer := func(id storage.LayerID, linked ...storage.LayerID) storage.Layer {
		return storage.Layer{ID: id, Linked: linked}
	}
	cases := map[string]struct {
		source, dest []storage.Layer
		want         []bool
	}{
		"strangers":                              {[]storage.Layer{layer("a"), layer("b")}, []storage.Layer{layer("x")}, []bool{true, true}},
		"an empty destination":                   {[]storage.Layer{layer("a")}, nil, []bool{true}},
		"a common layer":                         {[]storage.Layer{layer("a"), layer("b")}, []storage.Layer{layer("a")}, []bool{false, true}},
		"one that was linked before":             {[]storage.Layer{layer("a")}, []storage.Layer{layer("x", "a")}, []bool{false}},
		"one that links to the destination":      {[]storage.Layer{layer("a", "x")}, []storage.Layer{layer("x")}, []bool{false}},
		"both link to a third":                   {[]storage.Layer{layer("a", "z")}, []storage.Layer{layer("x", "z")}, []bool{false}},
		"one that links to what is not there":    {[]storage.Layer{layer("a", "z")}, []storage.Layer{layer("x", "y")}, []bool{true}},
		"the second of two links, the first not": {[]storage.Layer{layer("a", "y", "z"), layer("b")}, []storage.Layer{layer("z")}, []bool{false, true}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := linkable(c.source, c.dest); !slices.Equal(got, c.want) {
				t.Errorf("got %t, want %t", got, c.want)
			}
		})
	}
}

func TestACopyLinksWhereItMayAndSaysSo(t *testing.T) {
	b := newBed(t)
	b.script(commands{"make": writes(map[string]string{"f": "data"})})
	results, err := b.run("FROM scratch AS a\nRUN make\nFROM scratch AS b\nCOPY --from=a /f /f\nCOPY --from=a /f /g\nCOPY --from=a --chmod=600 /f /h\nFROM scratch\nCOPY --from=b / /")
	must(t, err)
	made, copied := results[0].Layers[0], results[1].Layers
	original := inode(t, b.path(made, "f"))
	if got := inode(t, b.path(copied[0], "f")); got != original {
		t.Errorf("the first copy: got inode %d, want %d", got, original)
	}
	if got := copied[0].Linked; !slices.Equal(got, []storage.LayerID{made.ID}) {
		t.Errorf("the first copy: got linked %v, want %v", got, made.ID)
	}
	for i, name := range []string{"", "g", "h"} {
		if i == 0 {
			continue
		}
		if got := inode(t, b.path(copied[i], name)); got == original {
			t.Errorf("%s: got the same inode in one chain again, want a copy", name)
		}
		if got := copied[i].Linked; len(got) != 0 {
			t.Errorf("%s: got linked %v, want none", name, got)
		}
	}
	// The last stage shows neither a nor b: its inodes may be those of both.
	final := results[2].Layers[0]
	for _, id := range []storage.LayerID{made.ID, copied[0].ID} {
		if !slices.Contains(final.Linked, id) {
			t.Errorf("a copy of copies: got linked %v, want %s among them", final.Linked, id)
		}
	}
}

func TestAChainNeverShowsAnInodeTwice(t *testing.T) {
	b := newBed(t)
	b.script(commands{"make": writes(map[string]string{"f": "data"})})
	// c reaches a's file over two ways, and is built on a itself.
	results, err := b.run("FROM scratch AS a\nRUN make\nFROM scratch AS b\nCOPY --from=a /f /over-b\nFROM a\nCOPY --from=b /over-b /x\nCOPY --from=a /f /y\nCOPY --from=b /over-b /z")
	must(t, err)
	seen := map[uint64]string{}
	for i, name := range []string{"f", "x", "y", "z"} {
		ino := inode(t, b.path(results[2].Layers[i], name))
		if other, ok := seen[ino]; ok {
			t.Errorf("%s and %s share an inode", other, name)
		}
		seen[ino] = name
	}
}

func TestACopyTellsWhatIsWrongWithItsWords(t *testing.T) {
	b := newBed(t)
	b.file("file.txt", "x")
	b.script(commands{"make": writes(map[string]string{"dir/file": "x", "plain": "x"})})
	cases := map[string]struct{ text, message, hint string }{
		"a source that is missing in the context":    {"FROM scratch\nCOPY nothing-like-it /", "nothing-like-it: no such file", "the build context, or .dockerignore hides it"},
		"a misspelt source in the context":           {"FROM scratch\nCOPY file.tx /", "file.tx: no such file", `did you mean "file.txt"?`},
		"a source that is missing in a stage":        {"FROM scratch AS a\nRUN make\nFROM scratch\nCOPY --from=a /dir/fil /", "dir/fil: no such file", `did you mean "dir/file"?`},
		"a mode that is none":                        {"FROM scratch\nCOPY --chmod=rw file.txt /", "--chmod=rw", "octal such as 0755"},
		"an owner that the image does not know":      {"FROM scratch\nCOPY --chown=nobody file.txt /", `no user "nobody"`, "a number needs no entry"},
		"a directory over a file":                    {"FROM scratch\nRUN make\nCOPY . /plain", "non-directory: /plain", ""},
		"a user of WORKDIR that is not in the image": {"FROM scratch\nUSER nobody\nWORKDIR /w", `no user "nobody"`, "a number needs no entry"},
		"a user of RUN that is not in the image":     {"FROM scratch\nUSER nobody\nRUN x", `no user "nobody"`, "a number needs no entry"},
		"a mount of what is not there":               {"FROM scratch\nRUN --mount=source=none,target=/x x", "none: no such file", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := b.run(c.text)
			if _, ok := errors.AsType[*StepError](err); !ok {
				t.Fatalf("got %v, want a *StepError", err)
			}
			fault, ok := errors.AsType[*FaultError](err)
			if !ok || !strings.Contains(err.Error(), c.message) || !strings.Contains(fault.Hint, c.hint) {
				t.Errorf("got %v (hint %+v), want %q and the hint %q", err, fault, c.message, c.hint)
			}
		})
	}
}

func TestFilesHaveTheOwnersThatTheirCopyGivesThem(t *testing.T) {
	b := newBed(t)
	b.file("f", "x")
	must(t, os.Chown(b.context+"/f", 77, 88))
	b.script(commands{"users": writes(map[string]string{"etc/passwd": "app:x:5:6::/home/app:/bin/sh\n", "etc/group": "staff:x:9:\n"})})
	layers := b.mustRun("FROM scratch\nRUN users\nCOPY f /context\nCOPY --chown=app f /named\nCOPY --chown=3:staff f /both\nUSER app\nWORKDIR /made/dir\nCOPY f /still-root")
	owner := func(layer int, name string) [2]uint32 {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Lstat(b.path(layers[layer], name), &st))
		return [2]uint32{st.Uid, st.Gid}
	}
	for _, c := range []struct {
		layer int
		name  string
		want  [2]uint32
	}{
		{1, "context", [2]uint32{0, 0}},
		{2, "named", [2]uint32{5, 6}},
		{3, "both", [2]uint32{3, 9}},
		{4, "made", [2]uint32{5, 6}},
		{4, "made/dir", [2]uint32{5, 6}},
		{5, "still-root", [2]uint32{0, 0}},
	} {
		if got := owner(c.layer, c.name); got != c.want {
			t.Errorf("%s: got owner %v, want %v", c.name, got, c.want)
		}
	}
	for _, s := range b.runner.Specs() {
		if s.User.UID != 0 {
			t.Errorf("RUN before USER: got user %+v, want root", s.User)
		}
	}
}

func TestAnOwnerOutsideTheIDMappingIsToldAsSuch(t *testing.T) {
	if b, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.Contains(string(b), "4294967295") {
		t.Skipf("every ID is mapped here: %s", b)
	}
	b := newBed(t)
	b.file("f", "x")
	_, err := b.run("FROM scratch\nCOPY --chown=2000000000 f /f")
	if _, ok := errors.AsType[*copy.OwnerError](err); !ok {
		t.Errorf("got %v, want a *copy.OwnerError", err)
	}
	b.machine.Secrets = map[string][]byte{"s": nil}
	_, err = b.run("FROM scratch\nRUN --mount=type=secret,id=s,uid=2000000000 x")
	if _, ok := errors.AsType[*copy.OwnerError](err); !ok {
		t.Errorf("a secret: got %v, want a *copy.OwnerError", err)
	}
}

func TestTheSizeOfALayerCountsEachInodeOnce(t *testing.T) {
	b := newBed(t)
	b.script(commands{"make": func(ctx context.Context, s sandbox.Spec) error {
		err := writes(map[string]string{"d/a": strings.Repeat("x", 1000), "b": "12345"})(ctx, s)
		return errors.Join(err, os.Link(s.Rootfs+"/d/a", s.Rootfs+"/d/link"), os.Symlink("d/a", s.Rootfs+"/symlink"))
	}})
	if got := b.mustRun("FROM scratch\nRUN make")[0].SizeBytes; got != 1005 {
		t.Errorf("got %d bytes, want 1005", got)
	}
}
