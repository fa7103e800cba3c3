package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/tonistiigi/go-csvvalue"
)

var (
	mountKeys = []string{
		"type", "from", "source", "src", "target", "dst", "destination", "readonly", "ro", "readwrite", "rw",
		"id", "sharing", "required", "size", "mode", "uid", "gid", "env",
	}
	mountTypes   = []string{"bind", "cache", "tmpfs", "secret", "ssh"}
	sharingModes = []string{"shared", "private", "locked"}
)

// ParseMount reads the value of one --mount and expands its values one by one;
// a nil expand leaves them as they are.
// The rules are BuildKit's. What is not given has these defaults: type bind;
// bind, secret and ssh read-only; a cache's ID is its cleaned target and its
// sharing "shared"; a secret's ID is its source, then its target's base name,
// its target /run/secrets/ and the ID's base name unless it goes to a variable,
// whose name is the ID when env= is empty; an ssh agent's ID is "default".
//
// Target stays as given: relative to the working directory, or "". The error is
// an *Error at the part of the word that is wrong, without the source line;
// File.Quote adds that.
func ParseMount(w Word, expand func(string) (string, error)) (Mount, error) {
	parsed, err := parseMountWord(w.Text, expand)
	if err != nil {
		return Mount{}, mountError(w, err)
	}
	m := Mount{
		Type: MountType(parsed.Type), From: parsed.From, Source: parsed.Source, Target: parsed.Target,
		ReadOnly: parsed.ReadOnly, SizeBytes: parsed.SizeLimit,
		ID: parsed.CacheID, Sharing: string(parsed.CacheSharing), Required: parsed.Required,
		Env: parsed.Env, Mode: parsed.Mode, UID: parsed.UID, GID: parsed.GID,
	}
	if err := m.complete(); err != nil {
		return Mount{}, mountError(w, err)
	}
	return m, nil
}

// complete fills in the defaults that BuildKit's frontend applies later than
// its parser.
func (m *Mount) complete() error {
	if m.SizeBytes < 0 { // what the parser makes of a number over 64 bits
		return errors.New("size is not a number of bytes that a file system can have")
	}
	switch m.Type {
	case MountCache:
		if m.Sharing == "" {
			m.Sharing = string(instructions.MountSharingShared)
		}
		if m.ID == "" {
			m.ID = path.Clean(m.Target)
		}
	case MountSecret:
		m.completeSecret()
	case MountSSH:
		if m.Source != "" {
			return fmt.Errorf("source not allowed for %q type mounts", m.Type)
		}
		if m.ID == "" {
			m.ID = "default"
		}
	default: // bind and tmpfs have none
	}
	return nil
}

func (m *Mount) completeSecret() {
	switch {
	case m.Source != "":
		m.ID = m.Source
	case m.ID == "":
		m.ID = path.Base(m.Target)
	}
	switch {
	case m.Env == nil && m.Target == "":
		m.Target = "/run/secrets/" + path.Base(m.ID)
	case m.Env != nil && *m.Env == "":
		m.Env = &m.ID
	}
}

// parseMountWord has BuildKit read a mount. Its parser refuses a "$" in from=
// before anything is expanded, so "$" is another character until then.
func parseMountWord(text string, expand func(string) (string, error)) (*instructions.Mount, error) {
	if expand == nil {
		expand = func(s string) (string, error) { return s, nil }
	}
	dollar := unusedRune(text)
	show := strings.NewReplacer(dollar, "$")
	node := &parser.Node{
		Value: "run",
		Flags: []string{"--mount=" + strings.ReplaceAll(text, "$", dollar)},
		Next:  &parser.Node{Value: "true"},
	}
	parsed, err := instructions.ParseInstruction(node)
	if err != nil {
		return nil, fmt.Errorf("%s", show.Replace(reword(err)))
	}
	run, ok := parsed.(*instructions.RunCommand)
	if !ok {
		return nil, fmt.Errorf("%T is not a RUN", parsed)
	}
	if err := run.Expand(func(s string) (string, error) { return expand(show.Replace(s)) }); err != nil {
		return nil, fmt.Errorf("%s", show.Replace(reword(err)))
	}
	return instructions.GetMounts(run)[0], nil
}

// unusedRune returns a character of Unicode's private use area that text does
// not hold.
func unusedRune(text string) string {
	r := '\ue000'
	for strings.ContainsRune(text, r) {
		r++
	}
	return string(r)
}

// mountError points at the field that an error is about.
func mountError(w Word, err error) *Error {
	message := reword(err)
	e := &Error{Pos: w.Pos, Width: len(w.Text), Message: "--mount: " + printable(message), Err: err}
	field, candidates := mountCulprit(message)
	if at := strings.Index(w.Text, field); field != "" && at >= 0 && e.Pos.Column > 0 {
		e.Pos.Column += at
		e.Width = len(field)
	}
	switch {
	case candidates != nil:
		e.Hint = didYouMean(Suggest(field, candidates), "known are "+strings.Join(candidates, ", "))
	case strings.HasPrefix(message, "unexpected key"):
		e.Hint = "remove the key, or give the type before it"
	default:
		e.Hint = "usage: --mount=type=bind|cache|tmpfs|secret|ssh,target=PATH[,KEY=VALUE]…"
	}
	return e
}

// mountCulprit returns the word that a message of BuildKit's mount parser
// quotes, and the words that could stand in its place, nil when any could.
func mountCulprit(message string) (word string, candidates []string) {
	quote := func(mark string) string {
		_, rest, _ := strings.Cut(message, mark)
		word, _, _ := strings.Cut(rest, mark)
		return word
	}
	switch {
	case strings.HasPrefix(message, "unexpected key '") && strings.Contains(message, "' in '"):
		return quote("'"), mountKeys
	case strings.HasPrefix(message, "unsupported mount type "):
		return quote(`"`), mountTypes
	case strings.HasPrefix(message, "unsupported sharing value "):
		return quote(`"`), sharingModes
	}
	return quote("'"), nil
}

// MountFrom returns the value of from= in the value of one --mount, not expanded,
// "" without one, and the offset in w.Text at which it stands. Nothing else of
// the mount is looked at: its other values may use variables that only the base
// image knows. The error is as ParseMount's.
func MountFrom(w Word) (from string, offset int, err error) {
	fields, err := csvvalue.Fields(w.Text, nil)
	if err != nil {
		return "", 0, mountError(w, err)
	}
	at := 0
	for _, field := range fields {
		if start := strings.Index(w.Text[at:], field); start >= 0 {
			at += start
		}
		key, value, ok := strings.Cut(field, "=")
		if ok && strings.EqualFold(key, "from") {
			from, offset = value, at+len(key)+1
		}
	}
	return from, offset, nil
}
