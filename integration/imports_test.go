package integration

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/mstage/mstage"

// row says what a package may import from this module. "x/*" stands for every
// package below x, "*" for all packages but the ones under cmd.
type row []string

// table has a row for every directory with Go files; a row that ends with "/*"
// serves all directories below it. The more precise row wins. Tests, and packages
// for tests (their names end with "test"), may look around.
var table = map[string]row{
	"cmd/mstage":                      {"*", "."},
	"cmd/mstage/internal/ttyprogress": {"engine/progress"},
	".":                               {"*"},

	"engine":              {"engine/*", "sandbox", "storage", "storage/layertar", "storage/tree", "pkg/pluginapi", "pkg/reference"},
	"engine/archive":      {"engine/fetch", "engine/imageconfig", "pkg/reference", "storage", "storage/layertar"},
	"engine/buildcontext": {"storage/tree"},
	"engine/cache":        {"engine/plan", "storage"},
	"engine/copy":         {"storage", "storage/tree", "storage/chainfs", "storage/layertar"},
	"engine/dockerfile":   {},
	"engine/executor":     {"engine/dockerfile", "engine/plan", "engine/cache", "engine/buildcontext", "engine/progress", "engine/copy", "engine/imageconfig", "sandbox", "storage", "storage/tree", "storage/chainfs"},
	"engine/export":       {"engine/image", "engine/imageconfig", "engine/progress", "storage", "storage/layertar"},
	"engine/fetch":        {"engine/image", "engine/progress", "engine/imageconfig", "pkg/pluginapi", "storage", "storage/layertar"},
	"engine/image":        {"engine/dockerfile", "engine/imageconfig", "storage", "storage/layertar"},
	"engine/imageconfig":  {},
	"engine/plan":         {"engine/dockerfile", "engine/stage", "engine/resolve", "engine/buildcontext", "engine/fetch", "engine/imageconfig", "storage", "pkg/pluginapi"},
	"engine/progress":     {"engine/dockerfile"},
	"engine/resolve":      {"engine/dockerfile", "engine/stage", "engine/imageconfig", "pkg/pluginapi"},
	"engine/stage":        {"engine/dockerfile"},
	"engine/worker":       {"engine/*", "pkg/pluginapi", "storage"},
	"integration":         {"*"},
	"pkg/pluginapi":       {},
	"pkg/pluginapi/*":     {"pkg/pluginapi", "pkg/pluginapi/wire"},
	"pkg/reference":       {},
	"pkg/registry":        {"pkg/reference"},
	"plugins":             {"plugins/*", "pkg/pluginapi", "pkg/pluginapi/wire", "sandbox", "storage"},
	"plugins/*":           {"pkg/pluginapi", "pkg/reference", "pkg/registry", "storage"},
	"plugins/examples/*":  {"pkg/pluginapi", "pkg/pluginapi/*"},
	"sandbox":             {},
	"sandbox/netstack":    {"sandbox"},
	"sandbox/rootless":    {"sandbox"},
	"sandbox/runc":        {"sandbox", "sandbox/rootless"},
	"sandbox/runc/*":      {},
	"storage":             {},
	"storage/tree":        {},
	"storage/blobs":       {"storage", "storage/layout"},
	"storage/cachedir":    {"storage", "storage/layout"},
	"storage/chainfs":     {"storage", "storage/tree"},
	"storage/index":       {"storage", "storage/layout"},
	"storage/layertar":    {"storage", "storage/tree"},
	"storage/layout":      {"storage", "storage/tree"},
	"storage/overlay":     {"storage", "storage/*"},
	"tools/licenses":      {},

	// Shares no code with what it checks.
	"integration/differential": {},
}

// stdlibOnly are contracts that anybody can import at no cost, and a program that
// anybody can build without fetching a thing.
var stdlibOnly = []string{"storage/tree", "engine/imageconfig", "pkg/pluginapi", "sandbox", "storage", "engine/progress", "integration/differential"}

