package dockerfile

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// ParseTrigger reads one entry of an image's OnBuild. The positions are those
// in the trigger, with "ONBUILD of IMAGE" as the file: the instruction stands in
// no Dockerfile at hand. ONBUILD, FROM and MAINTAINER are refused, as is more
// than one instruction. Every error is an *Error.
func ParseTrigger(expression, imageRef string) (Instruction, error) {
	f := &File{
		Name: "ONBUILD of " + imageRef, Source: []byte(expression), Escape: parser.DefaultEscapeToken,
		lines: splitLines([]byte(expression)),
	}
	return f.parseTrigger(expression, nil)
}

// Trigger reads the instruction of an ONBUILD of this file, for a stage that is
// FROM the one that holds it. Positions are those of the ONBUILD line.
func (f *File) Trigger(o *Onbuild) (Instruction, error) {
	line := joinAt(f.Name, f.lines, o.Pos.Line, f.escape()).trigger()
	line.endLine = o.Pos.EndLine
	return f.parseTrigger(o.Expression, line)
}

// parseTrigger parses one instruction; line is where it stands in the file, nil
// when the expression is the file.
func (f *File) parseTrigger(expression string, line *logical) (Instruction, error) {
	node, err := f.triggerNode(expression)
	if err != nil {
		if line != nil {
			err.Pos, err.Width = line.pos(line.key), len(line.keyword())
			err.Line = f.line(err.Pos)
		}
		return nil, err
	}
	if line == nil {
		line = joinAt(f.Name, f.lines, node.StartLine, f.Escape)
		line.endLine = node.EndLine
	}
	c := newConverter(f, node, line)
	switch c.keyword {
	case "ONBUILD", "FROM", "MAINTAINER":
		return nil, c.errorf("remove it from the image, or from the stage that it was inherited from",
			"%s is not allowed as an ONBUILD trigger", c.keyword)
	}
	parsed, perr := c.parse(linter.New(&linter.Config{}))
	if perr != nil {
		return nil, perr
	}
	return c.instruction(parsed), nil
}

// triggerNode parses the text of a trigger, which has its own escape directive
// if any.
func (f *File) triggerNode(expression string) (*parser.Node, *Error) {
	text := &File{Name: f.Name, Source: []byte(expression), Escape: parser.DefaultEscapeToken, lines: splitLines([]byte(expression))}
	if err := text.checkLimits(text.Source); err != nil {
		return nil, err
	}
	result, err := parser.Parse(strings.NewReader(expression))
	if err != nil {
		return nil, text.explainParser(err)
	}
	if n := len(result.AST.Children); n != 1 {
		return nil, text.Errorf(Position{File: f.Name}, 0, "", "a trigger is one instruction, not %d", n)
	}
	return result.AST.Children[0], nil
}
