// Package stagename answers for words that are the name of a stage.
package stagename

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/mstage/mstage/pkg/pluginapi"
)

// Name is the source's name.
const Name = "stagename"

// Source finds stages by name. The zero value is ready.
type Source struct{ pluginapi.NoContent }

var _ pluginapi.Source = (*Source)(nil)

// New returns the source.
func New() *Source { return &Source{} }

// Describe implements pluginapi.Source.
func (*Source) Describe(context.Context) (pluginapi.Description, error) {
	return pluginapi.Description{
		Name:         Name,
		Protocol:     pluginapi.Protocol,
		Summary:      "names of the stages above",
		Capabilities: []string{pluginapi.CapabilityStages},
		Examples:     []string{"builder"},
	}, nil
}

// Resolve answers the last stage in r.Stages with that name, in any case.
// Source: Dockerfile reference, FROM ("can only contain letters, digits, - _ .")
// and COPY --from.
func (*Source) Resolve(ctx context.Context, r pluginapi.Request) (pluginapi.Resolved, error) {
	if ctx.Err() != nil {
		return pluginapi.Resolved{}, context.Cause(ctx)
	}
	for _, s := range slices.Backward(r.Stages) {
		if s.Name != "" && strings.EqualFold(s.Name, r.Reference) {
			return pluginapi.Resolved{Source: Name, Reference: s.Name, Stage: &s.Index}, nil
		}
	}
	return pluginapi.Resolved{}, fmt.Errorf("stage %q: %w", r.Reference, pluginapi.ErrNotFound)
}
