package buildcontext

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxDockerfileBytes bounds a Dockerfile. Source: BuildKit reads no more than
// one gRPC message of 16 MiB.
const maxDockerfileBytes = 16 << 20

// DockerfileNames are looked for in the context, in this order, when no file
// was named.
func DockerfileNames() []string { return []string{"Dockerfile", "dockerfile", "Containerfile"} }

// Dockerfile is a Dockerfile as text.
type Dockerfile struct {
	// Name is how the user named it, for positions in errors.
	Name string
	// Path is where it is on this host: Options.DockerfilePath.
	Path string
	Data []byte
}

// FindDockerfile reads the Dockerfile of the context directory root. A file that
// was named is looked up from the working directory, then from the context; ""
// tries DockerfileNames in the context. It is found even when it is ignored:
// that only keeps it from being copied. The error wraps fs.ErrNotExist.
func FindDockerfile(root, file string) (Dockerfile, error) {
	if file == "" {
		return findDefault(root)
	}
	data, err := readSmall(func() (*os.File, error) { return os.Open(file) }, maxDockerfileBytes)
	path := file
	if errors.Is(err, fs.ErrNotExist) && !filepath.IsAbs(file) {
		path = filepath.Join(root, file)
		data, err = readSmall(func() (*os.File, error) { return openIn(root, file) }, maxDockerfileBytes)
		if errors.Is(err, fs.ErrNotExist) {
			return Dockerfile{}, fmt.Errorf("dockerfile %s, from the working directory and from %s: %w", file, root, fs.ErrNotExist)
		}
	}
	if err != nil {
		return Dockerfile{}, fmt.Errorf("dockerfile %s: %w", file, err)
	}
	return Dockerfile{Name: file, Path: path, Data: data}, nil
}

// findDefault reads the first of DockerfileNames that exists.
func findDefault(root string) (Dockerfile, error) {
	for _, name := range DockerfileNames() {
		data, err := readSmall(func() (*os.File, error) { return openIn(root, name) }, maxDockerfileBytes)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Dockerfile{}, fmt.Errorf("dockerfile %s: %w", filepath.Join(root, name), err)
		}
		return Dockerfile{Name: name, Path: filepath.Join(root, name), Data: data}, nil
	}
	if _, err := os.Stat(root); err != nil {
		return Dockerfile{}, fmt.Errorf("build context: %w", err)
	}
	return Dockerfile{}, fmt.Errorf("no %s in %s: %w", strings.Join(DockerfileNames(), ", "), root, fs.ErrNotExist)
}
