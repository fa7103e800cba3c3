package main

import (
	"fmt"
	"hash/crc32"
	"os"
	"strings"
)

// basePrefix begins the names of cases that make images for others.
const basePrefix = "base:"

// testCase is one Dockerfile with its context, the options that both builders
// get, and what is expected of them.
type testCase struct {
	file                                    string // where it is written
	name, setup, ignore, dockerfile, target string
	args, labels                            []string
	secrets                                 []secret
	about                                   []string // features
	known                                   string   // why a difference is expected
	fail                                    bool     // both have to refuse it
}

// secret is a value that RUN --mount=type=secret gets.
type secret struct{ id, value string }

// sourceTime is the modification time of everything that a setup makes, as
// touch(1) takes it. It differs from case to case: BuildKit takes a file of the
// same name, size and time in the next context for the same file.
func (c testCase) sourceTime() string {
	sum := crc32.ChecksumIEEE([]byte(c.name + c.setup + c.dockerfile))
	return fmt.Sprintf("@%d", 1_600_000_000+sum%50_000_000)
}

// readCases parses case files. No two cases have the same name.
func readCases(files []string) ([]testCase, error) {
	var cases []testCase
	seen := map[string]bool{}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for _, text := range strings.Split("\n"+string(data), "\n=== ")[1:] {
			c, err := parseCase(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", name, c.name, err)
			}
			if seen[c.name] {
				return nil, fmt.Errorf("%s: two cases are named %q", name, c.name)
			}
			seen[c.name] = true
			c.file = name
			cases = append(cases, c)
		}
	}
	return cases, nil
}

// parseCase parses what follows the "=== " of a case.
func parseCase(text string) (testCase, error) {
	blocks := strings.Split(text, "\n--- ")
	head := strings.Split(blocks[0], "\n")
	c := testCase{name: strings.TrimSpace(head[0])}
	for _, line := range head[1:] {
		if err := c.directive(line); err != nil {
			return c, err
		}
	}
	for _, block := range blocks[1:] {
		kind, body, _ := strings.Cut(block, "\n")
		body = strings.TrimRight(body, "\n") + "\n"
		switch strings.TrimSpace(kind) {
		case "setup":
			c.setup = body
		case "ignore":
			c.ignore = body
		case "Dockerfile":
			c.dockerfile = body
		default:
			return c, fmt.Errorf("unknown block %q", kind)
		}
	}
	if c.dockerfile == "" {
		return c, fmt.Errorf("no Dockerfile")
	}
	return c, nil
}

// directive parses a line between a case's name and its first block.
func (c *testCase) directive(line string) (err error) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "":
	case ":arg":
		c.args = append(c.args, rest)
	case ":label":
		c.labels = append(c.labels, rest)
	case ":target":
		c.target = rest
	case ":secret":
		id, value, _ := strings.Cut(rest, " ")
		c.secrets = append(c.secrets, secret{id, value})
	case ":about":
		c.about, err = parseAbout(rest)
	case ":fail":
		c.fail = true
	case ":known":
		c.known = rest
	default:
		return fmt.Errorf("unknown directive %q", line)
	}
	return err
}
