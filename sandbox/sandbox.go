// Package sandbox describes one command to isolate and its outcome.
//
// sandbox/runc implements Runner with libcontainer; sandbox/netstack
// implements Network with a user-mode TCP/IP stack. sandbox/sandboxtest holds
// them, and the fake for the engine's own tests, to this contract.
package sandbox

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
)

// NetworkMode says what a sandbox can reach.
type NetworkMode string

// The network modes. The zero value is NetworkDefault.
const (
	NetworkDefault NetworkMode = "default" // user-mode network: the outside, but not this host's loopback
	NetworkNone    NetworkMode = "none"    // an own loopback only
	NetworkHost    NetworkMode = "host"    // the host's network as it is
)

// User is who runs the command, as numbers; the engine looks names up.
type User struct {
	UID, GID uint32
	// Groups are the supplementary groups; GID is one of them only if it is listed.
	Groups []uint32
}

// MountType says how a Mount gets its content.
type MountType string

// The mount types.
const (
	MountBind  MountType = "bind"  // Source is a host directory or file, mounted recursively
	MountTmpfs MountType = "tmpfs" // an empty tmpfs with SizeBytes, Mode
)

// Mount is one extra mount in the sandbox, in the order they are made.
type Mount struct {
	Type   MountType
	Source string // absolute path on the host; bind only
	Target string // absolute path in the rootfs; the mount point exists, or is made
	// ReadOnly applies to submounts too.
	ReadOnly  bool
	SizeBytes int64  // tmpfs: 0 is the kernel's default
	Mode      uint32 // tmpfs: permission bits, 0 is 1777
}

// Ulimit is one resource limit, in the units of setrlimit(2). -1 is unlimited.
type Ulimit struct {
	Name       string // docker's names: nofile, nproc, core, …
	Soft, Hard int64
}

// HostEntry is one line of /etc/hosts.
type HostEntry struct {
	Name string
	Addr netip.Addr
}

// Terminal asks for a pseudo-terminal instead of three streams.
type Terminal struct {
	Rows, Columns uint16
	// Resize delivers later sizes {rows, columns}; nil for none.
	Resize <-chan [2]uint16
}

// Spec is one command to isolate.
type Spec struct {
	// Rootfs is the mounted root file system: an absolute host directory.
	Rootfs string
	Args   []string // argv; Args[0] is looked up in Env's PATH inside the rootfs
	Env    []string // complete: nothing is added
	Dir    string   // working directory: absolute; root's, 0755, when it has to be made
	User   User
	// Hostname is also in /etc/hosts. Zero: "mstage".
	Hostname string
	// Hosts are extra lines of /etc/hosts.
	Hosts    []HostEntry
	Mounts   []Mount
	Network  NetworkMode
	ShmBytes int64 // of /dev/shm; 0 is 64 MiB
	Ulimits  []Ulimit
	// Terminal nil: the three streams. A nil Stdin is /dev/null.
	Terminal       *Terminal
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Runner runs commands, any number at a time.
type Runner interface {
	// Run returns nil when the command exits with 0, *ExitError when it ran and
	// failed, *StartError when it could not be started for a reason that lies
	// in the Spec or the image (no such file, not executable), and
	// context.Cause(ctx) after a cancel, when everything in the sandbox is dead.
	// All output was written when Run returns.
	Run(ctx context.Context, s Spec) error
}

// MountPoints are the paths that a Runner mounts in every rootfs besides
// Spec.Mounts. A path that ends with "/" is a directory.
func MountPoints() []string {
	return []string{"/proc/", "/sys/", "/dev/", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
}

// ExitError says that the command ran and did not exit with 0.
type ExitError struct {
	// Code is the exit code, or 128 + the signal's number.
	Code int
	// Signal is the number of the signal that ended the command, 0 for none.
	Signal int
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("killed by signal %d", e.Signal)
	}
	return fmt.Sprintf("exit code: %d", e.Code)
}

// StartError says that the command could not be started. Code is 127 when it
// was not found and 126 when it can't be executed, as shells have it.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// Network connects a network namespace to the outside.
type Network interface {
	// Attach configures interfaces, addresses and routes in netns (an open
	// /proc/PID/ns/net; it stays the caller's) and serves them until Close.
	Attach(ctx context.Context, netns *os.File) (Attachment, error)
}

// Attachment is one connected network namespace.
type Attachment interface {
	// Nameservers are for the sandbox's resolv.conf.
	Nameservers() []netip.Addr
	Close() error
}
