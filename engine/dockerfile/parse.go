package dockerfile

import (
	"bytes"
	"errors"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// byteOrderMark begins a text that a Windows editor saved.
const byteOrderMark = "\xef\xbb\xbf"

// Parse reads a Dockerfile. name stands in positions. Every error is an *Error.
//
// What BuildKit's own frontend accepts is accepted, but for: text beyond the
// limits of this package, bytes that are not UTF-8 outside of comments, a file
// without FROM, flags on ARG, STOPSIGNAL and HEALTHCHECK NONE (BuildKit drops
// them unseen), an invalid "# check=" directive, and warnings when that
// directive says error=true. One thing more is accepted: variables in from= of
// RUN --mount. "# syntax=" is accepted and has no effect: this frontend always
// serves.
func Parse(name string, source []byte) (*File, error) {
	text := bytes.TrimPrefix(source, []byte(byteOrderMark))
	f := &File{Name: name, Source: text, Escape: parser.DefaultEscapeToken, lines: splitLines(text)}
	if err := f.checkLimits(source); err != nil {
		return nil, err
	}
	lint, err := f.directives()
	if err != nil {
		return nil, err
	}
	result, perr := parser.Parse(bytes.NewReader(source))
	if perr != nil {
		return nil, f.explainParser(perr)
	}
	f.Escape = result.EscapeToken
	for _, w := range result.Warnings {
		f.warn("empty line after a continued one", []parser.Range{*w.Location})
	}
	rules := linter.New(lint)
	for _, node := range result.AST.Children {
		if err := f.addNode(node, rules); err != nil {
			return nil, err
		}
	}
	if err := f.checkWhole(lint); err != nil {
		return nil, err
	}
	return f, nil
}

// checkWhole returns what is wrong with the file as a whole.
func (f *File) checkWhole(lint *linter.Config) error {
	if len(f.Stages) == 0 {
		return f.Errorf(Position{File: f.Name}, 0, "begin with FROM and a base image, or FROM scratch", "no FROM in the file")
	}
	if lint.ReturnAsError && len(f.Warnings) > 0 {
		w := f.Warnings[0]
		return f.Errorf(w.Pos, 0, "the file's check directive makes warnings errors", "%s", w.Message)
	}
	return nil
}

// directives checks the parser directives at the top and returns the linter's
// configuration from "# check=".
func (f *File) directives() (*linter.Config, error) {
	var d parser.DirectiveParser
	config := &linter.Config{}
	for i, line := range f.lines {
		trimmed := strings.TrimLeftFunc(strings.TrimRight(line, "\r"), unicode.IsSpace)
		pos := Position{File: f.Name, Line: i + 1, Column: len(line) - len(strings.TrimLeftFunc(line, unicode.IsSpace)) + 1}
		directive, err := d.ParseLine([]byte(trimmed))
		if err != nil {
			return nil, f.Errorf(pos, len(trimmed), "remove the second one", "%s", reword(err))
		}
		if directive == nil && !strings.HasPrefix(trimmed, "#") {
			break
		}
		if directive == nil {
			continue
		}
		if err := applyDirective(directive, config); err != nil {
			return nil, f.Errorf(pos, len(trimmed), directiveHints[directive.Name], "%s", reword(err))
		}
	}
	config.Warn = func(_, _, _, message string, at []parser.Range) { f.warn(message, at) }
	return config, nil
}

var directiveHints = map[string]string{
	"escape": "write \"# escape=\\\" or \"# escape=`\"",
	"check":  "write \"# check=skip=Rule1,Rule2\" or \"# check=error=true\"",
}

var errEscape = errors.New("the escape character must be \\ or `")

// applyDirective checks one directive's value.
func applyDirective(d *parser.Directive, config *linter.Config) error {
	switch d.Name {
	case "escape":
		if d.Value != `\` && d.Value != "`" {
			return errEscape
		}
	case "check":
		value, _, _ := strings.Cut(d.Value, " ")
		parsed, err := linter.ParseLintOptions(value)
		if err != nil {
			return err
		}
		*config = *parsed
	}
	return nil
}

// warn keeps a warning about the first of some lines.
func (f *File) warn(message string, at []parser.Range) {
	w := Warning{Pos: Position{File: f.Name}, Message: printable(message)}
	if len(at) > 0 {
		w.Pos.Line = at[0].Start.Line
	}
	f.Warnings = append(f.Warnings, w)
}

// addNode converts one instruction and appends it where it belongs.
func (f *File) addNode(node *parser.Node, rules *linter.Linter) error {
	line := joinAt(f.Name, f.lines, node.StartLine, f.Escape)
	line.endLine = node.EndLine // here-documents included
	c := newConverter(f, node, line)
	parsed, err := c.parse(rules)
	if err != nil {
		return err
	}
	if from, ok := parsed.(*instructions.Stage); ok {
		if len(f.Stages) == maxStages {
			return c.errorf("split the file", "more than %d stages", maxStages)
		}
		f.Stages = append(f.Stages, c.stage(from, len(f.Stages)))
		return nil
	}
	ins := c.instruction(parsed)
	arg, isArg := ins.(*Arg)
	switch {
	case len(f.Stages) > 0:
		last := f.Stages[len(f.Stages)-1]
		last.Instructions = append(last.Instructions, ins)
	case isArg:
		f.GlobalArgs = append(f.GlobalArgs, arg)
	default:
		return c.errorf("only ARG may stand before the first FROM", "%s before the first FROM", c.keyword)
	}
	return nil
}
