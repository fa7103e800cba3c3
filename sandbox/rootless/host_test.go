package rootless

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// hostWith is a host that has only these files.
func hostWith(t *testing.T, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	all := map[string]string{
		"/proc/self/ns/user":   "",
		"/proc/self/mountinfo": "1 1 0:1 / / rw - ext4 /dev/sda rw\n",
	}
	maps.Copy(all, files)
	for name, text := range all {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return host{
		root: root, userName: func() string { return "jo" },
		lookPath: func(string) (string, error) { return "/usr/bin/newuidmap", nil },
	}
}

func TestEveryHostConditionHasItsMessage(t *testing.T) {
	chroot := map[string]string{"/proc/self/mountinfo": "1 1 0:1 / /proc rw - proc proc rw\n"}
	sysctl := func(name, value string) map[string]string {
		return map[string]string{"/proc/sys/" + name: value + "\n"}
	}
	for name, c := range map[string]struct {
		files map[string]string
		err   func(host) error
		want  cause
	}{
		"user namespaces are switched off": {
			sysctl("user/max_user_namespaces", "0"),
			func(h host) error { return h.cloneError(syscall.ENOSPC, RungSubIDs) }, causeMaxUserNS,
		},
		"all user namespaces are taken": {
			sysctl("user/max_user_namespaces", "10"),
			func(h host) error { return h.cloneError(syscall.ENOSPC, RungSubIDs) }, causeUserNSLimit,
		},
		"user namespaces are for root": {
			sysctl("kernel/unprivileged_userns_clone", "0"),
			func(h host) error { return h.cloneError(syscall.EPERM, RungSubIDs) }, causeUnprivilegedClone,
		},
		"this is a chroot": {
			chroot,
			func(h host) error { return h.cloneError(syscall.EPERM, RungSubIDs) }, causeChroot,
		},
		"a surrounding container forbids it": {
			nil,
			func(h host) error { return h.cloneError(syscall.EPERM, RungSubIDs) }, causeForbidden,
		},
		"the kernel has no user namespaces": {
			nil,
			func(h host) error { return h.cloneError(syscall.EINVAL, RungSubIDs) }, causeNoUserNS,
		},
		"AppArmor forbids to map ids": {
			sysctl("kernel/apparmor_restrict_unprivileged_userns", "1"),
			func(h host) error { return h.mapError(syscall.EPERM) }, causeAppArmor,
		},
		"AppArmor forbids to mount": {
			sysctl("kernel/apparmor_restrict_unprivileged_userns", "1"),
			func(h host) error { return h.stepError(stepProc, syscall.EACCES, RungSubIDs) }, causeAppArmor,
		},
		"proc is masked": {
			nil,
			func(h host) error { return h.stepError(stepProc, syscall.EPERM, RungSubIDs) }, causeProcMasked,
		},
		"overlay can't be mounted": {
			nil,
			func(h host) error { return h.stepError(stepOverlay, syscall.ENODEV, RungSubIDs) }, causeOverlay,
		},
		"newuidmap is missing": {nil, func(h host) error {
			h.lookPath = func(string) (string, error) { return "", exec.ErrNotFound }
			_, err := h.findMaps()
			return err
		}, causeNoMapTool},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.err(hostWith(t, c.files))
			var host *HostError
			if !errors.As(err, &host) {
				t.Fatalf("got %T (%v), want a *HostError", err, err)
			}
			if host.Message != c.want.message || host.Hint != c.want.hint || host.Hint == "" {
				t.Errorf("got %q and %q, want %q and %q", host.Message, host.Hint, c.want.message, c.want.hint)
			}
		})
	}
}

func TestAUserWithoutSubordinateIDsIsNamed(t *testing.T) {
	_, err := hostWith(t, map[string]string{"/etc/subuid": "other:100000:65536\n"}).findMaps()
	var host *HostError
	if !errors.As(err, &host) || !strings.Contains(host.Message, "user jo has no") || !strings.HasSuffix(host.Hint, " jo") {
		t.Errorf("got %v, want jo named in message and hint", err)
	}
}

