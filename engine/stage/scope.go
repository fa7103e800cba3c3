package stage

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine/dockerfile"
)

// Limits on the variables of one stage.
const (
	// maxEnvBytes is what they may add up to. The kernel takes at most 6 MiB of
	// arguments and environment (three quarters of its 8 MiB stack, execve(2)).
	maxEnvBytes = 6 << 20
	// maxValueBytes is the longest "NAME=value" that the kernel starts a command
	// with, without the NUL (MAX_ARG_STRLEN, 32 pages of 4 KiB).
	maxValueBytes = 128<<10 - 1
	// maxVars is their number: every stage that is FROM another has its own copy,
	// about 100 bytes each.
	maxVars = 10_000
)

// errTooLarge is wrapped by the error of an ARG or ENV that goes beyond a limit.
var errTooLarge = errors.New("makes a larger environment than a command can be started with")

// Scope is the variables of one stage while its instructions are walked in
// order. It is the one place that knows how ARG, ENV and build arguments shadow
// each other:
//
//   - ARG with a build argument of that name has its value; else its default,
//     expanded; else the value of a global ARG or of a predefined one (TARGETARCH
//     and the like); else it sets nothing
//   - the last ARG or ENV of a name counts for what follows it, so ENV wins over
//     an ARG above it, and an ARG over the ENV of the base image or of a line
//     above it, without changing the image's config
//   - all names of one ENV are expanded before any is set; those of one ARG one
//     after the other
//
// Source: docker/dockerfile reference, "ARG" and "ENV", and BuildKit v0.34 where
// the reference is silent. Not safe for concurrent use.
type Scope struct {
	file      *dockerfile.File
	global    map[string]string
	buildArgs map[string]string

	vars   *dockerfile.Vars // what an instruction sees
	config *dockerfile.Vars // the base's environment and ENV
	args   *dockerfile.Vars // ARGs in the order of their first declaration
	bytes  int              // of all names and values in vars
}

// NewScope returns the scope at the top of a stage. global are the global ARGs
// with the predefined ones, buildArgs the values given for the build, baseEnv
// the environment of the base image's config. None of them is changed.
func NewScope(global, buildArgs map[string]string, baseEnv []string, f *dockerfile.File) *Scope {
	s := &Scope{
		file: f, global: global, buildArgs: buildArgs,
		vars: dockerfile.NewVars(baseEnv...), config: dockerfile.NewVars(baseEnv...), args: dockerfile.NewVars(),
	}
	for _, kv := range baseEnv {
		s.bytes += len(kv)
	}
	return s
}

// Scope returns the scope at the top of a stage whose base image has baseEnv.
func (g *Graph) Scope(baseEnv []string) *Scope {
	return NewScope(g.Args, g.BuildArgs, baseEnv, g.File)
}

// Fork returns the scope at the top of a stage that is FROM the one that s was
// walked to the end of: its ARGs stay in scope, as its ENVs do.
func (s *Scope) Fork() *Scope {
	fork := *s
	fork.vars, fork.config, fork.args = s.vars.Clone(), s.config.Clone(), s.args.Clone()
	return &fork
}

// Arg declares the names of an ARG. It returns a copy that holds the values in
// effect: what history shows. An error is a *dockerfile.Error; names before the
// one it is about are declared.
func (s *Scope) Arg(a *dockerfile.Arg) (*dockerfile.Arg, error) {
	effective := &dockerfile.Arg{Header: a.Header}
	for _, arg := range a.Args {
		value, err := s.argValue(arg)
		if err != nil {
			return nil, s.errorf(&a.Header, arg.Key, err)
		}
		effective.Args = append(effective.Args, dockerfile.ArgValue{Key: arg.Key, Default: value})
		if value == nil {
			if _, ok := s.args.Get(arg.Key); !ok {
				s.args.Set(arg.Key, "")
			}
			continue
		}
		if !s.set(arg.Key, *value) {
			return nil, s.tooLarge(&a.Header)
		}
		s.args.Set(arg.Key, *value)
	}
	return effective, nil
}

// argValue returns the value in effect of one name, nil for none.
func (s *Scope) argValue(arg dockerfile.ArgValue) (*string, error) {
	if value, ok := s.buildArgs[arg.Key]; ok {
		return &value, nil
	}
	if arg.Default != nil {
		value, err := s.file.Expand(*arg.Default, s.vars)
		return &value, err
	}
	if value, ok := s.global[arg.Key]; ok {
		return &value, nil
	}
	return nil, nil
}

