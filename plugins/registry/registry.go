// Package registry answers for words that are the name of an image in a
// registry.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/pkg/registry"
	"github.com/mstage/mstage/storage"
)

// Name is the source's name.
const Name = "registry"

// downloads is how many layers of an image are downloaded at once. More than 3,
// docker's, because unpacking them is what takes the time.
const downloads = 6

// Source finds images in registries. Make it with New.
type Source struct {
	client *registry.Client
	images storage.Images
	ask    bool

	mu       sync.Mutex
	resolved map[string]*registry.Image // guarded by mu: by digest and name
}

var _ pluginapi.Source = (*Source)(nil)

// New returns the source. An image that the store has under one of the names
// that a word may stand for is answered without a request, unless ask is set and
// the name has no digest.
func New(client *registry.Client, images storage.Images, ask bool) *Source {
	return &Source{client: client, images: images, ask: ask, resolved: map[string]*registry.Image{}}
}

// Describe implements pluginapi.Source.
func (*Source) Describe(context.Context) (pluginapi.Description, error) {
	return pluginapi.Description{
		Name:         Name,
		Protocol:     pluginapi.Protocol,
		Summary:      "images of registries",
		Capabilities: []string{pluginapi.CapabilityNetwork},
		Examples:     []string{"debian:12", "registry.example.com/team/app@sha256:…"},
	}, nil
}

// Resolve answers the image's manifest and config. A word that is no reference,
// and a registry that can't be used, are a *pluginapi.Error, which wraps
// pluginapi.ErrAuth or ErrNetwork where that is the cause.
func (s *Source) Resolve(ctx context.Context, r pluginapi.Request) (pluginapi.Resolved, error) {
	if _, err := reference.Parse(r.Reference); err != nil {
		return pluginapi.Resolved{}, &pluginapi.Error{Message: err.Error(), Err: err}
	}
	names, err := s.client.Names(r.Reference)
	if err != nil {
		return pluginapi.Resolved{}, Refusal(err)
	}
	for _, name := range names {
		if s.ask && name.Digest == "" {
			continue // what a digest names never changes
		}
		if img, ok, err := s.local(ctx, name); err != nil || ok {
			return answer(name, img), err
		}
	}
	if r.Offline {
		return pluginapi.Resolved{}, &notFoundError{text: r.Reference + ": not in the store"}
	}
	return s.remote(ctx, names, r)
}

// remote asks for each of the names until one is there.
func (s *Source) remote(ctx context.Context, names []reference.Reference, r pluginapi.Request) (pluginapi.Resolved, error) {
	var errs []error
	for _, name := range names {
		found, err := s.resolve(ctx, name, r.Platform)
		switch {
		case err != nil && ctx.Err() != nil:
			return pluginapi.Resolved{}, context.Cause(ctx)
		case err != nil:
			errs = append(errs, err)
		case r.LockedDigest != "" && found.Content != nil && found.Content.Digest != r.LockedDigest:
			return pluginapi.Resolved{}, &pluginapi.Error{
				Message: fmt.Sprintf("%s is %s now, locked to %s", found.Reference, found.Content.Digest, r.LockedDigest),
			}
		default:
			return found, nil
		}
	}
	return pluginapi.Resolved{}, unresolved(errs)
}

// unresolved is the error for a word whose names all failed: not found when none
// of them is there, else the first other reason.
func unresolved(errs []error) error {
	var texts []string
	for _, err := range errs {
		if !registry.IsNotFound(err) {
			return Refusal(err)
		}
		texts = append(texts, err.Error())
	}
	return &notFoundError{text: strings.Join(texts, "; ")}
}

// notFoundError says where the image is not.
type notFoundError struct{ text string }

func (e *notFoundError) Error() string      { return e.text }
func (*notFoundError) Is(target error) bool { return target == pluginapi.ErrNotFound }

// local returns the store's image with a name.
func (s *Source) local(ctx context.Context, name reference.Reference) (storage.Image, bool, error) {
	img, err := s.images.ByName(ctx, name.StoreName())
	if errors.Is(err, storage.ErrNotFound) {
		return img, false, nil
	}
	return img, err == nil, err
}

