// Package resolve binds every FROM and --from word of a stage graph to a stage
// or a pinned source, by asking pluginapi.Sources in order.
//
// It knows no kind of source: what a word may stand for is decided by the list
// of sources alone. Only stages that the target needs are asked about.
package resolve

import (
	"context"
	"fmt"

	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/stage"
	"github.com/mstage/mstage/pkg/pluginapi"
)

// Binding is one word with its answer.
type Binding struct {
	Ref stage.Ref
	// Resolved is the answer; only its Reference is set for "scratch" and for a
	// word that is left open.
	Resolved pluginapi.Resolved
	// Unknown is set for a word that no source that could be asked answered;
	// only with Options.AllowUnknown.
	Unknown bool
}

// Scratch reports whether the word means an empty file system.
func (b *Binding) Scratch() bool {
	r := b.Resolved
	return !b.Unknown && r.Stage == nil && r.Image == "" && r.Content == nil
}

// BoundStage is one stage whose words are all bound.
type BoundStage struct {
	// Node is the graph's, or a copy of it that has the triggers of its base
	// image and their words: Node.All are the instructions to be done.
	Node *stage.Node
	// Base is the answer for FROM; nil for scratch.
	Base *Binding
	// Refs answer for Node.Refs, in the same order.
	Refs []Binding
}

// Bindings are the stages that the target needs, in the file's order, with
// every word bound. A stage that nothing needs is neither asked about nor here.
type Bindings struct {
	Graph  *stage.Graph
	Stages []*BoundStage
}

// Options say whom to ask, and how.
type Options struct {
	// Sources are asked in this order; the first answer counts.
	Sources []pluginapi.Source
	// Platform is "os/arch[/variant]" for words that don't say.
	Platform string
	// Offline leaves out sources that may reach a network.
	Offline bool
	// AllowUnknown leaves a word open that nobody knows, instead of failing, and
	// leaves out sources that may reach a network.
	AllowUnknown bool
	// ConfigOf returns the config of a base image, for its ONBUILD triggers. Nil:
	// no base has any.
	ConfigOf func(ctx context.Context, r pluginapi.Resolved) (imageconfig.Config, error)
	// Hint is added to the hint for a word that nobody knows.
	Hint string
}

// Bind binds the words of the stages that g's target needs. What is wrong with
// a word is a *dockerfile.Error; it wraps pluginapi.ErrNotFound when nobody
// knows the word. After a cancel the error is context.Cause(ctx).
func Bind(ctx context.Context, g *stage.Graph, o Options) (*Bindings, error) {
	if g.Target < 0 || g.Target >= len(g.Nodes) {
		return nil, fmt.Errorf("target stage %d of %d", g.Target, len(g.Nodes))
	}
	b := &binder{graph: g, options: o, answers: map[question]answer{}, needed: make([]bool, len(g.Nodes))}
	if err := b.describe(ctx); err != nil {
		return nil, err
	}
	b.needed[g.Target] = true
	stages := make([]*BoundStage, len(g.Nodes))
	// A stage can need only those above it, so one walk upwards finds them all.
	for i := g.Target; i >= 0; i-- {
		if !b.needed[i] {
			continue
		}
		bound, err := b.bindStage(ctx, i)
		if err != nil {
			return nil, g.File.Quote(err)
		}
		stages[i] = bound
	}
	return &Bindings{Graph: g, Stages: compact(stages)}, nil
}

// compact drops what is nil.
func compact(stages []*BoundStage) []*BoundStage {
	kept := stages[:0]
	for _, s := range stages {
		if s != nil {
			kept = append(kept, s)
		}
	}
	return kept
}

// bindStage binds the base, adds its triggers and binds the rest.
func (b *binder) bindStage(ctx context.Context, index int) (*BoundStage, error) {
	bound := &BoundStage{Node: b.graph.Nodes[index]}
	if !bound.Node.Scratch() {
		base, err := b.bind(ctx, index, bound.Node.Base)
		if err != nil {
			return nil, err
		}
		bound.Base = &base
		if err := b.addTriggers(ctx, bound); err != nil {
			return nil, err
		}
	}
	for _, ref := range bound.Node.Refs {
		binding, err := b.bind(ctx, index, ref)
		if err != nil {
			return nil, err
		}
		bound.Refs = append(bound.Refs, binding)
	}
	return bound, nil
}

// bind binds one word and notes the stage that it needs.
func (b *binder) bind(ctx context.Context, index int, ref stage.Ref) (Binding, error) {
	binding := Binding{Ref: ref, Resolved: pluginapi.Resolved{Reference: ref.Word.Text}}
	if ref.Word.Text == "scratch" {
		return binding, nil
	}
	resolved, known, err := b.lookUp(ctx, index, ref)
	if err != nil {
		return Binding{}, err
	}
	if !known {
		binding.Unknown = true
		return binding, nil
	}
	binding.Resolved = resolved
	if resolved.Stage != nil {
		b.needed[*resolved.Stage] = true
	}
	return binding, nil
}
