package rootless

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Status is how a condition of the host is met.
type Status string

// The statuses of a Row.
const (
	StatusOK   Status = "ok"
	StatusInfo Status = "info" // something is less good than it could be
	StatusFail Status = "fail" // RUN does not work
)

// Row is one condition of the host.
type Row struct {
	Name    string `json:"name"`
	Status  Status `json:"status"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // the command that mends it
}

// Report is what a host offers.
type Report struct {
	Rows []Row `json:"rows"`
	// Rung is the one that Start would use; RungAuto when none works.
	Rung Rung `json:"-"`
}

// OK reports whether commands can run on this host.
func (r Report) OK() bool { return r.Rung != RungAuto }

// Check tries what a worker needs and reports a row for every condition.
func Check(ctx context.Context) Report {
	h := thisHost()
	var r Report
	r.Rows = append(r.Rows, checkKernel(kernelRelease()), h.checkUserNS())
	row, rung := checkWorker(ctx)
	r.Rung = rung
	if rung != RungOwnIDs { // which needs no other
		r.Rows = append(r.Rows, h.checkMapTools(), h.checkSubIDs())
	}
	r.Rows = append(r.Rows, row, h.checkTun(), h.checkSeccomp(), h.checkCgroup())
	return r
}

// checkWorker starts a worker that mounts an overlay and ends.
func checkWorker(ctx context.Context) (Row, Rung) {
	const name = "worker and overlay"
	dir, err := os.MkdirTemp("", "mstage-check-")
	if err != nil {
		return Row{Name: name, Status: StatusFail, Message: err.Error()}, RungAuto
	}
	defer os.Remove(dir)
	w, err := Start(ctx, Options{StateDir: dir, probe: true})
	if err != nil {
		return failed(name, err), RungAuto
	}
	defer w.Conn.Close()
	if err := w.Wait(); err != nil {
		return failed(name, err), RungAuto
	}
	row := Row{Name: name, Status: StatusOK, Message: "work with: " + w.Rung.String()}
	if w.Notice != nil {
		row.Status, row.Hint = StatusInfo, w.Notice.Hint
		row.Message += ", because " + w.Notice.Message + "; files of other owners can't be made"
	}
	return row, w.Rung
}

func failed(name string, err error) Row {
	row := Row{Name: name, Status: StatusFail, Message: err.Error()}
	if host, ok := errors.AsType[*HostError](err); ok {
		row.Hint = host.Hint
	}
	return row
}

func (c cause) row(name string, s Status) Row {
	return Row{Name: name, Status: s, Message: c.message, Hint: c.hint}
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// The oldest kernel whose overlayfs can be mounted in a user namespace.
const minKernel, minMajor = 5, 11

func checkKernel(release string) Row {
	const name = "kernel"
	var kernel, major int
	if _, err := fmt.Sscanf(release, "%d.%d", &kernel, &major); err != nil {
		return Row{Name: name, Status: StatusInfo, Message: "unknown version " + release}
	}
	if kernel < minKernel || kernel == minKernel && major < minMajor {
		return causeKernelOld.row(name, StatusFail)
	}
	return Row{Name: name, Status: StatusOK, Message: release}
}

func (h host) checkUserNS() Row {
	const name = "user namespaces"
	switch c := h.userNSCause(); {
	case c != nil:
		return c.row(name, StatusFail)
	case !h.privileged && h.is("kernel/apparmor_restrict_unprivileged_userns", "1"):
		return causeAppArmor.row(name, StatusFail)
	case h.inChroot():
		return causeChroot.row(name, StatusFail)
	}
	return Row{Name: name, Status: StatusOK, Message: "allowed"}
}

func (h host) checkMapTools() Row {
	const name = "newuidmap and newgidmap"
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		path, err := h.lookPath(tool)
		if err != nil {
			return causeNoMapTool.row(name, StatusInfo)
		}
		if !privileged(path) {
			return causeMapToolPlain.row(name, StatusInfo)
		}
	}
	return Row{Name: name, Status: StatusOK, Message: "installed"}
}

// privileged reports whether a program has the setuid bit or file capabilities.
func privileged(path string) bool {
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	if st.Mode()&os.ModeSetuid != 0 {
		return true
	}
	n, err := unix.Getxattr(path, "security.capability", nil)
	return err == nil && n > 0
}

func (h host) checkSubIDs() Row {
	const name = "subordinate ids"
	user, uid := h.userName(), os.Getuid()
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		ranges, err := subIDs(h.path(file), user, uid)
		if err != nil {
			return Row{Name: name, Status: StatusInfo, Message: err.Error()}
		}
		if len(ranges) == 0 {
			e := causeNoSubIDs.withUser(user, uid)
			return Row{Name: name, Status: StatusInfo, Message: e.Message, Hint: e.Hint}
		}
	}
	return Row{Name: name, Status: StatusOK, Message: "in /etc/subuid and /etc/subgid"}
}

func (h host) checkTun() Row {
	const name = "/dev/net/tun"
	f, err := os.OpenFile(h.path("/dev/net/tun"), os.O_RDWR, 0)
	if err != nil {
		return Row{
			Name: name, Status: StatusInfo, Hint: "sudo modprobe tun && sudo chmod 666 /dev/net/tun",
			Message: "not usable; the network of commands works over a slower path",
		}
	}
	f.Close()
	return Row{Name: name, Status: StatusOK, Message: "usable"}
}

func (h host) checkSeccomp() Row {
	const name = "seccomp"
	actions, ok := h.sysctl("kernel/seccomp/actions_avail")
	if !ok || !strings.Contains(actions, "errno") {
		return Row{
			Name: name, Status: StatusFail, Message: "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER is off)",
			Hint: "run on a kernel with CONFIG_SECCOMP_FILTER=y",
		}
	}
	return Row{Name: name, Status: StatusOK, Message: "filters are available"}
}

// checkCgroup looks whether this user may make control groups below its own.
func (h host) checkCgroup() Row {
	const name = "cgroup delegation"
	none := Row{
		Name: name, Status: StatusInfo, Message: "none: commands run without resource limits",
		Hint: "systemd-run --user --scope -p Delegate=yes mstage …",
	}
	own, err := os.ReadFile(h.path("/proc/self/cgroup"))
	if err != nil {
		return none
	}
	for line := range strings.Lines(string(own)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		dir := h.path(filepath.Join("/sys/fs/cgroup", path))
		if unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) == nil && unix.Access(dir, unix.W_OK) == nil {
			return Row{Name: name, Status: StatusOK, Message: "delegated"}
		}
	}
	return none
}
