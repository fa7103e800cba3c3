package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// image is what is compared.
type image struct {
	tree   fileTree
	config map[string]any
	layers [][]string // names, sorted
}

// descriptor is what is used of an OCI descriptor.
type descriptor struct{ Digest string }

// layoutFiles are the files of an OCI layout by name.
type layoutFiles map[string][]byte

// blob returns the bytes with a digest, nil when the layout has none.
func (l layoutFiles) blob(d descriptor) []byte {
	return l["blobs/"+strings.ReplaceAll(d.Digest, ":", "/")]
}

// readTar calls each for every entry.
func readTar(r io.Reader, each func(h *tar.Header, r io.Reader) error) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(h, t); err != nil {
			return err
		}
	}
}

// readTarFile is readTar of a file.
func readTarFile(name string, each func(h *tar.Header, r io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return readTar(f, each)
}

// readImage reads the tar of an OCI layout with one manifest.
func readImage(name string) (*image, error) {
	files := layoutFiles{}
	err := readTarFile(name, func(h *tar.Header, r io.Reader) (err error) {
		files[strings.TrimPrefix(h.Name, "./")], err = io.ReadAll(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	top, err := parseIndex(files["index.json"])
	if err != nil {
		return nil, err
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal(files.blob(top), &manifest); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", top.Digest, err)
	}
	img := &image{tree: fileTree{}}
	if err := json.Unmarshal(files.blob(manifest.Config), &img.config); err != nil {
		return nil, fmt.Errorf("config %s: %w", manifest.Config.Digest, err)
	}
	for _, l := range manifest.Layers {
		names, err := img.tree.applyLayer(files.blob(l))
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		img.layers = append(img.layers, names)
	}
	return img, nil
}

// readTree reads the tar of a root file system.
func readTree(name string) (fileTree, error) {
	t := fileTree{}
	return t, readTarFile(name, func(h *tar.Header, r io.Reader) error { return t.add(cleanName(h.Name), h, r) })
}

// inflate returns a reader of what data holds, compressed or not.
func inflate(data []byte) (io.Reader, error) {
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return gzip.NewReader(bytes.NewReader(data))
	}
	return bytes.NewReader(data), nil
}
