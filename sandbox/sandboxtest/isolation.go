package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mstage/mstage/sandbox"
)

// TestRunner holds a real Runner to the whole contract. rootfs has busybox with
// its links in /bin, an empty /etc and /tmp, and is open to the test's process.
func TestRunner(t *testing.T, open func(t *testing.T) (runner sandbox.Runner, rootfs string)) {
	t.Run("outcomes", func(t *testing.T) { TestOutcomes(t, open) })
	for name, check := range map[string]func(bed){
		"a signal's end is 128 and its number":      checkSignal,
		"what can't be executed is 126":             checkNotExecutable,
		"a megabyte of output arrives":              checkMuchOutput,
		"capabilities and filters are docker's":     checkConfinement,
		"kernel files are masked or read-only":      checkMasks,
		"only the loopback interface is seen":       checkInterfaces,
		"the environment is what was asked for":     checkSurroundings,
		"/dev is docker's":                          checkDevices,
		"users and groups are numbers":              checkUsers,
		"setuid programs gain their owner's rights": checkSetuid,
		"system calls are docker's or unknown":      checkSystemCalls,
		"hosts, names and resolvers are written":    checkEtc,
		"limits are set, or refused":                checkUlimits,
		"binds and tmpfs mounts are made":           checkMounts,
		"a terminal is one for the command":         checkTerminal,
		"what a command left behind is dead":        checkOrphans,
		"the image stays as it was":                 checkLeftovers,
		"an unserved network mode is refused":       checkNetworkModes,
	} {
		t.Run(name, func(t *testing.T) {
			runner, rootfs := open(t)
			check(bed{t, runner, rootfs})
		})
	}
}

func checkSignal(b bed) {
	// PID 1 ignores what it sends itself, so its child dies and it tells.
	for script, want := range map[string]int{
		"sh -c 'kill -9 $$'":  137,
		"sh -c 'kill -15 $$'": 143,
	} {
		if got := exitCode(b.run(script + "; exit $?").err); got != want {
			b.t.Errorf("%s: got %d, want %d", script, got, want)
		}
	}
}

func checkNotExecutable(b bed) {
	for name, text := range map[string]string{"plain": "text", "empty": ""} {
		path := filepath.Join(b.rootfs, "tmp", name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			b.t.Fatal(err)
		}
		b.wantStartError(b.runSpec(sandbox.Spec{Args: []string{"/tmp/" + name}}).err, 126)
	}
	path := filepath.Join(b.rootfs, "tmp", "script")
	if err := os.WriteFile(path, []byte("#!/no/such/shell\n"), 0o755); err != nil {
		b.t.Fatal(err)
	}
	b.wantStartError(b.runSpec(sandbox.Spec{Args: []string{"/tmp/script"}}).err, 127)
	b.wantStartError(b.runSpec(sandbox.Spec{Args: []string{"/tmp"}}).err, 126)
	b.wantStartError(b.runSpec(sandbox.Spec{Args: []string{"true"}, Dir: "/bin/sh"}).err, 127)
}

func checkMuchOutput(b bed) {
	const size = 1 << 20
	got := b.run(fmt.Sprintf("head -c %d /dev/zero; head -c %d /dev/zero >&2", size, size))
	if got.err != nil || len(got.stdout) != size || len(got.stderr) != size {
		b.t.Errorf("got %d and %d bytes (%v), want %d of both", len(got.stdout), len(got.stderr), got.err, size)
	}
}

func checkConfinement(b bed) {
	status := func(key string) string { return "sed -n 's/^" + key + ":\\t//p' /proc/self/status" }
	root, user := sandbox.Spec{}, sandbox.Spec{User: sandbox.User{UID: 1000, GID: 1000}}
	b.wantOutput(root, status("CapEff"), "00000000a80425fb")
	b.wantOutput(root, status("CapBnd"), "00000000a80425fb")
	b.wantOutput(root, status("CapInh"), "0000000000000000")
	b.wantOutput(root, status("CapAmb"), "0000000000000000")
	b.wantOutput(user, status("CapEff"), "0000000000000000")
	b.wantOutput(user, status("CapPrm"), "0000000000000000")
	b.wantOutput(user, status("CapBnd"), "00000000a80425fb")
	b.wantOutput(root, status("Seccomp"), "2")
	b.wantOutput(user, status("Seccomp"), "2")
	b.wantOutput(root, status("NoNewPrivs"), "0")
	for _, script := range []string{"unshare -m true", "unshare -U true", "mount -t tmpfs tmpfs /tmp"} {
		got := b.run(script)
		if exitCode(got.err) != 1 || !strings.Contains(got.stderr, "not permitted") && !strings.Contains(got.stderr, "permission denied") {
			b.t.Errorf("%s: got %v %q, want it to be forbidden", script, got.err, got.stderr)
		}
	}
}

