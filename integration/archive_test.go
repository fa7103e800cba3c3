package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

const hostArch = runtime.GOARCH

// loopbackServer answers on 127.0.0.1 as long as the tests run, and returns its
// port.
var loopbackServer = sync.OnceValues(func() (port int, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, "the host answers")
		}))
	}()
	return l.Addr().(*net.TCPAddr).Port, nil
})

// readArchive returns the files of a tar or of a directory, by name.
func readArchive(path string) (map[string][]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	if st.IsDir() {
		return files, fs.WalkDir(os.DirFS(path), ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			files[name], err = os.ReadFile(filepath.Join(path, name))
			return err
		})
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return files, eachEntry(f, func(h *tar.Header, content io.Reader) error {
		files[h.Name], err = io.ReadAll(content)
		return err
	})
}

// eachEntry calls visit for every entry of a tar.
func eachEntry(r io.Reader, visit func(h *tar.Header, content io.Reader) error) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(h, tr); err != nil {
			return err
		}
	}
}

// describeImage lists what a docker archive or an OCI layout holds. A file that
// claims a content and does not have it is an error.
func describeImage(files map[string][]byte) ([]string, error) {
	if files["manifest.json"] != nil {
		return describeDocker(files)
	}
	return describeOCI(files)
}

// describeDocker reads manifest.json. Source: Docker image specification v1.2,
// "Combined image JSON + filesystem changeset format".
func describeDocker(files map[string][]byte) ([]string, error) {
	var manifests []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifests); err != nil {
		return nil, err
	}
	if len(manifests) != 1 {
		return nil, fmt.Errorf("got %d manifests, want 1", len(manifests))
	}
	m := manifests[0]
	lines := []string{"format docker", "tags " + strings.Join(m.RepoTags, " ")}
	return describeContent(lines, files, m.Config, m.Layers)
}

// describeOCI reads index.json. Source: OCI image-spec v1.1, image-layout.md.
func describeOCI(files map[string][]byte) ([]string, error) {
	type descriptor struct {
		Digest      string
		Annotations map[string]string
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		return nil, fmt.Errorf("read index.json: %w", err)
	}
	if files["oci-layout"] == nil || len(index.Manifests) == 0 {
		return nil, errors.New("no OCI layout")
	}
	lines := []string{"format oci"}
	for _, d := range index.Manifests {
		lines = append(lines, "tags "+d.Annotations["org.opencontainers.image.ref.name"])
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal(files[blobName(index.Manifests[0].Digest)], &manifest); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	var layers []string
	for _, l := range manifest.Layers {
		layers = append(layers, blobName(l.Digest))
	}
	return describeContent(lines, files, blobName(manifest.Config.Digest), layers)
}

// blobName is where a layout keeps a blob.
func blobName(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

// describeContent lists the config and the entries of the layers.
func describeContent(lines []string, files map[string][]byte, config string, layers []string) ([]string, error) {
	if files[config] == nil {
		return nil, fmt.Errorf("no config %s", config)
	}
	lines = append(lines, "config "+string(bytes.TrimSpace(files[config])))
	for i, name := range layers {
		data, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("no layer %s", name)
		}
		var r io.Reader = bytes.NewReader(data)
		if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
			inflated, err := gzip.NewReader(r)
			if err != nil {
				return nil, err
			}
			r = inflated
		}
		err := eachEntry(r, func(h *tar.Header, _ io.Reader) error {
			lines = append(lines, fmt.Sprintf("layer %d %s", i, describeEntry(h)))
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return lines, nil
}

// entryKinds are the words for the types of tar entries.
var entryKinds = map[byte]string{
	tar.TypeReg: "file", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink",
	tar.TypeFifo: "fifo", tar.TypeChar: "char", tar.TypeBlock: "block",
}

// describeEntry returns "file 0644 0:0 12 etc/hosts": kind, mode, owner, size and
// name.
func describeEntry(h *tar.Header) string {
	link := ""
	if h.Linkname != "" {
		link = " -> " + h.Linkname
	}
	return fmt.Sprintf("%s %04o %d:%d %d %s%s", entryKinds[h.Typeflag], h.Mode, h.Uid, h.Gid, h.Size, h.Name, link)
}
