// Package layertar converts between a layer's tar stream and a diff directory
// in overlay format.
//
// A diff directory is what overlayfs mounts as a lower layer: whiteouts are
// character devices 0:0, opaque directories carry user.overlay.opaque=y (the
// mounts use userxattr). Unpack reads tars from outside and trusts nothing in
// them; Write makes the same bytes from the same directory every time.
//
// Source: OCI image-spec v1.1, layer.md; kernel Documentation/filesystems/overlayfs.
package layertar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"github.com/mstage/mstage/storage"
)

// The limits of Unpack when UnpackOptions leaves them zero.
const (
	// DefaultMaxEntries is the number of tar entries. The largest public images
	// have about a million files; each costs an inode.
	DefaultMaxEntries = 4_000_000
	// DefaultMaxBytes bounds the uncompressed stream and the sum of the file
	// sizes, which sparse entries can declare without any data.
	DefaultMaxBytes = 1 << 40
	// DefaultMaxRatio is the uncompressed bytes for each compressed byte.
	// DEFLATE can't pass 1032, so only a zstd, xz or bzip2 bomb meets it.
	DefaultMaxRatio = 1100
)

const (
	// ratioSlackBytes may come out before the ratio is looked at: small inputs
	// of zeros compress better than any ratio worth refusing.
	ratioSlackBytes = 1 << 30
	// maxPathBytes is the kernel's PATH_MAX without the terminating zero.
	maxPathBytes = 4095
	// maxXattrValueBytes is the kernel's XATTR_SIZE_MAX.
	maxXattrValueBytes = 64 << 10
	// maxXattrNameBytes is the kernel's XATTR_NAME_MAX.
	maxXattrNameBytes = 255
	// maxXattrsPerEntry is more than the kernel's XATTR_LIST_MAX of 64 KiB
	// leaves room for in practice.
	maxXattrsPerEntry = 1000
	// maxReported bounds the lists of a Result, so that a hostile tar can't
	// fill the memory with reports.
	maxReported = 1000
)

// ErrLimit is wrapped by every error that says a limit was passed.
var ErrLimit = errors.New("over the limit")

// tarFaults are what the kernel says to names that no tar of a layer should have.
var tarFaults = []syscall.Errno{
	syscall.ENAMETOOLONG, syscall.ENOTDIR, syscall.ELOOP, syscall.EEXIST, syscall.EISDIR, syscall.ENOTEMPTY,
}

// Damaged reports whether an error of reading a tar lies in the tar, not in this
// host, nor in the end of a context.
func Damaged(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	number, ok := errors.AsType[syscall.Errno](err)
	return !ok || slices.Contains(tarFaults, number)
}

// OwnerError is a chown that the kernel refused: the user namespace has no
// such ID, or the process may not change owners at all.
type OwnerError struct {
	Path     string // slash separated from the layer's root
	UID, GID int
	Err      error // the kernel's answer, EINVAL or EPERM
}

// Error names the path and the owner.
func (e *OwnerError) Error() string {
	return fmt.Sprintf("chown %s to %d:%d: %v", e.Path, e.UID, e.GID, e.Err)
}

// Unwrap returns the kernel's answer.
func (e *OwnerError) Unwrap() error { return e.Err }

// HostHint says how the host can be mended.
func (e *OwnerError) HostHint() string {
	return "the IDs mapped for this user do not reach it; `mstage doctor` says how to get a range"
}

// Device is a device node that could not be made and is kept as an empty
// regular file with its type and numbers in an extended attribute. Write
// turns it into a device entry again.
type Device struct {
	Path         string
	Char         bool // else a block device
	Major, Minor uint32
}

// Skip is something that was left out, and why.
type Skip struct {
	Path   string
	Reason string
}

// Result tells what Unpack read or Write wrote.
type Result struct {
	// DiffID is the digest of the uncompressed tar stream up to its end.
	DiffID storage.Digest
	// SizeBytes is the sum of the regular files' sizes, each inode once.
	SizeBytes int64
	// TarBytes is the length of the uncompressed tar stream.
	TarBytes int64
	// Entries counts the tar's entries.
	Entries int
	// Devices are the placeholders that Unpack made, the first 1000 of them.
	Devices []Device
	// Skipped is what tar or the file system has no place for, the first 1000.
	Skipped []Skip
	// Unreported counts what Devices and Skipped had no room for.
	Unreported int
}

// addDevice reports a placeholder.
func (r *Result) addDevice(d Device) {
	if len(r.Devices) == maxReported {
		r.Unreported++
		return
	}
	r.Devices = append(r.Devices, d)
}

// skip reports something left out.
func (r *Result) skip(path, reason string) {
	if len(r.Skipped) == maxReported {
		r.Unreported++
		return
	}
	r.Skipped = append(r.Skipped, Skip{Path: path, Reason: reason})
}

// ctxReader makes reads end with the context's cause.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// ctxWriter makes writes end with the context's cause.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c ctxWriter) Write(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.w.Write(p)
}
