package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/plugins"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
	"github.com/mstage/mstage/storage/layout"
)

// rootStore is where root's images are kept.
const rootStore = "/var/lib/mstage"

// storeRoot returns the directory of the image store, absolute: --root, then
// MSTAGE_ROOT, then the user's data directory. It may not exist yet.
// Source: XDG Base Directory Specification 0.8 (a relative path is ignored).
func (c *cli) storeRoot() (string, error) {
	for _, dir := range []string{c.rootFlag, c.getenv("MSTAGE_ROOT")} {
		if dir != "" {
			return filepath.Abs(dir)
		}
	}
	if os.Geteuid() == 0 {
		return rootStore, nil
	}
	if data := c.getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "mstage"), nil
	}
	if home := c.getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "share", "mstage"), nil
	}
	return "", &usageError{message: "no directory for the image store: HOME is not set", hint: "use --root DIR or set MSTAGE_ROOT"}
}

// openIndex opens the store's index. A store that doesn't exist has no images;
// it is not made.
func (c *cli) openIndex() (*index.Index, error) {
	root, err := c.storeRoot()
	if err != nil {
		return nil, err
	}
	l, err := layout.Open(root)
	if errors.Is(err, fs.ErrNotExist) {
		l, err = layout.Layout{Root: root}, nil
	}
	if err != nil {
		return nil, err
	}
	return index.Open(l.Index())
}

// findImage returns the image that a word on the command line stands for, by
// the same look-ups as a word in a Dockerfile.
func findImage(ctx context.Context, images storage.Images, word string) (storage.Image, error) {
	if img, ok, err := findByDigest(ctx, images, word); ok || err != nil {
		return img, err
	}
	for _, s := range plugins.Order(images, plugins.Others{}) {
		r, err := s.Resolve(ctx, pluginapi.Request{Reference: word, Use: pluginapi.UseFrom, Offline: true})
		if errors.Is(err, pluginapi.ErrNotFound) {
			continue
		}
		if err != nil {
			return storage.Image{}, err
		}
		return images.Image(ctx, storage.Digest(r.Image))
	}
	return storage.Image{}, &codedError{
		code: engine.ExitNotFound,
		hint: `"mstage images" lists what there is`,
		err:  noSuchImageError(word),
	}
}

// findByDigest returns the image that a name with a digest stands for: that of
// its manifest, as RepoDigests lists it.
func findByDigest(ctx context.Context, images storage.Images, word string) (img storage.Image, ok bool, err error) {
	want, err := reference.Parse(word)
	if err != nil || want.Digest == "" {
		return img, false, nil //nolint:nilerr // another kind of word
	}
	all, err := images.AllImages(ctx)
	for _, t := range all {
		for _, name := range t.Names {
			if r, err := reference.Parse(name); err == nil && r.Name() == want.Name() && digestOf(t.Image, r) == want.Digest {
				return t.Image, true, nil
			}
		}
	}
	return img, false, err
}

// noSuchImageError is a word that stands for no image.
type noSuchImageError string

func (e noSuchImageError) Error() string { return "no such image: " + string(e) }

// Is makes it one of the errors that say so.
func (e noSuchImageError) Is(target error) bool { return target == storage.ErrNotFound }
