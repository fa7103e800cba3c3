package sandboxtest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/mstage/mstage/sandbox"
)

// local runs a command on this host, unconfined: what the fake needs to keep
// the part of the contract that is about outcomes.
func local(ctx context.Context, s sandbox.Spec) error {
	path, err := exec.LookPath(s.Args[0])
	if err != nil {
		return &sandbox.StartError{Code: 127, Err: err}
	}
	cmd := exec.CommandContext(ctx, path, s.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Stdin, s.Stdout, s.Stderr
	// A shell's children hold its output open: all of them end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return &sandbox.ExitError{Code: exit.ExitCode()}
	}
	return err
}

func TestTheFakeKeepsTheContractOfOutcomes(t *testing.T) {
	TestOutcomes(t, func(*testing.T) (sandbox.Runner, string) {
		return &Fake{Command: local}, os.TempDir()
	})
}

func TestTheFakeRecordsWhatItRan(t *testing.T) {
	var f Fake
	for _, arg := range []string{"one", "two"} {
		if err := f.Run(t.Context(), sandbox.Spec{Args: []string{arg}}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, s := range f.Specs() {
		got = append(got, s.Args...)
	}
	if want := []string{"one", "two"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
