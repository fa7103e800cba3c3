// Package image turns layers and a config into an OCI image.
//
// An image has two identities. The local ID is final when a build ends and
// needs no byte of any layer: it is a digest over the config with layer
// identities in place of diff IDs. Sealing, at the first export, reads every
// layer once and fills in the real diff IDs; from then on the image has the
// config digest that registries and docker show.
//
// Source: OCI image-spec v1.1, config.md and manifest.md.
package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/storage"
)

// Stores are the parts of a store that images are made of and exported from.
type Stores struct {
	Layers  storage.Layers
	Mounter storage.Mounter
	Seals   storage.Seals
	Blobs   storage.Blobs
	Images  storage.Images
	// TempDir is where mount points are made, best on a tmpfs of this process;
	// "" is os.TempDir, where a killed process leaves an empty directory.
	TempDir string
}

// rootFSType is the only type of root file system. Source: config.md.
const rootFSType = "layers"

// LocalID returns the digest over the canonical JSON of cfg with the layers'
// identities in place of diff IDs.
func LocalID(cfg imageconfig.Config, layers []storage.Layer) storage.Digest {
	return storage.DigestBytes(canonical(cfg, layers))
}

// canonical returns the bytes that the local ID is the digest of. Struct fields
// and map keys come in a fixed order.
func canonical(cfg imageconfig.Config, layers []storage.Layer) []byte {
	cfg.RootFS = imageconfig.RootFS{Type: rootFSType, DiffIDs: make([]string, len(layers))}
	for i, l := range layers {
		cfg.RootFS.DiffIDs[i] = string(l.Identity)
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		panic(err) // strings, numbers and times of the Dockerfile always marshal
	}
	return b
}

// New returns the image of cfg and layers, lowest first. The ID is the digest of
// its Config, whose rootfs names layer identities. It is an error when the
// history does not have as many lines with content as there are layers.
func New(cfg imageconfig.Config, layers []storage.Layer) (storage.Image, error) {
	if err := check(cfg, layers); err != nil {
		return storage.Image{}, fmt.Errorf("image: %w", err)
	}
	img := storage.Image{Config: canonical(cfg, layers), Layers: layers}
	img.ID = storage.DigestBytes(img.Config)
	if cfg.Created != nil {
		img.Created = cfg.Created.UTC().Truncate(time.Second)
	}
	return img, nil
}

// check refuses what no image can be.
func check(cfg imageconfig.Config, layers []storage.Layer) error {
	if cfg.OS == "" || cfg.Architecture == "" {
		return errors.New("config without os and architecture")
	}
	if y, bad := unwritableTime(cfg); bad {
		return fmt.Errorf("time in the year %d, which RFC 3339 can't express", y)
	}
	for i, l := range layers {
		if l.ID == "" {
			return fmt.Errorf("layer %d has no ID", i)
		}
		if _, err := storage.ParseDigest(string(l.Identity)); err != nil {
			return fmt.Errorf("identity of layer %d: %w", i, err)
		}
	}
	if len(cfg.History) == 0 {
		return nil
	}
	filled := 0
	for _, h := range cfg.History {
		if !h.EmptyLayer {
			filled++
		}
	}
	if filled != len(layers) {
		return fmt.Errorf("history has %d lines with a layer, but there are %d layers", filled, len(layers))
	}
	return nil
}

// unwritableTime returns the year of a time that JSON has no form for.
func unwritableTime(cfg imageconfig.Config) (year int, bad bool) {
	times := []*time.Time{cfg.Created}
	for _, h := range cfg.History {
		times = append(times, h.Created)
	}
	for _, t := range times {
		if t != nil && (t.Year() < 0 || t.Year() > 9999) {
			return t.Year(), true
		}
	}
	return 0, false
}