// owners are heavy dependencies, by import path prefix, with the packages that
// may import them. The longest prefix decides.
var owners = map[string][]string{
	"github.com/opencontainers/runc":              {"sandbox/runc"},
	"github.com/opencontainers/cgroups":           {"sandbox/runc"},
	"github.com/opencontainers/runtime-spec":      {"sandbox/runc", "sandbox/runc/internal/seccompgen"},
	"github.com/seccomp":                          {"sandbox/runc/internal/seccompgen"},
	"github.com/moby/profiles/seccomp":            {"sandbox/runc/internal/seccompgen"},
	"go.podman.io/storage":                        {"storage/overlay"},
	"go.podman.io/image":                          {"pkg/registry"},
	"github.com/docker/docker-credential-helpers": {"pkg/registry"},
	"github.com/hashicorp/go-plugin":              {"plugins", "pkg/pluginapi/serve"},
	"github.com/hashicorp/go-hclog":               {"plugins", "pkg/pluginapi/serve"},
	"google.golang.org/grpc":                      {"plugins", "pkg/pluginapi/wire", "pkg/pluginapi/serve"},
	"google.golang.org/protobuf":                  {"pkg/pluginapi/wire"},
	"github.com/google/go-containerregistry":      {"pkg/registry", "engine/image", "engine/export", "engine/fetch"},
	"github.com/moby/buildkit":                    {"engine/dockerfile"},
	"github.com/moby/patternmatcher":              {"engine/buildcontext"},
	"github.com/go-git":                           {"engine/buildcontext"},
	"go.etcd.io/bbolt":                            {"storage/index"},
	"gvisor.dev/gvisor":                           {"sandbox/netstack"},
	"github.com/vishvananda":                      {"sandbox/netstack"},
	"github.com/klauspost":                        {"storage/blobs", "storage/layertar"},
	"github.com/ulikunitz/xz":                     {"storage/blobs", "storage/layertar"},
	"github.com/spf13":                            {"cmd/mstage"},
	"github.com/sirupsen/logrus":                  {"cmd/mstage", "sandbox/runc", "plugins", "storage/overlay"},
	"github.com/distribution/reference":           {"pkg/reference", "pkg/registry"},
	"golang.org/x/text":                           {"cmd/mstage/internal/ttyprogress"},
	"golang.org/x/crypto/x509roots/fallback":      {"cmd/mstage", "pkg/registry"},
	"github.com/rogpeppe/go-internal/testscript":  {"integration"},
}

// file is one source file with what it imports.
type file struct {
	path    string // below the module's root
	dir     string
	test    bool
	comment bool // has a package comment
	imports []imported
}

type imported struct {
	path string
	pos  token.Position
}

// sources parses the import clauses of every Go file of the module and of tools.
func sources(t *testing.T) []file {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	var files []file
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if d.IsDir() && skipped(rel) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(rel, ".go") {
			return nil
		}
		f, err := parse(name, rel)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// skipped reports whether a directory holds no package of the module.
func skipped(rel string) bool {
	base := path.Base(rel)
	return rel == "bin" || rel == "examples" || base == "testdata" || (rel != "." && (base[0] == '.' || base[0] == '_'))
}

// parse reads one file up to its imports.
func parse(name, rel string) (file, error) {
	set := token.NewFileSet()
	src, err := os.ReadFile(name)
	if err != nil {
		return file{}, err
	}
	tree, err := parser.ParseFile(set, rel, src, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return file{}, err
	}
	f := file{path: rel, dir: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), comment: isPackageComment(tree)}
	for _, spec := range tree.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, err
		}
		f.imports = append(f.imports, imported{path: p, pos: set.Position(spec.Pos())})
	}
	return f, nil
}

// isPackageComment reports whether the file's comment introduces its package.
func isPackageComment(tree *ast.File) bool {
	text := tree.Doc.Text()
	return strings.HasPrefix(text, "Package "+tree.Name.Name+" ") || (tree.Name.Name == "main" && strings.HasPrefix(text, "Command "))
}

// matches reports whether dir is pattern, or below it when it ends with "/*".
// A "*" in the middle stands for one name.
func matches(pattern, dir string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(dir, "/")
	for i, w := range want {
		if w == "*" && i == len(want)-1 {
			return len(got) > i
		}
		if i >= len(got) || (w != "*" && w != got[i]) {
			return false
		}
	}
	return len(got) == len(want)
}

// rowOf returns the most precise row of a directory.
func rowOf(dir string) (name string, r row, ok bool) {
	for pattern, candidate := range table {
		if matches(pattern, dir) && (!ok || len(pattern) > len(name) || pattern == dir) && name != dir {
			name, r, ok = pattern, candidate, true
		}
	}
	return name, r, ok
}

// allows reports whether a row lets dir in.
func (r row) allows(dir string) bool {
	return slices.ContainsFunc(r, func(pattern string) bool {
		if pattern == "*" {
			return dir != "." && !strings.HasPrefix(dir, "cmd/")
		}
		return matches(pattern, dir)
	})
}

