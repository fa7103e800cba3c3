package layertar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// xattrCapability holds a file's capabilities.
	xattrCapability = "security.capability"
	// xattrOverlay begins overlayfs' own attributes under userxattr.
	xattrOverlay = "user.overlay."
	// xattrOpaque marks a directory that hides the ones below.
	xattrOpaque = xattrOverlay + "opaque"
	// xattrRedirect marks a directory whose lower part has another name.
	xattrRedirect = xattrOverlay + "redirect"
	// xattrMstage begins the attributes that are ours.
	xattrMstage = "user.mstage."
	// xattrDevice marks a placeholder: "c 1 3" or "b 8 0".
	xattrDevice = xattrMstage + "device"
	// paxXattr begins an extended attribute's PAX key.
	paxXattr = "SCHILY.xattr."
)

// isContent reports whether an attribute belongs to the layer's content:
// capabilities and user.*, without what overlayfs and mstage keep there.
// Labels of the host (security.selinux) and trusted.* stay on the host.
func isContent(name string) bool {
	if strings.HasPrefix(name, xattrOverlay) || strings.HasPrefix(name, xattrMstage) {
		return false
	}
	return name == xattrCapability || strings.HasPrefix(name, "user.")
}

// The layout of security.capability. Source: linux/capability.h, vfs_cap_data
// and vfs_ns_cap_data.
const (
	capRevisionMask = 0xff000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capBytes2       = 20
	capBytes3       = 24
)

// portableCapability returns a capability value without the root ID of the
// namespace it was made in (revision 3), which means nothing elsewhere.
func portableCapability(v []byte) []byte {
	if len(v) != capBytes3 || binary.LittleEndian.Uint32(v)&capRevisionMask != capRevision3 {
		return v
	}
	magic := binary.LittleEndian.Uint32(v)&^uint32(capRevisionMask) | capRevision2
	out := bytes.Clone(v[:capBytes2])
	binary.LittleEndian.PutUint32(out, magic)
	return out
}

// tarXattrs returns the content attributes of a tar entry, and the sorted names
// of the others.
func tarXattrs(pax map[string]string) (content map[string][]byte, others []string, err error) {
	for key, value := range pax {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if !isContent(name) {
			others = append(others, name)
			continue
		}
		if len(name) > maxXattrNameBytes || len(value) > maxXattrValueBytes || len(content) == maxXattrsPerEntry {
			return nil, nil, fmt.Errorf("extended attribute %.40q of %d bytes: %w", name, len(value), ErrLimit)
		}
		if content == nil {
			content = map[string][]byte{}
		}
		content[name] = []byte(value)
	}
	if v, ok := content[xattrCapability]; ok {
		content[xattrCapability] = portableCapability(v)
	}
	slices.Sort(others)
	return content, others, nil
}

// setXattrs puts attributes on an open file or directory, in a fixed order.
func setXattrs(fd int, xattrs map[string][]byte) error {
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		if err := unix.Fsetxattr(fd, name, xattrs[name], 0); err != nil {
			return fmt.Errorf("set extended attribute %q: %w", name, err)
		}
	}
	return nil
}

// attributes is what an inode of a diff directory carries.
type attributes struct {
	content  map[string][]byte
	opaque   bool
	device   string // a placeholder's xattrDevice
	redirect bool
}

// readAttributes returns the attributes of an open file or directory.
func readAttributes(fd int) (attributes, error) {
	var a attributes
	names, err := listXattrs(fd)
	if err != nil {
		return a, fmt.Errorf("list extended attributes: %w", err)
	}
	for _, name := range names {
		ours := name == xattrOpaque || name == xattrDevice
		a.redirect = a.redirect || name == xattrRedirect
		if !ours && !isContent(name) {
			continue
		}
		value, err := getXattr(fd, name)
		if errors.Is(err, unix.ENODATA) {
			continue // capabilities of a namespace that is not ours
		}
		if err != nil {
			return a, fmt.Errorf("read extended attribute %q: %w", name, err)
		}
		a.add(name, value)
	}
	return a, nil
}

// add files one attribute.
func (a *attributes) add(name string, value []byte) {
	switch name {
	case xattrOpaque:
		a.opaque = string(value) == "y"
	case xattrDevice:
		a.device = string(value)
	default:
		if a.content == nil {
			a.content = map[string][]byte{}
		}
		if name == xattrCapability {
			value = portableCapability(value)
		}
		a.content[name] = value
	}
}

// xattrBufBytes holds nearly every list and value, which saves a system call to
// ask for the size.
const xattrBufBytes = 512

// listXattrs returns the names of an open file's attributes.
func listXattrs(fd int) ([]string, error) {
	list, err := sized(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
	if errors.Is(err, unix.ENOTSUP) || (err == nil && len(list) == 0) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00"), nil
}

// getXattr returns the value of an open file's attribute.
func getXattr(fd int, name string) ([]byte, error) {
	return sized(func(buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) })
}

// sized calls get with a small buffer, and once more with the largest that the
// kernel fills when that was too small.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, xattrBufBytes)
	n, err := get(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, maxXattrValueBytes)
		n, err = get(buf)
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
