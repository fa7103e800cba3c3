package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// recent separates times that a build made from those of sources.
var recent = time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)

// compareImages compares mstage's image with BuildKit's, and mstage's own tar of
// the root file system with its image.
func (s settings) compareImages(a, b *image, own fileTree) []string {
	if s.cached {
		for _, t := range []fileTree{a.tree, b.tree, own} {
			t.forgetTimes()
		}
	}
	out := prefixed("tree ", compareTrees(a.tree, b.tree))
	out = append(out, compareConfigs(a.config, b.config)...)
	out = append(out, s.compareLayers(a.layers, b.layers)...)
	return append(out, prefixed("own tar ", compareTrees(own.withoutRoot(), a.tree.withoutRoot()))...)
}

// prefixed puts a word before each line.
func prefixed(word string, lines []string) []string {
	for i := range lines {
		lines[i] = word + lines[i]
	}
	return lines
}

// compareLayers compares the number of layers and, when that is asked for, the
// names in each.
func (s settings) compareLayers(a, b [][]string) []string {
	var out []string
	if len(a) != len(b) {
		out = append(out, fmt.Sprintf("layers: %d|%d", len(a), len(b)))
	}
	for i := range min(len(a), len(b)) {
		if s.layers && !slices.Equal(a[i], b[i]) {
			out = append(out, fmt.Sprintf("layer %d: %q|%q", i, a[i], b[i]))
		}
	}
	return out
}

// compareTrees lists differences as "path: what a|b".
func compareTrees(a, b fileTree) []string {
	var out []string
	linksA, linksB := a.links(), b.links()
	for name, i := range a {
		if b[name] == nil {
			if !i.isPlainRoot(name) {
				out = append(out, fmt.Sprintf("/%s: only first (%s)", name, i))
			}
			continue
		}
		d := i.diff(name, b[name])
		if !slices.Equal(linksA[name], linksB[name]) {
			d = append(d, fmt.Sprintf("hard links %q|%q", linksA[name], linksB[name]))
		}
		if len(d) > 0 {
			out = append(out, "/"+name+": "+strings.Join(d, ", "))
		}
	}
	for name, i := range b {
		if a[name] == nil {
			out = append(out, fmt.Sprintf("/%s: only second (%s)", name, i))
		}
	}
	slices.Sort(out)
	return out
}

// isPlainRoot reports whether this is a root directory like that of a tree
// without one: BuildKit never has it in a layer.
func (i *inode) isPlainRoot(name string) bool {
	return name == "" && i.mode == 0o755 && i.uid == 0 && i.gid == 0
}

// String returns type, mode and owner.
func (i *inode) String() string { return fmt.Sprintf("%c %o %d:%d", i.kind, i.mode, i.uid, i.gid) }

// diff lists differences of two inodes with a name as "what a|b".
func (i *inode) diff(name string, o *inode) []string {
	var d []string
	note := func(what string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			d = append(d, fmt.Sprintf("%s %v|%v", what, a, b))
		}
	}
	note("type", string(i.kind), string(o.kind))
	note("mode", fmt.Sprintf("%o", i.mode), fmt.Sprintf("%o", o.mode))
	note("owner", fmt.Sprint(i.uid, ":", i.gid), fmt.Sprint(o.uid, ":", o.gid))
	note("size", i.size, o.size)
	note("content", i.hash, o.hash)
	note("link", i.link, o.link)
	note("device", i.dev, o.dev)
	// BuildKit's layers have no attributes but security.capability, and what
	// comes from a context has none.
	for k, v := range o.xattrs {
		note("xattr "+k, i.xattrs[k], v)
	}
	if name != "" && i.timeCounts(o) {
		note("mtime", i.mtime.Unix(), o.mtime.Unix())
	}
	return d
}

// timeCounts reports whether the times of mstage's inode and BuildKit's are
// comparable. Those that a build made are not. A directory keeps its time when
// mstage writes below it, so that layers are the same whenever they are made; with
// BuildKit it is the time of the build.
func (i *inode) timeCounts(o *inode) bool {
	mine, theirs := i.mtime.Before(recent), o.mtime.Before(recent)
	kept := i.kind == tar.TypeDir && mine && !theirs
	return !kept && (mine || theirs)
}

// compareConfigs compares all but times and layers.
func compareConfigs(a, b map[string]any) []string {
	return compareValues("config", a, b)
}

// compareValues lists differences of JSON values as "where: a|b".
func compareValues(at string, a, b any) []string {
	if reflect.DeepEqual(a, b) {
		return nil
	}
	if x, y, ok := bothAre[map[string]any](a, b); ok {
		return compareObjects(at, x, y)
	}
	if x, y, ok := bothAre[[]any](a, b); ok && len(x) == len(y) {
		var out []string
		for i := range x {
			out = append(out, compareValues(fmt.Sprintf("%s[%d]", at, i), x[i], y[i])...)
		}
		return out
	}
	return []string{fmt.Sprintf("%s: %s|%s", at, asJSON(a), asJSON(b))}
}

// compareObjects is compareValues of objects.
func compareObjects(at string, a, b map[string]any) []string {
	var out []string
	for k, v := range a {
		out = append(out, compareValues(at+"."+k, v, b[k])...)
	}
	for k, v := range b {
		if _, ok := a[k]; !ok {
			out = append(out, compareValues(at+"."+k, nil, v)...)
		}
	}
	slices.Sort(out)
	return out
}

// bothAre reports whether two values have a type.
func bothAre[T any](a, b any) (x, y T, ok bool) {
	x, okX := a.(T)
	y, okY := b.(T)
	return x, y, okX && okY
}

// asJSON returns a value that came from JSON.
func asJSON(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(b.String(), "\n")
}
