package resolve

import (
	"context"
	"fmt"
	"slices"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/stage"
	"github.com/mstage/mstage/pkg/pluginapi"
)

// maxTriggers limits the ONBUILD triggers of one base image. Images in the
// field have fewer than ten; the limit bounds what an image can add to a build.
const maxTriggers = 1000

// addTriggers gives a bound stage the ONBUILD triggers of what its FROM was
// answered with. The graph's node knows those of the stage that the word seems
// to name; an image, or another stage, needs a node of its own.
func (b *binder) addTriggers(ctx context.Context, bound *BoundStage) error {
	base, node := bound.Base, bound.Node
	baseStage := -1
	if base.Resolved.Stage != nil {
		baseStage = *base.Resolved.Stage
	}
	if baseStage >= 0 && baseStage == node.BaseStage {
		return nil
	}
	triggers, err := b.triggersOf(ctx, base)
	if err != nil {
		return err
	}
	if len(triggers) == 0 && baseStage == node.BaseStage {
		return nil
	}
	own := *node
	own.BaseStage, own.Triggers = baseStage, triggers
	scope := b.scopeBelow(baseStage)
	if own.Refs, err = refs(scope, own.All()); err != nil {
		return err
	}
	bound.Node = &own
	return nil
}

// triggersOf parses the triggers of a base.
func (b *binder) triggersOf(ctx context.Context, base *Binding) ([]dockerfile.Instruction, error) {
	switch {
	case base.Unknown:
		return nil, nil
	case base.Resolved.Stage != nil:
		return b.triggersOfStage(*base.Resolved.Stage)
	case b.options.ConfigOf == nil:
		return nil, nil
	}
	return b.triggersOfImage(ctx, base.Ref, base.Resolved)
}

func (b *binder) triggersOfStage(index int) ([]dockerfile.Instruction, error) {
	var triggers []dockerfile.Instruction
	for _, in := range b.graph.Nodes[index].Stage.Instructions {
		onbuild, ok := in.(*dockerfile.Onbuild)
		if !ok {
			continue
		}
		trigger, err := b.graph.File.Trigger(onbuild)
		if err != nil {
			return nil, err
		}
		triggers = append(triggers, trigger)
	}
	return triggers, nil
}

func (b *binder) triggersOfImage(ctx context.Context, ref stage.Ref, r pluginapi.Resolved) ([]dockerfile.Instruction, error) {
	config, err := b.options.ConfigOf(ctx, r)
	if err != nil {
		return nil, b.graph.File.Errorf(ref.Word.Pos, len(ref.Raw), "", "read the config of %s: %w", r.Reference, err)
	}
	expressions := config.Config.OnBuild
	if len(expressions) > maxTriggers {
		return nil, b.errorAt(ref, "", fmt.Sprintf("the image has %d ONBUILD triggers, more than %d", len(expressions), maxTriggers))
	}
	triggers := make([]dockerfile.Instruction, 0, len(expressions))
	for _, expression := range expressions {
		trigger, err := dockerfile.ParseTrigger(expression, ref.Word.Text)
		if err != nil {
			return nil, err
		}
		triggers = append(triggers, trigger)
	}
	return triggers, nil
}

// scopeBelow returns the scope at the top of a stage that is FROM the stage
// base; -1 is any image.
func (b *binder) scopeBelow(base int) *stage.Scope {
	var chain []*stage.Node
	for i := base; i >= 0; i = b.graph.Nodes[i].BaseStage {
		chain = append(chain, b.graph.Nodes[i])
	}
	scope := b.graph.Scope(nil)
	for _, node := range slices.Backward(chain) {
		for _, in := range node.All() {
			// Its words were looked at, and found right, when the graph was built.
			_, _ = refsOf(scope, in)
		}
	}
	return scope
}

// refs walks instructions and returns the words that name sources.
func refs(scope *stage.Scope, instructions []dockerfile.Instruction) ([]stage.Ref, error) {
	var all []stage.Ref
	for _, in := range instructions {
		found, err := refsOf(scope, in)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// refsOf takes one instruction into the scope and returns its words. An ARG or
// ENV that can't be expanded may need the base image's environment: whoever has
// that reports it.
func refsOf(scope *stage.Scope, in dockerfile.Instruction) ([]stage.Ref, error) {
	switch i := in.(type) {
	case *dockerfile.Arg:
		_, _ = scope.Arg(i)
		return nil, nil
	case *dockerfile.Env:
		_, _ = scope.Env(i)
		return nil, nil
	}
	return scope.Refs(in)
}
