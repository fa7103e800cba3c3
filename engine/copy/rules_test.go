package copy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/chainfs/chainfstest"
	"github.com/mstage/mstage/storage/tree"
)

// shape lists a merged result: directories end with "/", links show targets,
// files show what they hold when that isn't their name in the source.
func shape(t *testing.T, dirs ...string) []string {
	t.Helper()
	view := chainfs.New(dirs)
	var lines []string
	var list func(dir string)
	list = func(dir string) {
		entries, err := view.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			switch {
			case e.IsDir():
				lines = append(lines, e.Path+"/")
				list(e.Path)
			case e.IsSymlink():
				lines = append(lines, e.Path+" -> "+e.Link)
			default:
				lines = append(lines, e.Path)
			}
		}
	}
	list(".")
	return lines
}

func TestWhatGoesWhere(t *testing.T) {
	chain := []string{"bin -> usr/bin", "usr/bin/sh", "dir/f", "dir/sub/", "flink -> dir/f", "dlink -> dir", "gone -> nowhere"}
	for name, c := range map[string]struct {
		sources []string
		dest    string
		want    []string // besides the chain's
		err     string
	}{
		"a file to a new name":                        {[]string{"f"}, "/new", []string{"new"}, ""},
		"a file into a directory":                     {[]string{"f"}, "/dir/sub", []string{"dir/sub/f"}, ""},
		"a trailing slash makes a directory":          {[]string{"f"}, "/new/", []string{"new/", "new/f"}, ""},
		"a directory's content":                       {[]string{"d"}, "/new", []string{"new/", "new/.hidden", "new/e/", "new/e/g", "new/h/", "new/h/i", "new/l -> g"}, ""},
		"several sources go into a directory":         {[]string{"f", "d/e/g"}, "/new/", []string{"new/", "new/f", "new/g"}, ""},
		"several sources into one that exists":        {[]string{"f", "d/e/g"}, "/dir/sub", []string{"dir/sub/f", "dir/sub/g"}, ""},
		"directories make one directory":              {[]string{"d/e", "d/h"}, "/new", []string{"new/", "new/g", "new/i"}, ""},
		"several sources for one new file":            {[]string{"f", "d/e/g"}, "/new", nil, "several sources for one file: /new"},
		"several matches for one file":                {[]string{"d/e*/*", "f"}, "/dir/f", nil, "several sources for one file: /dir/f"},
		"a wildcard":                                  {[]string{"d/[^hl]*"}, "/new/", []string{"new/", "new/.hidden", "new/g"}, ""},
		"a wildcard that matches nothing":             {[]string{"x*"}, "/new/", nil, ""},
		"a wildcard that matches nothing, and a file": {[]string{"f", "x*"}, "/new", []string{"new"}, ""},
		"a named link is followed and keeps its name": {[]string{"link"}, "/new/", []string{"new/", "new/link"}, ""},
		"through a link in the destination":           {[]string{"f"}, "/bin/", []string{"usr/bin/f"}, ""},
		"onto a link to a directory":                  {[]string{"f"}, "/dlink", nil, ""},
		"onto a link to nowhere":                      {[]string{"f"}, "/gone", []string{"nowhere"}, ""},
		"out of the destination's root":               {[]string{"f"}, "/../../new", []string{"new"}, ""},
		"a directory onto a file":                     {[]string{"d"}, "/dir/f", nil, "cannot copy to non-directory: /dir/f"},
		"a file onto a directory of its name":         {[]string{"sub"}, "/dir/", nil, "cannot replace directory /dir/sub"},
		"below a file":                                {[]string{"f"}, "/dir/f/x", nil, "not a directory"},
		"a missing source":                            {[]string{"nope"}, "/new", nil, "nope: no such file or directory"},
		"a link out of the source":                    {[]string{"out"}, "/new", nil, "out: no such file or directory"},
		"a bad pattern":                               {[]string{"[a"}, "/new", nil, "syntax error in pattern"},
		"the root of the source":                      {[]string{"/d/e"}, "/", []string{"g"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			lower := write(t, chain...)
			src := write(t, "f", "sub", "d/e/g", "d/h/i", "d/.hidden", "d/l -> g", "link -> f", "out -> ../../../../etc/nope")
			staged, _, err := apply(t, chainfs.New([]string{src}), copy.Spec{Sources: c.sources}, []string{lower}, c.dest, copy.Options{})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			must(t, err)
			got := shape(t, lower, staged)
			for _, line := range shape(t, lower) {
				got = slices.DeleteFunc(got, func(s string) bool { return s == line })
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestParentsAreRepeatedAsTheChainShowsThem(t *testing.T) {
	lower := write(t, "tmp/x/")
	must(t, unix.Chmod(filepath.Join(lower, "tmp"), 0o1777))
	must(t, unix.Setxattr(filepath.Join(lower, "tmp"), "user.a", []byte("b"), 0))
	must(t, os.Chown(filepath.Join(lower, "tmp/x"), 7, 8))
	must(t, os.Chtimes(filepath.Join(lower, "tmp"), zeroTime, zeroTime))
	staged, _, err := apply(t, chainfstest.Host(write(t, "f")), copy.Spec{Sources: []string{"f"}, Context: true}, []string{lower}, "/tmp/x/y/f", copy.Options{Chown: &copy.Owner{UID: 3, GID: 4}})
	must(t, err)
	want := chainfstest.ListDir(t, lower)
	got := chainfstest.ListDir(t, staged)
	for _, name := range []string{".", "tmp", "tmp/x"} {
		if got[name] != want[name] {
			t.Errorf("%s: got %s, want %s", name, got[name], want[name])
		}
	}
	if st := stat(t, staged, "tmp/x/y"); st.Uid != 3 || st.Gid != 4 || st.Mode&0o7777 != 0o755 {
		t.Errorf("got %d:%d %o, want the new parent 3:4 755", st.Uid, st.Gid, st.Mode&0o7777)
	}
}

func TestContextFilesBelongToRootAndInlineFilesAre0644(t *testing.T) {
	src := write(t, "f")
	must(t, os.Chown(filepath.Join(src, "f"), 5, 6))
	spec := copy.Spec{Sources: []string{"f"}, Inline: []copy.InlineFile{{Name: "note", Data: "hello"}}, Context: true}
	staged, res, err := apply(t, chainfstest.Host(src), spec, nil, "/d/", copy.Options{})
	must(t, err)
	if st := stat(t, staged, "d/f"); st.Uid != 0 || st.Gid != 0 {
		t.Errorf("got %d:%d, want 0:0", st.Uid, st.Gid)
	}
	b, err := os.ReadFile(filepath.Join(staged, "d/note"))
	must(t, err)
	if st := stat(t, staged, "d/note"); string(b) != "hello" || st.Mode&0o7777 != 0o644 || res.SizeBytes != 6 {
		t.Errorf("got %q %o %+v, want hello 644 and 6 bytes", b, st.Mode&0o7777, res)
	}
}

func TestAMissingSourceGetsSuggestions(t *testing.T) {
	src := chainfstest.Host(write(t, "app/package.json", "app/packages/", "app/x"))
	_, err := copy.Select(context.Background(), src, copy.Spec{Sources: []string{"app/pakage.json"}})
	var missing *copy.NotFoundError
	if !errors.As(err, &missing) || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v, want a NotFoundError", err)
	}
	if want := []string{"app/package.json"}; !slices.Equal(missing.Suggestions, want) {
		t.Errorf("got %q, want %q", missing.Suggestions, want)
	}
}

func TestChmod(t *testing.T) {
	const dir, file = tree.TypeDir, tree.TypeRegular
	for name, c := range map[string]struct {
		chmod      string
		mode, want uint32
	}{
		"octal":                     {"755", file | 0o4600, file | 0o755},
		"octal with setuid":         {"04755", file | 0o600, file | 0o4755},
		"X of a directory":          {"u=rwX,go=rX", dir | 0o700, dir | 0o755},
		"X of a plain file":         {"a+X", file | 0o644, file | 0o644},
		"X of a program":            {"a+X", file | 0o744, file | 0o755},
		"nobody named means all":    {"+w", file | 0o444, file | 0o666},
		"copy of the user's bits":   {"go=u", file | 0o741, file | 0o777},
		"setuid, setgid and sticky": {"u+s,g+s,+t", file | 0o755, file | 0o7755},
		"sticky with a":             {"a+t", file | 0o755, file | 0o1755},
		"sticky of others is none":  {"o+t", file | 0o755, file | 0o755},
		"equals keeps sticky":       {"a=rX", dir | 0o1777, dir | 0o1555},
		"equals sets sticky":        {"u=rwt", dir | 0o777, dir | 0o1677},
		"several operators":         {"u+x-w", file | 0o600, file | 0o500},
		"equals clears":             {"o=", file | 0o777, file | 0o770},
		"a link has none":           {"777", tree.TypeSymlink | 0o755, tree.TypeSymlink | 0o755},
		"nothing":                   {"", file | 0o640, file | 0o640},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := copy.ParseChmod(c.chmod)
			must(t, err)
			if got := m.Apply(c.mode); got != c.want {
				t.Errorf("got %o, want %o", got, c.want)
			}
		})
	}
	for _, bad := range []string{"8", "10000", "u", "z+x", "u+q", "u+x,", "-1 ", "u+xg"} {
		if _, err := copy.ParseChmod(bad); err == nil {
			t.Errorf("ParseChmod(%q): got no error", bad)
		}
	}
}

func TestOwnersAndUsers(t *testing.T) {
	image := write(t, "etc/")
	must(t, os.WriteFile(filepath.Join(image, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n# no\nbad\nwww:x:33:34:w:/var/www:/bin/sh\nold:x:40:41::\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(image, "etc/group"), []byte("root:x:0:\nweb:x:35:www\nmail:x:8:old,www\nwww:x:34:www\n"), 0o644))
	view := chainfs.New([]string{image})
	for chown, want := range map[string]string{
		"www": "33:34", "www:mail": "33:8", "5": "5:5", "5:6": "5:6", "root": "0:0", "www:": "33:34",
		":web": "0:35", "0:web": "0:35", "nobody": "error", "1:nogroup": "error", "": "error", "4294967295": "error",
	} {
		uid, gid, err := copy.LookupOwner(view, chown)
		got := fmt.Sprintf("%d:%d", uid, gid)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("--chown=%s: got %s (%v), want %s", chown, got, err, want)
		}
	}
	for spec, want := range map[string]string{
		"": "0 0 [0] /root", "root": "0 0 [0] /root", "www": "33 34 [34 35 8] /var/www", "33": "33 34 [34 35 8] /var/www",
		"www:mail": "33 8 [8] /var/www", "77": "77 0 [0] /", "77:78": "77 78 [78] /", "old": "40 41 [41 8] /", "nobody": "error",
	} {
		u, err := copy.LookupUser(view, spec)
		got := fmt.Sprintf("%d %d %d %s", u.UID, u.GID, u.Groups, u.Home)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("USER %s: got %s (%v), want %s", spec, got, err, want)
		}
	}
	if u, err := copy.LookupUser(chainfs.New(nil), ""); err != nil || u.Home != "/root" {
		t.Errorf("got %+v, %v, want root in an image without accounts", u, err)
	}
}

func TestAnAccountFileThatLeadsOutIsNotRead(t *testing.T) {
	image := write(t, "etc/passwd -> ../../../../../../../etc/passwd")
	if u, err := copy.LookupUser(chainfs.New([]string{image}), "daemon"); err == nil {
		t.Errorf("got %+v from the host's accounts, want an error", u)
	}
}

func TestAnOwnerOutsideTheMappingIsAnOwnerError(t *testing.T) {
	maps, err := os.ReadFile("/proc/self/uid_map")
	must(t, err)
	if strings.Contains(string(maps), "4294967295") {
		t.Skip("every id is mapped here: the check needs a user namespace")
	}
	_, _, err = apply(t, chainfstest.Host(write(t, "f")), copy.Spec{Sources: []string{"f"}, Context: true}, nil, "/f", copy.Options{Chown: &copy.Owner{UID: 2_000_000_000, GID: 1}})
	var owner *copy.OwnerError
	if !errors.As(err, &owner) || owner.UID != 2_000_000_000 || owner.Path != "f" {
		t.Errorf("got %v, want an OwnerError for f", err)
	}
}

func TestDevicesAndSockets(t *testing.T) {
	src := write(t, "d/f")
	must(t, os.WriteFile(filepath.Join(src, "d/null"), nil, 0o666))
	must(t, unix.Setxattr(filepath.Join(src, "d/null"), chainfs.DeviceXattr, []byte("c 1 3"), 0))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(fd)
	t.Chdir(filepath.Join(src, "d"))
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "sock"}))
	staged, _, err := apply(t, chainfs.New([]string{src}), copy.Spec{Sources: []string{"d"}}, nil, "/", copy.Options{HardLink: always})
	must(t, err)
	e, err := chainfs.New([]string{staged}).Lstat("null")
	must(t, err)
	if e.Type() != unix.S_IFCHR || e.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("got type %o rdev %d, want the device 1:3", e.Type(), e.Rdev)
	}
	if got, want := shape(t, staged), []string{"f", "null"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestACancelledCopyReturnsItsCause(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	sel, err := copy.Select(ctx, chainfstest.Host(write(t, "d/f")), copy.Spec{Sources: []string{"d"}})
	must(t, err)
	cancel(cause)
	_, err = copy.Apply(ctx, sel, copy.Dest{Chain: chainfs.New(nil), Dir: t.TempDir(), Path: "/"}, copy.Options{})
	if !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
}

// archive makes a tar of headers; a regular file holds its name.
func archive(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(h.Name))
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func TestAddUnpacksArchives(t *testing.T) {
	file := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 3, Gid: 4}
	}
	dir := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o1770, Uid: 5}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
	}
	for name, c := range map[string]struct {
		headers []tar.Header
		want    []string // besides to/ and what is in the chain
		err     string
	}{
		"files and directories":             {[]tar.Header{dir("d/"), file("d/f"), file("n/e/w")}, []string{"to/d/", "to/d/f", "to/n/", "to/n/e/", "to/n/e/w"}, ""},
		"a link of the archive stays below": {[]tar.Header{link("l", "/etc"), file("l/f")}, []string{"to/etc/", "to/etc/f", "to/l -> /etc"}, ""},
		"a link that climbs stays below":    {[]tar.Header{link("l", "../../.."), file("l/f")}, []string{"to/f", "to/l -> ../../.."}, ""},
		"a link of the chain is followed":   {[]tar.Header{file("clink/f")}, []string{"to/old/f"}, ""},
		"a file replaces a directory":       {[]tar.Header{file("old")}, []string{"to/old"}, ""},
		"a directory replaces a link":       {[]tar.Header{dir("clink"), file("clink/f")}, []string{"to/clink/", "to/clink/f"}, ""},
		"file, then directory: not merged":  {[]tar.Header{file("old"), dir("old"), file("old/new")}, []string{"to/old/", "to/old/new"}, ""},
		"a directory, then a file over it":  {[]tar.Header{dir("d"), file("d/f"), file("d")}, []string{"to/d"}, ""},
		"a hard link":                       {[]tar.Header{file("f"), hard("g", "f")}, []string{"to/f", "to/g"}, ""},
		"a hard link into the chain":        {[]tar.Header{hard("g", "old/kept")}, []string{"to/g"}, ""},
		"a name that leads out":             {[]tar.Header{file("../f")}, nil, "leads out"},
		"a hard link that leads out":        {[]tar.Header{hard("f", "../../etc/passwd")}, nil, "leads out"},
		"a hard link to nothing":            {[]tar.Header{hard("f", "nothing")}, nil, "does not exist"},
		"below a file":                      {[]tar.Header{file("f"), file("f/g")}, nil, "not a directory"},
		"an owner that can't be":            {[]tar.Header{{Name: "f", Typeflag: tar.TypeFifo, Uid: 1 << 33, Format: tar.FormatPAX}}, nil, "no such id"},
		"the archive's own root":            {[]tar.Header{dir("./"), file("./f")}, []string{"to/f"}, ""},
		"a name twice":                      {[]tar.Header{file("f"), file("f")}, []string{"to/f"}, ""},
		"a device":                          {[]tar.Header{{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, []string{"to/null"}, ""},
		"a device that would be a whiteout": {[]tar.Header{{Name: "old", Typeflag: tar.TypeChar}}, []string{"to/old"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			src, lower := write(t), write(t, "to/old/kept", "to/clink -> old")
			var packed bytes.Buffer
			gz := gzip.NewWriter(&packed)
			_, err := gz.Write(archive(t, c.headers...))
			must(t, err)
			must(t, gz.Close())
			must(t, os.WriteFile(filepath.Join(src, "a.tgz"), packed.Bytes(), 0o600))
			host := chainfstest.Host(src)
			spec := copy.Spec{Sources: []string{"a.tgz"}, Context: true}
			staged, res, err := apply(t, host, spec, []string{lower}, "/to", copy.Options{Unpack: true})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			must(t, err)
			sel, err := copy.Select(context.Background(), host, spec)
			must(t, err)
			want, err := sel.Digest(context.Background(), digestOf(host))
			must(t, err)
			if res.Digest != want {
				t.Errorf("got digest %s, want %s", res.Digest, want)
			}
			checkUnpacked(t, lower, staged, c.want)
			if strings.HasPrefix(name, "file, then") && slices.Contains(shape(t, lower, staged), "to/old/kept") {
				t.Error("got to/old/kept, want it hidden")
			}
		})
	}
}

// checkUnpacked compares what came on top of the chain, and how many names
// overlayfs shows.
func checkUnpacked(t *testing.T, lower, staged string, want []string) {
	t.Helper()
	mounted := chainfstest.ListDir(t, chainfstest.Mount(t, []string{lower, staged}))
	got := shape(t, lower, staged)
	if len(got) != len(mounted)-1 {
		t.Errorf("got %q, the mount has %d names", got, len(mounted)-1)
	}
	for _, line := range []string{"to/", "to/clink -> old", "to/old/", "to/old/kept"} {
		if !slices.Contains(want, line) {
			got = slices.DeleteFunc(got, func(s string) bool { return s == line })
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAddKeepsAnArchivesOwnersAndCopiesWhatIsNone(t *testing.T) {
	src := write(t, "plain.tar")
	must(t, os.WriteFile(filepath.Join(src, "a"), archive(t, tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 3, Gid: 4}), 0o600))
	spec := copy.Spec{Sources: []string{"a", "plain.tar"}, Context: true}
	staged, _, err := apply(t, chainfstest.Host(src), spec, nil, "/d/", copy.Options{Unpack: true, Chmod: "600"})
	must(t, err)
	if st := stat(t, staged, "d/f"); st.Uid != 3 || st.Gid != 4 || st.Mode&0o7777 != 0o4755 {
		t.Errorf("got %d:%d %o, want 3:4 4755", st.Uid, st.Gid, st.Mode&0o7777)
	}
	if got, want := shape(t, staged), []string{"d/", "d/f", "d/plain.tar"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	staged, _, err = apply(t, chainfstest.Host(src), spec, nil, "/d/", copy.Options{Unpack: true, Chown: &copy.Owner{UID: 9, GID: 9}})
	must(t, err)
	if st := stat(t, staged, "d/f"); st.Uid != 9 || st.Gid != 9 {
		t.Errorf("got %d:%d, want --chown's 9:9", st.Uid, st.Gid)
	}
}

// sparseArchive holds one file of realSize zeros that take no room in it.
func sparseArchive(t *testing.T, realSize int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// The writer refuses the records under their own names. Source: GNU tar
	// manual, "PAX Format, Version 1.0".
	must(t, w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o644, Size: 512, PAXRecords: map[string]string{
		"XNU.sparse.major": "1", "XNU.sparse.minor": "0", "XNU.sparse.name": "big", "XNU.sparse.realsize": fmt.Sprint(realSize),
	}}))
	_, err := w.Write(append([]byte("0\n"), make([]byte, 510)...))
	must(t, err)
	must(t, w.Close())
	return bytes.ReplaceAll(b.Bytes(), []byte("XNU.sparse"), []byte("GNU.sparse"))
}

func TestHugeSparseFilesEndWithTheirContext(t *testing.T) {
	src := write(t)
	must(t, os.WriteFile(filepath.Join(src, "a.tar"), sparseArchive(t, 1<<39), 0o600))
	must(t, os.WriteFile(filepath.Join(src, "plain"), nil, 0o600))
	must(t, os.Truncate(filepath.Join(src, "plain"), 1<<39))
	for name, o := range map[string]copy.Options{"a.tar": {Unpack: true}, "plain": {}} {
		t.Run(name, func(t *testing.T) {
			sel, err := copy.Select(t.Context(), chainfstest.Host(src), copy.Spec{Sources: []string{name}, Context: true})
			must(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			_, err = copy.Apply(ctx, sel, copy.Dest{Chain: chainfs.New(nil), Dir: t.TempDir(), Path: "/d/"}, o)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
			}
		})
	}
}

func TestAddRefusesANameThatNoPathCanHave(t *testing.T) {
	src := write(t)
	must(t, os.WriteFile(filepath.Join(src, "a.tar"), archive(t, tar.Header{Name: strings.Repeat("d/", unix.PathMax/2) + "f", Typeflag: tar.TypeReg}), 0o600))
	spec := copy.Spec{Sources: []string{"a.tar"}, Context: true}
	if _, _, err := apply(t, chainfstest.Host(src), spec, nil, "/d/", copy.Options{Unpack: true}); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("got %v, want %v", err, unix.ENAMETOOLONG)
	}
}
