package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/mstage/mstage/sandbox"
)

// TestOutcomes checks what every Runner owes its caller: exit codes, streams
// and cancellation. rootfs has a POSIX shell in /bin with cat and sleep.
func TestOutcomes(t *testing.T, open func(t *testing.T) (runner sandbox.Runner, rootfs string)) {
	run := func(t *testing.T, name string, check func(*testing.T, bed)) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			runner, rootfs := open(t)
			check(t, bed{t, runner, rootfs})
		})
	}
	run(t, "the exit code is the command's", func(t *testing.T, b bed) {
		for script, want := range map[string]int{"exit 0": 0, "exit 1": 1, "exit 42": 42, "exit 255": 255} {
			if got := exitCode(b.run(script).err); got != want {
				t.Errorf("%s: got exit code %d, want %d", script, got, want)
			}
		}
	})
	run(t, "a command that does not exist is a start error with 127", func(t *testing.T, b bed) {
		for _, name := range []string{"no-such-command", "/no/such/command"} {
			b.wantStartError(b.runSpec(sandbox.Spec{Args: []string{name}}).err, 127)
		}
	})
	run(t, "output and errors arrive complete and apart", func(t *testing.T, b bed) {
		got := b.run("echo out; echo err >&2")
		if got.stdout != "out\n" || got.stderr != "err\n" || got.err != nil {
			t.Errorf("got %q, %q, %v; want %q, %q, nil", got.stdout, got.stderr, got.err, "out\n", "err\n")
		}
	})
	run(t, "no standard input reads as empty", func(t *testing.T, b bed) {
		if got := b.run("cat; echo end"); got.stdout != "end\n" {
			t.Errorf("got %q, want %q", got.stdout, "end\n")
		}
	})
	run(t, "standard input is the reader's", func(t *testing.T, b bed) {
		got := b.runSpec(sandbox.Spec{Args: []string{"cat"}, Stdin: strings.NewReader("from the reader")})
		if got.stdout != "from the reader" {
			t.Errorf("got %q, want %q", got.stdout, "from the reader")
		}
	})
	run(t, "a cancelled run returns the cause", testCancel)
	run(t, "a context that is over starts nothing", func(t *testing.T, b bed) {
		over, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("over before it began")
		cancel(cause)
		if err := b.runner.Run(over, b.fill(sandbox.Spec{Args: []string{"sh"}})); !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
	})
	run(t, "two commands at once meet each other", testConcurrent)
}

func testCancel(t *testing.T, b bed) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the user changed their mind")
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := b.runner.Run(ctx, b.fill(sandbox.Spec{Args: []string{"sh", "-c", "echo on; sleep 1000"}, Stdout: in}))
		in.Close()
		done <- err
	}()
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatalf("the command did not start: %v, %v", err, <-done)
	}
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause %v", err, cause)
	}
}

// testConcurrent ends only if both commands run at the same time: each reads
// what the other writes.
func testConcurrent(t *testing.T, b bed) {
	leftIn, leftOut := pipe(t)
	rightIn, rightOut := pipe(t)
	done := make(chan error, 2)
	talk := func(first string, in, out *os.File) {
		err := b.runner.Run(t.Context(), b.fill(sandbox.Spec{
			Args: []string{"sh", "-c", first}, Stdin: in, Stdout: out,
		}))
		out.Close()
		done <- err
	}
	go talk("echo ball; read x", rightIn, leftOut)
	go talk("read x; echo $x", leftIn, rightOut)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, w
}

// bed is one runner under test.
type bed struct {
	t      *testing.T
	runner sandbox.Runner
	rootfs string
}

type result struct {
	stdout, stderr string
	err            error
}

// fill sets what most checks don't care about.
func (b bed) fill(s sandbox.Spec) sandbox.Spec {
	s.Rootfs = b.rootfs
	if s.Env == nil {
		s.Env = []string{"PATH=/bin"}
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	if s.Network == "" {
		s.Network = sandbox.NetworkNone
	}
	return s
}

func (b bed) run(script string) result {
	return b.runSpec(sandbox.Spec{Args: []string{"sh", "-c", script}})
}

func (b bed) runSpec(s sandbox.Spec) result {
	var stdout, stderr bytes.Buffer
	s.Stdout, s.Stderr = &stdout, &stderr
	err := b.runner.Run(b.t.Context(), b.fill(s))
	return result{stdout.String(), stderr.String(), err}
}

// wantOutput runs a script that is to succeed and to print want.
func (b bed) wantOutput(s sandbox.Spec, script, want string) {
	b.t.Helper()
	s.Args = []string{"sh", "-c", script}
	got := b.runSpec(s)
	if got.err != nil || strings.TrimSpace(got.stdout) != want {
		b.t.Errorf("%s: got %q (%v, %s), want %q", script, strings.TrimSpace(got.stdout), got.err, strings.TrimSpace(got.stderr), want)
	}
}

func (b bed) wantStartError(err error, code int) {
	b.t.Helper()
	var start *sandbox.StartError
	if !errors.As(err, &start) || start.Code != code {
		b.t.Errorf("got %T (%v), want a start error with code %d", err, err, code)
	}
}

// exitCode is 0 for nil and -1 for an error that is no exit.
func exitCode(err error) int {
	var exit *sandbox.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	return -1
}
