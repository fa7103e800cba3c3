package stage

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/mstage/mstage/engine/dockerfile"
)

// Options are what a build is asked for. The zero value builds the last stage
// for this host.
type Options struct {
	// BuildArgs are the values of --build-arg; a name without a value was looked
	// up in the environment or left out before.
	BuildArgs map[string]string
	// Target is the stage to build: a name in any case, or an index; "" is the last.
	Target string
	// Platform is "os/arch[/variant]" of the image; "" is BuildPlatform.
	Platform string
	// BuildPlatform is where the build runs; "" is this host.
	BuildPlatform string
}

// Build returns the graph of a file's stages. Every error is a *dockerfile.Error
// but for an invalid platform in Options.
//
// FROM sees global ARGs and the predefined ones. The words of COPY --from and
// RUN --mount from= see the global ARGs, and the ARGs and ENVs above them in
// their stage and in the stages of this file that it is FROM. The environment
// of a base image is not in scope: which image that is may depend on these
// very words. An ARG or ENV that can't be expanded without it counts as not set.
//
// What is wrong with such a word is an error only when the target needs its
// stage; what is wrong with a FROM always is.
func Build(f *dockerfile.File, o Options) (*Graph, error) {
	b := &builder{graph: &Graph{File: f, BuildArgs: maps.Clone(o.BuildArgs)}, faults: map[int]error{}}
	target, err := b.graph.findTarget(o.Target)
	if err != nil {
		return nil, err
	}
	b.graph.Target = target
	if err := b.globals(o); err != nil {
		return nil, err
	}
	for _, st := range f.Stages {
		if err := b.add(st); err != nil {
			return nil, err
		}
	}
	for i, needed := range b.needed() {
		if err := b.faults[i]; err != nil && needed {
			return nil, err
		}
	}
	b.graph.UnusedArgs = b.unused(o.BuildArgs)
	return b.graph, nil
}

// builder is a graph in the making.
type builder struct {
	graph *Graph
	// global are the variables that FROM sees.
	global *dockerfile.Vars
	// scopes are those at the end of each stage.
	scopes []*Scope
	// faults are the first errors in stages that nothing may need.
	faults map[int]error
	// declared are the names of all ARGs.
	declared map[string]bool
}

// globals evaluates the predefined and the global ARGs.
func (b *builder) globals(o Options) error {
	vars, err := predefined(o, targetStage(b.graph.File, o.Target))
	if err != nil {
		return err
	}
	b.global, b.declared = vars, map[string]bool{}
	for _, name := range vars.Keys() {
		b.declared[name] = true
	}
	s := &Scope{file: b.graph.File, buildArgs: o.BuildArgs, vars: vars, config: vars, args: dockerfile.NewVars()}
	for _, arg := range b.graph.File.GlobalArgs {
		b.declare(arg)
		if _, err := s.Arg(arg); err != nil {
			return err
		}
	}
	b.graph.Args = map[string]string{}
	for _, name := range vars.Keys() {
		b.graph.Args[name], _ = vars.Get(name)
	}
	return nil
}

func (b *builder) declare(a *dockerfile.Arg) {
	for _, arg := range a.Args {
		b.declared[arg.Key] = true
	}
}

// targetStage is the value of TARGETSTAGE.
func targetStage(f *dockerfile.File, target string) string {
	if target != "" {
		return target
	}
	if name := f.Stages[len(f.Stages)-1].Name; name != "" {
		return strings.ToLower(name)
	}
	return "default"
}

// predefined returns the ARGs that every file has; a build argument of the name
// replaces the value.
// Source: docker/dockerfile reference, "Automatic platform ARGs".
func predefined(o Options, targetStage string) (*dockerfile.Vars, error) {
	build, target := HostPlatform(), Platform{}
	var err error
	if o.BuildPlatform != "" {
		if build, err = ParsePlatform(o.BuildPlatform); err != nil {
			return nil, fmt.Errorf("read the build platform: %w", err)
		}
	}
	target = build
	if o.Platform != "" {
		if target, err = ParsePlatform(o.Platform); err != nil {
			return nil, fmt.Errorf("read the target platform: %w", err)
		}
	}
	vars := dockerfile.NewVars(
		"BUILDPLATFORM="+build.String(), "BUILDOS="+build.OS, "BUILDOSVERSION=", "BUILDARCH="+build.Arch, "BUILDVARIANT="+build.Variant,
		"TARGETPLATFORM="+target.String(), "TARGETOS="+target.OS, "TARGETOSVERSION=", "TARGETARCH="+target.Arch, "TARGETVARIANT="+target.Variant,
		"TARGETSTAGE="+targetStage,
	)
	for _, name := range vars.Keys() {
		if value, ok := o.BuildArgs[name]; ok {
			vars.Set(name, value)
		}
	}
	return vars, nil
}

