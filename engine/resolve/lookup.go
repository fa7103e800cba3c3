package resolve

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/stage"
	"github.com/mstage/mstage/pkg/pluginapi"
)

// binder is the state of one Bind.
type binder struct {
	graph   *stage.Graph
	options Options
	sources []source
	// stages are all of the file: those above a word may be named there.
	stages  []pluginapi.Stage
	answers map[question]answer
	// needed says of each stage whether the target needs it.
	needed []bool
}

// source is a source with what it says about itself.
type source struct {
	pluginapi.Source
	pluginapi.Description
}

// has reports whether the source has a capability.
func (s *source) has(capability string) bool {
	return slices.Contains(s.Capabilities, capability)
}

// claims reports whether the word has a scheme that is the source's alone.
func (s *source) claims(word string) bool {
	scheme, _, ok := strings.Cut(word, ":")
	return ok && slices.Contains(s.Schemes, scheme)
}

// question is what sources whose answers don't depend on stages are asked once.
type question struct {
	source         int
	word, platform string
}

type answer struct {
	resolved pluginapi.Resolved
	err      error
}

// describe asks all sources what they are, and lists the stages for them.
func (b *binder) describe(ctx context.Context) error {
	for i, n := range b.graph.Nodes {
		b.stages = append(b.stages, pluginapi.Stage{Name: n.Stage.Name, Index: i})
	}
	for _, s := range b.options.Sources {
		d, err := s.Describe(ctx)
		if err != nil {
			return fmt.Errorf("describe a stage source: %w", err)
		}
		b.sources = append(b.sources, source{Source: s, Description: d})
	}
	return nil
}

// lookUp asks the sources in order. known is false for a word that may be left
// open.
func (b *binder) lookUp(ctx context.Context, index int, ref stage.Ref) (r pluginapi.Resolved, known bool, err error) {
	var told string // what a source that went far says of a word that it doesn't know
	for i := range b.sources {
		s := &b.sources[i]
		if b.leftOut(s, ref.Word.Text) {
			continue
		}
		far := s.has(pluginapi.CapabilityNetwork)
		if far {
			if err := b.misnamed(index, ref); err != nil {
				return r, false, err
			}
		}
		r, err := b.ask(ctx, i, index, ref)
		switch {
		case err == nil:
			return r, true, nil
		case ctx.Err() != nil:
			return r, false, context.Cause(ctx)
		case !pluginapi.IsNotFound(err):
			return r, false, b.refused(index, s, ref, err)
		case len(s.Schemes) > 0:
			return r, false, b.notFound(ref, b.lookedAmong(ref.Word.Text, err.Error()))
		}
		if far {
			told = err.Error()
		}
	}
	if err := b.misnamed(index, ref); err != nil {
		return r, false, err
	}
	if b.options.AllowUnknown {
		return r, false, nil
	}
	return r, false, b.notFound(ref, b.lookedAmong(ref.Word.Text, told))
}

// leftOut reports whether a source is not asked about a word: the word is not of
// its schemes, or the network may not be used.
func (b *binder) leftOut(s *source, word string) bool {
	if len(s.Schemes) > 0 && !s.claims(word) {
		return true
	}
	return s.has(pluginapi.CapabilityNetwork) && (b.options.Offline || b.options.AllowUnknown)
}

// ask asks one source, at most once when its answer can't depend on the place.
func (b *binder) ask(ctx context.Context, i, index int, ref stage.Ref) (pluginapi.Resolved, error) {
	s := &b.sources[i]
	q := pluginapi.Request{
		Reference: ref.Word.Text,
		Use:       useOf(ref.Use),
		Platform:  b.options.Platform,
		Position:  pluginapi.Position{File: ref.Word.Pos.File, Line: ref.Word.Pos.Line, Column: ref.Word.Pos.Column},
		Offline:   b.options.Offline || b.options.AllowUnknown,
	}
	if ref.Platform != "" {
		q.Platform = ref.Platform
	}
	if s.has(pluginapi.CapabilityStages) {
		q.Stages = b.stages[:index:index]
		return resolve(ctx, s, q)
	}
	key := question{source: i, word: q.Reference, platform: q.Platform}
	if a, ok := b.answers[key]; ok {
		return a.resolved, a.err
	}
	r, err := resolve(ctx, s, q)
	b.answers[key] = answer{resolved: r, err: err}
	return r, err
}

// resolve asks and checks the answer: sources may be anybody's.
func resolve(ctx context.Context, s *source, q pluginapi.Request) (pluginapi.Resolved, error) {
	r, err := s.Resolve(ctx, q)
	if err != nil {
		return pluginapi.Resolved{}, err
	}
	if err := r.Check(q); err != nil {
		return pluginapi.Resolved{}, err
	}
	r.Source = s.Name
	return r, nil
}

func useOf(u stage.Use) pluginapi.Use {
	switch u {
	case stage.UseCopy:
		return pluginapi.UseCopy
	case stage.UseMount:
		return pluginapi.UseMount
	case stage.UseFrom:
	}
	return pluginapi.UseFrom
}

// refused turns a source's error into one with a place. When a stage above has
// a name like the word, that is the better advice.
func (b *binder) refused(index int, s *source, ref stage.Ref, err error) error {
	message, hint := fmt.Sprintf("ask %s: %v", s.Name, err), ""
	if refusal, ok := errors.AsType[*pluginapi.Error](err); ok {
		message, hint = refusal.Message, refusal.Hint
	}
	if near, ok := b.suggestion(index, ref.Word.Text); ok {
		hint = near
	}
	e := b.errorAt(ref, hint, message)
	e.Err = err
	return e
}

// notFound is the error for a word that nobody knows.
func (b *binder) notFound(ref stage.Ref, hint string) error {
	e := b.errorAt(ref, hint, "no such stage or image")
	e.Err = fmt.Errorf("%q: %w", ref.Word.Text, pluginapi.ErrNotFound)
	return e
}

// lookedAmong says what was looked through, each kind once, and what a source
// told about it.
func (b *binder) lookedAmong(word, told string) string {
	var summaries []string
	for i := range b.sources {
		s := &b.sources[i]
		asked := len(s.Schemes) == 0 || s.claims(word)
		if asked && s.Summary != "" && !slices.Contains(summaries, s.Summary) {
			summaries = append(summaries, s.Summary)
		}
	}
	var hints []string
	if len(summaries) > 0 {
		hints = append(hints, "looked among "+strings.Join(summaries, ", "))
	}
	if told != "" {
		hints = append(hints, told)
	}
	if b.options.Hint != "" {
		hints = append(hints, b.options.Hint)
	}
	return strings.Join(hints, "; ")
}

// errorAt returns an error that underlines the word as it is written.
func (b *binder) errorAt(ref stage.Ref, hint, message string) *dockerfile.Error {
	return b.graph.File.Errorf(ref.Word.Pos, len(ref.Raw), hint, "%s: %s", quote(ref), message)
}

// quote returns the word with its instruction, expanded: "COPY --from=build".
func quote(ref stage.Ref) string {
	if ref.Use == stage.UseFrom {
		return "FROM " + ref.Word.Text
	}
	return string(useOf(ref.Use)) + "=" + ref.Word.Text
}
