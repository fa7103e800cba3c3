// Package localtag answers for words that are the name of an image in the local
// store.
package localtag

import (
	"context"
	"errors"
	"fmt"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/pkg/reference"
	"github.com/mstage/mstage/storage"
)

// Name is the source's name.
const Name = "localtag"

// Source finds images by name. Make it with New.
type Source struct {
	pluginapi.NoContent
	images storage.Images
}

var _ pluginapi.Source = (*Source)(nil)

// New returns the source over a store's images.
func New(images storage.Images) *Source { return &Source{images: images} }

// Describe implements pluginapi.Source.
func (*Source) Describe(context.Context) (pluginapi.Description, error) {
	return pluginapi.Description{
		Name:     Name,
		Protocol: pluginapi.Protocol,
		Summary:  "names of local images",
		Examples: []string{"busybox", "localhost/app:1.0"},
	}, nil
}

// Resolve answers the image that the word names after docker's normalisation. A
// word with a digest is the name of an image that was fetched by that digest; a
// tag before it does not count. A word that no image can have as its name is a
// *pluginapi.Error with the reason.
func (s *Source) Resolve(ctx context.Context, r pluginapi.Request) (pluginapi.Resolved, error) {
	if ctx.Err() != nil {
		return pluginapi.Resolved{}, context.Cause(ctx)
	}
	if storage.IsHex64(r.Reference) {
		return pluginapi.Resolved{}, fmt.Errorf("local image %q: %w", r.Reference, pluginapi.ErrNotFound)
	}
	ref, err := reference.Parse(r.Reference)
	if err != nil {
		return pluginapi.Resolved{}, &pluginapi.Error{Message: err.Error(), Err: err}
	}
	name := ref.StoreName()
	img, err := s.images.ByName(ctx, name)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return pluginapi.Resolved{}, fmt.Errorf("local image %s: %w", name, pluginapi.ErrNotFound)
	case err != nil:
		return pluginapi.Resolved{}, err
	}
	return pluginapi.Resolved{Source: Name, Reference: name, Image: string(img.ID)}, nil
}
