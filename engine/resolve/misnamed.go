package resolve

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/stage"
)

// misnamed returns the error for a word that no source has answered so far and
// that most likely means a stage: one that can't be used here, or one whose
// name is misspelt, or a number that none has. Nil when it looks like anything else.
func (b *binder) misnamed(index int, ref stage.Ref) error {
	word := ref.Word.Text
	if target, ok := b.stageNamed(word, index); ok {
		own := target == index
		switch {
		case own && ref.Use == stage.UseFrom:
			return nil // FROM x AS x: the name is this stage's, x is something else
		case own:
			return b.errorAt(ref, "a stage can use only those above it", "that is this stage itself")
		}
		return b.errorAt(ref, "a stage can use only those above it: move it up",
			fmt.Sprintf("%s comes later", b.describeStage(target)))
	}
	if hint, ok := b.suggestion(index, word); ok {
		return b.notFound(ref, hint)
	}
	if _, err := strconv.ParseUint(word, 10, 32); err == nil && ref.Use != stage.UseFrom {
		return b.notFound(ref, b.lookedAmong(word, fmt.Sprintf("stages above have numbers below %d", index)))
	}
	return nil
}

// stageNamed finds the stage from index on that the word names or numbers.
func (b *binder) stageNamed(word string, index int) (int, bool) {
	for i := index; i < len(b.graph.Nodes); i++ {
		name := b.graph.Nodes[i].Stage.Name
		if strconv.Itoa(i) == word || name != "" && strings.EqualFold(name, word) {
			return i, true
		}
	}
	return 0, false
}

// suggestion returns the hint with the stage above whose name is close. Words
// with "/", ":" or "." can't be meant as stages.
func (b *binder) suggestion(index int, word string) (hint string, ok bool) {
	if strings.ContainsAny(word, "/:.") {
		return "", false
	}
	var names []string
	for _, n := range b.graph.Nodes[:index] {
		if n.Stage.Name != "" {
			names = append(names, n.Stage.Name)
		}
	}
	near := dockerfile.Suggest(word, names)
	if near == "" {
		return "", false
	}
	for i := index - 1; i >= 0; i-- {
		if b.graph.Nodes[i].Stage.Name == near {
			pos := b.graph.Nodes[i].Stage.Pos
			return fmt.Sprintf("did you mean %q (stage %d, %s:%d)?", near, i, pos.File, pos.Line), true
		}
	}
	return "", false
}

// describeStage names a stage with its place: `stage "x" (Dockerfile:7)`.
func (b *binder) describeStage(index int) string {
	s := b.graph.Nodes[index].Stage
	name := strconv.Itoa(index)
	if s.Name != "" {
		name = strconv.Quote(s.Name)
	}
	return fmt.Sprintf("stage %s (%s:%d)", name, s.Pos.File, s.Pos.Line)
}