// add evaluates one stage and appends its node.
func (b *builder) add(st *dockerfile.Stage) error {
	base, err := b.from(st)
	if err != nil {
		return err
	}
	n := &Node{Stage: st, Base: base, BaseStage: -1}
	scope := b.graph.Scope(nil)
	if i, ok := b.graph.lookup(base.Word.Text); ok && !n.Scratch() {
		n.BaseStage = i
		scope = b.scopes[i].Fork()
		n.Triggers = b.triggers(i, st.Index)
	}
	b.graph.Nodes = append(b.graph.Nodes, n)
	b.scopes = append(b.scopes, scope)
	for _, ins := range n.All() {
		if !b.walk(n, scope, ins) {
			break
		}
	}
	return nil
}

// All returns the instructions in the order in which they are done: Triggers,
// then the stage's own.
func (n *Node) All() []dockerfile.Instruction {
	return slices.Concat(n.Triggers, n.Stage.Instructions)
}

// walk takes one instruction into the scope and collects its words. It returns
// false when the rest of the stage need not be looked at.
func (b *builder) walk(n *Node, scope *Scope, ins dockerfile.Instruction) bool {
	var err error
	switch i := ins.(type) {
	case *dockerfile.Arg:
		b.declare(i)
		_, err = scope.Arg(i)
	case *dockerfile.Env:
		_, err = scope.Env(i)
	default:
		var refs []Ref
		refs, err = scope.Refs(ins)
		n.Refs = append(n.Refs, refs...)
		b.fault(n.Stage.Index, err)
		return true
	}
	// Any other error of ARG and ENV may come from the missing base image: who
	// walks with it reports it.
	if errors.Is(err, errTooLarge) {
		b.fault(n.Stage.Index, err)
		return false
	}
	return true
}

// fault keeps the first error of a stage.
func (b *builder) fault(i int, err error) {
	if b.faults[i] == nil {
		b.faults[i] = err
	}
}

// triggers parses the ONBUILDs of a base stage for the stage child.
func (b *builder) triggers(base, child int) []dockerfile.Instruction {
	var out []dockerfile.Instruction
	for _, ins := range b.graph.Nodes[base].Stage.Instructions {
		on, ok := ins.(*dockerfile.Onbuild)
		if !ok {
			continue
		}
		parsed, err := b.graph.File.Trigger(on)
		if err != nil {
			b.fault(child, err)
			continue
		}
		out = append(out, parsed)
	}
	return out
}

// needed reports for each stage whether the target needs it, as far as names
// and indexes of stages tell.
func (b *builder) needed() []bool {
	needed := make([]bool, len(b.graph.Nodes))
	needed[b.graph.Target] = true
	for i := b.graph.Target; i >= 0; i-- { // every edge leads to an earlier stage
		if !needed[i] {
			continue
		}
		n := b.graph.Nodes[i]
		if n.BaseStage >= 0 {
			needed[n.BaseStage] = true
		}
		for _, r := range n.Refs {
			if j, ok := b.graph.lookupBefore(r.Word.Text, i); ok {
				needed[j] = true
			}
		}
	}
	return needed
}

// unused returns the build arguments that nothing declares.
func (b *builder) unused(buildArgs map[string]string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(buildArgs)) {
		known := b.declared[name] || slices.Contains(proxyNames, strings.ToLower(name)) ||
			strings.HasPrefix(name, "BUILDKIT_") || name == "SOURCE_DATE_EPOCH"
		if !known {
			names = append(names, name)
		}
	}
	return names
}

// findTarget returns the index of the stage to build.
func (g *Graph) findTarget(target string) (int, error) {
	stages := g.File.Stages
	if target == "" {
		return len(stages) - 1, nil
	}
	for i, st := range slices.Backward(stages) {
		if st.Name != "" && strings.EqualFold(st.Name, target) {
			return i, nil
		}
	}
	if i, err := strconv.Atoi(target); err == nil && i >= 0 && i < len(stages) {
		return i, nil
	}
	return 0, g.File.Errorf(dockerfile.Position{File: g.File.Name}, 0, targetHint(stages, target), "no stage %q to build", target)
}

// targetHint suggests a stage, or lists them.
func targetHint(stages []*dockerfile.Stage, target string) string {
	var names []string
	for _, st := range stages {
		if st.Name != "" {
			names = append(names, st.Name)
		}
	}
	if like := dockerfile.Suggest(target, names); like != "" {
		return fmt.Sprintf("did you mean %q?", like)
	}
	if len(names) == 0 {
		return fmt.Sprintf("no stage has a name; give an index from 0 to %d", len(stages)-1)
	}
	const most = 20 // names to list
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return "the stages are " + strings.Join(names, ", ")
}
