package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// eachCommand calls visit for every command that users are told about.
func eachCommand(visit func(cmd *cobra.Command)) {
	root := newRoot(&cli{lookupenv: os.LookupEnv})
	root.InitDefaultCompletionCmd()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		visit(cmd)
		for _, sub := range documented(cmd) {
			walk(sub)
		}
	}
	walk(root)
}

// macro are the requests that a page may have.
var macro = regexp.MustCompile(`^\.(TH|SH|TP|PP|nf|fi|RS|RE|nh|ad)( |$)`)

func TestEveryCommandHasAManualPage(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	dir := filepath.Join(t.TempDir(), "man")
	succeed(t, "man", dir)
	pages := 0
	eachCommand(func(cmd *cobra.Command) {
		pages++
		b, err := os.ReadFile(filepath.Join(dir, manName(cmd)+".1"))
		if err != nil {
			t.Fatal(err)
		}
		page := string(b)
		if !strings.Contains(page, `"1970-01-02"`) {
			t.Errorf("%s: the date is not that of SOURCE_DATE_EPOCH:\n%.200s", cmd.CommandPath(), page)
		}
		for line := range strings.Lines(page) {
			if strings.HasPrefix(line, ".") && !macro.MatchString(strings.TrimSpace(line)) || strings.HasPrefix(line, "'") {
				t.Errorf("%s: text that roff takes for a request: %q", cmd.CommandPath(), line)
			}
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !strings.Contains(page, `\fB\-\-`+strings.ReplaceAll(f.Name, "-", `\-`)+`\fP`) {
				t.Errorf("%s: the page lacks --%s", cmd.CommandPath(), f.Name)
			}
		})
	})
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != pages {
		t.Errorf("got %d pages (%v), want %d", len(entries), err, pages)
	}
	again := filepath.Join(t.TempDir(), "again")
	succeed(t, "man", again)
	for _, name := range []string{"mstage.1", "mstage-build.1"} {
		a, errA := os.ReadFile(filepath.Join(dir, name))
		b, errB := os.ReadFile(filepath.Join(again, name))
		if errA != nil || errB != nil || string(a) != string(b) {
			t.Errorf("%s: written twice it differs", name)
		}
	}
}

// section is one "## build, plan" of docs/cli.md.
var section = regexp.MustCompile(`(?m)^## (.*)$`)

func TestTheDocumentationHasEveryCommandAndFlag(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	heads := section.FindAllStringSubmatchIndex(string(b), -1)
	for i, at := range heads {
		end := len(b)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		for name := range strings.SplitSeq(string(b[at[2]:at[3]]), ", ") {
			texts[name] += string(b[at[0]:end])
		}
	}
	eachCommand(func(cmd *cobra.Command) {
		name := strings.TrimPrefix(cmd.CommandPath(), "mstage ")
		switch {
		case !cmd.HasParent():
			name = "Global flags"
		case strings.HasPrefix(name, "completion"):
			name = "completion"
		}
		text, ok := texts[name]
		if !ok {
			t.Errorf("docs/cli.md has no section for %q", name)
			return
		}
		cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Name != "help" && name != "completion" && !strings.Contains(text, "--"+f.Name) {
				t.Errorf("docs/cli.md lacks --%s of %q", f.Name, name)
			}
		})
	})
}
