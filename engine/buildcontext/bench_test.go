package buildcontext

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/mstage/mstage/storage/tree"
)

// bigTree has 50,000 files of 100 bytes in 500 directories, and 10,000 more in
// a directory that is usually ignored.
func bigTree(b *testing.B) string {
	b.Helper()
	root := b.TempDir()
	data := make([]byte, 100)
	for i := range 600 {
		dir := filepath.Join(root, fmt.Sprintf("pkg%d/sub%d", i%20, i))
		if i >= 500 {
			dir = filepath.Join(root, fmt.Sprintf("node_modules/m%d", i))
		}
		must(b, os.MkdirAll(dir, 0o755))
		for j := range 100 {
			must(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d.go", j)), data, 0o600))
		}
	}
	return root
}

func BenchmarkWalk50k(b *testing.B) {
	root := bigTree(b)
	for name, ignore := range map[string]string{
		"no patterns":  "",
		"ten patterns": ".git\nnode_modules\n**/*.log\n**/*.tmp\n*.md\n!README.md\n**/.cache\nbuild/**\n**/testdata/*.bin\n**/__pycache__",
	} {
		b.Run(name, func(b *testing.B) {
			must(b, os.WriteFile(filepath.Join(root, ".dockerignore"), []byte(ignore), 0o600))
			for b.Loop() {
				c, err := Open(b.Context(), Options{Root: root})
				must(b, err)
				must(b, c.Prefetch(b.Context(), "."))
				must(b, c.Close())
			}
		})
	}
}

func BenchmarkDigest50kFromTheIndex(b *testing.B) {
	root, index := bigTree(b), b.TempDir()
	digestAll := func(c *Context) {
		must(b, c.Walk(b.Context(), ".", func(e tree.Entry) error {
			if !e.IsRegular() {
				return nil
			}
			_, err := c.FileDigest(context.Background(), e)
			return err
		}))
		must(b, c.Close())
	}
	digestAll(openAged(b, root, index))
	for b.Loop() {
		digestAll(openAged(b, root, index))
	}
}
