package engine

import (
	"context"
	"encoding/hex"

	"github.com/mstage/mstage/engine/buildcontext"
	"github.com/mstage/mstage/engine/executor"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/tree"
)

// contextFiles is a build context that is opened when a step first asks for it.
type contextFiles struct {
	context worker.Context
	files   *buildcontext.Context // nil until opened
}

// open implements executor.Options.Context; it is called once.
func (c *contextFiles) open(ctx context.Context) (executor.Files, error) {
	files, err := buildcontext.Open(ctx, buildcontext.Options{
		Root: c.context.Dir, DockerfilePath: c.context.Dockerfile, StatIndex: c.context.StatIndex,
	})
	if err != nil {
		return nil, err
	}
	c.files = files
	return digestFiles{files}, nil
}

// close keeps what was learnt about the files for the next build.
func (c *contextFiles) close() error {
	if c.files == nil {
		return nil
	}
	return c.files.Close()
}

// digestFiles tells digests as the store writes them.
type digestFiles struct{ *buildcontext.Context }

// FileDigest implements executor.Files.
func (d digestFiles) FileDigest(ctx context.Context, e tree.Entry) (storage.Digest, error) {
	sum, err := d.Context.FileDigest(ctx, e)
	if err != nil {
		return "", err
	}
	return storage.Digest("sha256:" + hex.EncodeToString(sum[:])), nil
}
