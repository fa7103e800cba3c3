package rootless

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// idMaps is what newuidmap and newgidmap are to write.
type idMaps struct {
	uidTool, gidTool string
	uid, gid         int
	uids, gids       []idRange
}

// userName is this user's name, or "" when it has none.
func userName() string {
	u, err := user.LookupId(strconv.Itoa(os.Getuid()))
	if err != nil {
		return ""
	}
	return u.Username
}

// findMaps returns this user's maps, or the *HostError that says what is missing.
func (h host) findMaps() (idMaps, error) {
	m := idMaps{uid: os.Geteuid(), gid: os.Getegid()}
	var err error
	if m.uidTool, err = h.lookPath("newuidmap"); err == nil {
		m.gidTool, err = h.lookPath("newgidmap")
	}
	if err != nil {
		return m, causeNoMapTool.err(err)
	}
	name := h.userName()
	if m.uids, err = subIDs(h.path("/etc/subuid"), name, m.uid); err != nil {
		return m, err
	}
	if m.gids, err = subIDs(h.path("/etc/subgid"), name, m.uid); err != nil {
		return m, err
	}
	if len(m.uids) == 0 || len(m.gids) == 0 {
		return m, causeNoSubIDs.withUser(name, m.uid)
	}
	return m, nil
}

// write maps the ids of a process; the two tools run at the same time.
func (m idMaps) write(ctx context.Context, pid int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return runMapTool(ctx, m.uidTool, pid, mapArgs(m.uid, m.uids)) })
	g.Go(func() error { return runMapTool(ctx, m.gidTool, pid, mapArgs(m.gid, m.gids)) })
	return g.Wait()
}

func runMapTool(ctx context.Context, tool string, pid int, args []string) error {
	cmd := exec.CommandContext(ctx, tool, append([]string{strconv.Itoa(pid)}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		text := strings.TrimSpace(stderr.String())
		return causeMapToolFailed.err(errors.Join(fmt.Errorf("run %s: %w", tool, err), errors.New(text)))
	}
	return nil
}

// writeSingleMap maps the caller alone. The kernel allows that to everybody
// once setgroups is denied. Source: user_namespaces(7).
func writeSingleMap(pid int) error {
	dir := "/proc/" + strconv.Itoa(pid)
	for _, f := range []struct{ name, text string }{
		{"/setgroups", "deny"},
		{"/uid_map", fmt.Sprintf("0 %d 1\n", os.Geteuid())},
		{"/gid_map", fmt.Sprintf("0 %d 1\n", os.Getegid())},
	} {
		if err := os.WriteFile(dir+f.name, []byte(f.text), 0); err != nil {
			return thisHost().mapError(err)
		}
	}
	return nil
}

// mapsOwnIDs reports whether this process may map all ids of its namespace, as
// root of a container may with docker's default capabilities. CAP_SETFCAP is for
// mapping 0. Source: user_namespaces(7), "Linux 5.12".
func mapsOwnIDs() bool {
	return os.Geteuid() == 0 && hasCapabilities(unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETFCAP)
}

// writeOwnMaps maps every id of this namespace to itself.
func writeOwnMaps(pid int) error {
	for _, name := range []string{"uid_map", "gid_map"} {
		own, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, name), []byte(ownMap(string(own))), 0); err != nil {
			return thisHost().mapError(err)
		}
	}
	return nil
}

// allIDs is how many ids the initial namespace maps; programs take a namespace
// that maps as many for that one, and mount overlays as its root could.
const allIDs = "4294967295"

// ownMap turns a map of this namespace into one for a namespace below it.
// Source: user_namespaces(7): inside, outside, count.
func ownMap(own string) string {
	var b strings.Builder
	for line := range strings.Lines(own) {
		if f := strings.Fields(line); len(f) == 3 {
			if f[2] == allIDs {
				f[2] = "4294967294"
			}
			fmt.Fprintf(&b, "%s %s %s\n", f[0], f[0], f[2])
		}
	}
	return b.String()
}
