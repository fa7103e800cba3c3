package copy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/mstage/mstage/storage/tree"
)

// Is makes a NotFoundError match fs.ErrNotExist.
func (e *NotFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// Select finds what s names in src. A wildcard that matches nothing selects
// nothing and is no error, as in BuildKit; a source without wildcards that does
// not exist is a *NotFoundError. A source that is a symbolic link is followed,
// confined to the tree; links inside a directory are copied as links.
func Select(ctx context.Context, src tree.Tree, s Spec) (*Selection, error) {
	sel := &Selection{src: src, context: s.Context}
	for _, source := range s.Sources {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		paths, err := expand(src, source)
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			it, err := named(src, source, p)
			if err != nil {
				return nil, err
			}
			sel.items = append(sel.items, it)
		}
	}
	for _, f := range s.Inline {
		sel.items = append(sel.items, inlineItem(f))
	}
	return sel, nil
}

func inlineItem(f InlineFile) item {
	return item{
		source: "<<" + f.Name, name: path.Base(f.Name), inline: &f,
		entry: tree.Entry{
			Path: path.Base(f.Name), Mode: tree.TypeRegular | 0o644,
			Size: int64(len(f.Data)), ModTime: time.Now(), Nlink: 1,
		},
	}
}

// named returns the item at p, a path that may be or lead through links.
func named(src tree.Tree, source, p string) (item, error) {
	resolved, exists, err := tree.Resolve(src, p, true)
	if err != nil {
		return item{}, fmt.Errorf("%s: %w", source, err)
	}
	if !exists {
		return item{}, notFound(src, source, resolved)
	}
	e, err := src.Lstat(resolved)
	if err != nil {
		return item{}, fmt.Errorf("%s: %w", source, err)
	}
	if e.Type() == typeSocket {
		return item{}, fmt.Errorf("%s: a socket can't be kept in an image", source)
	}
	return item{source: source, name: path.Base(p), path: resolved, entry: e}, nil
}

// expand returns the paths that a source stands for, sorted as in a walk.
func expand(src tree.Tree, source string) ([]string, error) {
	cleaned := strings.TrimPrefix(path.Clean("/"+source), "/")
	if cleaned == "" {
		return []string{"."}, nil
	}
	parts := strings.Split(cleaned, "/")
	wild := slices.IndexFunc(parts, hasWildcard)
	if wild < 0 {
		return []string{cleaned}, nil
	}
	for _, part := range parts[wild:] {
		if _, err := path.Match(part, ""); err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
	}
	base, err := named(src, source, path.Join(".", path.Join(parts[:wild]...)))
	if err != nil {
		return nil, err
	}
	return match(src, base.path, parts[wild:])
}

// match returns the paths below dir that match the components of a pattern.
// Like a walk, it does not descend into symbolic links.
func match(src tree.Tree, dir string, parts []string) ([]string, error) {
	e, err := src.Lstat(dir)
	if err != nil || !e.IsDir() {
		return nil, err
	}
	entries, err := src.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if ok, _ := path.Match(parts[0], path.Base(e.Path)); !ok {
			continue
		}
		if len(parts) == 1 {
			found = append(found, e.Path)
			continue
		}
		below, err := match(src, e.Path, parts[1:])
		if err != nil {
			return nil, err
		}
		found = append(found, below...)
	}
	return found, nil
}

// hasWildcard reports whether a component has a wildcard that isn't escaped.
func hasWildcard(part string) bool {
	for i := 0; i < len(part); i++ {
		switch part[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}

// notFound explains which part of a path is missing and what is like it.
func notFound(src tree.Tree, source, resolved string) error {
	e := &NotFoundError{Source: source, Missing: resolved}
	for {
		parent := path.Dir(e.Missing)
		entries, err := src.ReadDir(parent)
		if err == nil {
			e.Suggestions = similar(entries, e.Missing)
			return e
		}
		if parent == "." || !errors.Is(err, fs.ErrNotExist) {
			return e
		}
		e.Missing = parent
	}
}

const (
	// maxSuggestions keeps a hint on one line.
	maxSuggestions = 3
	// maxDistance is how many edits apart a typing error is taken for.
	maxDistance = 2
	// maxComparedName is NAME_MAX in bytes; the distance costs its square.
	maxComparedName = 255
)

// similar returns paths among entries whose names are close to that of wanted.
func similar(entries []tree.Entry, wanted string) []string {
	type candidate struct {
		path     string
		distance int
	}
	name := strings.ToLower(path.Base(wanted))
	var near []candidate
	for _, e := range entries {
		d := distance(name, strings.ToLower(path.Base(e.Path)))
		if d <= maxDistance && d < len(name) {
			near = append(near, candidate{e.Path, d})
		}
	}
	slices.SortStableFunc(near, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	var paths []string
	for _, c := range near[:min(len(near), maxSuggestions)] {
		paths = append(paths, c.path)
	}
	return paths
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	gap := len(a) - len(b)
	if max(gap, -gap) > maxDistance || len(a) > maxComparedName {
		return maxDistance + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