func answer(name reference.Reference, img storage.Image) pluginapi.Resolved {
	return pluginapi.Resolved{Source: Name, Reference: name.StoreName(), Image: string(img.ID)}
}

// resolve asks the registry. The image that the store has under the name is
// answered when it is still the one.
func (s *Source) resolve(ctx context.Context, name reference.Reference, platform string) (pluginapi.Resolved, error) {
	found, err := s.client.Resolve(ctx, name, platform)
	if err != nil {
		return pluginapi.Resolved{}, err
	}
	img, ok, err := s.local(ctx, name)
	if err != nil {
		return pluginapi.Resolved{}, err
	}
	if ok && img.Sealed != nil && img.Sealed.Manifest != nil && string(img.Sealed.Manifest.Digest()) == found.Digest {
		return answer(name, img), nil
	}
	config, err := s.client.Config(ctx, found)
	if err != nil {
		return pluginapi.Resolved{}, err
	}
	s.mu.Lock()
	s.resolved[key(found.Digest, name.StoreName())] = found
	s.mu.Unlock()
	return pluginapi.Resolved{
		Source: Name, Reference: name.StoreName(),
		Content: &pluginapi.Content{
			Digest: found.Digest, Config: config, Manifest: found.Manifest, MediaType: found.MediaType,
		},
	}, nil
}

func key(digest, name string) string { return digest + " " + name }

// Fetch delivers the layers, several at once.
func (s *Source) Fetch(ctx context.Context, r pluginapi.Resolved, sel pluginapi.Selection, to pluginapi.Receiver) error {
	if r.Content == nil {
		return fmt.Errorf("fetch %s: nothing to fetch", r.Reference)
	}
	s.mu.Lock()
	img := s.resolved[key(r.Content.Digest, r.Reference)]
	s.mu.Unlock()
	if img == nil {
		return fmt.Errorf("fetch %s: not resolved by this source", r.Reference)
	}
	wanted, err := layers(img, sel.Layers)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(downloads)
	for _, d := range wanted {
		g.Go(func() error { return s.fetch(ctx, img, d, to) })
	}
	return g.Wait()
}

// layers lists the layers of a manifest that are wanted, each once; nil wants all.
func layers(img *registry.Image, only []string) ([]registry.Descriptor, error) {
	var m struct {
		Layers []registry.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(img.Manifest, &m); err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, digest := range only {
		wanted[digest] = true
	}
	seen := map[string]bool{}
	var list []registry.Descriptor
	for _, d := range m.Layers {
		if (only == nil || wanted[d.Digest]) && !seen[d.Digest] {
			list = append(list, d)
		}
		seen[d.Digest] = true
	}
	return list, nil
}

func (s *Source) fetch(ctx context.Context, img *registry.Image, d registry.Descriptor, to pluginapi.Receiver) error {
	blob, err := s.client.Blob(ctx, img, d)
	if err != nil {
		return Refusal(err)
	}
	defer blob.Close()
	if err := to.Layer(ctx, pluginapi.Layer{Digest: d.Digest, MediaType: d.MediaType}, blob); err != nil {
		return Refusal(err)
	}
	return nil
}

// Refusal is what a source answers for an error of the registry client; any
// other error comes back as it is.
func Refusal(err error) error {
	var e *registry.Error
	if !errors.As(err, &e) {
		return err
	}
	cause := err
	switch e.Kind {
	case registry.Auth:
		cause = fmt.Errorf("%w: %w", pluginapi.ErrAuth, err)
	case registry.NotFound:
		cause = fmt.Errorf("%w: %w", pluginapi.ErrNotFound, err)
	case registry.Network, registry.TLS, registry.DNS, registry.Timeout, registry.RateLimited, registry.Server, registry.Mismatch:
		cause = fmt.Errorf("%w: %w", pluginapi.ErrNetwork, err)
	case registry.Blocked, registry.Config:
	}
	return &pluginapi.Error{Message: e.Error(), Hint: e.Hint, Err: cause}
}
