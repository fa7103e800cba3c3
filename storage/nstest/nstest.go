// Package nstest runs a package's tests as root of a namespace of their own, so
// that they may change owners and mount whoever started them.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// envInside is set for the process inside the namespace.
const envInside = "MSTAGE_TEST_NAMESPACE"

// Main is for TestMain: it runs the tests in a new mount namespace, and unless
// they run as root in a new user namespace with the user's whole subuid range.
// A host that can't do that fails the tests.
func Main(m *testing.M) {
	if os.Getenv(envInside) != "" {
		os.Exit(m.Run())
	}
	args := []string{"-m", "--propagation", "private"}
	if os.Geteuid() != 0 {
		args = append(args, "--map-auto", "--map-root-user")
	}
	cmd := exec.Command("unshare", append(append(args, "--", os.Args[0]), os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), envInside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case err != nil:
		fmt.Fprintf(os.Stderr, "tests need util-linux's unshare and a subuid range: %v\n", err)
		os.Exit(1)
	}
}
