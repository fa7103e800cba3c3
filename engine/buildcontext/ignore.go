package buildcontext

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"golang.org/x/sys/unix"
)

const (
	// IgnoreName is the ignore file in a context's root. With a Dockerfile's
	// name before it, it is the suffix of that Dockerfile's own ignore file.
	IgnoreName = ".dockerignore"
	// maxIgnoreBytes bounds an ignore file; real ones have a few hundred bytes.
	maxIgnoreBytes = 1 << 20
	// maxPatterns bounds what every file is compared with.
	maxPatterns = 10_000
)

// IgnoreError is a line of an ignore file that is not a pattern.
type IgnoreError struct {
	File    string
	Line    int // from 1
	Pattern string
	Err     error
}

func (e *IgnoreError) Error() string {
	return fmt.Sprintf("%s:%d: pattern %q: %v", e.File, e.Line, e.Pattern, e.Err)
}

// Unwrap returns the cause.
func (e *IgnoreError) Unwrap() error { return e.Err }

// rules are the patterns of an ignore file, in order.
type rules struct {
	file string
	list []rule
}

// verdict is what the rules say about one path.
type verdict struct {
	// matched tells for each rule whether it matches the path or a directory
	// above it, as far as it was asked. nil when settled.
	matched []bool
	ignored bool
	// settled says that everything below has the same verdict.
	settled bool
}

// readRules reads the ignore file that belongs to the Dockerfile, else the one
// of the context. Without either nothing is ignored.
func readRules(root, dockerfile string) (*rules, error) {
	if dockerfile != "" {
		name := dockerfile + IgnoreName
		rs, err := rulesOf(name, func() (*os.File, error) { return openQuick(name) })
		if !errors.Is(err, fs.ErrNotExist) {
			return rs, err
		}
	}
	rs, err := rulesOf(filepath.Join(root, IgnoreName), func() (*os.File, error) { return openIn(root, IgnoreName) })
	if errors.Is(err, fs.ErrNotExist) {
		return &rules{}, nil
	}
	return rs, err
}

// rulesOf reads one ignore file.
func rulesOf(name string, open func() (*os.File, error)) (rs *rules, err error) {
	data, err := readSmall(open, maxIgnoreBytes)
	if err != nil {
		return nil, fmt.Errorf("ignore file %s: %w", name, err)
	}
	return parseRules(name, data)
}

// openIn opens a file below root; a link may lead to another file below it, but
// not out: the context may come from somebody else.
func openIn(root, name string) (*os.File, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	// A FIFO in the place of the file must not block.
	f, err := r.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	return f, errors.Join(err, r.Close())
}

// openQuick opens a file whose name is the caller's. A FIFO must not block: the
// name beside the Dockerfile is not one that the caller wrote.
func openQuick(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// readSmall reads a file of at most limit bytes.
func readSmall(open func() (*os.File, error), limit int64) (data []byte, err error) {
	f, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readLimited(f, limit)
}

// readLimited reads all of r, at most limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("larger than the limit of %d bytes", limit)
	}
	return data, nil
}

// parseRules reads patterns line by line, so that an error knows its line.
func parseRules(file string, data []byte) (*rules, error) {
	rs := &rules{file: file}
	number := 0
	for line := range bytes.Lines(data) {
		number++
		if number > 1 {
			// A byte order mark counts in the first line only.
			line = append([]byte("\n"), line...)
		}
		patterns, err := ignorefile.ReadAll(bytes.NewReader(line))
		if err != nil {
			return nil, &IgnoreError{File: file, Line: number, Err: err}
		}
		for _, p := range patterns {
			r, err := newRule(p)
			if err != nil {
				return nil, &IgnoreError{File: file, Line: number, Pattern: p, Err: err}
			}
			rs.list = append(rs.list, r)
		}
		if len(rs.list) > maxPatterns {
			return nil, &IgnoreError{File: file, Line: number, Err: fmt.Errorf("more than %d patterns", maxPatterns)}
		}
	}
	return rs, nil
}

// newRule reads one pattern as ignorefile returns it.
func newRule(pattern string) (rule, error) {
	// patternmatcher's scanner complains about these on the process's stderr.
	if !utf8.ValidString(pattern) || strings.IndexByte(pattern, 0) >= 0 {
		return rule{}, errors.New("not UTF-8 text")
	}
	pm, err := patternmatcher.New([]string{pattern})
	if err != nil {
		return rule{}, err
	}
	if len(pm.Patterns()) != 1 {
		return rule{}, errors.New("empty")
	}
	p := pm.Patterns()[0]
	r := rule{pattern: p.String(), exception: p.Exclusion()}
	r.analyse()
	return r, r.compile()
}

// start is the verdict about the root, which no pattern can ignore.
func (rs *rules) start() verdict {
	return verdict{matched: make([]bool, len(rs.list)), settled: len(rs.list) == 0}
}

// judge says whether path is ignored, given the verdict about its directory.
// Source: moby/patternmatcher's MatchesUsingParentResults, which BuildKit walks
// contexts with; in particular a rule that can't change the verdict is not asked.
func (rs *rules) judge(parent verdict, path string, isDir bool) verdict {
	if parent.settled {
		return verdict{ignored: parent.ignored, settled: true}
	}
	var v verdict
	if isDir {
		v.matched = slices.Clone(parent.matched)
	}
	for i := range rs.list {
		r := &rs.list[i]
		match := parent.matched[i] || (r.exception == v.ignored && r.match(path))
		if !match {
			continue
		}
		v.ignored = !r.exception
		if isDir {
			v.matched[i] = true
		}
	}
	if isDir {
		v.settled = rs.settled(v, path)
	}
	return v
}

// settled reports whether everything below an ignored or visible directory has
// its verdict. Below an ignored one only an exception can change it: the rule
// that ignored the directory holds there too and comes after all others that do.
func (rs *rules) settled(v verdict, path string) bool {
	parts := strings.Split(path, "/")
	for i := range rs.list {
		r := &rs.list[i]
		if v.matched[i] || r.exception != v.ignored {
			continue
		}
		if r.mayMatchBelow(parts) {
			return false
		}
	}
	return true
}
