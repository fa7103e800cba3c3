// Package stage turns instructions into a graph of stages: names, indexes, base
// words, and the words of COPY --from and RUN --mount from=, variables expanded.
//
// What a word stands for is decided by engine/resolve, which asks the sources;
// this package only says which words there are and which stages each may name.
package stage

import "github.com/mstage/mstage/engine/dockerfile"

// Use says which instruction a Ref stands in.
type Use int

// The uses.
const (
	UseFrom Use = iota
	UseCopy
	UseMount
)

// Ref is one word that names a stage or another source.
type Ref struct {
	Use Use
	// Word has its variables expanded; Pos is where it stands in the file.
	Word dockerfile.Word
	// Raw is the word as written.
	Raw string
	// Instruction is the one that holds the word, nil for FROM.
	Instruction dockerfile.Instruction
	// Mount is the index in Run.Mounts for UseMount, else -1.
	Mount int
	// Platform is FROM's --platform, expanded; "" without one.
	Platform string
}

// Node is one stage of the graph.
type Node struct {
	Stage *dockerfile.Stage
	// Base is the word of FROM; "scratch" is no source but nothing at all.
	Base Ref
	// Refs are the words of COPY --from and RUN --mount from=, in order: those of
	// Triggers first. They are what is known before any image is looked at; the
	// triggers of a base image add theirs with Scope.Refs.
	Refs []Ref
	// BaseStage is the index of the earlier stage that FROM names, by name or
	// index, -1 when it names none. A source that comes before the stages may
	// still answer for the word.
	BaseStage int
	// Triggers are the instructions of the ONBUILDs of BaseStage, to be done
	// before those of this stage.
	Triggers []dockerfile.Instruction
}

// Scratch reports whether the stage starts from nothing.
func (n *Node) Scratch() bool { return n.Base.Word.Text == "scratch" }

// Graph is a Dockerfile as stages. Nodes are in the file's order.
type Graph struct {
	File  *dockerfile.File
	Nodes []*Node
	// Target is the index of the stage to build.
	Target int
	// Args are the global ARGs with their values: what FROM lines see, and what
	// an ARG without a default inherits in a stage.
	Args map[string]string
	// UnusedArgs are names of build arguments that no ARG declares, sorted.
	UnusedArgs []string
	// BuildArgs are the values given for the build, as Options had them.
	BuildArgs map[string]string
}
