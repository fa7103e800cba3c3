package stage

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mstage/mstage/engine/dockerfile"
)

// Named is a stage as an error or a source may mention it.
type Named struct {
	Index int
	// Name is as written after AS, "" without one.
	Name string
	Pos  dockerfile.Position
}

// StagesBefore returns the stages that stage i may name, in order.
func (g *Graph) StagesBefore(i int) []Named { return g.named(0, i) }

// Later returns the stages below stage i, in order. Neither they nor i itself
// may be named there.
func (g *Graph) Later(i int) []Named { return g.named(i+1, len(g.File.Stages)) }

// named describes the stages from up to, and without, end.
func (g *Graph) named(from, end int) []Named {
	var out []Named
	for _, st := range g.File.Stages[min(from, len(g.File.Stages)):min(end, len(g.File.Stages))] {
		out = append(out, Named{Index: st.Index, Name: st.Name, Pos: st.Pos})
	}
	return out
}

// lookup returns the stage so far that a word names: the last one of that name
// in any case, else the one with that index.
func (g *Graph) lookup(word string) (int, bool) { return g.lookupBefore(word, len(g.Nodes)) }

// lookupBefore is lookup among the first n stages.
func (g *Graph) lookupBefore(word string, n int) (int, bool) {
	for i := n - 1; i >= 0; i-- {
		if name := g.Nodes[i].Stage.Name; name != "" && strings.EqualFold(name, word) {
			return i, true
		}
	}
	i, err := strconv.Atoi(word)
	return i, err == nil && i >= 0 && i < n
}

// from expands the words of a FROM line.
func (b *builder) from(st *dockerfile.Stage) (Ref, error) {
	base, err := b.fromWord(st.Base)
	if err != nil {
		return Ref{}, err
	}
	ref := Ref{Use: UseFrom, Word: base, Raw: st.Base.Text, Mount: -1}
	if st.Platform.Text == "" {
		return ref, nil
	}
	platform, err := b.fromWord(st.Platform)
	if err != nil {
		return Ref{}, err
	}
	parsed, err := ParsePlatform(platform.Text)
	if err != nil {
		return Ref{}, b.graph.File.Errorf(platform.Pos, len(st.Platform.Text), "write os/arch[/variant], such as linux/amd64", "FROM --platform: %w", err)
	}
	ref.Platform = parsed.String()
	return ref, nil
}

// fromWord expands one word of a FROM line.
func (b *builder) fromWord(w dockerfile.Word) (dockerfile.Word, error) {
	f := b.graph.File
	x, err := f.ExpandReport(w.Text, b.global)
	if err != nil {
		return w, f.Errorf(w.Pos, len(w.Text), dockerfile.ExpandHint(err), "FROM %s: %w", w.Text, err)
	}
	if x.Text == "" {
		return w, f.Errorf(w.Pos, len(w.Text), b.unsetHint(x.Unset), "FROM %s: nothing is left when the variables are expanded", w.Text)
	}
	return dockerfile.Word{Text: x.Text, Pos: w.Pos}, nil
}

// unsetHint says how to give a variable of a FROM line a value.
func (b *builder) unsetHint(unset []string) string {
	if len(unset) == 0 {
		return "an ARG above the first FROM sets it to nothing"
	}
	name := unset[0]
	global := func(a *dockerfile.Arg) bool {
		return slices.ContainsFunc(a.Args, func(v dockerfile.ArgValue) bool { return v.Key == name })
	}
	if slices.ContainsFunc(b.graph.File.GlobalArgs, global) {
		return fmt.Sprintf("ARG %s has no default: give it one, or build with --build-arg %s=…", name, name)
	}
	if like := dockerfile.Suggest(name, b.global.Keys()); like != "" {
		return fmt.Sprintf("did you mean $%s?", like)
	}
	return fmt.Sprintf("FROM sees ARGs above the first FROM only: put ARG %s=… there", name)
}

// Refs returns the words of COPY --from and RUN --mount from= of an instruction,
// expanded. An error is a *dockerfile.Error; the other words are returned with it.
func (s *Scope) Refs(ins dockerfile.Instruction) ([]Ref, error) {
	switch i := ins.(type) {
	case *dockerfile.Copy:
		return s.copyRefs(i)
	case *dockerfile.Run:
		return s.mountRefs(i)
	}
	return nil, nil
}

func (s *Scope) copyRefs(c *dockerfile.Copy) ([]Ref, error) {
	if c.From.Text == "" {
		return nil, nil
	}
	text, err := s.word("COPY --from", c.From.Text, c.From.Pos)
	if err != nil {
		return nil, err
	}
	return []Ref{{Use: UseCopy, Word: dockerfile.Word{Text: text, Pos: c.From.Pos}, Raw: c.From.Text, Instruction: c, Mount: -1}}, nil
}

func (s *Scope) mountRefs(r *dockerfile.Run) (refs []Ref, first error) {
	for i, mount := range r.Mounts {
		raw, offset, err := dockerfile.MountFrom(mount)
		if err != nil {
			first = cmp.Or(first, s.file.Quote(err))
			continue
		}
		if raw == "" {
			continue
		}
		pos := s.file.SubPosition(mount, offset)
		text, err := s.word("RUN --mount from", raw, pos)
		if err != nil {
			first = cmp.Or(first, err)
			continue
		}
		refs = append(refs, Ref{Use: UseMount, Word: dockerfile.Word{Text: text, Pos: pos}, Raw: raw, Instruction: r, Mount: i})
	}
	return refs, first
}

// word expands a word that names a source; nothing left is an error.
func (s *Scope) word(what, raw string, pos dockerfile.Position) (string, error) {
	x, err := s.file.ExpandReport(raw, s.vars)
	if err != nil {
		return "", s.file.Errorf(pos, len(raw), dockerfile.ExpandHint(err), "%s=%s: %w", what, raw, err)
	}
	if x.Text != "" {
		return x.Text, nil
	}
	hint := "only ARG and ENV of this file are in scope here"
	if len(x.Unset) > 0 {
		name := x.Unset[0]
		hint = fmt.Sprintf("$%s has no value here: put ARG %s above the line, with a default or --build-arg", name, name)
		if like := dockerfile.Suggest(name, s.vars.Keys()); like != "" {
			hint = fmt.Sprintf("did you mean $%s?", like)
		}
	}
	return "", s.file.Errorf(pos, len(raw), hint, "%s=%s: nothing is left when the variables are expanded", what, raw)
}
