package dockerfile

import (
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// converter turns one node of BuildKit's syntax tree into an Instruction.
type converter struct {
	file    *File
	node    *parser.Node
	line    *logical
	keyword string // upper case
	flags   []flagSpan
	rest    int // offset of the first argument in line.text
}

func newConverter(f *File, node *parser.Node, line *logical) *converter {
	c := &converter{file: f, node: node, line: line, keyword: strings.ToUpper(node.Value)}
	c.flags, c.rest = line.flags(f.Escape)
	if len(c.flags) != len(node.Flags) {
		c.flags = nil // positions are then those of the instruction
	}
	return c
}

// errorf returns an error that points at the keyword.
func (c *converter) errorf(hint, format string, args ...any) *Error {
	return c.file.Errorf(c.line.pos(c.line.key), len(c.line.keyword()), hint, format, args...)
}

// parse checks the node and hands it to BuildKit's instructions package.
func (c *converter) parse(rules *linter.Linter) (any, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	parsed, err := instructions.ParseInstructionWithLinter(c.lenient(), rules)
	if err != nil {
		return nil, c.explain(err)
	}
	return parsed, nil
}

// check refuses what BuildKit lets pass unseen, or can't be handed to it.
func (c *converter) check() error {
	for _, doc := range c.node.Heredocs {
		if badByte(doc.Content) >= 0 {
			return c.errorf("COPY the file instead", "here-document %s holds bytes that are not UTF-8 text", doc.Name)
		}
	}
	for _, w := range c.values("--mount") {
		if _, _, err := MountFrom(w); c.keyword == "RUN" && err != nil {
			return c.file.Quote(err)
		}
	}
	if c.keyword == "ONBUILD" && c.trigger() == "ONBUILD" {
		return c.errorf("give the trigger without its own ONBUILD", "ONBUILD ONBUILD is not allowed")
	}
	if len(c.node.Flags) > 0 && c.dropsFlags() {
		e := c.errorf("remove the flag", "%s takes no flags", c.keyword)
		if len(c.flags) > 0 {
			e.Pos, e.Width = c.line.pos(c.flags[0].offset), c.flags[0].end-c.flags[0].offset
			e.Line = c.file.line(e.Pos)
		}
		return e
	}
	return nil
}

// trigger returns the keyword after ONBUILD.
func (c *converter) trigger() string {
	if c.node.Next == nil || len(c.node.Next.Children) == 0 {
		return ""
	}
	return strings.ToUpper(strings.TrimSpace(c.node.Next.Children[0].Value))
}

// dropsFlags reports whether BuildKit never looks at the instruction's flags.
func (c *converter) dropsFlags() bool {
	switch strings.ToLower(c.node.Value) {
	case command.Arg, command.StopSignal:
		return true
	case command.Healthcheck:
		return c.node.Next != nil && strings.EqualFold(c.node.Next.Value, "none")
	}
	return false
}

// lenient returns the node with "$" hidden in --mount values: BuildKit refuses
// variables in from=, here they are allowed. Nothing else of a mount is looked
// at before it is expanded.
func (c *converter) lenient() *parser.Node {
	if c.keyword != "RUN" || len(c.node.Flags) == 0 {
		return c.node
	}
	n := *c.node
	n.Flags = make([]string, len(c.node.Flags))
	for i, text := range c.node.Flags {
		if strings.HasPrefix(text, "--mount=") {
			text = strings.ReplaceAll(text, "$", "_")
		}
		n.Flags[i] = text
	}
	return &n
}

// header returns what all instructions have.
func (c *converter) header() Header {
	pos := c.line.pos(c.line.key)
	if pos.Line == 0 {
		pos.Line = c.node.StartLine
	}
	pos.EndLine = c.line.endLine
	return Header{Keyword: c.keyword, Text: upperKeyword(c.node.Original), Pos: pos}
}

// upperKeyword returns an instruction with its first word in upper case.
func upperKeyword(original string) string {
	text := strings.TrimSpace(original)
	end := strings.IndexAny(text, blank)
	if end < 0 {
		return strings.ToUpper(text)
	}
	return strings.ToUpper(text[:end]) + text[end:]
}

// values returns the values of all flags of that name, with positions.
func (c *converter) values(name string) []Word {
	var words []Word
	for i, text := range c.node.Flags {
		value, ok := strings.CutPrefix(text, name+"=")
		if !ok {
			continue
		}
		pos := c.header().Pos
		if c.flags != nil {
			pos = c.line.pos(c.flags[i].value)
		}
		words = append(words, Word{Text: value, Pos: pos})
	}
	return words
}

// value returns the last value of a flag, the zero Word without it.
func (c *converter) value(name string) Word {
	words := c.values(name)
	if len(words) == 0 {
		return Word{}
	}
	return words[len(words)-1]
}

// stage converts FROM.
func (c *converter) stage(s *instructions.Stage, index int) *Stage {
	h := c.header()
	st := &Stage{
		Index:    index,
		Base:     Word{Text: s.BaseName, Pos: h.Pos},
		Platform: c.value("--platform"),
		Pos:      h.Pos,
		Text:     h.Text,
	}
	if strings.HasPrefix(c.line.text[min(c.rest, len(c.line.text)):], s.BaseName) {
		st.Base.Pos = c.line.pos(c.rest)
	}
	if s.Name != "" {
		st.Name = c.node.Next.Next.Next.Value // s.Name is lower case
	}
	return st
}

// instruction converts everything but FROM.
func (c *converter) instruction(parsed any) Instruction {
	h := c.header()
	switch p := parsed.(type) {
	case *instructions.RunCommand:
		return c.run(p)
	case *instructions.CopyCommand:
		return c.copy(p)
	case *instructions.AddCommand:
		return c.add(p)
	case *instructions.ArgCommand:
		return c.arg(p)
	case *instructions.EnvCommand:
		return &Env{h, pairs(p.Env)}
	case *instructions.LabelCommand:
		return &Label{h, pairs(p.Labels)}
	case *instructions.HealthCheckCommand:
		return healthcheck(h, p)
	case *instructions.CmdCommand:
		return &Cmd{h, commandLine(p.ShellDependantCmdLine)}
	case *instructions.EntrypointCommand:
		return &Entrypoint{h, commandLine(p.ShellDependantCmdLine)}
	}
	return simple(h, parsed)
}

// simple converts the instructions that hold one word or a list of words.
func simple(h Header, parsed any) Instruction {
	switch p := parsed.(type) {
	case *instructions.WorkdirCommand:
		return &Workdir{h, p.Path}
	case *instructions.UserCommand:
		return &User{h, p.User}
	case *instructions.ExposeCommand:
		return &Expose{h, p.Ports}
	case *instructions.VolumeCommand:
		return &Volume{h, p.Volumes}
	case *instructions.ShellCommand:
		return &Shell{h, p.Shell}
	case *instructions.StopSignalCommand:
		return &StopSignal{h, p.Signal}
	case *instructions.OnbuildCommand:
		return &Onbuild{h, p.Expression}
	case *instructions.MaintainerCommand:
		return &Maintainer{h, p.Maintainer}
	}
	panic("instruction " + h.Keyword + " has no conversion") // every type of the linked BuildKit has one
}

func (c *converter) run(p *instructions.RunCommand) *Run {
	return &Run{
		Header:   c.header(),
		Command:  commandLine(p.ShellDependantCmdLine),
		Mounts:   c.values("--mount"),
		Network:  c.value("--network").Text,
		Security: c.value("--security").Text,
		Devices:  c.values("--device"),
	}
}

func (c *converter) copy(p *instructions.CopyCommand) *Copy {
	return &Copy{
		Header:  c.header(),
		Sources: p.SourcePaths,
		Inline:  inlineFiles(p.SourceContents),
		Dest:    p.DestPath,
		From:    c.value("--from"),
		Chown:   p.Chown, Chmod: p.Chmod,
		Link: p.Link, Parents: p.Parents, Exclude: p.ExcludePatterns,
	}
}

func (c *converter) add(p *instructions.AddCommand) *Copy {
	return &Copy{
		Header:  c.header(),
		Add:     true,
		Sources: p.SourcePaths,
		Inline:  inlineFiles(p.SourceContents),
		Dest:    p.DestPath,
		Chown:   p.Chown, Chmod: p.Chmod,
		Link: p.Link, Exclude: p.ExcludePatterns,
		Checksum: p.Checksum, KeepGitDir: p.KeepGitDir, Unpack: p.Unpack,
	}
}

func (c *converter) arg(p *instructions.ArgCommand) *Arg {
	a := &Arg{Header: c.header()}
	for _, kv := range p.Args {
		a.Args = append(a.Args, ArgValue{Key: kv.Key, Default: kv.Value})
	}
	return a
}

func healthcheck(h Header, p *instructions.HealthCheckCommand) *Healthcheck {
	return &Healthcheck{
		Header:   h,
		Test:     p.Health.Test,
		Interval: p.Health.Interval, Timeout: p.Health.Timeout,
		StartPeriod: p.Health.StartPeriod, StartInterval: p.Health.StartInterval,
		Retries: p.Health.Retries,
	}
}

func pairs(kvs instructions.KeyValuePairs) []KeyValue {
	out := make([]KeyValue, len(kvs))
	for i, kv := range kvs {
		out[i] = KeyValue{Key: kv.Key, Value: kv.Value, NoDelim: kv.NoDelim}
	}
	return out
}

func inlineFiles(contents []instructions.SourceContent) []InlineFile {
	var files []InlineFile
	for _, s := range contents {
		files = append(files, InlineFile{Name: s.Path, Data: s.Data, Expand: s.Expand})
	}
	return files
}

func commandLine(p instructions.ShellDependantCmdLine) CommandLine {
	c := CommandLine{Args: p.CmdLine, Shell: p.PrependShell}
	if c.Shell {
		c.Args = []string{strings.Join(p.CmdLine, " ")}
	}
	for _, file := range p.Files {
		c.Files = append(c.Files, InlineFile{Name: file.Name, Data: file.Data, Chomp: file.Chomp})
	}
	return c
}

// SubPosition returns the place of a part of a word, offset bytes into its text.
// It is the word's own place when quotes, escapes or line breaks in the source
// hide the part.
func (f *File) SubPosition(w Word, offset int) Position {
	line, start := f.line(w.Pos), w.Pos.Column-1
	if start < 0 || offset < 0 || offset > len(w.Text) || start+offset > len(line) || !utf8.ValidString(w.Text) {
		return w.Pos
	}
	if line[start:start+offset] != w.Text[:offset] {
		return w.Pos
	}
	pos := w.Pos
	pos.Column += offset
	return pos
}
