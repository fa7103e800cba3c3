// Package reference turns the names by which people call images ("busybox",
// "localhost:5000/x:1") into their full form and back.
//
// It reads exactly what docker reads, by hand and without regular expressions,
// because compiling those costs every process milliseconds at its start.
// Source: distribution's reference grammar (distribution/reference v0.6, package
// comment) and docker's rules for a missing domain, path prefix and tag.
package reference

import (
	"errors"
	"fmt"
	"strings"
)

const (
	// DefaultTag is the tag of a name without one.
	DefaultTag = "latest"

	defaultDomain = "docker.io"
	legacyDomain  = "index.docker.io"
	officialPath  = "library/"

	// maxPathBytes limits the path, docker's prefix included. Source:
	// RepositoryNameTotalLengthMax of the reference grammar.
	maxPathBytes = 255
	// maxTagBytes limits a tag. Source: the grammar's "tag".
	maxTagBytes = 128
)

// ErrDigest is wrapped by Normalize for a reference that holds a digest: it
// names content, not a tag.
var ErrDigest = errors.New("a digest can't be a name")

// Reference is a name in full. Tag and Digest are "" when not written. Domain
// is "" only for a path whose first component has a dot but is no host name
// ("a_b.c/x"), which docker takes as it is.
type Reference struct {
	Domain string // "docker.io", "localhost:5000"
	Path   string // "library/busybox"
	Tag    string
	Digest string // "sha256:…"
}

// Parse reads a reference as docker does: without a domain it is docker.io's,
// and there without a slash it is under "library/". No tag is added. The error
// says which part is wrong.
func Parse(s string) (Reference, error) {
	r, err := parse(s)
	if err != nil {
		return Reference{}, fmt.Errorf("invalid reference %.300q: %w", s, err)
	}
	return r, nil
}

// Normalize returns the name in full with a tag, "latest" when none is
// written: "busybox" is "docker.io/library/busybox:latest". The error wraps
// ErrDigest for a reference with a digest.
func Normalize(s string) (string, error) {
	r, err := Parse(s)
	if err != nil {
		return "", err
	}
	if r.Digest != "" {
		return "", fmt.Errorf("invalid name %q: %w", s, ErrDigest)
	}
	return r.WithDefaultTag().String(), nil
}

// Familiar returns the short form of a full name, as docker shows it:
// "docker.io/library/busybox:latest" is "busybox:latest". What is no reference
// is returned unchanged.
func Familiar(s string) string {
	r, err := Parse(s)
	if err != nil {
		return s
	}
	return r.FamiliarName() + r.suffix()
}

// Name returns the reference without tag and digest.
func (r Reference) Name() string {
	if r.Domain == "" {
		return r.Path
	}
	return r.Domain + "/" + r.Path
}

// String returns the reference in full.
func (r Reference) String() string { return r.Name() + r.suffix() }

// FamiliarName returns Name as docker shows it: without "docker.io/" and, for
// official images, without "library/".
func (r Reference) FamiliarName() string {
	if r.Domain != defaultDomain {
		return r.Name()
	}
	if short, ok := strings.CutPrefix(r.Path, officialPath); ok && !strings.Contains(short, "/") {
		return short
	}
	return r.Path
}

// WithDefaultTag returns the reference with the tag "latest" when it has
// neither tag nor digest.
func (r Reference) WithDefaultTag() Reference {
	if r.Tag == "" && r.Digest == "" {
		r.Tag = DefaultTag
	}
	return r
}

// StoreName returns the name under which an image is kept: with a tag, or with a
// digest and no tag.
func (r Reference) StoreName() string {
	if r.Digest != "" {
		r.Tag = ""
	}
	return r.WithDefaultTag().String()
}