func checkMasks(b bed) {
	none := sandbox.Spec{}
	b.wantOutput(none, "cat /proc/kcore 2>/dev/null | head -c 1 | wc -c", "0")
	b.wantOutput(none, "cat /proc/keys | wc -c", "0")
	b.wantOutput(none, "cat /proc/timer_list | wc -c", "0")
	b.wantOutput(none, "ls /sys/firmware /sys/fs/cgroup | grep -v : | xargs", "")
	for _, path := range []string{"/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/sys/x", "/sys/firmware/x"} {
		b.wantOutput(none, "echo x 2>&1 >"+path+" | grep -c -e 'Read-only' -e 'nonexistent'", "1")
	}
	b.wantOutput(none, "ps -o pid= | head -1 | xargs", "1")
}

func checkInterfaces(b bed) {
	none := sandbox.Spec{}
	b.wantOutput(none, "tail -n +3 /proc/net/dev | cut -d: -f1 | xargs", "lo")
	b.wantOutput(none, "ls /sys/class/net | xargs", "lo")
	b.wantOutput(none, "ip link show lo | grep -c LOOPBACK,UP", "1")
	b.wantOutput(none, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
	b.wantOutput(none, "(echo hi | nc -l -p 80 >/tmp/got & sleep 0.1; nc 127.0.0.1 80 </dev/null)", "hi")
	host := sandbox.Spec{Network: sandbox.NetworkHost}
	own, err := os.ReadDir("/sys/class/net")
	if err != nil {
		b.t.Fatal(err)
	}
	b.wantOutput(host, "ls /sys/class/net | wc -l", fmt.Sprint(len(own)))
	b.wantOutput(host, "touch /sys/fs/x 2>&1 | grep -c -e Read-only -e denied -e permitted", "1")
}

func checkSurroundings(b bed) {
	b.wantOutput(sandbox.Spec{}, "umask", "0022")
	b.wantOutput(sandbox.Spec{Env: []string{"PATH=/bin", "A=b c"}}, "unset SHLVL PWD; env | sort | xargs", "A=b c PATH=/bin")
	b.wantOutput(sandbox.Spec{Dir: "/tmp"}, "pwd", "/tmp")
	b.wantOutput(sandbox.Spec{Dir: "/tmp/made/for/it"}, "pwd", "/tmp/made/for/it")
	b.wantOutput(sandbox.Spec{Dir: "/tmp/made/for"}, "stat -c '%a %u %g' .", "755 0 0")
	b.wantOutput(sandbox.Spec{}, "echo $$", "1")
	b.wantOutput(sandbox.Spec{}, "ls -l /proc/self/fd 2>/dev/null | grep -c -e memfd -e mstage || true", "0")
	b.wantOutput(sandbox.Spec{}, "readlink /proc/self/fd/0", "/dev/null")
}

func checkDevices(b bed) {
	b.wantOutput(sandbox.Spec{}, "df -k /dev/shm | tail -1 | awk '{print $2}'", "65536")
	b.wantOutput(sandbox.Spec{ShmBytes: 1 << 20}, "df -k /dev/shm | tail -1 | awk '{print $2}'", "1024")
	b.wantOutput(sandbox.Spec{}, "head -c 3 /dev/zero | tr '\\0' x; echo lost >/dev/null; head -c 9 /dev/urandom | wc -c", "xxx9")
	b.wantOutput(sandbox.Spec{}, "cd /dev; for l in fd stdin stdout stderr ptmx; do readlink $l; done | xargs",
		"/proc/self/fd /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 pts/ptmx")
	b.wantOutput(sandbox.Spec{}, "echo x >/dev/full 2>&1 || echo no", "no")
	b.wantOutput(sandbox.Spec{}, "touch /dev/own && ls /dev | grep own", "own")
	b.wantOutput(sandbox.Spec{}, "ls /dev | grep -c own || true", "0")
	b.wantOutput(sandbox.Spec{User: sandbox.User{UID: 1000, GID: 1000}}, "echo hi >/dev/stdout", "hi")
}

func checkUsers(b bed) {
	b.wantOutput(sandbox.Spec{}, "id -u; id -g; id -G", "0\n0\n0")
	s := sandbox.Spec{User: sandbox.User{UID: 1000, GID: 1001, Groups: []uint32{7, 2000}}}
	b.wantOutput(s, "id -u; id -g; id -G", "1000\n1001\n1001 7 2000")
	b.wantOutput(sandbox.Spec{}, "touch /tmp/o && chown 33:44 /tmp/o && stat -c %u:%g /tmp/o", "33:44")
	b.wantOutput(s, "cat /proc/1/environ | tr -d '\\0'", "PATH=/bin")
}

func checkEtc(b bed) {
	s := sandbox.Spec{Hostname: "box", Hosts: []sandbox.HostEntry{
		{Name: "mirror.test", Addr: netip.MustParseAddr("192.0.2.7")},
		{Name: "six.test", Addr: netip.MustParseAddr("2001:db8::7")},
	}}
	b.wantOutput(s, "hostname; cat /etc/hostname", "box\nbox")
	b.wantOutput(sandbox.Spec{}, "hostname", "mstage")
	b.wantOutput(s, "awk '/localhost|test/ {print $1, $2}' /etc/hosts",
		"127.0.0.1 localhost\n::1 localhost\n192.0.2.7 mirror.test\n2001:db8::7 six.test")
	b.wantOutput(s, "grep -cw box /etc/hosts", "1")
	b.wantOutput(s, "grep -c '^nameserver 127' /etc/resolv.conf || true", "0")
	b.wantOutput(s, "stat -c %a /etc/hosts /etc/resolv.conf | xargs", "644 644")
	got := b.runSpec(sandbox.Spec{Args: []string{"true"}, Hostname: "two words"})
	b.wantStartError(got.err, 126)
}

func checkUlimits(b bed) {
	s := sandbox.Spec{Ulimits: []sandbox.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}, {Name: "core", Soft: 0, Hard: 0}}}
	b.wantOutput(s, "ulimit -n; ulimit -H -n; ulimit -c", "100\n200\n0")
	for _, u := range []sandbox.Ulimit{
		{Name: "no-such-limit", Soft: 1, Hard: 1},
		{Name: "nofile", Soft: 2, Hard: 1},
		{Name: "nofile", Soft: 1, Hard: 1 << 40},
	} {
		got := b.runSpec(sandbox.Spec{Args: []string{"true"}, Ulimits: []sandbox.Ulimit{u}})
		b.wantStartError(got.err, 126)
	}
}

