// Package export turns an image into a file, a directory or a stream: an OCI
// layout, an archive for `docker load`, or the root file system.
//
// Archives have the same bytes for the same image: members are sorted and carry
// no times and owners of this host. Files appear whole or not at all.
package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mstage/mstage/engine/image"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/layertar"
)

// Result tells what an export made.
type Result struct {
	// Image is the exported image, sealed when the output has digests (oci and
	// docker).
	Image storage.Image
	// Manifest is the digest of the OCI manifest, "" without one.
	Manifest storage.Digest
}

// Export writes img to where o says. names are normalised references with a tag
// ("docker.io/library/a:1"); they stand in oci and docker outputs. sink, which
// may be nil, gets a warning about what the output has no place for.
func Export(ctx context.Context, s image.Stores, img storage.Image, names []string, o Output, sink progress.Sink) (Result, error) {
	res, err := export(ctx, s, img, names, o.withDest(), sink)
	if err != nil {
		return res, fmt.Errorf("export type=%s: %w", o.Type, err)
	}
	return res, nil
}

// export chooses by type.
func export(ctx context.Context, s image.Stores, img storage.Image, names []string, o Output, sink progress.Sink) (Result, error) {
	if problem, _ := o.check(); problem != "" {
		return Result{}, errors.New(problem)
	}
	if o.Dest == Stdout && o.Stdout == nil {
		return Result{}, errors.New("no stdout to write to")
	}
	switch o.Type {
	case TypeOCI, TypeDocker:
		return exportArchive(ctx, s, img, names, o)
	case TypeLocal:
		return Result{Image: img}, merged(ctx, s, img, func(root string) error {
			return exportLocal(ctx, root, o.Dest, sink)
		})
	case TypeTar:
		return Result{Image: img}, merged(ctx, s, img, func(root string) error {
			return exportRootFS(ctx, root, o, sink)
		})
	}
	return Result{}, fmt.Errorf("type %q is not one that can be written", o.Type)
}

// exportArchive writes an OCI layout or a docker archive of one image.
func exportArchive(ctx context.Context, s image.Stores, img storage.Image, names []string, o Output) (Result, error) {
	done, err := exportImages(ctx, s, []Named{{Image: img, Names: names}}, o)
	if err != nil {
		return Result{}, err
	}
	return done[0], nil
}

// Named is an image with the names that it gets in an archive: normalised
// references with a tag.
type Named struct {
	Image storage.Image
	Names []string
}

// Images writes several images into one output of type oci or docker, in this
// order. A blob that they share is there once.
func Images(ctx context.Context, s image.Stores, images []Named, o Output) ([]Result, error) {
	o = o.withDest()
	problem, _ := o.check()
	switch {
	case problem != "":
	case o.Type != TypeOCI && o.Type != TypeDocker:
		problem = "not an archive of images"
	case o.Dest == Stdout && o.Stdout == nil:
		problem = "no stdout to write to"
	}
	if problem != "" {
		return nil, fmt.Errorf("export type=%s: %s", o.Type, problem)
	}
	done, err := exportImages(ctx, s, images, o)
	if err != nil {
		return nil, fmt.Errorf("export type=%s: %w", o.Type, err)
	}
	return done, nil
}

// exportImages seals the images and writes them.
func exportImages(ctx context.Context, s image.Stores, images []Named, o Output) ([]Result, error) {
	a := newArchive(o.Type == TypeDocker)
	done := make([]Result, len(images))
	for i, n := range images {
		tags, err := parseNames(n.Names)
		if err != nil {
			return nil, err
		}
		img, layers, err := image.Seal(ctx, s, n.Image, image.SealOptions{Compress: true})
		if err != nil {
			return nil, err
		}
		if err := a.add(ctx, s.Blobs, img, layers, tags); err != nil {
			return nil, err
		}
		done[i] = Result{Image: img, Manifest: a.manifest}
	}
	if err := a.finish(); err != nil {
		return nil, err
	}
	if o.isTar() {
		return done, stream(o, func(w io.Writer) error { return a.writeTar(ctx, w) })
	}
	return done, a.writeDir(ctx, o.Dest)
}

// exportRootFS writes the tar of a merged view.
func exportRootFS(ctx context.Context, root string, o Output, sink progress.Sink) error {
	return stream(o, func(w io.Writer) error {
		res, err := layertar.Write(ctx, w, root, layertar.WriteOptions{Merged: true})
		if err != nil {
			return err
		}
		left := leftOut{}
		for _, skip := range res.Skipped {
			left.add(skip.Path, skip.Reason)
		}
		left.warn(sink)
		return nil
	})
}

// stream calls fill with where the output's one stream goes.
func stream(o Output, fill func(io.Writer) error) error {
	if o.Dest == Stdout {
		return fill(o.Stdout)
	}
	return writeFile(o.Dest, fill)
}

// merged calls use with a directory that shows the image's root file system,
// read-only.
func merged(ctx context.Context, s image.Stores, img storage.Image, use func(root string) error) (err error) {
	target, err := os.MkdirTemp(s.TempDir, "mstage-export-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(target)) }()
	if len(img.Layers) == 0 {
		return use(target) // as empty as the image
	}
	ids := make([]storage.LayerID, len(img.Layers))
	for i, l := range img.Layers {
		ids[i] = l.ID
	}
	unmount, err := s.Mounter.Mount(ctx, storage.MountOptions{Layers: ids, Target: target})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	return use(target)
}

// shownNames is how many names a warning lists.
const shownNames = 5

// leftOut collects what an output has no place for.
type leftOut struct {
	count int
	names []string
}

func (l *leftOut) add(name, what string) {
	l.count++
	if len(l.names) < shownNames {
		l.names = append(l.names, fmt.Sprintf("/%s (%s)", name, what))
	}
}

// warn tells about it, once.
func (l *leftOut) warn(sink progress.Sink) {
	if l.count == 0 || sink == nil {
		return
	}
	msg := fmt.Sprintf("left out of the output: %s", strings.Join(l.names, ", "))
	if more := l.count - len(l.names); more > 0 {
		msg += fmt.Sprintf(" and %d more", more)
	}
	sink.Send(progress.Event{Kind: progress.Warning, Time: time.Now(), Message: msg})
}