func (r Reference) suffix() string {
	var s string
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

func parse(s string) (Reference, error) {
	if s == "" {
		return Reference{}, errors.New("it is empty")
	}
	if len(s) == 64 && all(s, isLowerHex) {
		return Reference{}, errors.New("64 hex digits are an image ID")
	}
	domain, rest := splitDomain(s)
	rest, digest, hasDigest := strings.Cut(rest, "@")
	path, tag, hasTag := strings.Cut(rest, ":")
	if !isDomain(domain) {
		// Docker reads such a first component as part of the path.
		domain, path = "", domain+"/"+path
	}
	if err := checkPath(path); err != nil {
		return Reference{}, err
	}
	if hasTag {
		if err := checkTag(tag); err != nil {
			return Reference{}, err
		}
	}
	if hasDigest {
		if err := checkDigest(digest); err != nil {
			return Reference{}, err
		}
	}
	return Reference{Domain: domain, Path: path, Tag: tag, Digest: digest}, nil
}

// splitDomain returns the domain, given or implied, and everything after it.
func splitDomain(s string) (domain, rest string) {
	first, after, hasSlash := strings.Cut(s, "/")
	switch {
	case !hasSlash:
		return defaultDomain, officialPath + s
	case first == legacyDomain:
		first = defaultDomain
	case first == "localhost", strings.ContainsAny(first, ".:"), strings.ToLower(first) != first:
	default:
		return defaultDomain, s
	}
	if first == defaultDomain && !strings.Contains(after, "/") {
		after = officialPath + after
	}
	return first, after
}

// isDomain reports whether s is a host name, an IPv4 address or an IPv6 address
// in brackets, with an optional port.
func isDomain(s string) bool {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		address, port, ok := strings.Cut(rest, "]")
		return ok && address != "" && all(address, func(c byte) bool { return c == ':' || isHex(c) }) && isPortSuffix(port)
	}
	host, port := s, ""
	if i := strings.IndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i:]
	}
	for part := range strings.SplitSeq(host, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' {
			return false
		}
		if !all(part, func(c byte) bool { return c == '-' || isAlphanumeric(c) }) {
			return false
		}
	}
	return isPortSuffix(port)
}

// isPortSuffix reports whether s is "" or a colon and digits.
func isPortSuffix(s string) bool {
	if s == "" {
		return true
	}
	return s[0] == ':' && len(s) > 1 && all(s[1:], isDigit)
}

func checkPath(path string) error {
	if len(path) > maxPathBytes {
		return fmt.Errorf("the name is longer than %d characters", maxPathBytes)
	}
	if strings.ToLower(path) != path {
		return errors.New("the name must be lower case")
	}
	for component := range strings.SplitSeq(path, "/") {
		if component == "" {
			return errors.New("a part of the name is empty")
		}
		if err := checkComponent(component); err != nil {
			return err
		}
	}
	return nil
}

// checkComponent holds one part of a path to the grammar: runs of lower-case
// letters and digits, joined by ".", "_", "__" or any number of "-".
func checkComponent(s string) error {
	for i := 0; i < len(s); {
		end := i
		for end < len(s) && isLowerAlphanumeric(s[end]) {
			end++
		}
		if end == i {
			return fmt.Errorf("%q can't stand there in %q", s[i:i+1], s)
		}
		if end == len(s) {
			return nil
		}
		n := separatorLength(s[end:])
		if n == 0 {
			return fmt.Errorf("%q can't stand in %q", firstRune(s[end:]), s)
		}
		i = end + n
	}
	return fmt.Errorf("%q ends with a separator", s)
}

// separatorLength returns the length of the separator that s begins with.
func separatorLength(s string) int {
	switch {
	case strings.HasPrefix(s, "__"):
		return 2
	case s[0] == '.' || s[0] == '_':
		return 1
	}
	return len(s) - len(strings.TrimLeft(s, "-"))
}

func firstRune(s string) string {
	for _, r := range s {
		return string(r)
	}
	return s
}

func checkTag(tag string) error {
	switch {
	case tag == "":
		return errors.New("the tag is empty")
	case len(tag) > maxTagBytes:
		return fmt.Errorf("the tag is longer than %d characters", maxTagBytes)
	case tag[0] == '.' || tag[0] == '-':
		return fmt.Errorf("the tag %q begins with %q", tag, tag[:1])
	case !all(tag, isTagByte):
		return fmt.Errorf("the tag %q has characters other than letters, digits, \"_\", \".\" and \"-\"", tag)
	}
	return nil
}

func checkDigest(digest string) error {
	algorithm, hex, _ := strings.Cut(digest, ":")
	digits, ok := map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}[algorithm]
	if !ok {
		return fmt.Errorf("the digest %q is not of sha256, sha384 or sha512", digest)
	}
	if len(hex) != digits || !all(hex, isLowerHex) {
		return fmt.Errorf("the digest %q has not %d lower-case hex digits", digest, digits)
	}
	return nil
}

func all(s string, is func(byte) bool) bool {
	for i := range len(s) {
		if !is(s[i]) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLowerHex(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'f' }

func isHex(c byte) bool { return isLowerHex(c) || 'A' <= c && c <= 'F' }

func isLowerAlphanumeric(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'z' }

func isAlphanumeric(c byte) bool { return isLowerAlphanumeric(c) || 'A' <= c && c <= 'Z' }

func isTagByte(c byte) bool { return isAlphanumeric(c) || c == '_' || c == '.' || c == '-' }