func checkMounts(b bed) {
	dir := b.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644); err != nil {
		b.t.Fatal(err)
	}
	bind := sandbox.Mount{Type: sandbox.MountBind, Source: dir, Target: "/mnt/bound"}
	readOnly := bind
	readOnly.ReadOnly = true
	file := sandbox.Mount{Type: sandbox.MountBind, Source: filepath.Join(dir, "file"), Target: "/run/secrets/one", ReadOnly: true}
	with := func(m ...sandbox.Mount) sandbox.Spec { return sandbox.Spec{Mounts: m} }
	b.wantOutput(with(readOnly), "cat /mnt/bound/file; touch /mnt/bound/x 2>&1 | grep -c Read-only", "content1")
	b.wantOutput(with(bind), "echo new >/mnt/bound/new && echo wrote", "wrote")
	if got, err := os.ReadFile(filepath.Join(dir, "new")); string(got) != "new\n" {
		b.t.Errorf("the source of a bind: got %q (%v), want %q", got, err, "new\n")
	}
	b.wantOutput(with(file), "cat /run/secrets/one", "content")
	tmpfs := sandbox.Mount{Type: sandbox.MountTmpfs, Target: "/scratch", SizeBytes: 2 << 20, Mode: 0o700}
	b.wantOutput(with(tmpfs), "df -k /scratch | tail -1 | awk '{print $2}'; stat -c %a /scratch; touch /scratch/x && ls /scratch", "2048\n700\nx")
	tmpfs.ReadOnly, tmpfs.Mode = true, 0
	b.wantOutput(with(tmpfs), "stat -c %a /scratch; touch /scratch/x 2>&1 | grep -c Read-only", "1777\n1")
	bind.Source = filepath.Join(dir, "gone")
	b.wantStartError(b.runSpec(sandbox.Spec{Args: []string{"true"}, Mounts: []sandbox.Mount{bind}}).err, 126)
	b.wantStartError(b.runSpec(sandbox.Spec{Args: []string{"true"}, Mounts: []sandbox.Mount{{Type: "nfs", Target: "/x"}}}).err, 126)
}