// Env sets the variables of an ENV. It returns a copy with names and values
// expanded. An error is a *dockerfile.Error.
func (s *Scope) Env(e *dockerfile.Env) (*dockerfile.Env, error) {
	effective := &dockerfile.Env{Header: e.Header, Pairs: slices.Clone(e.Pairs)}
	for i := range effective.Pairs {
		pair := &effective.Pairs[i]
		for _, text := range []*string{&pair.Key, &pair.Value} {
			expanded, err := s.file.Expand(*text, s.vars)
			if err != nil {
				return nil, s.errorf(&e.Header, *text, err)
			}
			*text = expanded
		}
	}
	for _, pair := range effective.Pairs {
		if !s.set(pair.Key, pair.Value) {
			return nil, s.tooLarge(&e.Header)
		}
		s.config.Set(pair.Key, pair.Value)
	}
	return effective, nil
}

// set gives a variable a value; false when the environment would be too large.
func (s *Scope) set(name, value string) bool {
	old, exists := s.vars.Get(name)
	grown := s.bytes + len(value) - len(old)
	if !exists {
		grown += len(name)
	}
	if len(name)+len("=")+len(value) > maxValueBytes || grown > maxEnvBytes || (!exists && s.vars.Len() >= maxVars) {
		return false
	}
	s.bytes = grown
	s.vars.Set(name, value)
	return true
}

func (s *Scope) errorf(h *dockerfile.Header, what string, err error) error {
	return s.file.Errorf(h.Pos, len(h.Keyword), dockerfile.ExpandHint(err), "%s %s: %w", h.Keyword, what, err)
}

func (s *Scope) tooLarge(h *dockerfile.Header) error {
	return s.file.Errorf(h.Pos, len(h.Keyword), "keep large values in a file",
		"%s %w: %d bytes in one variable, %d in all, %d variables", h.Keyword, errTooLarge, maxValueBytes, maxEnvBytes, maxVars)
}

// Expand expands one word of an instruction. An error has no position.
func (s *Scope) Expand(text string) (string, error) { return s.file.Expand(text, s.vars) }

// ExpandWords expands and splits, as EXPOSE does with each of its words.
func (s *Scope) ExpandWords(text string) ([]string, error) { return s.file.ExpandWords(text, s.vars) }

// ExpandData expands the content of a here-document of COPY or ADD.
func (s *Scope) ExpandData(text string) (string, error) { return s.file.ExpandData(text, s.vars) }

// ExpandTitle expands an instruction for people to read.
func (s *Scope) ExpandTitle(text string) string { return s.file.ExpandTitle(text, s.vars) }

// Vars returns a copy of the variables that an instruction sees here.
func (s *Scope) Vars() *dockerfile.Vars { return s.vars.Clone() }

// Environ returns what a RUN sees here, as "NAME=value": env has the base's
// variables, ENVs and ARGs by first appearance; args has the declared ARGs
// alone, with the value that a RUN sees, "" without one, in the order of their
// first declaration: what history shows after "|".
func (s *Scope) Environ() (env, args []string) {
	for _, name := range s.args.Keys() {
		value, ok := s.vars.Get(name)
		if !ok {
			value, _ = s.args.Get(name)
		}
		args = append(args, name+"="+value)
	}
	return s.vars.Environ(), args
}

// ConfigEnv returns the environment for the image's config: the base's and ENV.
func (s *Scope) ConfigEnv() []string { return s.config.Environ() }

// proxyNames are the build arguments that need no ARG, in lower case.
// Source: docker/dockerfile reference, "Predefined ARGs".
var proxyNames = []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"}

// Proxies returns the proxy variables that a RUN gets from build arguments
// although no ARG declares them, as "NAME=value", each name in upper and lower
// case. They are neither in the cache key nor in history. A name that is set
// otherwise keeps that value.
func (s *Scope) Proxies() []string {
	values := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(s.buildArgs)) { // lower case comes last and wins
		if lower := strings.ToLower(name); slices.Contains(proxyNames, lower) {
			values[lower] = s.buildArgs[name]
		}
	}
	var env []string
	for _, lower := range proxyNames {
		value, ok := values[lower]
		if !ok {
			continue
		}
		for _, name := range []string{strings.ToUpper(lower), lower} {
			if _, set := s.vars.Get(name); !set {
				env = append(env, name+"="+value)
			}
		}
	}
	return env
}
