package main

import (
	"slices"
	"strings"
	"testing"
)

func TestEveryCaseIsAboutAFeatureAndEveryFeatureHasCases(t *testing.T) {
	count := map[string]int{}
	for _, c := range allCases(t) {
		if c.isBase() {
			continue
		}
		if len(c.about) == 0 {
			t.Errorf("%s: %s: no :about line", c.file, c.name)
		}
		for _, f := range c.about {
			count[f]++
		}
	}
	for _, f := range features {
		if count[f] == 0 {
			t.Errorf("no case is about %s", f)
		}
	}
}

func TestThereAreEnoughCases(t *testing.T) {
	metadata := []string{"owners", "modes", "setuid and setgid", "capabilities and attributes", "hard links", "symbolic links"}
	var all, fail, about int
	for _, c := range allCases(t) {
		if c.isBase() {
			continue
		}
		all++
		if c.fail {
			fail++
		}
		if slices.ContainsFunc(c.about, func(f string) bool { return slices.Contains(metadata, f) }) {
			about++
		}
	}
	for name, n := range map[string][2]int{
		"cases":                        {all, 150},
		"cases that must fail":         {fail, 30},
		"cases about owners and so on": {about, 20},
	} {
		if n[0] < n[1] {
			t.Errorf("%s: %d, want %d or more", name, n[0], n[1])
		}
	}
	var table strings.Builder
	if err := printFeatures(&table, allCases(t)); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
}

func TestTheTableCountsACaseInEachOfItsFeatures(t *testing.T) {
	cases := []testCase{
		{name: "1", about: []string{"owners", "USER"}, fail: true},
		{name: "2", about: []string{"USER"}, known: "reason"},
		{name: basePrefix + "x"},
	}
	var table strings.Builder
	if err := printFeatures(&table, cases); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(table.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{"feature cases must fail known to differ", "owners 1 1 0", "USER 2 1 1", "all 2 1 1"}
	if !slices.Equal(got, want) {
		t.Errorf("table %q, want %q", got, want)
	}
}

func TestAboutKnowsItsFeatures(t *testing.T) {
	for text, good := range map[string]bool{"USER": true, "USER, owners": true, "USER,owners": false, "users": false, "": false, "USER, USER": false} {
		if _, err := parseAbout(text); (err == nil) != good {
			t.Errorf(":about %s: %v, want good: %t", text, err, good)
		}
	}
}