func checkTerminal(b bed) {
	resize := make(chan [2]uint16, 1)
	resize <- [2]uint16{50, 132}
	s := sandbox.Spec{
		Terminal: &sandbox.Terminal{Rows: 25, Columns: 80, Resize: resize}, User: sandbox.User{UID: 1000, GID: 1000},
		Stdin: strings.NewReader("typed\n"),
	}
	s.Args = []string{"sh", "-c", "read x; echo got $x; while [ \"$(stty size)\" != '50 132' ]; do :; done; test -t 1 && test -t 2 && tty; stat -c %u /dev/console; echo to tty >/dev/tty"}
	got := b.runSpec(s)
	for _, want := range []string{"got typed\r\n", "/dev/", "1000\r\n", "to tty\r\n"} {
		if !strings.Contains(got.stdout, want) {
			b.t.Errorf("got %q (%v), want it to have %q", got.stdout, got.err, want)
		}
	}
	b.wantExit(b.runSpec(sandbox.Spec{Args: []string{"sh", "-c", "exit 9"}, Terminal: &sandbox.Terminal{}}).err, 9)
}

func (b bed) wantExit(err error, code int) {
	b.t.Helper()
	if got := exitCode(err); got != code {
		b.t.Errorf("got exit code %d (%v), want %d", got, err, code)
	}
}

func checkOrphans(b bed) {
	b.wantOutput(sandbox.Spec{}, "sleep 4242 >/dev/null 2>&1 & echo left", "left")
	b.wantOutput(sandbox.Spec{}, "setsid sh -c 'sleep 4242' & echo left", "left")
	b.cancelOnce("setsid sleep 4242 & echo on; sleep 4242")
	for pid, args := range processes(b.t) {
		if strings.Contains(args, "4242") {
			b.t.Errorf("process %s (%s) outlived its command", pid, args)
		}
	}
}

// cancelOnce runs a script and cancels it when it printed "on".
func (b bed) cancelOnce(script string) {
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	s := b.fill(sandbox.Spec{Args: []string{"sh", "-c", script}, Stdout: writerFunc(func(p []byte) {
		if strings.Contains(string(p), "on") {
			cancel()
		}
	})})
	if err := b.runner.Run(ctx, s); !errors.Is(err, context.Canceled) {
		b.t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// processes returns the command lines of all processes, by process id.
func processes(t *testing.T) map[string]string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		if line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil {
			all[e.Name()] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return all
}

func checkLeftovers(b bed) {
	for _, dir := range sandbox.MountPoints() {
		path := filepath.Join(b.rootfs, dir)
		if strings.HasSuffix(dir, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				b.t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte("image"), 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	b.wantOutput(sandbox.Spec{}, "echo changed >/etc/hosts; touch /dev/x; echo done", "done")
	for _, name := range sandbox.MountPoints() {
		path := filepath.Join(b.rootfs, name)
		if strings.HasSuffix(name, "/") {
			if left, err := os.ReadDir(path); len(left) != 0 {
				b.t.Errorf("%s: got %v (%v), want it empty", name, left, err)
			}
		} else if got, err := os.ReadFile(path); string(got) != "image" {
			b.t.Errorf("%s: got %q (%v), want the image's", name, got, err)
		}
	}
}

func checkNetworkModes(b bed) {
	got := b.runSpec(sandbox.Spec{Args: []string{"true"}, Network: "bridge"})
	if got.err == nil {
		b.t.Error("network bridge: got no error")
	}
}
