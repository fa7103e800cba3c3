package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// fileTree is what a root file system tar holds: a line for each path with
// everything but the time of the last change.
type fileTree map[string]string

// readTree reads a root file system tar.
func readTree(in io.Reader) (fileTree, error) {
	found := fileTree{}
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			return nil, err
		}
		var attributes strings.Builder
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if strings.HasPrefix(key, "SCHILY.xattr.") {
				fmt.Fprintf(&attributes, " %s=%q", key, h.PAXRecords[key])
			}
		}
		name := path.Clean("/" + h.Name)
		if _, twice := found[name]; twice {
			return nil, fmt.Errorf("%s stands in the tar twice", name)
		}
		found[name] = fmt.Sprintf("%c %04o %d:%d %d,%d %d %x -> %q%s", h.Typeflag, h.Mode, h.Uid, h.Gid,
			h.Devmajor, h.Devminor, h.Size, sum.Sum(nil)[:8], h.Linkname, attributes.String())
	}
}

// builtTree builds with the output type=tar and returns the tree.
func (s *testStore) builtTree(args ...string) fileTree {
	s.t.Helper()
	out := s.mustRun(append([]string{"build", "-q", "-o", "type=tar,dest=-"}, args...)...)
	found, err := readTree(strings.NewReader(out))
	if err != nil {
		s.t.Fatalf("read the exported tar: %v", err)
	}
	return found
}

// maxDifferences bounds what a failed comparison prints.
const maxDifferences = 20

// sameTree fails the test unless both trees are equal.
func sameTree(t testing.TB, got, want fileTree) {
	t.Helper()
	names := maps.Clone(got)
	maps.Copy(names, want)
	var text bytes.Buffer
	differences := 0
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if got[name] == want[name] {
			continue
		}
		if differences++; differences <= maxDifferences {
			fmt.Fprintf(&text, "%s\n  got  %s\n  want %s\n", name, got[name], want[name])
		}
	}
	if differences > 0 {
		t.Errorf("trees differ at %d paths:\n%s", differences, text.String())
	}
}

// treeOf reads a root file system tar from a file.
func treeOf(t testing.TB, file string) fileTree {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found, err := readTree(f)
	if err != nil {
		t.Fatalf("read %s: %v", file, err)
	}
	return found
}
