// Command licenses turns the output of `go list -deps -json=Dir,Standard,Module`
// on standard input into one text with the licences of every module in it.
//
// Equal texts are printed once, under the modules that have them.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// licenceName matches the files that a licence or a notice is in.
var licenceName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([-._].*)?$`)

// sourceName matches code that is only called so.
var sourceName = regexp.MustCompile(`(?i)\.(go|sh|py|tmpl)$`)

// maxLicenceBytes bounds one file; the longest real ones have some 100 kB.
const maxLicenceBytes = 1 << 20

// listed is one package as go list prints it.
type listed struct {
	Dir      string
	Standard bool
	Module   *struct {
		Path, Version, Dir string
		Main               bool
	}
}

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "licenses:", err)
		os.Exit(1)
	}
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: licenses GOROOT")
	}
	files, err := collect(stdin, args[0])
	if err != nil {
		return err
	}
	w := bufio.NewWriter(stdout)
	write(w, files)
	return w.Flush()
}

// collect returns the texts by title: "module version: file".
func collect(r io.Reader, goroot string) (map[string]string, error) {
	texts := map[string]string{}
	if err := addDir(texts, "Go's standard library", goroot, goroot); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for d := json.NewDecoder(bufio.NewReader(r)); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return texts, nil
		}
		if err != nil {
			return nil, err
		}
		if p.Standard || p.Module == nil || p.Module.Main {
			continue
		}
		if err := addPackage(texts, seen, p); err != nil {
			return nil, err
		}
	}
}

// addPackage adds the licences of a package's directory and those above it, up
// to its module: parts of a module may have their own.
func addPackage(texts map[string]string, seen map[string]bool, p listed) error {
	title := p.Module.Path + " " + p.Module.Version
	for dir := p.Dir; ; dir = filepath.Dir(dir) {
		if !seen[dir] {
			seen[dir] = true
			if err := addDir(texts, title, p.Module.Dir, dir); err != nil {
				return err
			}
		}
		if dir == p.Module.Dir {
			break
		}
		if !strings.HasPrefix(dir, p.Module.Dir) {
			return fmt.Errorf("%s is not in %s", p.Dir, p.Module.Dir)
		}
	}
	for have := range texts {
		if strings.HasPrefix(have, title+": ") {
			return nil
		}
	}
	return fmt.Errorf("%s has no licence file", title)
}

// addDir adds the licence files of one directory.
func addDir(texts map[string]string, title, top, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !licenceName.MatchString(e.Name()) || sourceName.MatchString(e.Name()) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Size() > maxLicenceBytes {
			return fmt.Errorf("%s has %d bytes", path, info.Size())
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		texts[title+": "+rel] = strings.TrimSpace(strings.ReplaceAll(string(data), "\r\n", "\n"))
	}
	return nil
}

// write prints every text once, in the order of its first title.
func write(w *bufio.Writer, texts map[string]string) {
	byText := map[string][]string{}
	for title, text := range texts {
		byText[text] = append(byText[text], title)
	}
	fmt.Fprint(w, "mstage is linked from the modules below, each under the licence that follows it.\n"+
		"Written by scripts/third-party-licenses.sh; see NOTICE for the C library.\n")
	groups := slices.Collect(maps.Values(byText))
	for _, titles := range groups {
		slices.Sort(titles)
	}
	slices.SortFunc(groups, slices.Compare)
	for _, titles := range groups {
		fmt.Fprintf(w, "\n%s\n", strings.Repeat("=", 79))
		for _, title := range titles {
			fmt.Fprintf(w, " - %s\n", title)
		}
		fmt.Fprintf(w, "%s\n\n%s\n", strings.Repeat("-", 79), texts[titles[0]])
	}
}