func TestReportRows(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "newuidmap")
	if err := os.WriteFile(plain, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	toolAt := func(path string) func(host) Row {
		return func(h host) Row {
			h.lookPath = func(string) (string, error) {
				if path == "" {
					return "", exec.ErrNotFound
				}
				return path, nil
			}
			return h.checkMapTools()
		}
	}
	both := map[string]string{"/etc/subuid": "jo:100000:65536\n", "/etc/subgid": "jo:100000:65536\n"}
	for name, c := range map[string]struct {
		files   map[string]string
		check   func(host) Row
		want    Status
		message string
	}{
		"an old kernel":            {nil, func(host) Row { return checkKernel("5.10.0-28-amd64") }, StatusFail, causeKernelOld.message},
		"the oldest kernel":        {nil, func(host) Row { return checkKernel("5.11.0") }, StatusOK, "5.11.0"},
		"a new kernel":             {nil, func(host) Row { return checkKernel("6.1.0-13-amd64") }, StatusOK, "6.1.0-13-amd64"},
		"no user namespaces":       {map[string]string{"/proc/sys/user/max_user_namespaces": "0"}, host.checkUserNS, StatusFail, causeMaxUserNS.message},
		"AppArmor":                 {map[string]string{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}, host.checkUserNS, StatusFail, causeAppArmor.message},
		"a chroot":                 {map[string]string{"/proc/self/mountinfo": ""}, host.checkUserNS, StatusFail, causeChroot.message},
		"user namespaces":          {nil, host.checkUserNS, StatusOK, "allowed"},
		"no map tools":             {nil, toolAt(""), StatusInfo, causeNoMapTool.message},
		"map tools without setuid": {nil, toolAt(plain), StatusInfo, causeMapToolPlain.message},
		"no subordinate ids":       {nil, host.checkSubIDs, StatusInfo, "user jo has no subordinate ids in /etc/subuid and /etc/subgid"},
		"subordinate ids":          {both, host.checkSubIDs, StatusOK, "in /etc/subuid and /etc/subgid"},
		"no tun":                   {nil, host.checkTun, StatusInfo, "not usable; the network of commands works over a slower path"},
		"tun":                      {map[string]string{"/dev/net/tun": ""}, host.checkTun, StatusOK, "usable"},
		"no seccomp":               {nil, host.checkSeccomp, StatusFail, "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER is off)"},
		"seccomp":                  {map[string]string{"/proc/sys/kernel/seccomp/actions_avail": "kill errno allow"}, host.checkSeccomp, StatusOK, "filters are available"},
		"no delegation":            {map[string]string{"/proc/self/cgroup": "1:cpu:/\n"}, host.checkCgroup, StatusInfo, "none: commands run without resource limits"},
		"delegation": {
			map[string]string{"/proc/self/cgroup": "0::/user.slice\n", "/sys/fs/cgroup/user.slice/cgroup.procs": ""},
			host.checkCgroup, StatusOK, "delegated",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.check(hostWith(t, c.files))
			if got.Status != c.want || got.Message != c.message {
				t.Errorf("got %s %q, want %s %q", got.Status, got.Message, c.want, c.message)
			}
			if got.Status != StatusOK && got.Hint == "" {
				t.Error("got no hint")
			}
		})
	}
}

func TestSubordinateIDsAreReadByNameAndNumber(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []idRange
	}{
		"by name":              {"jo:100000:65536\n", []idRange{{100000, 65536}}},
		"by number":            {"1000:100000:65536", []idRange{{100000, 65536}}},
		"both":                 {"jo:1:2\nother:3:4\n1000:5:6\n", []idRange{{1, 2}, {5, 6}}},
		"somebody else":        {"other:100000:65536\n10001:1:1\n", nil},
		"comments and rubbish": {"# jo:1:2\n\njo\njo:x:1\njo:1:-1\njo:1:0\njo:0:10\n:1:1\njo:7:8\n", []idRange{{7, 8}}},
		"beyond 32 bits":       {"jo:4294967000:65536\njo:4294967296:1\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseSubIDs(strings.NewReader(c.text), "jo", 1000)
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v (%v), want %v", got, err, c.want)
			}
		})
	}
	if _, err := parseSubIDs(strings.NewReader(strings.Repeat("x", maxSubIDLine+1)), "jo", 1); err == nil {
		t.Error("a line without an end: got no error")
	}
}

func TestMapsFollowEachOther(t *testing.T) {
	got := strings.Join(mapArgs(1000, []idRange{{100000, 10}, {200000, 5}}), " ")
	if want := "0 1000 1 1 100000 10 11 200000 5"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzSubordinateIDs(f *testing.F) {
	f.Add("jo:100000:65536\n")
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := parseSubIDs(strings.NewReader(text), "jo", 1000)
		if err != nil {
			return
		}
		for _, r := range ranges {
			if r.Count == 0 || r.Start == 0 || uint64(r.Start)+uint64(r.Count) > 1<<32-1 {
				t.Errorf("%q: got range %v", text, r)
			}
		}
	})
}
