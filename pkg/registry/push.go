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

// PushOptions are what helps a push. The zero value is none of it.
type PushOptions struct {
	// Progress is called by several goroutines.
	Progress Progress
	// Homes are full names of images of which a blob is known to be a layer, by
	// the blob's digest: a registry that has one of them takes the blob from
	// there.
	Homes map[string][]string
}

// Push uploads an image under a name and returns the digest of its manifest.
// Blobs that the registry has are not sent. A ref with a digest is refused: what
// an image is called there is not ours to say.
func (c *Client) Push(ctx context.Context, ref reference.Reference, img v1.Image, o PushOptions) (string, error) {
	if ref.Digest != "" {
		return "", &Error{Kind: Config, Ref: ref.String(), Message: "push to a tag, not to a digest"}
	}
	named, err := dockerName(ref)
	if err != nil {
		return "", err
	}
	e, err := c.own(named)
	if err != nil {
		return "", err
	}
	if err := c.push(ctx, e, img, o); err != nil {
		return "", explain(ctx, ref.String(), e.host(), err)
	}
	digest, err := img.Digest()
	return digest.String(), err
}

func (c *Client) push(ctx context.Context, e endpoint, img v1.Image, o PushOptions) error {
	repo, err := repository(e)
	if err != nil {
		return err
	}
	version, _ := version(e.ref)
	auth, err := c.authenticator(e)
	if err != nil {
		return err
	}
	img = &sentImage{Image: img, repo: repo, o: o}
	var to name.Reference = repo.Tag(version)
	return remote.Write(to, img,
		remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(c.roundTripper(e)), remote.WithJobs(maxStreams))
}

// sentImage has layers that tell how much of them was read, and where else the
// registry has them.
type sentImage struct {
	v1.Image

	repo name.Repository
	o    PushOptions
}

// Layers implements v1.Image.
func (s *sentImage) Layers() ([]v1.Layer, error) {
	layers, err := s.Image.Layers()
	if err != nil {
		return nil, err
	}
	sent := make([]v1.Layer, len(layers))
	for i, l := range layers {
		if s.o.Progress != nil {
			l = &toldLayer{Layer: l, progress: s.o.Progress}
		}
		if home := s.home(l); home != nil {
			l = &remote.MountableLayer{Layer: l, Reference: home}
		}
		sent[i] = l
	}
	return sent, nil
}

// home is another repository of the same registry that has the layer, nil when
// none is known.
func (s *sentImage) home(l v1.Layer) name.Reference {
	digest, err := l.Digest()
	if err != nil {
		return nil
	}
	for _, known := range s.o.Homes[digest.String()] {
		ref, err := name.ParseReference(known, name.Insecure)
		if err == nil && ref.Context().RegistryStr() == s.repo.RegistryStr() && ref.Context().RepositoryStr() != s.repo.RepositoryStr() {
			return ref
		}
	}
	return nil
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