func TestPackagesImportOnlyWhatTheTableSays(t *testing.T) {
	for _, f := range sources(t) {
		name, r, ok := rowOf(f.dir)
		if !ok && !isTestPackage(f.dir) {
			t.Errorf("%s: %s has no row in the table: add one that says what it may import", f.path, f.dir)
			continue
		}
		for _, i := range f.imports {
			to, inside := inModule(i.path)
			switch {
			case !inside || f.test || isTestPackage(f.dir):
			case isTestPackage(to):
				t.Errorf("%s imports %s, which only tests may", i.pos, i.path)
			case to == f.dir || strings.HasPrefix(to, f.dir+"/internal/"): // a package may split itself
			case !r.allows(to):
				t.Errorf("%s imports %s, but the row %q allows %s", i.pos, i.path, name, orNothing(r))
			}
		}
	}
}

// inModule returns the directory of an import path, "." for the module's root.
func inModule(importPath string) (dir string, ok bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// isTestPackage reports whether a package only serves tests, as httptest does.
func isTestPackage(dir string) bool { return strings.HasSuffix(dir, "test") }

func orNothing(r []string) string {
	if len(r) == 0 {
		return "nothing of this module"
	}
	return strings.Join(r, ", ")
}

func TestHeavyDependenciesHaveOneOwner(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || isTestPackage(f.dir) {
			continue
		}
		for _, i := range f.imports {
			prefix, packages := ownersOf(i.path)
			if prefix != "" && !slices.Contains(packages, f.dir) {
				t.Errorf("%s imports %s, but %s belongs to %s", i.pos, i.path, prefix, strings.Join(packages, ", "))
			}
		}
	}
}

// ownersOf returns the longest prefix in owners that an import path is below.
func ownersOf(importPath string) (prefix string, packages []string) {
	for p, o := range owners {
		if (importPath == p || strings.HasPrefix(importPath, p+"/")) && len(p) > len(prefix) {
			prefix, packages = p, o
		}
	}
	return prefix, packages
}

func TestContractsImportTheStandardLibraryOnly(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || !slices.Contains(stdlibOnly, f.dir) {
			continue
		}
		for _, i := range f.imports {
			if first, _, _ := strings.Cut(i.path, "/"); strings.Contains(first, ".") && !strings.HasPrefix(i.path, module+"/") {
				t.Errorf("%s imports %s, but %s may import the standard library only", i.pos, i.path, f.dir)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	commented, has := map[string]bool{}, map[string]bool{}
	for _, f := range sources(t) {
		if !f.test {
			has[f.dir] = true
			commented[f.dir] = commented[f.dir] || f.comment
		}
	}
	for dir := range has {
		if !commented[dir] {
			t.Errorf("%s has no package comment that begins with \"Package NAME \" or \"Command \"", dir)
		}
	}
}

func TestEveryRowAllowsPackagesThatTheTableKnows(t *testing.T) {
	for name, r := range table {
		for _, allowed := range r {
			if _, _, ok := rowOf(strings.TrimSuffix(allowed, "/*")); !ok && allowed != "*" {
				t.Errorf("the row %q allows %q, which has no row", name, allowed)
			}
		}
	}
}

// TestTheTableCatchesViolations keeps the checker itself honest.
func TestTheTableCatchesViolations(t *testing.T) {
	for name, c := range map[string]struct {
		from, to string
		want     bool
	}{
		"a stage may read instructions":               {"engine/stage", "engine/dockerfile", true},
		"instructions know no stages":                 {"engine/dockerfile", "engine/stage", false},
		"the engine knows no implementation":          {"engine", "storage/overlay", false},
		"the engine may use its parts":                {"engine", "engine/plan", true},
		"the root wires implementations":              {".", "storage/overlay", true},
		"nothing imports the command":                 {".", "cmd/mstage", false},
		"the command may import the root":             {"cmd/mstage", ".", true},
		"overlay may use the index":                   {"storage/overlay", "storage/index", true},
		"a built-in source does not know the engine":  {"plugins/localtag", "engine", false},
		"an example plugin knows the public contract": {"plugins/examples/deb", "pkg/pluginapi/serve", true},
		"an example plugin knows no store":            {"plugins/examples/deb", "storage", false},
	} {
		_, r, ok := rowOf(c.from)
		if got := r.allows(c.to); !ok || got != c.want {
			t.Errorf("%s (%s imports %s): got %v, want %v", name, c.from, c.to, got, c.want)
		}
	}
	if prefix, packages := ownersOf("go.podman.io/storage/pkg/archive"); fmt.Sprint(prefix, packages) != "go.podman.io/storage[storage/overlay]" {
		t.Errorf("owner of go.podman.io/storage/pkg/archive: got %s %v, want storage/overlay", prefix, packages)
	}
	if prefix, _ := ownersOf("go.podman.io/storagelike"); prefix != "" {
		t.Errorf("owner of go.podman.io/storagelike: got %s, want none", prefix)
	}
}
