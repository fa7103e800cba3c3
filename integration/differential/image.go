package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

// image is what is compared.
type image struct {
	tree    fileTree
	config  map[string]any // without times and diff IDs
	diffIDs []string
	layers  [][]string // names, sorted
	base    *base      // whose layers are the lowest ones; nil when it is none that is known
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

// readImage reads the tar of an OCI layout with one manifest. Layers that a base
// has are not read again: their inodes are those of the base's tree.
func readImage(name string, bases []base) (*image, error) {
	files := layoutFiles{}
	err := readTarFile(name, func(h *tar.Header, r io.Reader) (err error) {
		files[strings.TrimPrefix(h.Name, "./")], err = io.ReadAll(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return files.image(bases)
}

// readLayout reads an OCI layout, a directory, with one manifest.
func readLayout(dir string) (*image, error) {
	files := layoutFiles{}
	in := os.DirFS(dir)
	err := fs.WalkDir(in, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[name], err = fs.ReadFile(in, name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return files.image(nil)
}

// image reads the image of the only manifest.
func (l layoutFiles) image(bases []base) (*image, error) {
	top, err := parseIndex(l["index.json"])
	if err != nil {
		return nil, err
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal(l.blob(top), &manifest); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", top.Digest, err)
	}
	img := &image{tree: fileTree{}}
	if err := img.setConfig(l.blob(manifest.Config)); err != nil {
		return nil, fmt.Errorf("config %s: %w", manifest.Config.Digest, err)
	}
	img.startFrom(bases)
	for _, d := range manifest.Layers[len(img.layers):] {
		names, err := img.tree.applyLayer(l.blob(d))
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
		}
		img.layers = append(img.layers, names)
	}
	return img, nil
}

// setConfig parses a config, takes the diff IDs out of it and forgets its times.
func (i *image) setConfig(data []byte) error {
	var layers struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := errors.Join(json.Unmarshal(data, &layers), json.Unmarshal(data, &i.config)); err != nil {
		return err
	}
	i.diffIDs = layers.RootFS.DiffIDs
	delete(i.config, "created")
	delete(i.config, "rootfs")
	for _, e := range i.history() {
		delete(e, "created")
	}
	return nil
}

// history returns the entries of the config's history.
func (i *image) history() []map[string]any {
	list, _ := i.config["history"].([]any)
	entries := make([]map[string]any, len(list))
	for n, e := range list {
		entries[n], _ = e.(map[string]any)
	}
	return entries
}

// startFrom gives an image the layers of the base that has most of them.
func (i *image) startFrom(bases []base) {
	for n, b := range bases {
		have := b.image.diffIDs
		if len(have) > len(i.layers) && len(have) <= len(i.diffIDs) && slices.Equal(have, i.diffIDs[:len(have)]) {
			i.base, i.layers, i.tree = &bases[n], slices.Clone(b.image.layers), maps.Clone(b.image.tree)
		}
	}
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
