package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// HostError is a condition of the host that this program can't change.
type HostError struct {
	Message string // what is wrong
	Hint    string // how to mend it
	Err     error  // what the kernel or the tool said; may be nil

	mapping bool // a worker with a single uid works all the same
}

func (e *HostError) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap returns what the kernel or the tool said.
func (e *HostError) Unwrap() error { return e.Err }

// HostHint tells callers that don't know this type that the host is the cause,
// and how to mend it.
func (e *HostError) HostHint() string { return e.Hint }

// cause is one row of the table of host conditions.
type cause struct {
	message, hint string
	mapping       bool
}

// The host conditions, one message and one hint each.
var (
	causeKernelOld = cause{
		message: "this kernel is older than 5.11, the first whose overlayfs works in a user namespace",
		hint:    "run on a newer kernel",
	}
	causeMaxUserNS = cause{
		message: "this host allows no user namespaces (user.max_user_namespaces is 0)",
		hint:    "sudo sysctl -w user.max_user_namespaces=15000",
	}
	causeUserNSLimit = cause{
		message: "this user has reached the limit of user namespaces (user.max_user_namespaces)",
		hint:    "sudo sysctl -w user.max_user_namespaces=15000",
	}
	causeUnprivilegedClone = cause{
		message: "this host keeps user namespaces to root (kernel.unprivileged_userns_clone is 0)",
		hint:    "sudo sysctl -w kernel.unprivileged_userns_clone=1",
	}
	causeAppArmor = cause{
		message: "AppArmor takes the capabilities away in user namespaces (kernel.apparmor_restrict_unprivileged_userns is 1)",
		hint:    "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
	}
	causeNoUserNS = cause{
		message: "this kernel has no user namespaces (CONFIG_USER_NS is off)",
		hint:    "run on a kernel with CONFIG_USER_NS=y",
	}
	causeChroot = cause{
		message: "user namespaces can't be made inside a chroot(2)",
		hint:    "enter the directory with pivot_root, for example with systemd-nspawn -D, instead of chroot",
	}
	causeForbidden = cause{
		message: "making a user namespace is forbidden here, probably by the seccomp profile of a surrounding container",
		hint:    "start the surrounding container with --security-opt seccomp=unconfined",
	}
	causeNoMapTool = cause{
		message: "newuidmap and newgidmap are missing", mapping: true,
		hint: "sudo apt-get install uidmap (Fedora: shadow-utils, Alpine: shadow-uidmap)",
	}
	causeMapToolPlain = cause{
		message: "newuidmap and newgidmap have lost their setuid bit or file capabilities", mapping: true,
		hint: "sudo chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap",
	}
	causeMapToolFailed = cause{
		message: "the subordinate ids of this user can't be mapped", mapping: true,
		hint: "compare /etc/subuid and /etc/subgid with the ids in the message, or look for no_new_privs",
	}
	causeNoSubIDs = cause{
		message: "user %s has no subordinate ids in /etc/subuid and /etc/subgid", mapping: true,
		hint: "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s",
	}
	causeProcMasked = cause{
		message: "/proc can't be mounted in a new pid namespace, because parts of this one are masked",
		hint:    "start the surrounding container with --security-opt systempaths=unconfined",
	}
	causeOverlay = cause{
		message: "overlayfs can't be mounted in a user namespace",
		hint:    "sudo modprobe overlay",
	}
	causeUnmapped = cause{
		message: "%s is not mapped in this user namespace",
		hint:    "give this user subordinate ids: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
	}
)

func (c cause) err(err error) *HostError {
	return &HostError{Message: c.message, Hint: c.hint, Err: err, mapping: c.mapping}
}

func (c cause) withUser(name string, uid int) *HostError {
	if name == "" {
		name = strconv.Itoa(uid)
	}
	return &HostError{Message: fmt.Sprintf(c.message, name), Hint: fmt.Sprintf(c.hint, name), mapping: c.mapping}
}

// Unmapped is the error for an id ("uid 1000") that a worker without enough
// subordinate ids can't give to a file or a process.
func Unmapped(id string) *HostError {
	return &HostError{Message: fmt.Sprintf(causeUnmapped.message, id), Hint: causeUnmapped.hint}
}

// host is the view of this host that the checks read; tests put files below root.
type host struct {
	root       string
	privileged bool // the caller is root
	userName   func() string
	lookPath   func(string) (string, error)
}

func thisHost() host {
	return host{root: "/", privileged: os.Geteuid() == 0, userName: userName, lookPath: findTool}
}

// findTool looks in PATH and where distributions keep system programs.
func findTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", err
}

func (h host) path(name string) string { return filepath.Join(h.root, name) }

// sysctl returns a kernel setting; ok is false when this kernel has none.
func (h host) sysctl(name string) (value string, ok bool) {
	b, err := os.ReadFile(h.path("/proc/sys/" + name))
	return strings.TrimSpace(string(b)), err == nil
}

func (h host) is(name, want string) bool {
	v, ok := h.sysctl(name)
	return ok && v == want
}

// userNSCause is the setting that forbids user namespaces, or nil.
func (h host) userNSCause() *cause {
	switch {
	case h.is("user/max_user_namespaces", "0"):
		return &causeMaxUserNS
	case !h.privileged && h.is("kernel/unprivileged_userns_clone", "0"):
		return &causeUnprivilegedClone
	}
	if _, err := os.Stat(h.path("/proc/self/ns/user")); errors.Is(err, fs.ErrNotExist) {
		return &causeNoUserNS
	}
	return nil
}

// inChroot reports whether this process's root directory is none of the mount
// points that it sees. Source: proc_pid_mountinfo(5), field 5.
func (h host) inChroot() bool {
	b, err := os.ReadFile(h.path("/proc/self/mountinfo"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return false
		}
	}
	return true
}

// cloneError explains why the namespaces could not be made.
func (h host) cloneError(err error, rung Rung) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) || rung == RungRoot {
		return fmt.Errorf("start worker: %w", err)
	}
	if c := h.userNSCause(); c != nil {
		return c.err(err)
	}
	switch errno {
	case syscall.ENOSPC, syscall.EUSERS:
		return causeUserNSLimit.err(err)
	case syscall.EINVAL:
		return causeNoUserNS.err(err)
	case syscall.EPERM, syscall.EACCES:
		if h.inChroot() {
			return causeChroot.err(err)
		}
		return causeForbidden.err(err)
	default:
		return fmt.Errorf("start worker: %w", err)
	}
}

func (h host) mapError(err error) error {
	if h.is("kernel/apparmor_restrict_unprivileged_userns", "1") {
		return causeAppArmor.err(err)
	}
	return fmt.Errorf("map ids of worker: %w", err)
}

// stepError explains why the worker could not make its mounts.
func (h host) stepError(step uint32, errno syscall.Errno, rung Rung) error {
	denied := errno == syscall.EPERM || errno == syscall.EACCES
	if rung != RungRoot && denied && h.is("kernel/apparmor_restrict_unprivileged_userns", "1") {
		return causeAppArmor.err(errno)
	}
	switch {
	case step == stepProc && denied:
		return causeProcMasked.err(errno)
	case step == stepOverlay:
		return causeOverlay.err(errno)
	case step == stepTmpfs:
		return fmt.Errorf("mount tmpfs on state directory: %w", errno)
	case step == stepReexec:
		return fmt.Errorf("execute this program in the user namespace: %w", errno)
	}
	return fmt.Errorf("set worker up, step %d: %w", step, errno)
}
