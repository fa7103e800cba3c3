package buildcontext

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openAged opens a context whose stat index believes that its files are old.
func openAged(t testing.TB, root, index string) *Context {
	t.Helper()
	c := open(t, Options{Root: root, StatIndex: index})
	c.index.now = func() time.Time { return time.Now().Add(2 * racyWindow) }
	return c
}

func digestOf(t testing.TB, c *Context, path string) string {
	t.Helper()
	e, err := c.Lstat(path)
	must(t, err)
	sum, err := c.FileDigest(context.Background(), e)
	must(t, err)
	return hex.EncodeToString(sum[:])
}

func sumOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// known reports whether the index answers for path.
func known(t testing.TB, c *Context, path string) bool {
	t.Helper()
	n, err := c.lookup("test", path)
	must(t, err)
	_, ok := c.index.find(n.key())
	return ok
}

// save closes a context, which writes its index.
func save(t testing.TB, c *Context) {
	t.Helper()
	must(t, c.index.save())
}

func indexFile(t testing.TB, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+indexSuffix))
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("index files: got %q, want one", files)
	}
	return files[0]
}

func TestAnUnchangedFileIsNotReadAgain(t *testing.T) {
	root, index := makeTree(t, "a", "d/b"), filepath.Join(t.TempDir(), "made/on/demand")
	c := openAged(t, root, index)
	if got, want := digestOf(t, c, "d/b"), sumOf("d/b"); got != want {
		t.Errorf("first: got %s, want %s", got, want)
	}
	save(t, c)

	// A record with another digest shows that the file is not read.
	again := openAged(t, root, index)
	if !known(t, again, "d/b") || known(t, again, "a") {
		t.Errorf("got d/b %v and a %v in the index, want true and false", known(t, again, "d/b"), known(t, again, "a"))
	}
	if got, want := digestOf(t, again, "d/b"), sumOf("d/b"); got != want {
		t.Errorf("from the index: got %s, want %s", got, want)
	}
	n, err := again.lookup("test", "d/b")
	must(t, err)
	r, _ := again.index.find(n.key())
	if r.flags&indexPlain == 0 {
		t.Error("a file without extended attributes: got not plain, want plain")
	}
}

func TestAChangedFileIsReadAgain(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"other bytes of the same size and time": func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte("A"), 0o600); err != nil {
				return err
			}
			return os.Chtimes(path, info.ModTime(), info.ModTime()) // ctime gives it away
		},
		"another inode": func(path string) error {
			if err := os.WriteFile(path+"2", []byte("A"), 0o600); err != nil {
				return err
			}
			return os.Rename(path+"2", path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, index := makeTree(t, "a"), t.TempDir()
			c := openAged(t, root, index)
			digestOf(t, c, "a")
			save(t, c)
			must(t, change(filepath.Join(root, "a")))
			if got, want := digestOf(t, openAged(t, root, index), "a"), sumOf("A"); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func TestAFileChangedJustNowIsNotTrusted(t *testing.T) {
	root, index := makeTree(t, "a"), t.TempDir()
	c := open(t, Options{Root: root, StatIndex: index}) // with the real clock
	digestOf(t, c, "a")
	save(t, c)
	if known(t, open(t, Options{Root: root, StatIndex: index}), "a") {
		t.Error("a file younger than the racy window: got a record, want none")
	}
}

func TestADamagedIndexIsEmpty(t *testing.T) {
	root, index := makeTree(t, "a", "b"), t.TempDir()
	c := openAged(t, root, index)
	digestOf(t, c, "a")
	digestOf(t, c, "b")
	save(t, c)
	file := indexFile(t, index)
	whole, err := os.ReadFile(file)
	must(t, err)
	if want := indexHeaderBytes + 2*indexRecordBytes; len(whole) != want {
		t.Fatalf("size of two records: got %d, want %d", len(whole), want)
	}
	flip := func(i int) []byte {
		b := append([]byte{}, whole...)
		b[i] ^= 1
		return b
	}
	for name, data := range map[string][]byte{
		"empty":                {},
		"cut in the header":    whole[:20],
		"cut in a record":      whole[:len(whole)-1],
		"a record short":       whole[:len(whole)-indexRecordBytes],
		"another magic":        flip(0),
		"another version":      flip(8),
		"another checksum":     flip(indexSumOffset),
		"another root":         flip(indexSumOffset + 4),
		"a flipped digest bit": flip(len(whole) - 1),
		"garbage":              []byte(strings.Repeat("x", 1000)),
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(file, data, 0o600))
			damaged := openAged(t, root, index)
			if known(t, damaged, "a") || known(t, damaged, "b") {
				t.Error("got a record, want none")
			}
			if got, want := digestOf(t, damaged, "a"), sumOf("a"); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			save(t, damaged)
			if !known(t, openAged(t, root, index), "a") {
				t.Error("after the index was written again: got no record, want one")
			}
		})
	}
}

func TestRecordsThatNobodyAsksForFade(t *testing.T) {
	root, index := makeTree(t, "keep", "fade"), t.TempDir()
	c := openAged(t, root, index)
	digestOf(t, c, "keep")
	digestOf(t, c, "fade")
	save(t, c)
	for i := range maxIndexIdle + 1 {
		name := fmt.Sprintf("new%d", i)
		must(t, os.WriteFile(filepath.Join(root, name), []byte(name), 0o600))
		next := openAged(t, root, index)
		digestOf(t, next, "keep")
		digestOf(t, next, name)
		save(t, next)
	}
	last := openAged(t, root, index)
	if !known(t, last, "keep") || known(t, last, "fade") {
		t.Errorf("got keep %v and fade %v, want true and false", known(t, last, "keep"), known(t, last, "fade"))
	}
}

func TestOnlyTheYoungestIndexesStay(t *testing.T) {
	index := t.TempDir()
	for i := range maxIndexFiles + 5 {
		name := filepath.Join(index, fmt.Sprintf("%03d%s", i, indexSuffix))
		must(t, os.WriteFile(name, nil, 0o600))
		old := time.Now().Add(time.Duration(i-1000) * time.Hour)
		must(t, os.Chtimes(name, old, old))
	}
	c := openAged(t, makeTree(t, "a"), index)
	digestOf(t, c, "a")
	save(t, c)
	files, err := os.ReadDir(index)
	must(t, err)
	if len(files) != maxIndexFiles || files[0].Name() != "006"+indexSuffix {
		t.Errorf("got %d files from %s, want %d from 006%s", len(files), files[0].Name(), maxIndexFiles, indexSuffix)
	}
}

func TestADigestEndsWithItsContext(t *testing.T) {
	root := t.TempDir()
	sparse := filepath.Join(root, "sparse")
	must(t, os.WriteFile(sparse, nil, 0o600))
	must(t, os.Truncate(sparse, 1<<40)) // takes no room and would be read for an hour
	c := open(t, Options{Root: root})
	e, err := c.Lstat("sparse")
	must(t, err)
	why := errors.New("no longer wanted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := c.FileDigest(ctx, e); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

func TestAFIFOInThePlaceOfAnIgnoreFileDoesNotBlock(t *testing.T) {
	for _, name := range []string{IgnoreName, "Dockerfile" + IgnoreName} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			must(t, unix.Mkfifo(filepath.Join(root, name), 0o600))
			c := open(t, Options{Root: root, DockerfilePath: filepath.Join(root, "Dockerfile")})
			if _, err := c.Lstat("."); err != nil {
				t.Error(err)
			}
		})
	}
}
