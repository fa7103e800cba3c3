// Package stageindex answers for words that are the number of a stage.
//
// COPY --from=0 and RUN --mount from=0 mean the stage before anything else; for
// FROM 0 a local image of that name goes first. So there are two sources,
// ForCopy and ForFrom, that stand at two places of the order.
package stageindex

import (
	"context"
	"fmt"
	"strconv"

	"github.com/mstage/mstage/pkg/pluginapi"
)

// The sources' names.
const (
	Name     = "stageindex"
	NameFrom = "stageindex-from"
)

// maxDigits limits the numbers that are looked at: a Dockerfile has far fewer
// than a billion stages, and longer ones may not fit an int.
const maxDigits = 9

// Source finds stages by index. Make it with ForCopy or ForFrom.
type Source struct {
	pluginapi.NoContent
	from bool
}

var _ pluginapi.Source = (*Source)(nil)

// ForCopy returns the source for every use but FROM.
func ForCopy() *Source { return &Source{} }

// ForFrom returns the source for FROM alone.
func ForFrom() *Source { return &Source{from: true} }

// Describe implements pluginapi.Source.
func (s *Source) Describe(context.Context) (pluginapi.Description, error) {
	d := pluginapi.Description{
		Name:         Name,
		Protocol:     pluginapi.Protocol,
		Summary:      "numbers of the stages above",
		Capabilities: []string{pluginapi.CapabilityStages},
		Examples:     []string{"0"},
	}
	if s.from {
		d.Name = NameFrom
	}
	return d, nil
}

// Resolve answers the stage in r.Stages with that decimal index.
func (s *Source) Resolve(ctx context.Context, r pluginapi.Request) (pluginapi.Resolved, error) {
	if ctx.Err() != nil {
		return pluginapi.Resolved{}, context.Cause(ctx)
	}
	if index, ok := parseIndex(r.Reference); ok && s.from == (r.Use == pluginapi.UseFrom) {
		for _, stage := range r.Stages {
			if stage.Index == index {
				d, _ := s.Describe(ctx)
				return pluginapi.Resolved{Source: d.Name, Reference: strconv.Itoa(index), Stage: &index}, nil
			}
		}
	}
	return pluginapi.Resolved{}, fmt.Errorf("stage number %q: %w", r.Reference, pluginapi.ErrNotFound)
}

// parseIndex reads digits, without sign.
func parseIndex(s string) (int, bool) {
	if len(s) == 0 || len(s) > maxDigits {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}
