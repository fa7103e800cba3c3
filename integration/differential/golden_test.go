package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// caseFiles are the case files as this package's directory sees them.
func caseFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../testdata/differential/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("case files: %d, %v", len(files), err)
	}
	return files
}

// allCases reads every case.
func allCases(t *testing.T) []testCase {
	t.Helper()
	cases, err := readCases(caseFiles(t))
	if err != nil {
		t.Fatal(err)
	}
	return cases
}

func TestEveryCaseHasOneGoldenAndEveryGoldenACase(t *testing.T) {
	byName := byFile(allCases(t))
	for caseFile, cases := range byName {
		goldens, err := readGoldens(caseFile)
		if err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, c := range cases {
			want = append(want, c.name)
		}
		for _, g := range goldens {
			got = append(got, g.name)
			if len(g.lines) == 0 {
				t.Errorf("%s: the golden of %q is empty", goldenFile(caseFile), g.name)
			}
		}
		for _, name := range want {
			if !slices.Contains(got, name) {
				t.Errorf("%s: no golden of %q: run scripts/differential.sh -update", goldenFile(caseFile), name)
			}
		}
		for _, name := range got {
			if !slices.Contains(want, name) {
				t.Errorf("%s: a golden of %q, which is no case", goldenFile(caseFile), name)
			}
		}
		if !t.Failed() && !slices.Equal(want, got) {
			t.Errorf("%s: the goldens are not in the order of the cases", goldenFile(caseFile))
		}
	}
	files, err := filepath.Glob("../testdata/differential/golden/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if byName[filepath.Join("../testdata/differential", filepath.Base(f))] == nil {
			t.Errorf("%s: no case file has this name", f)
		}
	}
}

func TestAGoldenSaysWhatItsCaseExpects(t *testing.T) {
	goldens := allGoldens(t)
	for _, c := range allCases(t) {
		if c.isBase() || goldens[c.name] == nil {
			continue
		}
		lines := goldens[c.name]
		known, isKnown := strings.CutPrefix(lines[0], "known ")
		if isKnown != (c.known != "") || isKnown && known != c.known {
			t.Errorf("%s: the golden says %q, the case :known %q", c.name, lines[0], c.known)
		}
		fails := slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "fails ") })
		if fails != c.fail && !isKnown {
			t.Errorf("%s: the golden fails: %t, the case :fail: %t", c.name, fails, c.fail)
		}
	}
}

// Builders don't look at times to tell whether they have a file already.
func TestNoGoldenShowsTheTimesOfAnotherCase(t *testing.T) {
	owners := map[string]string{}
	for _, c := range allCases(t) {
		seconds, err := strconv.ParseInt(strings.TrimPrefix(c.sourceTime(), "@"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Unix(seconds, 0).UTC().Format(time.RFC3339)
		if other, ok := owners[at]; ok {
			t.Errorf("%s and %s have the same time: change a word of one", c.name, other)
		}
		owners[at] = c.name
	}
	for name, lines := range allGoldens(t) {
		for word := range strings.FieldsSeq(strings.Join(lines, " ")) {
			if other, ok := owners[word]; ok && other != name {
				t.Errorf("%s shows the time of %s: give its files content of their own", name, other)
			}
		}
	}
}

// allGoldens returns the lines of all goldens by the names of their cases.
func allGoldens(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, f := range caseFiles(t) {
		goldens, err := readGoldens(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range goldens {
			all[g.name] = g.lines
		}
	}
	return all
}

// builder returns settings to build cases with mstage alone, in a store that is
// emptied when the test ends.
func builder(t *testing.T) settings {
	t.Helper()
	bin := os.Getenv("MSTAGE_BINARY")
	if bin == "" {
		bin = "../../bin/mstage"
	}
	bin, err := filepath.Abs(bin)
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		t.Fatalf("the binary under test: %v: run scripts/build.sh or set MSTAGE_BINARY", err)
	}
	s := settings{mstage: bin, work: t.TempDir(), user: owner{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}}
	if err := os.Mkdir(filepath.Join(s.work, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if e := s.runMstage(context.Background(), "/", "prune", "-a", "-f"); e.err != nil {
			t.Errorf("prune: %v\n%s", e.err, e.text)
		}
	})
	return s
}

// needRange skips a test where the goldens, which are of a user with a range of
// ids, can't come true.
func needRange(t *testing.T, s settings) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Skip("goldens are of a user that is not root")
	}
	e := s.runMstage(t.Context(), "/", "unshare", "cat", "/proc/self/uid_map")
	if e.err != nil {
		t.Skipf("no worker can be started: %s", e.text)
	}
	if strings.Count(e.text, "\n") < 2 {
		t.Skipf("no subordinate ids: %s", e.text)
	}
}

// TestCasesMatchTheirGoldens builds every case with mstage alone.
func TestCasesMatchTheirGoldens(t *testing.T) {
	s := builder(t)
	needRange(t, s)
	cases, goldens := allCases(t), allGoldens(t)
	bases, err := s.makeBases(t.Context(), cases)
	if err != nil {
		t.Fatal(err)
	}
	for n, c := range cases {
		if c.isBase() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := s.buildAlone(t.Context(), n, c, bases)
			if err != nil {
				t.Fatal(err)
			}
			if want := goldens[c.name]; !slices.Equal(got, want) {
				t.Errorf("differs from the golden in %s:\n%s", goldenFile(c.file), strings.Join(lineDiff(want, got), "\n"))
			}
		})
	}
}

// lineDiff returns the lines that only one has: "-" for want, "+" for got.
func lineDiff(want, got []string) []string {
	var out []string
	for _, l := range want {
		if !slices.Contains(got, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			out = append(out, "+ "+l)
		}
	}
	if out == nil {
		out = []string{"the order of the lines, or how often they are there"}
	}
	return out
}

func TestOnlyWhatBothAgreeOnBecomesAGolden(t *testing.T) {
	dir := t.TempDir()
	caseFile := filepath.Join(dir, "a.txt")
	cases := []testCase{{name: "one", file: caseFile}, {name: "two", file: caseFile}, {name: basePrefix + "b", file: caseFile}}
	if err := os.Mkdir(filepath.Join(dir, "golden"), 0o755); err != nil {
		t.Fatal(err)
	}
	update := func(results ...result) error {
		t.Helper()
		return finish(&strings.Builder{}, settings{update: true}, cases, results)
	}
	if err := update(result{name: "one", verdict: differs, golden: []string{"x"}}); err == nil {
		t.Error("a case that differs: no error")
	}
	if err := update(result{name: "one", verdict: broken, golden: []string{"x"}}); err == nil {
		t.Error("a case that is broken: no error")
	}
	if _, err := os.Stat(goldenFile(caseFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("goldens were written: %v", err)
	}
	if err := update(result{name: "one", verdict: equal, golden: []string{"1"}}, result{name: "two", verdict: known, golden: []string{"2"}}); err != nil {
		t.Fatal(err)
	}
	if err := update(result{name: "two", verdict: equal, golden: []string{"2", "3"}}); err != nil {
		t.Fatal(err)
	}
	got, err := readGoldens(caseFile)
	want := []golden{{"one", []string{"1"}}, {"two", []string{"2", "3"}}}
	if err != nil || !slices.EqualFunc(got, want, func(a, b golden) bool { return a.name == b.name && slices.Equal(a.lines, b.lines) }) {
		t.Errorf("goldens %v, %v, want %v", got, err, want)
	}
}
