package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// haveMountSetattr reports whether the kernel can make a mount and all below it
// read-only at once: mount_setattr(2), Linux 5.12. A variable for tests.
var haveMountSetattr = sync.OnceValue(func() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	return !errors.Is(err, unix.ENOSYS)
})

// bindReadOnly is a read-only bind mount. MS_RDONLY does not reach submounts:
// where the kernel has no call that does, a source with some is refused.
func bindReadOnly(source, target string) (*configs.Mount, error) {
	m := bind(source, target)
	m.Flags |= unix.MS_RDONLY
	if haveMountSetattr() {
		m.RecAttr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		return m, nil
	}
	below, err := mountsBelow(source)
	if err != nil {
		return nil, err
	}
	if len(below) > 0 {
		return nil, startError(codeNotExecutable, "mount %s: %s is a mount below the source, and read-only with it only on Linux 5.12 or later", target, below[0])
	}
	return m, nil
}

// readOnlyTree adds attributes to a mount and all below it. Before Linux 5.12
// one by one.
func readOnlyTree(dir string, attributes uint64, flags uintptr) error {
	if haveMountSetattr() {
		return unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attributes})
	}
	below, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range append([]string{dir}, below...) {
		if err := remountReadOnly(m, flags); err != nil {
			return fmt.Errorf("remount %s: %w", m, err)
		}
	}
	return nil
}

// mountsBelow lists the mount points below dir, without dir. Source: proc(5),
// mountinfo; a path has octal escapes for white space and backslashes.
func mountsBelow(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var below []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescape.Replace(fields[4]); strings.HasPrefix(point, strings.TrimSuffix(dir, "/")+"/") {
			below = append(below, point)
		}
	}
	return below, nil
}
