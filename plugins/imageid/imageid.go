// Package imageid answers for words that are the ID of an image in the local
// store, in full or shortened.
//
// A full ID goes before every name, a shortened one after the names of local
// images, so there are two sources that stand at two places of the order.
package imageid

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/storage"
)

// The sources' names.
const (
	NameFull   = "imageid"
	NamePrefix = "imageid-prefix"
)

// minPrefixDigits keeps short words that happen to be hex ("add", "fed") from
// being taken for IDs.
const minPrefixDigits = 4

// Source finds images by ID. Make it with Full or Prefix.
type Source struct {
	pluginapi.NoContent
	description pluginapi.Description
	find        func(ctx context.Context, word string) (storage.Image, error)
}

var _ pluginapi.Source = (*Source)(nil)

// Full returns the source for IDs of 64 hex digits, with or without "sha256:".
func Full(images storage.Images) *Source {
	return &Source{
		description: pluginapi.Description{
			Name:     NameFull,
			Protocol: pluginapi.Protocol,
			Summary:  "IDs of local images",
			Examples: []string{"sha256:" + strings.Repeat("0123456789abcdef", 4)},
		},
		find: func(ctx context.Context, word string) (storage.Image, error) {
			hex := strings.TrimPrefix(word, "sha256:")
			if !storage.IsHex64(hex) {
				return storage.Image{}, pluginapi.ErrNotFound
			}
			return images.Image(ctx, storage.Digest("sha256:"+hex))
		},
	}
}

// Prefix returns the source for shortened IDs of 4 to 63 hex digits, with or
// without "sha256:".
func Prefix(images storage.Images) *Source {
	return &Source{
		description: pluginapi.Description{
			Name:     NamePrefix,
			Protocol: pluginapi.Protocol,
			Summary:  "shortened IDs of local images",
			Examples: []string{"0123456789ab"},
		},
		find: func(ctx context.Context, word string) (storage.Image, error) {
			hex := strings.TrimPrefix(word, "sha256:")
			if len(hex) < minPrefixDigits || len(hex) >= 64 || !storage.IsHex(hex) {
				return storage.Image{}, pluginapi.ErrNotFound
			}
			return images.ByPrefix(ctx, hex)
		},
	}
}

// Describe implements pluginapi.Source.
func (s *Source) Describe(context.Context) (pluginapi.Description, error) {
	return s.description, nil
}

// Resolve answers the image with that ID. Several images with the same prefix
// are a *pluginapi.Error that lists them and wraps storage.ErrAmbiguous.
func (s *Source) Resolve(ctx context.Context, r pluginapi.Request) (pluginapi.Resolved, error) {
	if ctx.Err() != nil {
		return pluginapi.Resolved{}, context.Cause(ctx)
	}
	img, err := s.find(ctx, r.Reference)
	switch {
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, pluginapi.ErrNotFound):
		return pluginapi.Resolved{}, fmt.Errorf("image ID %q: %w", r.Reference, pluginapi.ErrNotFound)
	case errors.Is(err, storage.ErrAmbiguous):
		return pluginapi.Resolved{}, &pluginapi.Error{
			Message: err.Error(),
			Hint:    "write more digits of the image ID",
			Err:     err,
		}
	case err != nil:
		return pluginapi.Resolved{}, err
	}
	return pluginapi.Resolved{Source: s.description.Name, Reference: string(img.ID), Image: string(img.ID)}, nil
}
