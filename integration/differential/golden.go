package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// goldenHead begins every file of goldens.
const goldenHead = `# What mstage makes of each case: files that are not as in the base image, config,
# and history. Times that the build made and what nearly every config has (the
# platform, PATH) are left out. Written by "scripts/differential.sh -update", and
# only where BuildKit agrees or the case has a :known line. Not to be edited by hand.
`

// goldenFile is where the goldens of a case file are.
func goldenFile(caseFile string) string {
	return filepath.Join(filepath.Dir(caseFile), "golden", filepath.Base(caseFile))
}

// golden is what a case is expected to become.
type golden struct {
	name  string // the case's
	lines []string
}

// readGoldens reads the goldens of a case file, none when there is no file yet.
func readGoldens(caseFile string) ([]golden, error) {
	data, err := os.ReadFile(goldenFile(caseFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []golden
	for _, text := range strings.Split("\n"+string(data), "\n=== ")[1:] {
		lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
		all = append(all, golden{name: lines[0], lines: lines[1:]})
	}
	return all, nil
}

// updateGoldens writes the goldens of the case files in the order of cases. Those
// of cases that did not run stay; those without a case go.
func updateGoldens(cases []testCase, results []result) error {
	made := map[string][]string{}
	for _, r := range results {
		made[r.name] = r.golden
	}
	for caseFile, list := range byFile(cases) {
		old, err := readGoldens(caseFile)
		if err != nil {
			return err
		}
		for _, g := range old {
			if _, ok := made[g.name]; !ok {
				made[g.name] = g.lines
			}
		}
		if err := writeGoldens(goldenFile(caseFile), list, made); err != nil {
			return err
		}
	}
	return nil
}

// byFile returns the cases, but for bases, by the file that they are in.
func byFile(cases []testCase) map[string][]testCase {
	files := map[string][]testCase{}
	for _, c := range cases {
		if !c.isBase() {
			files[c.file] = append(files[c.file], c)
		}
	}
	return files
}

// writeGoldens writes what is known of cases.
func writeGoldens(name string, cases []testCase, known map[string][]string) error {
	var b strings.Builder
	b.WriteString(goldenHead)
	for _, c := range cases {
		if lines, ok := known[c.name]; ok {
			fmt.Fprintf(&b, "\n=== %s\n%s\n", c.name, strings.Join(lines, "\n"))
		}
	}
	return os.WriteFile(name, []byte(b.String()), 0o644)
}

// describe returns the golden of what mstage made of a case.
func (s settings) describe(c testCase, at place, e ending, img *image, bases []base) []string {
	var lines []string
	if c.known != "" {
		lines = append(lines, "known "+c.known)
	}
	if e.err != nil {
		lines = append(lines, fmt.Sprintf("fails %d", e.code()), "error "+s.portable(at, e.message()))
	} else {
		lines = append(lines, img.describe(bases)...)
	}
	for i := range lines {
		lines[i] = strings.ReplaceAll(lines[i], runtime.GOARCH, "$GOARCH")
	}
	return lines
}

// layerID matches names that mstage invents.
var layerID = regexp.MustCompile(`\b[0-9a-f]{12,64}\b`)

// portable takes out of an error what differs from run to run.
func (s settings) portable(at place, text string) string {
	text = strings.NewReplacer(at.context, "$CONTEXT", at.out, "$OUT", s.work, "$WORK").Replace(text)
	return layerID.ReplaceAllString(text, "$$ID")
}

// describe returns lines for what differs from the base, config and history.
func (i *image) describe(bases []base) []string {
	under, name := &image{}, "scratch"
	if i.base != nil {
		under, name = i.base.image, i.base.name
	}
	lines := append([]string{"base " + name}, changes(i.tree, under.tree, busyboxHash(bases))...)
	lines = append(lines, describeConfig(i.config)...)
	return append(lines, describeHistory(i.newHistory(bases), len(i.layers)-len(under.layers))...)
}

// newHistory returns the entries that no base has. Several may have the same layers.
func (i *image) newHistory(bases []base) []map[string]any {
	mine, longest := i.history(), 0
	for _, b := range bases {
		theirs := b.image.history()
		if n := len(theirs); n > longest && n <= len(mine) && reflect.DeepEqual(theirs, mine[:n]) {
			longest = n
		}
	}
	return mine[longest:]
}

// busyboxHash returns the hash of the program, which is not the same on every host.
func busyboxHash(bases []base) string {
	for _, b := range bases {
		if i := b.image.tree[busyboxPath]; i != nil {
			return i.hash
		}
	}
	return ""
}

// changes lists what differs between two trees, by path. Of what is gone, only the
// topmost names are listed.
func changes(tree, under fileTree, busybox string) []string {
	links, linksBefore := tree.links(), under.links()
	var lines []string
	names := map[string]bool{}
	for _, t := range []fileTree{tree, under} {
		for name := range t {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		now, before := tree[name], under[name]
		word := "change"
		switch {
		case now == nil:
			if parent := tree[cleanName(path.Dir(name))]; parent == nil || parent.kind != tar.TypeDir {
				continue
			}
			lines = append(lines, "remove "+quoted("/"+name))
			continue
		case before == nil && now.isPlainRoot(name):
			continue
		case before == nil:
			word = "add   "
		case now.same(name, before) && slices.Equal(links[name], linksBefore[name]):
			continue
		}
		lines = append(lines, word+" "+quoted("/"+name)+" "+now.describe(name, links[name], busybox))
	}
	return lines
}

// same reports whether nothing of two inodes differs.
func (i *inode) same(name string, o *inode) bool {
	if i == o {
		return true
	}
	a, b := *i, *o
	a.mtime, b.mtime = a.mtime.UTC(), b.mtime.UTC()
	if name == "" {
		a.mtime = b.mtime
	}
	return reflect.DeepEqual(a, b)
}

// kinds are words for types of a tar.
var kinds = map[byte]string{
	tar.TypeReg: "file", tar.TypeDir: "dir", tar.TypeSymlink: "symlink",
	tar.TypeFifo: "fifo", tar.TypeChar: "char", tar.TypeBlock: "block",
}

// describe returns all that an inode is. links are all its names, the first of
// which stands for them.
func (i *inode) describe(name string, links []string, busybox string) string {
	if links[0] != name {
		return "hard link to " + quoted("/"+links[0])
	}
	words := []string{kinds[i.kind], strconv.FormatInt(i.mode, 8), fmt.Sprintf("%d:%d", i.uid, i.gid)}
	if name != "" && i.mtime.Before(recent) {
		words = append(words, i.mtime.UTC().Format(time.RFC3339))
	}
	switch {
	case i.kind == tar.TypeSymlink:
		words = append(words, "-> "+quoted(i.link))
	case i.kind == tar.TypeChar || i.kind == tar.TypeBlock:
		words = append(words, fmt.Sprintf("device %d:%d", i.dev[0], i.dev[1]))
	case i.kind != tar.TypeReg:
	case i.hash == busybox && busybox != "":
		words = append(words, "busybox")
	case i.size == 0 || i.text != "" && utf8.ValidString(i.text):
		words = append(words, strconv.Quote(i.text))
	default:
		words = append(words, fmt.Sprintf("size %d sha256 %s", i.size, i.hash))
	}
	for _, k := range slices.Sorted(maps.Keys(i.xattrs)) {
		words = append(words, k+"="+strconv.Quote(i.xattrs[k]))
	}
	return strings.Join(words, " ")
}

// quoted quotes a path that could be taken for something else.
func quoted(name string) string {
	odd := func(r rune) bool {
		return r == utf8.RuneError || r == '"' || r == '\\' || !unicode.IsGraphic(r) || unicode.IsSpace(r)
	}
	if strings.ContainsFunc(name, odd) {
		return strconv.Quote(name)
	}
	return name
}

// usualConfig is what configs have unless a line says otherwise.
var usualConfig = map[string]string{
	"image architecture": strconv.Quote(runtime.GOARCH),
	"image os":           `"linux"`,
	"config Env":         `["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]`,
}

// describeConfig returns a line for each field of the image's config, and of what
// is beside it, that is not as usual.
func describeConfig(config map[string]any) []string {
	fields := map[string]string{}
	for k, v := range config {
		if k != "config" && k != "history" {
			fields["image "+k] = asJSON(v)
		}
	}
	inner, _ := config["config"].(map[string]any)
	for k, v := range inner {
		fields["config "+k] = asJSON(v)
	}
	for k, v := range usualConfig {
		switch fields[k] {
		case v:
			delete(fields, k)
		case "":
			fields[k] = "(none)"
		}
	}
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		lines = append(lines, k+" "+fields[k])
	}
	return lines
}

// usualComment is what BuildKit's frontend puts into most entries of a history.
const usualComment = "buildkit.dockerfile.v0"

// describeHistory returns a line for each entry, and one for the number of layers
// when it is not that of the entries.
func describeHistory(entries []map[string]any, layers int) []string {
	var lines []string
	for _, e := range entries {
		e = maps.Clone(e)
		word := "layer"
		if e["empty_layer"] == true {
			word = "empty"
		} else {
			layers--
		}
		createdBy, _ := e["created_by"].(string)
		delete(e, "created_by")
		delete(e, "empty_layer")
		if e["comment"] == usualComment {
			delete(e, "comment")
		} else if _, ok := e["comment"]; !ok {
			e["comment"] = nil
		}
		line := word + " " + strconv.Quote(createdBy)
		if len(e) > 0 {
			line += " " + asJSON(e)
		}
		lines = append(lines, line)
	}
	if layers != 0 {
		lines = append(lines, fmt.Sprintf("%d more layers than history says", layers))
	}
	return lines
}
