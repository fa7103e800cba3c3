package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// features are what cases can be about, in the order of the table.
var features = []string{
	"FROM", "stages", "targets", "inheritance",
	"COPY sources", "COPY wildcards", "COPY destinations", "COPY onto what is there", "COPY --from", "ADD", "ADD archives",
	"ignore rules", "file names", "symbolic links", "hard links", "special files",
	"owners", "modes", "setuid and setgid", "capabilities and attributes", "times",
	"RUN", "RUN environment", "deletions", "mount points",
	"mount bind", "mount cache", "mount tmpfs", "mount secret", "mount options", "network", "heredocs",
	"ARG", "ENV", "expansion", "LABEL", "EXPOSE", "VOLUME", "USER", "WORKDIR", "SHELL", "CMD and ENTRYPOINT",
	"HEALTHCHECK", "STOPSIGNAL", "MAINTAINER", "ONBUILD", "syntax", "history",
}

// parseAbout parses what follows ":about": features with commas between them.
func parseAbout(text string) ([]string, error) {
	about := strings.Split(text, ", ")
	for i, f := range about {
		if !slices.Contains(features, f) {
			return nil, fmt.Errorf(":about %q: no such feature; the list is in features.go", f)
		}
		if slices.Contains(about[:i], f) {
			return nil, fmt.Errorf(":about %q: twice", f)
		}
	}
	return about, nil
}

// tally is how many cases there are.
type tally struct{ cases, fail, known int }

// add counts a case.
func (t *tally) add(c testCase) {
	t.cases++
	if c.fail {
		t.fail++
	}
	if c.known != "" {
		t.known++
	}
}

// row returns a line of the table.
func (t tally) row(name string) string {
	return fmt.Sprintf("%-28s %5d %10d %15d\n", name, t.cases, t.fail, t.known)
}

// printFeatures writes the table of features. A case that is about several is in
// several rows and once in the last.
func printFeatures(out io.Writer, cases []testCase) error {
	var all tally
	count := map[string]*tally{}
	for _, c := range cases {
		if c.isBase() {
			continue
		}
		all.add(c)
		for _, f := range c.about {
			if count[f] == nil {
				count[f] = &tally{}
			}
			count[f].add(c)
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-28s %5s %10s %15s\n", "feature", "cases", "must fail", "known to differ")
	for _, f := range features {
		if t := count[f]; t != nil {
			table.WriteString(t.row(f))
		}
	}
	table.WriteString(all.row("all"))
	_, err := io.WriteString(out, table.String())
	return err
}
