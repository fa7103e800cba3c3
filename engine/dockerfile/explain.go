package dockerfile

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// usages are the hints for an instruction that can't be read, by keyword.
var usages = map[string]string{
	"ADD":         "ADD [--chown=…] [--chmod=…] SOURCE… DEST",
	"ARG":         "ARG NAME[=DEFAULT]…",
	"CMD":         `CMD ["PROGRAM", "ARGUMENT"…] or CMD COMMAND`,
	"COPY":        "COPY [--from=…] [--chown=…] [--chmod=…] SOURCE… DEST",
	"ENTRYPOINT":  `ENTRYPOINT ["PROGRAM", "ARGUMENT"…] or ENTRYPOINT COMMAND`,
	"ENV":         `ENV NAME=VALUE…, values with spaces in quotes`,
	"EXPOSE":      "EXPOSE PORT[/tcp|/udp]…",
	"FROM":        "FROM [--platform=…] IMAGE [AS NAME]",
	"HEALTHCHECK": "HEALTHCHECK [--interval=…] [--timeout=…] [--start-period=…] [--retries=N] CMD COMMAND, or HEALTHCHECK NONE",
	"LABEL":       "LABEL NAME=VALUE…, values with spaces in quotes",
	"MAINTAINER":  "MAINTAINER NAME",
	"ONBUILD":     "ONBUILD INSTRUCTION",
	"RUN":         `RUN [--mount=…] [--network=…] COMMAND, or RUN ["PROGRAM", "ARGUMENT"…]`,
	"SHELL":       `SHELL ["PROGRAM", "ARGUMENT"…]`,
	"STOPSIGNAL":  "STOPSIGNAL SIGNAL",
	"USER":        "USER NAME[:GROUP]",
	"VOLUME":      `VOLUME PATH… or VOLUME ["PATH"…]`,
	"WORKDIR":     "WORKDIR PATH",
}

// keywords are the instructions in alphabetical order.
var keywords = []string{
	"ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
	"ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}

// flagNames are the flags that BuildKit's frontend knows, by keyword.
var flagNames = map[string][]string{
	"ADD":         {"--chown", "--chmod", "--checksum", "--exclude", "--keep-git-dir", "--link", "--unpack"},
	"COPY":        {"--from", "--chown", "--chmod", "--exclude", "--link", "--parents"},
	"FROM":        {"--platform"},
	"HEALTHCHECK": {"--interval", "--timeout", "--start-period", "--start-interval", "--retries"},
	"RUN":         {"--mount", "--network", "--security", "--device"},
}

// explainParser turns an error of BuildKit's line parser into ours. That parser
// knows the line only.
func (f *File) explainParser(err error) *Error {
	var at *parser.LocationError
	line := 0
	if errors.As(err, &at) && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
		line = at.Locations[0][0].Start.Line
	}
	l := joinAt(f.Name, f.lines, line, f.Escape)
	keyword := strings.ToUpper(l.keyword())
	if keyword == "" || isComment(l.text) {
		return f.Errorf(Position{File: f.Name}, 0, "begin with FROM and a base image, or FROM scratch", "%s", reword(err))
	}
	c := &converter{file: f, line: l, keyword: keyword}
	c.flags, c.rest = l.flags(f.Escape)
	return c.explain(err)
}

// explain turns an error of BuildKit's instructions package into ours.
func (c *converter) explain(err error) *Error {
	message := reword(err)
	if _, ok := errors.AsType[*instructions.UnknownInstructionError](err); ok {
		return c.errorf(unknownHint(c.keyword), "unknown instruction: %s", c.line.keyword())
	}
	e := c.errorf(c.hint(message), "%s", message)
	if offset, width := c.culprit(message); width > 0 {
		e.Pos, e.Width = c.line.pos(offset), width
		e.Line = c.file.line(e.Pos)
	}
	return e
}

func unknownHint(keyword string) string {
	return didYouMean(Suggest(keyword, keywords), `no instruction has this name; does the line above lack a "\" at its end?`)
}

// hint returns the way out for a message.
func (c *converter) hint(message string) string {
	name, isFlag := strings.CutPrefix(message, "unknown flag: ")
	switch {
	case isFlag && len(flagNames[c.keyword]) == 0:
		return c.keyword + " takes no flags"
	case isFlag:
		known := flagNames[c.keyword]
		return didYouMean(Suggest(name, known), c.keyword+" knows "+strings.Join(known, ", "))
	case strings.Contains(message, "unterminated heredoc"):
		return "end the here-document with a line that holds its word and nothing else"
	case strings.HasPrefix(message, "invalid network mode"):
		return "--network is default, none or host"
	case strings.HasPrefix(message, "security "):
		return "--security is sandbox or insecure"
	case strings.HasPrefix(message, "invalid name for build stage"):
		return "a stage name begins with a letter; letters, digits, -, _ and . may follow"
	case strings.Contains(message, "JSON"):
		return `write the list as ["a", "b"], in double quotes`
	}
	if usage := usages[c.keyword]; usage != "" {
		return "usage: " + usage
	}
	return ""
}

var (
	flagInMessage   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`--[a-z][a-z-]*`) })
	quotedInMessage = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`"(?:[^"\\]|\\.)+"`) })
)

// culprit finds the part of the instruction that a message is about: a flag or
// the first thing that it quotes. width is 0 when there is none.
func (c *converter) culprit(message string) (offset, width int) {
	if name, ok := strings.CutPrefix(message, "unknown flag: "); ok {
		return c.flagAt(name, 0)
	}
	if name, ok := strings.CutPrefix(message, "duplicate flag specified: "); ok {
		return c.flagAt(name, 1)
	}
	if name := flagInMessage().FindString(message); name != "" {
		if offset, width := c.flagAt(name, 0); width > 0 {
			return offset, width
		}
	}
	quoted, err := strconv.Unquote(quotedInMessage().FindString(message))
	if err != nil || quoted == "" {
		return 0, 0
	}
	args := min(c.line.args, len(c.line.text))
	at := strings.Index(strings.ToLower(c.line.text[args:]), strings.ToLower(quoted))
	if at < 0 || args+at+len(quoted) > len(c.line.text) {
		return 0, 0
	}
	return args + at, len(quoted)
}

// flagAt returns where the name of the flag stands, skipping some of that name.
func (c *converter) flagAt(name string, skip int) (offset, width int) {
	for _, f := range c.flags {
		if f.name != name {
			continue
		}
		if skip == 0 {
			return f.offset, len(f.name)
		}
		skip--
	}
	return 0, 0
}

// reword returns what an error of BuildKit says, without the frames that repeat
// the line number and without its suggestion, in our style.
func reword(err error) string {
	if number, ok := errors.AsType[*strconv.NumError](err); ok {
		return fmt.Sprintf("%q is not a number: %v", number.Num, number.Err)
	}
	message := strings.TrimPrefix(cause(err).Error(), "Syntax error - ")
	first, size := utf8.DecodeRuneInString(message)
	second, _ := utf8.DecodeRuneInString(message[size:])
	if unicode.IsUpper(first) && unicode.IsLower(second) {
		message = string(unicode.ToLower(first)) + message[size:]
	}
	return message
}

// cause returns the innermost error that still says what was wrong.
func cause(err error) error {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err
}
