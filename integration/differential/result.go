package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// verdict is how a case ended.
type verdict string

const (
	equal   verdict = "equal"
	known   verdict = "known"   // differs, and its :known line says why
	differs verdict = "differs" // the reason to run this
	broken  verdict = "broken"  // the case itself is wrong
)

// result is what is said of one case.
type result struct {
	name    string
	verdict verdict
	note    string
	lines   []string // differences, as "what mstage|BuildKit"
}

// String returns the lines of the table, each with its end.
func (r result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-8s %s\n", r.verdict, r.name)
	if r.note != "" {
		fmt.Fprintf(&b, "         (%s)\n", r.note)
	}
	for _, l := range r.lines {
		fmt.Fprintf(&b, "         %s\n", l)
	}
	return b.String()
}

// summary writes the table's last line. The error says how many cases are neither
// equal nor known to differ.
func summary(out io.Writer, results []result) error {
	count := map[verdict]int{}
	for _, r := range results {
		count[r.verdict]++
	}
	fmt.Fprintf(out, "%d cases: %d equal, %d known to differ, %d differ, %d broken\n",
		len(results), count[equal], count[known], count[differs], count[broken])
	if bad := count[differs] + count[broken]; bad > 0 {
		return fmt.Errorf("%d of %d cases are not as expected", bad, len(results))
	}
	return nil
}

// compare builds a case with both at once and compares what comes out.
func (s settings) compare(ctx context.Context, n int, c testCase, bases []base) result {
	r := result{name: c.name, verdict: broken}
	at, err := s.prepare(ctx, fmt.Sprintf("case-%03d", n), c)
	if err != nil {
		r.lines = []string{err.Error()}
		return r
	}
	secrets, err := writeSecrets(at.out, c)
	if err != nil {
		r.lines = []string{err.Error()}
		return r
	}
	var first, second ending
	var both sync.WaitGroup
	both.Go(func() { first = s.buildMstage(ctx, c, at, secrets) })
	both.Go(func() { second = s.buildBuildkit(ctx, c, at, secrets, bases) })
	both.Wait()
	if first.err != nil || second.err != nil || c.fail {
		r.judgeFailure(c, first, second)
		if s.verbose {
			r.lines = append(r.lines, "mstage said: "+first.text, "BuildKit said: "+second.text)
		}
		return r.expect(c)
	}
	r.lines = s.compareImages(filepath.Join(at.out, "mstage.tar"), filepath.Join(at.out, "buildkit.tar"), filepath.Join(at.out, "mstage-fs.tar"))
	r.verdict = equal
	if len(r.lines) > 0 {
		r.verdict = differs
	}
	return r.expect(c)
}

// ending is how one builder ended.
type ending struct {
	text string
	err  error
}

// judgeFailure compares how both ended when one failed, or should have.
func (r *result) judgeFailure(c testCase, mstage, buildkit ending) {
	switch {
	case mstage.err != nil && buildkit.err != nil && c.fail:
		r.verdict = equal
		r.note = "mstage: " + mstage.reason() + " | BuildKit: " + buildkit.reason()
	case mstage.err != nil && buildkit.err != nil:
		r.lines = []string{"both fail, without a :fail line", "mstage: " + mstage.reason(), "BuildKit: " + buildkit.reason()}
	case mstage.err != nil:
		r.verdict = differs
		r.lines = []string{"mstage fails alone: " + mstage.reason()}
	case buildkit.err != nil:
		r.verdict = differs
		r.lines = []string{"BuildKit fails alone: " + buildkit.reason()}
	default:
		r.lines = []string{"both build it, with a :fail line"}
	}
}

// expect applies a case's :known line.
func (r result) expect(c testCase) result {
	switch {
	case c.known == "":
	case r.verdict == differs:
		r.verdict = known
		r.note = "known: " + c.known
	case r.verdict == equal:
		r.verdict = broken
		r.lines = append(r.lines, "equal, with a :known line: "+c.known)
	}
	return r
}

// reason returns the line of a builder's output that says why it failed.
func (e ending) reason() string {
	lines := strings.Split(strings.TrimSpace(e.text), "\n")
	for _, line := range slices.Backward(lines) {
		if strings.Contains(line, "rror") || strings.Contains(line, "Dockerfile:") || strings.HasPrefix(line, "mstage:") {
			return line
		}
	}
	return lines[len(lines)-1]
}
