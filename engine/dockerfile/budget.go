package dockerfile

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Limits on expansion. Values grow by themselves: forty lines of ENV A=$A$A
// would make a terabyte.
const (
	// maxExpandedBytes is what a text and all its variables may add up to: a
	// here-document may be large. The kernel takes no argument or environment
	// string above 128 KiB (MAX_ARG_STRLEN).
	maxExpandedBytes = maxSourceBytes + 1<<20
	// maxSubstitution is the number of bytes that nested
	// ${name/pattern/replacement} could make at worst.
	maxSubstitution = 1 << 30
)

var errExpansionLimit = errors.New("the text becomes too long when its variables are expanded")

// budget hands out variables until the result could be too long.
type budget struct {
	vars *Vars
	// spent is the length of the text and of all values so far.
	spent int
	// substitutions is how deep ${name/…/…} could be nested, at most.
	substitutions int
	over          bool
}

func newBudget(syntax nesting, text string, vars *Vars) (*budget, error) {
	if badByte(text) >= 0 {
		return nil, fmt.Errorf("%q is not UTF-8 text", text)
	}
	if n := strings.Count(text, "$"); n > maxDollars {
		return nil, fmt.Errorf("the text has %d variables, more than %d", n, maxDollars)
	}
	b := &budget{vars: vars, spent: len(text)}
	if strings.Contains(text, "${") && strings.Contains(text, "/") {
		b.substitutions = syntax.substitutions(text)
	}
	return b, nil
}

// Get implements shell.EnvGetter.
func (b *budget) Get(name string) (string, bool) {
	value, ok := b.vars.Get(name)
	b.spent += len(value)
	if b.spent > maxExpandedBytes || b.worst() > maxSubstitution {
		b.over = true
		return "", ok
	}
	return value, ok
}

// worst returns how long the result could be: every substitution may replace
// each byte of a value by all that is nested in it.
func (b *budget) worst() int {
	worst := b.spent
	for range b.substitutions {
		if worst > maxSubstitution {
			break
		}
		worst *= b.spent
	}
	return worst
}

// Keys implements shell.EnvGetter.
func (b *budget) Keys() []string { return b.vars.Keys() }

// errBrace is what a text that ends within ${ gets; the lexer complains about
// the end of the text as if it were a modifier.
var errBrace = errors.New("syntax error: missing '}'")

// verdict returns the error of an expansion: the innermost, the others repeat
// the text.
func (b *budget) verdict(err error) error {
	switch {
	case b.over:
		return errExpansionLimit
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "modifier (\ufffd)"), strings.Contains(err.Error(), "modifier (:\ufffd)"):
		return errBrace
	}
	return errors.New(cause(err).Error())
}

// ExpandHint returns what to do about an error of Expand, "" when it is the
// author's own message of ${NAME:?message}.
func ExpandHint(err error) string {
	message := err.Error()
	switch {
	case errors.Is(err, errExpansionLimit):
		return "keep large values in a file"
	case strings.HasPrefix(message, "syntax error"), strings.HasSuffix(message, "in substitution"),
		strings.HasPrefix(message, "unexpected end of statement"):
		return `variables are $NAME, ${NAME}, ${NAME:-default} and the like; \$ is a dollar sign`
	}
	return ""
}

// nesting is the syntax that says where ${…} ends.
type nesting struct {
	escape    rune
	rawQuotes bool // quotes are text like any other
}

// substitutions returns the largest number of ${name/…} that are open at once.
func (n nesting) substitutions(text string) int {
	var b braces
	for i := 0; i < len(text); i++ {
		i += n.step(&b, text[i:])
	}
	return b.deepest
}

// step takes the first byte of a text and returns how many more belong to it.
func (n nesting) step(b *braces, rest string) int {
	c, top := rest[0], b.top()
	switch {
	case rune(c) == n.escape:
		return 1
	case strings.HasPrefix(rest, "${"):
		b.push(braceKind(rest[2:]))
		return 1
	case c == '}' && (top == '/' || top == '$'):
		b.pop()
	case n.rawQuotes:
	case c == '"' && top == '"':
		b.pop()
	case c == '"':
		b.push('"')
	case c == '\'' && top != '"':
		return max(0, strings.IndexByte(rest[1:], '\'')) + 1
	}
	return 0
}

// braces are what is open: '/' is ${name/, '$' another ${, '"' a quote.
type braces struct {
	open           []byte
	depth, deepest int // of '/'
}

func (b *braces) top() byte {
	if len(b.open) == 0 {
		return 0
	}
	return b.open[len(b.open)-1]
}

func (b *braces) push(kind byte) {
	b.open = append(b.open, kind)
	if kind == '/' {
		b.depth++
		b.deepest = max(b.deepest, b.depth)
	}
}

func (b *braces) pop() {
	if b.top() == '/' {
		b.depth--
	}
	b.open = b.open[:len(b.open)-1]
}

// braceKind returns '/' when what follows "${" is a name, or what could be one,
// and a "/", else '$'.
func braceKind(rest string) byte {
	rest = strings.TrimLeftFunc(rest, func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_@*#?-$!", r)
	})
	if strings.HasPrefix(rest, "/") {
		return '/'
	}
	return '$'
}
