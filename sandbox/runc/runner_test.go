package runc

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/sandbox/rootless"
)

// wire is a sandbox.Network that connects nothing and counts.
type wire struct {
	mu             sync.Mutex
	opened, closed int
}

func (w *wire) Attach(_ context.Context, netns *os.File) (sandbox.Attachment, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opened++
	_, err := netns.Stat()
	return w, err
}

func (w *wire) Nameservers() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00::3")}
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed++
	return nil
}

func spec(root string, args ...string) sandbox.Spec {
	return sandbox.Spec{Rootfs: root, Args: args, Env: []string{"PATH=/bin"}, Dir: "/", Network: sandbox.NetworkNone}
}

func TestCommandsShareNetworksOneAfterTheOther(t *testing.T) {
	var w wire
	dir, err := os.MkdirTemp(os.Getenv(stateEnv), "runner-")
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(dir, Options{Network: &w})
	if err != nil {
		t.Fatal(err)
	}
	root := busyboxRoot(t)
	for range 3 {
		var out strings.Builder
		s := spec(root, "grep", "nameserver", "/etc/resolv.conf")
		s.Network, s.Stdout = sandbox.NetworkDefault, &out
		if err := r.Run(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if want := "nameserver 10.0.2.3\nnameserver fd00::3\n"; out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
	if w.opened != 1 {
		t.Errorf("got %d attachments, want 1", w.opened)
	}
	if err := r.Close(); err != nil || w.closed != 1 {
		t.Errorf("got %d closed (%v), want 1", w.closed, err)
	}
}

func TestTheDefaultNetworkNeedsANetwork(t *testing.T) {
	s := spec(busyboxRoot(t), "true")
	s.Network = ""
	if err := openRunner(t, Options{}).Run(t.Context(), s); err == nil || !strings.Contains(err.Error(), "without a network") {
		t.Errorf("got %v, want an error about the network", err)
	}
}

func TestAnIDThatIsNotMappedIsTheHostsFault(t *testing.T) {
	r := openRunner(t, Options{})
	if r.ids.initial {
		t.Skip("the host's own user namespace maps every id")
	}
	root := busyboxRoot(t)
	for name, user := range map[string]sandbox.User{
		"user":  {UID: 4_000_000_000},
		"group": {GID: 4_000_000_000},
		"list":  {Groups: []uint32{4_000_000_000}},
	} {
		s := spec(root, "true")
		s.User = user
		var host *rootless.HostError
		if err := r.Run(t.Context(), s); !errors.As(err, &host) || host.Hint == "" {
			t.Errorf("%s: got %v, want a host error with a hint", name, err)
		}
	}
}

func TestRunsLeaveNoMountAndNoState(t *testing.T) {
	r := openRunner(t, Options{})
	root := busyboxRoot(t)
	run := func() {
		if err := r.Run(t.Context(), spec(root, "true")); err != nil {
			t.Fatal(err)
		}
	}
	mounts := func() int {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "\n")
	}
	run()
	before := mounts()
	for range 3 {
		run()
	}
	if after := mounts(); after != before {
		t.Errorf("got %d mounts after, want %d as before", after, before)
	}
	for _, dir := range []string{"runs", "containers"} {
		if left, err := os.ReadDir(filepath.Join(r.stateDir, dir)); err != nil || len(left) != 0 {
			t.Errorf("%s: got %v (%v), want it empty", dir, left, err)
		}
	}
}

func TestALinkForResolvConfIsFollowedInsideTheImage(t *testing.T) {
	r := openRunner(t, Options{})
	for name, link := range map[string]string{
		"to what a running system has": "../run/systemd/resolve/stub-resolv.conf",
		"absolute":                     "/run/resolv.conf",
		"out of the image":             "../../../../../../tmp/escaped-resolv.conf",
	} {
		root := busyboxRoot(t)
		if err := os.Symlink(link, filepath.Join(root, "etc/resolv.conf")); err != nil {
			t.Fatal(err)
		}
		if err := r.Run(t.Context(), spec(root, "cat", "/etc/resolv.conf")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat("/tmp/escaped-resolv.conf"); err == nil {
		t.Error("a file was made outside of the image")
	}
}

func TestImagesCanNotRedirectMounts(t *testing.T) {
	r := openRunner(t, Options{})
	for _, name := range []string{"proc", "sys", "dev"} {
		root := busyboxRoot(t)
		outside := t.TempDir()
		if err := os.Symlink(outside, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		if err := r.Run(t.Context(), spec(root, "true")); err == nil && name != "dev" && name != "sys" {
			t.Errorf("/%s is a link: got no error", name)
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
			t.Errorf("/%s is a link: got %v (%v) outside, want nothing", name, left, err)
		}
	}
}

func TestResolvConfFilter(t *testing.T) {
	const host = "# by somebody\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\nnameserver\nsearch a.test\noptions edns0\n"
	for name, c := range map[string]struct {
		drop func(netip.Addr) bool
		want string
	}{
		"without the loopback": {loopbackServer, "nameserver 192.0.2.1\nsearch a.test\noptions edns0\n"},
		"without any":          {func(netip.Addr) bool { return true }, "search a.test\noptions edns0\n"},
	} {
		if got := filterResolvConf(host, c.drop); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestTheLastIDWithoutAGap(t *testing.T) {
	maps := []configs.IDMap{{ContainerID: 0, Size: 1}, {ContainerID: 1, Size: 65536}, {ContainerID: 70000, Size: 5}}
	if got := lastFromZero(maps); got != 65536 {
		t.Errorf("got %d, want 65536", got)
	}
	for id, want := range map[uint32]bool{0: true, 65536: true, 65537: false, 70004: true, 70005: false} {
		if got := contains(maps, id); got != want {
			t.Errorf("id %d: got %v, want %v", id, got, want)
		}
	}
}

func TestTrueTakesLessThan40MillisecondsOnAverage(t *testing.T) {
	r := openRunner(t, Options{})
	s := spec(busyboxRoot(t), "true")
	const runs = 50
	shortest, begin := time.Hour, time.Now()
	for range runs {
		one := time.Now()
		if err := r.Run(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		shortest = min(shortest, time.Since(one))
	}
	average := time.Since(begin) / runs
	t.Logf("average %v, shortest %v", average, shortest)
	if shortest > 40*time.Millisecond {
		t.Errorf("got %v at best (average %v), want less than 40ms", shortest, average)
	}
}

func BenchmarkTrue(b *testing.B) {
	r := openRunner(b, Options{})
	s := spec(busyboxRoot(b), "true")
	for b.Loop() {
		if err := r.Run(b.Context(), s); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCommandsCanNotChangeTheHostsDeviceNodes(t *testing.T) {
	// Root of this namespace owns these, as root owns the host's /dev/null.
	node := filepath.Join(t.TempDir(), "node")
	if err := os.WriteFile(node, []byte("device"), 0o666); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "null")
	if err := bindDevice(target, node, true); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if err := os.Chmod(target, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("chmod of a bound device: got %v, want %v", err, unix.EROFS)
	}
	var out strings.Builder
	s := spec(busyboxRoot(t), "sh", "-c", "for d in full tty random urandom null; do chmod 600 /dev/$d && echo changed $d; done 2>/dev/zero; echo x >/dev/null && head -c 1 /dev/zero | wc -c")
	s.Stdout = &out
	if err := openRunner(t, Options{}).Run(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if st, err := os.Stat("/dev/null"); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("the host's /dev/null: got %v (%v), want mode 0666", st, err)
	}
}
