package dockerfile

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Vars are variables with values, in the order in which they were first set.
// The zero value and nil are empty. Not safe for concurrent use while one sets.
type Vars struct {
	names  []string
	values map[string]string
}

// NewVars returns the variables of an environment: "NAME=value" each, the last
// of a name wins; without "=" the value is "".
func NewVars(env ...string) *Vars {
	v := &Vars{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		v.Set(name, value)
	}
	return v
}

// Set gives a variable a value; one that exists keeps its place in the order.
func (v *Vars) Set(name, value string) {
	if v.values == nil {
		v.values = map[string]string{}
	}
	if _, ok := v.values[name]; !ok {
		v.names = append(v.names, name)
	}
	v.values[name] = value
}

// Get returns a variable's value; ok is false when it is not set.
func (v *Vars) Get(name string) (value string, ok bool) {
	if v == nil {
		return "", false
	}
	value, ok = v.values[name]
	return value, ok
}

// Keys returns the names in order. The slice is the caller's.
func (v *Vars) Keys() []string {
	if v == nil {
		return nil
	}
	return slices.Clone(v.names)
}

// Len returns the number of variables.
func (v *Vars) Len() int {
	if v == nil {
		return 0
	}
	return len(v.names)
}

// Environ returns "NAME=value" for each variable in order.
func (v *Vars) Environ() []string {
	var env []string
	for _, name := range v.Keys() {
		env = append(env, name+"="+v.values[name])
	}
	return env
}

// Clone returns an independent copy.
func (v *Vars) Clone() *Vars {
	if v == nil {
		return &Vars{}
	}
	return &Vars{names: slices.Clone(v.names), values: maps.Clone(v.values)}
}

// Expansion is an expanded text.
type Expansion struct {
	Text string
	// Unset are the names in the text that have no value, sorted.
	Unset []string
}

// Expand replaces the variables of a text and removes quotes and escapes, as
// for one word of an instruction. A variable that is not set becomes "". An
// error has no position: wrap it with Errorf.
// Source: docker/dockerfile reference, "Environment replacement".
func (f *File) Expand(text string, vars *Vars) (string, error) {
	x, err := f.ExpandReport(text, vars)
	return x.Text, err
}

// ExpandReport is Expand that also says which variables were not set.
func (f *File) ExpandReport(text string, vars *Vars) (Expansion, error) {
	return expandWord(shell.NewLex(f.escape()), nesting{escape: f.escape()}, text, vars)
}

// ExpandWords expands a text and then splits it at white space that is not
// quoted: what EXPOSE does with each of its words.
func (f *File) ExpandWords(text string, vars *Vars) ([]string, error) {
	budget, err := newBudget(nesting{escape: f.escape()}, text, vars)
	if err != nil {
		return nil, err
	}
	words, err := shell.NewLex(f.escape()).ProcessWords(text, budget)
	return words, budget.verdict(err)
}

// ExpandData expands the content of a here-document of COPY or ADD: quotes stay,
// the escape character is always "\".
func (f *File) ExpandData(text string, vars *Vars) (string, error) {
	lex := shell.NewLex('\\')
	lex.SkipProcessQuotes = true
	x, err := expandWord(lex, nesting{escape: '\\', rawQuotes: true}, text, vars)
	return x.Text, err
}

// ExpandTitle replaces the variables that are set and leaves everything else as
// it is: how a RUN is shown to people. A text that can't be expanded comes back
// as it is.
func (f *File) ExpandTitle(text string, vars *Vars) string {
	lex := shell.NewLex(f.escape())
	lex.RawQuotes, lex.RawEscapes, lex.SkipUnsetEnv = true, true, true
	x, err := expandWord(lex, nesting{escape: f.escape()}, text, vars)
	if err != nil {
		return text
	}
	return x.Text
}

// escape returns the escape character; a File made by hand has the default.
func (f *File) escape() rune {
	if f.Escape == 0 {
		return '\\'
	}
	return f.Escape
}

func expandWord(lex *shell.Lex, syntax nesting, text string, vars *Vars) (Expansion, error) {
	if !strings.ContainsAny(text, "$'\"\\`") {
		return Expansion{Text: text}, nil
	}
	budget, err := newBudget(syntax, text, vars)
	if err != nil {
		return Expansion{}, err
	}
	result, err := lex.ProcessWordWithMatches(text, budget)
	if err := budget.verdict(err); err != nil {
		return Expansion{}, err
	}
	return Expansion{Text: result.Result, Unset: slices.Sorted(maps.Keys(result.Unmatched))}, nil
}
