package runc

/*
#include "shim_linux.h"
*/
import "C"

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

// The order of shim_linux.h goes over in a memfd: pipes hold 64 KiB, an
// environment may be larger.

const (
	shimExe = C.MSTAGE_SHIM_EXE
	shimArg = C.MSTAGE_SHIM_ARG
)

// defaultPath is where a command is looked up when Env has no PATH.
// Source: docker's default for images without one.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// What StartError.Code says. Source: POSIX.1-2017, XCU 2.8.2.
const (
	codeNotFound      = 127
	codeNotExecutable = 126
)

// order is what the shim is to do.
type order struct {
	spec       sandbox.Spec
	setGroups  bool
	chownStdio uint32 // bit n: descriptor n is a pipe or terminal made for this command
}

func (o order) file() (*os.File, error) {
	fd, err := unix.MemfdCreate("mstage-order", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make order for sandbox: %w", err)
	}
	f := os.NewFile(uintptr(fd), "mstage-order")
	if _, err := f.Write(o.encode()); err != nil {
		f.Close()
		return nil, fmt.Errorf("write order for sandbox: %w", err)
	}
	return f, nil
}

func (o order) encode() []byte {
	s := o.spec
	setGroups := uint32(0)
	if o.setGroups {
		setGroups = 1
	}
	var b bytes.Buffer
	put := func(v uint32) { b.Write(binary.NativeEndian.AppendUint32(nil, v)) }
	for _, v := range []uint32{
		s.User.UID, s.User.GID, setGroups, uint32(len(s.User.Groups)), o.chownStdio,
		uint32(len(seccompProfile) / filterSize), uint32(len(s.Args)), uint32(len(s.Env)),
	} {
		put(v)
	}
	for _, g := range s.User.Groups {
		put(g)
	}
	b.Write(seccompProfile)
	for _, list := range [][]string{{s.Dir, pathOf(s.Env)}, s.Args, s.Env} {
		for _, v := range list {
			b.WriteString(v)
			b.WriteByte(0)
		}
	}
	return b.Bytes()
}

func pathOf(env []string) string {
	path := defaultPath
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	return path
}

// readStatus returns nil when the shim executed the command (its end was
// closed by that), else why it did not.
func readStatus(r io.Reader, s sandbox.Spec) error {
	var status [8]byte
	_, err := io.ReadFull(r, status[:])
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read status of sandbox: %w", err)
	}
	step := binary.NativeEndian.Uint32(status[:4])
	return shimError(step, syscall.Errno(binary.NativeEndian.Uint32(status[4:])), s)
}

func shimError(step uint32, errno syscall.Errno, s sandbox.Spec) error {
	switch step {
	case C.MSTAGE_SHIM_EXEC:
		return execError(errno, s.Args[0])
	case C.MSTAGE_SHIM_CHDIR:
		return startError(codeNotFound, "working directory %q: %w", s.Dir, errno)
	case C.MSTAGE_SHIM_USER:
		return startError(codeNotExecutable, "become user %d:%d: %w", s.User.UID, s.User.GID, errno)
	case C.MSTAGE_SHIM_SECCOMP:
		return fmt.Errorf("load seccomp filter: %w", errno)
	}
	return fmt.Errorf("set sandbox up, step %d: %w", step, errno)
}

// execError has the words of docker's messages.
func execError(errno syscall.Errno, name string) error {
	switch {
	case errno == unix.ENOENT && !strings.Contains(name, "/"):
		return startError(codeNotFound, "exec: %q: executable file not found in $PATH", name)
	case errno == unix.ELIBACC: // the shim's word for a file that is there
		return startError(codeNotFound, "exec %q: its interpreter or loader is missing: %w", name, unix.ENOENT)
	case errno == unix.ENOENT || errno == unix.ENOTDIR:
		return startError(codeNotFound, "exec: %q: %w", name, errno)
	}
	return startError(codeNotExecutable, "exec: %q: %w", name, errno)
}

func startError(code int, format string, args ...any) error {
	return &sandbox.StartError{Code: code, Err: fmt.Errorf(format, args...)}
}
