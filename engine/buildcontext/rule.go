package buildcontext

import (
	"fmt"
	"path"
	"strings"

	"github.com/moby/patternmatcher"
)

// rule is one pattern. match says exactly what moby/patternmatcher says; the
// common shapes are answered without a regular expression, which costs 1–2 µs
// for each file and pattern.
type rule struct {
	pattern   string // cleaned, without "!"
	exception bool
	one       *patternmatcher.PatternMatcher // holds just pattern, as an exception, compiled; nil for literals

	// parts are the pattern's components when it is plain, else nil.
	parts []string
	// deep is the index of the first part with "**", len(parts) without one.
	deep int
	// literal patterns have no wildcard; base ones are "**/" and one part.
	literal, base bool
}

// plain reports whether a pattern's components can be compared one by one:
// printable ASCII without classes, escapes and what patternmatcher v0.6 hands to
// its regular expression as it is ("|", braces and "^").
func plain(pattern string) bool {
	for _, b := range []byte(pattern) {
		if b < ' ' || b > '~' || strings.IndexByte(`[]\^|{}`, b) >= 0 {
			return false
		}
	}
	return true
}

// analyse finds out the pattern's shape.
func (r *rule) analyse() {
	if !plain(r.pattern) {
		return
	}
	r.parts = strings.Split(r.pattern, "/")
	for r.deep < len(r.parts) && !strings.Contains(r.parts[r.deep], "**") {
		r.deep++
	}
	r.literal = !strings.ContainsAny(r.pattern, "*?")
	r.base = len(r.parts) == 2 && r.parts[0] == "**" && !strings.Contains(r.parts[1], "**")
}

// compile makes the matcher and lets it compile its expression: it does so at
// the first match, which is not safe from several goroutines. The pattern is
// given as an exception, so that one that itself begins with "!" stays whole.
func (r *rule) compile() error {
	if r.literal {
		return nil
	}
	one, err := patternmatcher.New([]string{"!" + r.pattern})
	if err != nil {
		return err
	}
	r.one = one
	_, err = r.ask("x")
	return err
}

// ask has patternmatcher compare path with the pattern alone.
func (r *rule) ask(path string) (bool, error) {
	//nolint:staticcheck // deprecated for what it does with several patterns; with one it is the plain comparison
	kept, err := r.one.MatchesUsingParentResult(path, true)
	return !kept, err
}

// match reports whether the pattern matches the path itself.
func (r *rule) match(name string) bool {
	switch {
	case r.literal:
		return name == r.pattern
	case r.base && !strings.Contains(name, "\n"): // "." of a regular expression is not a newline
		return globMatch(r.parts[1], name[strings.LastIndexByte(name, '/')+1:])
	case r.parts != nil && r.deep == len(r.parts):
		// "*" and "?" never match "/": the depth must be the pattern's.
		if strings.Count(name, "/") != len(r.parts)-1 {
			return false
		}
	}
	ok, err := r.ask(name)
	if err != nil {
		panic(fmt.Sprintf("pattern %q was compiled: %v", r.pattern, err))
	}
	return ok
}

// mayMatchBelow reports whether the pattern can match a path below the
// directory with these components. It may say yes wrongly, but never no.
func (r *rule) mayMatchBelow(dir []string) bool {
	if r.parts == nil {
		return true
	}
	for i := range min(r.deep, len(dir)) {
		if !globMatch(r.parts[i], dir[i]) {
			return false
		}
	}
	return r.deep < len(r.parts) || len(dir) < len(r.parts)
}

// globMatch compares one component; the pattern is plain, so it is well formed.
func globMatch(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}
