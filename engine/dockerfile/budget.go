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

// verdict returns the error of an expansion: the innermost, the others repeat the text.
func (b *budget) verdict(err error) error {
	switch {
	case b.over:
		return errExpansionLimit
	case err != nil:
		return errors.New(cause(err).Error())
	}
	return nil
}

// nesting is the syntax that says where ${…} ends.
type nesting struct {
	escape    rune
	rawQuotes bool // quotes are text like any other
}

// substitutions returns the largest number of ${name/…} that are open at once.
func (n nesting) substitutions(text string) int {
	var open []byte // '/' for ${name/, '$' for another ${, '"' for a quote
	depth, deepest := 0, 0
	for i := 0; i < len(text); i++ {
		top := byte(0)
		if len(open) > 0 {
			top = open[len(open)-1]
		}
		switch c := text[i]; {
		case rune(c) == n.escape:
			i++
		case c == '$' && strings.HasPrefix(text[i:], "${"):
			kind := braceKind(text[i+2:])
			if kind == '/' {
				depth++
				deepest = max(deepest, depth)
			}
			open = append(open, kind)
			i++
		case c == '}' && (top == '/' || top == '$'):
			if top == '/' {
				depth--
			}
			open = open[:len(open)-1]
		case c == '"' && !n.rawQuotes && top == '"':
			open = open[:len(open)-1]
		case c == '"' && !n.rawQuotes:
			open = append(open, '"')
		case c == '\'' && !n.rawQuotes && top != '"':
			i += max(0, strings.IndexByte(text[i+1:], '\'')) + 1
		}
	}
	return deepest
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
