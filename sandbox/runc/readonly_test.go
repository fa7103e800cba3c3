package runc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/sandbox/sandboxtest"
)

// withoutMountSetattr makes this package do as on Linux 5.11.
func withoutMountSetattr(t *testing.T) {
	t.Helper()
	before := haveMountSetattr
	haveMountSetattr = func() bool { return false }
	t.Cleanup(func() { haveMountSetattr = before })
}

func TestTheRunnerKeepsItsContractWithoutMountSetattr(t *testing.T) {
	withoutMountSetattr(t)
	sandboxtest.TestRunner(t, openForContract)
}

func TestAReadOnlyBindWithSubmountsIsRefusedWithoutMountSetattr(t *testing.T) {
	withoutMountSetattr(t)
	source := t.TempDir()
	below := filepath.Join(source, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(below, 0); err != nil {
			t.Error(err)
		}
	})
	_, err := mount(sandbox.Mount{Type: sandbox.MountBind, Source: source, Target: "/x", ReadOnly: true})
	if err == nil || !strings.Contains(err.Error(), "Linux 5.12") {
		t.Errorf("got %v, want an error that names Linux 5.12", err)
	}
	c, err := mount(sandbox.Mount{Type: sandbox.MountBind, Source: below, Target: "/x", ReadOnly: true})
	if err != nil || c.Flags&unix.MS_RDONLY == 0 || c.RecAttr != nil {
		t.Errorf("a source without submounts: %+v, error %v; want a plain read-only bind", c, err)
	}
}
