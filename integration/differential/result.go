package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
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
	golden  []string // what mstage made
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
	at, secrets, err := s.prepare(ctx, fmt.Sprintf("case-%03d", n), c)
	if err != nil {
		r.lines = []string{err.Error()}
		return r
	}
	var first, second ending
	var both sync.WaitGroup
	both.Go(func() { first = s.buildMstage(ctx, c, at, secrets, "type=tar,dest="+at.mstageTree()) })
	both.Go(func() { second = s.buildBuildkit(ctx, c, at, secrets, bases) })
	both.Wait()
	var made *image
	if first.err == nil {
		if made, err = readImage(at.mstageImage(), bases); err != nil {
			r.lines = []string{"read mstage's image: " + err.Error()}
			return r
		}
	}
	r.golden = s.describe(c, at, first, made, bases)
	if first.err != nil || second.err != nil || c.fail {
		r.judgeFailure(c, first, second)
		if s.verbose {
			r.lines = append(r.lines, "mstage said: "+first.text, "BuildKit said: "+second.text)
		}
		return r.expect(c)
	}
	theirs, err := readImage(at.buildkitImage(), nil)
	if err != nil {
		r.lines = []string{"read BuildKit's image: " + err.Error()}
		return r
	}
	own, err := readTree(at.mstageTree())
	if err != nil {
		r.lines = []string{"read mstage's tar: " + err.Error()}
		return r
	}
	r.verdict = equal
	if r.lines = s.compareImages(made, theirs, own); len(r.lines) > 0 {
		r.verdict = differs
	}
	return r.expect(c)
}

// buildAlone builds a case with mstage and returns what the golden should be.
func (s settings) buildAlone(ctx context.Context, n int, c testCase, bases []base) ([]string, error) {
	at, secrets, err := s.prepare(ctx, fmt.Sprintf("case-%03d", n), c)
	if err != nil {
		return nil, err
	}
	e := s.buildMstage(ctx, c, at, secrets)
	var made *image
	if e.err == nil {
		if made, err = readImage(at.mstageImage(), bases); err != nil {
			return nil, err
		}
	}
	return s.describe(c, at, e, made, bases), nil
}

// ending is how one builder ended.
type ending struct {
	text string
	err  error
}

// code returns the exit code, -1 when there is none.
func (e ending) code() int {
	var exit *exec.ExitError
	switch {
	case e.err == nil:
		return 0
	case errors.As(e.err, &exit):
		return exit.ExitCode()
	default:
		return -1
	}
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

// message returns the first line of mstage's error. What a RUN said may come
// before it; a source line and a hint may follow.
func (e ending) message() string {
	for line := range strings.Lines(e.text) {
		if strings.HasPrefix(line, "Dockerfile:") || strings.HasPrefix(line, "mstage:") {
			return strings.TrimSpace(line)
		}
	}
	return strings.TrimSpace(e.text)
}
