// Package plugins lists the built-in stage sources in the order in which a word
// after FROM or --from= is looked up.
package plugins

import (
	"slices"

	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/plugins/imageid"
	"github.com/mstage/mstage/plugins/localtag"
	"github.com/mstage/mstage/plugins/stageindex"
	"github.com/mstage/mstage/plugins/stagename"
	"github.com/mstage/mstage/storage"
)

// Others are the sources that are not built in, by their place in the order.
// The zero value is none.
type Others struct {
	// Contexts are the named contexts of the command line.
	Contexts []pluginapi.Source
	// Declared are the sources that answer for a scheme.
	Declared []pluginapi.Source
	// Remote are asked last: registries.
	Remote []pluginapi.Source
	// Fresh leaves the names of local images to Remote: what is in the store may
	// be old.
	Fresh bool
}

// Order returns all sources in the order in which they are asked; the first
// answer counts. This is the only place that knows the order:
//
//  1. named contexts
//  2. the name of a stage above, in any case, the last one so named
//  3. the number of a stage above, but for FROM
//  4. declared sources
//  5. a full image ID
//  6. the name of a local image
//  7. for FROM the number of a stage above: only when no local image has that
//     name (a number is never a full image ID or a declared scheme, so it
//     being behind those changes nothing)
//  8. a shortened image ID
//  9. remote sources
//
// Leaving one out disables that look-up and nothing else.
func Order(images storage.Images, o Others) []pluginapi.Source {
	var names []pluginapi.Source
	if !o.Fresh {
		names = []pluginapi.Source{localtag.New(images)}
	}
	return slices.Concat(
		o.Contexts,
		[]pluginapi.Source{stagename.New(), stageindex.ForCopy()},
		o.Declared,
		[]pluginapi.Source{imageid.Full(images)},
		names,
		[]pluginapi.Source{stageindex.ForFrom(), imageid.Prefix(images)},
		o.Remote,
	)
}
