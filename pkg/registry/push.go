package registry

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/mstage/mstage/pkg/reference"
)

// Progress hears of the bytes of a blob: sent is what went out so far. A blob
// that the registry has already is never heard of.
type Progress func(digest string, sent, total int64)

// Push uploads an image under a name and returns the digest of its manifest.
// Blobs that the registry has are not sent. progress may be nil; it is called
// by several goroutines.
func (c *Client) Push(ctx context.Context, ref reference.Reference, img v1.Image, progress Progress) (string, error) {
	named, err := dockerName(ref)
	if err != nil {
		return "", err
	}
	e := endpoint{ref: named, insecure: c.o.Insecure}
	conf, err := c.find(named)
	if err != nil {
		return "", err
	}
	if conf != nil {
		e.insecure = e.insecure || conf.Insecure
	}
	if err := c.push(ctx, e, img, progress); err != nil {
		return "", explain(ctx, ref.String(), e.host(), err)
	}
	digest, err := img.Digest()
	return digest.String(), err
}

func (c *Client) push(ctx context.Context, e endpoint, img v1.Image, progress Progress) error {
	repo, err := repository(e)
	if err != nil {
		return err
	}
	version, _ := version(e.ref)
	auth, err := c.authenticator(e.ref)
	if err != nil {
		return err
	}
	if progress != nil {
		img = &toldImage{Image: img, progress: progress}
	}
	var to name.Reference = repo.Tag(version)
	return remote.Write(to, img,
		remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(c.roundTripper(e)), remote.WithJobs(maxStreams))
}

// toldImage tells how much of its layers was read.
type toldImage struct {
	v1.Image

	progress Progress
}

// Layers implements v1.Image.
func (t *toldImage) Layers() ([]v1.Layer, error) {
	layers, err := t.Image.Layers()
	if err != nil {
		return nil, err
	}
	told := make([]v1.Layer, len(layers))
	for i, l := range layers {
		told[i] = &toldLayer{Layer: l, progress: t.progress}
	}
	return told, nil
}

type toldLayer struct {
	v1.Layer

	progress Progress
}

// Compressed implements v1.Layer.
func (t *toldLayer) Compressed() (io.ReadCloser, error) {
	digest, err := t.Digest()
	if err != nil {
		return nil, err
	}
	size, err := t.Size()
	if err != nil {
		return nil, err
	}
	r, err := t.Layer.Compressed()
	if err != nil {
		return nil, err
	}
	return &toldReader{ReadCloser: r, tell: func(n int64) { t.progress(digest.String(), n, size) }}, nil
}

type toldReader struct {
	io.ReadCloser

	n    atomic.Int64
	tell func(int64)
}

func (t *toldReader) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.tell(t.n.Add(int64(n)))
	return n, err
}
