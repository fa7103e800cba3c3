package chainfs

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/tree"
)

// DeviceXattr marks an empty regular file that stands for a device node which
// could not be made: its value is "c MAJOR MINOR" or "b MAJOR MINOR".
// storage/layertar writes and exports the same.
const DeviceXattr = "user.mstage.device"

// maxDeviceValue holds the longest DeviceXattr value, in bytes.
const maxDeviceValue = 32

// DeviceValue returns the attribute's value for a device node's entry.
func DeviceValue(e tree.Entry) string {
	kind := 'b'
	if e.Type() == unix.S_IFCHR {
		kind = 'c'
	}
	return fmt.Sprintf("%c %d %d", kind, unix.Major(e.Rdev), unix.Minor(e.Rdev))
}

// asDevice turns the entry of a placeholder into that of its device. Anything
// else, also a file whose attribute makes no sense, stays what it is.
func asDevice(dirfd int, name string, e *tree.Entry) {
	if !e.IsRegular() || e.Size != 0 {
		return
	}
	fd, err := openBeneath(dirfd, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	value := make([]byte, maxDeviceValue)
	n, err := unix.Fgetxattr(fd, DeviceXattr, value)
	if err != nil {
		return
	}
	var kind rune
	var major, minor uint32
	if _, err := fmt.Sscanf(string(value[:n]), "%c %d %d", &kind, &major, &minor); err != nil {
		return
	}
	types := map[rune]uint32{'c': unix.S_IFCHR, 'b': unix.S_IFBLK}
	if typ, ok := types[kind]; ok {
		e.Mode = e.Mode&^tree.TypeMask | typ
		e.Rdev = unix.Mkdev(major, minor)
	}
}
