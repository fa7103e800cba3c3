package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

// dockerImage is one image in manifest.json. Source: docker image spec v1.2.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// layerTypes are the media types by the formats in which a layer may be packed.
var layerTypes = map[string]string{
	layertar.FormatNone: "application/vnd.oci.image.layer.v1.tar",
	layertar.FormatGzip: "application/vnd.oci.image.layer.v1.tar+gzip",
	layertar.FormatZstd: "application/vnd.oci.image.layer.v1.tar+zstd",
}

// noName is what some tools write for an image without a name.
const noName = "<none>:<none>"

// readDocker adds the images of manifest.json, or their names to those that are
// there.
func (a *Archive) readDocker(ctx context.Context, list *imageList) error {
	raw, err := a.read(fileManifest, MaxIndexBytes)
	if err != nil {
		return err
	}
	images, err := parseDocker(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", fileManifest, err)
	}
	for _, d := range images {
		if err := a.count(); err != nil {
			return err
		}
		if err := a.addDocker(ctx, list, d); err != nil {
			return fmt.Errorf("image %.200q: %w", d.Config, err)
		}
	}
	return nil
}

// parseDocker reads manifest.json.
func parseDocker(raw []byte) ([]dockerImage, error) {
	var images []dockerImage
	if err := json.Unmarshal(raw, &images); err != nil {
		return nil, &Error{Err: err}
	}
	if len(images) > MaxImages {
		return nil, errorf("%d images, the limit is %d", len(images), MaxImages)
	}
	return images, nil
}

// addDocker adds one image.
func (a *Archive) addDocker(ctx context.Context, list *imageList, d dockerImage) error {
	file, err := clean(d.Config)
	if err != nil {
		return err
	}
	config, err := a.read(file, maxConfigBytes)
	if err != nil {
		return err
	}
	id := storage.DigestBytes(config)
	if named, ok := digestIn(file); ok && named != id {
		return errorf("config has the digest %s", id)
	}
	names, err := dockerNames(d.RepoTags)
	if err != nil {
		return err
	}
	if list.name(id, names...) {
		return nil
	}
	img := Image{Names: names, Config: config}
	if img.Layers, err = a.dockerLayers(ctx, d, config); err != nil {
		return err
	}
	list.add(img)
	return nil
}

// digestIn returns the digest that a file is named by: blobs/sha256/HEX,
// HEX.json, sha256:HEX.
func digestIn(file string) (storage.Digest, bool) {
	base := strings.TrimSuffix(path.Base(file), ".json")
	d, err := storage.ParseDigest("sha256:" + strings.TrimPrefix(base, "sha256:"))
	return d, err == nil
}

// dockerNames normalises RepoTags.
func dockerNames(words []string) ([]string, error) {
	var names []string
	for _, w := range words {
		if w == noName {
			continue
		}
		name, err := imageName(w)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// dockerLayers returns the layers of an image that has no manifest: their
// digests come from the config or from the bytes.
func (a *Archive) dockerLayers(ctx context.Context, d dockerImage, config []byte) ([]Layer, error) {
	cfg, err := imageconfig.Parse(config)
	if err != nil {
		return nil, errorf("image config: %w", err)
	}
	if len(cfg.RootFS.DiffIDs) != len(d.Layers) || len(d.Layers) > fetch.MaxLayers {
		return nil, errorf("manifest has %d layers and the config %d diff IDs; the limit is %d", len(d.Layers), len(cfg.RootFS.DiffIDs), fetch.MaxLayers)
	}
	layers := make([]Layer, len(d.Layers))
	for i, name := range d.Layers {
		if layers[i], err = a.dockerLayer(ctx, name, cfg.RootFS.DiffIDs[i]); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// dockerLayer describes one layer. A plain tar is known by its diff ID; a packed
// one that is not named by its digest is read for it.
func (a *Archive) dockerLayer(ctx context.Context, name, diffID string) (l Layer, err error) {
	if l.DiffID, err = storage.ParseDigest(diffID); err != nil {
		return l, errorf("diff ID: %w", err)
	}
	if l.file, err = clean(name); err != nil {
		return l, err
	}
	f, err := a.files.open(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return l, errorf("archive lacks the layer %s", l.file)
	}
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	format, err := formatOf(f)
	if err != nil {
		return l, err
	}
	l.SizeBytes, l.MediaType = f.Size(), layerTypes[format]
	switch {
	case l.MediaType == "":
		return l, errorf("layer %s is packed by %s, which layers can't be", l.file, format)
	case format == layertar.FormatNone:
		l.Digest = l.DiffID
	default:
		l.Digest, err = digestOf(ctx, f)
	}
	return l, err
}

// formatOf returns how a layer is packed.
func formatOf(f file) (string, error) {
	head := make([]byte, min(f.Size(), 512))
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return layertar.Format(head), nil
}

// digestOf reads a file to its end.
func digestOf(ctx context.Context, f file) (storage.Digest, error) {
	sum := sha256.New()
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		_, err := io.CopyN(sum, f, copyBytes)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	return storage.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))), nil
}
