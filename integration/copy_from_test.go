package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	manyFiles = 50_000
	// manyBytes is the size of each of the many files: a gigabyte in all.
	manyBytes = 20_971
	// allowedBytes is what a copy may take on the disk: a directory entry each.
	allowedBytes = 30 << 20
)

// importMany imports an image "many" with the many files below /data, in
// directories of 500.
func (s *testStore) importMany(files int, sizeBytes int64) {
	s.t.Helper()
	cmd := s.command("import", "-", "many")
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	writeErr := writeMany(in, files, sizeBytes)
	if err := in.Close(); err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || writeErr != nil {
		s.t.Fatalf("import: %v, %v\n%s", err, writeErr, out.String())
	}
}

func writeMany(out io.Writer, files int, sizeBytes int64) error {
	w := tar.NewWriter(out)
	content := bytes.Repeat([]byte("0123456789abcde\n"), int(sizeBytes/16)+1)[:sizeBytes]
	for i := range files {
		h := tar.Header{Name: fmt.Sprintf("data/d%d/f%d", i/500, i), Mode: 0o644, Size: sizeBytes}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		copy(content, fmt.Sprintf("%015d", i))
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	return w.Close()
}

// layerDirs returns the diff directories of an image's layers, lowest first.
func (s *testStore) layerDirs(image string) []string {
	s.t.Helper()
	var inspected []struct {
		Mstage struct{ Layers []struct{ ID string } }
	}
	out := s.mustRun("inspect", image)
	if err := json.Unmarshal([]byte(out), &inspected); err != nil || len(inspected) != 1 {
		s.t.Fatalf("inspect %s: %v in %s", image, err, out)
	}
	var dirs []string
	for _, l := range inspected[0].Mstage.Layers {
		dirs = append(dirs, filepath.Join(s.root, "containers", "overlay", l.ID, "diff"))
	}
	return dirs
}

// inodes lists the regular files below dir, by relative path.
func inodes(t testing.TB, dir string) map[string]uint64 {
	t.Helper()
	found := map[string]uint64{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		found[name] = st.Ino
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// diskBytes is what the tree below dir takes on the disk, each inode once.
func diskBytes(t testing.TB, dir string) int64 {
	t.Helper()
	var sum int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestCopyFromLinksFiftyThousandFilesOfAGigabyte(t *testing.T) {
	files := manyFiles
	if testing.Short() {
		files = 2000
	}
	s := newBusyboxStore(t)
	s.importMany(files, manyBytes)
	s.write("ctx/Dockerfile", "FROM many AS source\nFROM busybox\nCOPY --from=source /data /copied\n")
	before := diskBytes(t, s.root)
	s.mustRun("build", "-q", "-t", "copied", "ctx")
	if grown := diskBytes(t, s.root) - before; grown > allowedBytes {
		t.Errorf("the copy takes %d bytes, want %d at most", grown, allowedBytes)
	}
	source := inodes(t, filepath.Join(s.layerDirs("many")[0], "data"))
	layers := s.layerDirs("copied")
	copied := inodes(t, filepath.Join(layers[len(layers)-1], "copied"))
	if len(source) != files || len(copied) != files {
		t.Fatalf("source has %d files and the copy %d, want %d", len(source), len(copied), files)
	}
	for name, ino := range source {
		if copied[name] != ino {
			t.Fatalf("%s is inode %d, want the source's %d", name, copied[name], ino)
		}
	}
}

func TestCopyFromLinksOneLargeFile(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 1 << 24
	}
	s := newBusyboxStore(t)
	s.importMany(1, size)
	s.write("ctx/Dockerfile", "FROM many AS source\nFROM busybox\nCOPY --from=source /data/d0/f0 /large\n")
	before := diskBytes(t, s.root)
	s.mustRun("build", "-q", "-t", "copied", "ctx")
	if grown := diskBytes(t, s.root) - before; grown > allowedBytes {
		t.Errorf("the copy takes %d bytes, want %d at most", grown, allowedBytes)
	}
	layers := s.layerDirs("copied")
	source := inodes(t, s.layerDirs("many")[0])["data/d0/f0"]
	if got := inodes(t, layers[len(layers)-1])["large"]; got != source {
		t.Errorf("the copy is inode %d, want the source's %d", got, source)
	}
}

// afterCopyDockerfile changes copies in all ways that could reach the source,
// then shows what the source has.
const afterCopyDockerfile = `FROM busybox AS source
RUN mkdir -p /s/dir && for f in written appended truncated moved over kept chmodded chowned copied removed; do echo "source $f" >/s/dir/$f; done; \
  ln /s/dir/kept /s/dir/hard; ln -s kept /s/dir/link; chmod 4755 /s/dir/chowned; chown 5:6 /s/dir/kept
FROM busybox AS changed
COPY --from=source /s/dir /c
RUN cd /c && echo new >written && echo more >>appended && : >truncated && chmod 600 chmodded && chown 7:8 chowned && \
  cp copied other && cp -a kept kept.copy && mv moved renamed && mv over written && rm removed && \
  cp other renamed && touch -d @1 kept && ln copied again
RUN test "$(cat /c/written)" = "source over" && test "$(cat /c/renamed)" = "source copied" && test "$(cat /c/hard)" = "source kept"
FROM busybox
COPY --from=source /s/dir /source
COPY --from=changed /c /changed
COPY --from=source /s/dir /changed/source
`

func TestAChangedCopyLeavesItsSourceAsItWas(t *testing.T) {
	s := newBusyboxStore(t)
	s.write("ctx/Dockerfile", afterCopyDockerfile)
	tree := s.builtTree("ctx")
	want := map[string]string{
		"/changed/written": "source over\n", "/changed/appended": "source appended\nmore\n",
		"/changed/truncated": "", "/changed/chmodded": "source chmodded\n", "/changed/chowned": "source chowned\n",
		"/changed/other": "source copied\n", "/changed/kept.copy": "source kept\n", "/changed/renamed": "source copied\n",
		"/changed/copied": "source copied\n",
	}
	for _, dir := range []string{"/source", "/changed/source"} {
		for name := range strings.FieldsSeq("written appended truncated moved over chmodded chowned copied removed") {
			want[dir+"/"+name] = "source " + name + "\n"
		}
	}
	s.mustRun("build", "-q", "-t", "result", "ctx")
	for name, text := range want {
		if got := s.mustRun("run", "result", "cat", name); got != text {
			t.Errorf("%s holds %q, want %q", name, got, text)
		}
	}
	for name, begin := range map[string]string{
		"/changed/chmodded": "0 0600 0:0", "/source/chmodded": "0 0644 0:0",
		"/source/chowned": "0 4755 0:0", "/changed/source/chowned": "0 4755 0:0",
		"/changed/link": "2 0777 0:0", "/source/kept": "1 0644 5:6",
	} {
		if !strings.HasPrefix(tree[name], begin) {
			t.Errorf("%s is %q, want %q", name, tree[name], begin)
		}
	}
	for _, name := range []string{"/changed/moved", "/changed/over", "/changed/removed"} {
		if tree[name] != "" {
			t.Errorf("%s is there: %s", name, tree[name])
		}
	}
	s.sound()
}

func TestTwoCopiesOfOneSourceAreTwoFiles(t *testing.T) {
	s := newBusyboxStore(t)
	s.write("ctx/Dockerfile", `FROM busybox AS source
RUN echo text >/f
FROM busybox
COPY --from=source /f /a
COPY --from=source /f /b
RUN cp /a /b && mv /a /c && test "$(stat -c %i /c)" != "$(stat -c %i /b)" && test "$(stat -c %h /b)" = 1 && mv /c /b && test ! -e /c
`)
	tree := s.builtTree("ctx")
	if !strings.HasPrefix(tree["/b"], "0 0644") || tree["/a"]+tree["/c"] != "" {
		t.Errorf("/a %q, /b %q, /c %q; want /b alone", tree["/a"], tree["/b"], tree["/c"])
	}
}
