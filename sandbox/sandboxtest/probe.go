package sandboxtest

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

// loadAddress is where a probe is mapped.
const loadAddress = 0x400000

// probe is a static program that makes one system call with zeros for
// arguments and exits with its result, or the error's number.
func probe(t *testing.T, nr uint32) []byte {
	t.Helper()
	code, machine := probeCode(t, nr)
	const headers = 64 + 56
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a bytes.Buffer takes everything
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	put([]uint16{2, machine}) // ET_EXEC
	put(uint32(1))
	put([]uint64{loadAddress + headers, 64, 0})
	put(uint32(0))
	put([]uint16{64, 56, 1, 0, 0, 0})
	put([]uint32{1, 5}) // PT_LOAD, readable and executable
	size := uint64(headers + len(code))
	put([]uint64{0, loadAddress, loadAddress, size, size, 0x1000})
	b.Write(code)
	return b.Bytes()
}

func probeCode(t *testing.T, nr uint32) (code []byte, machine uint16) {
	t.Helper()
	switch runtime.GOARCH {
	case "amd64":
		code = append([]byte{0xb8}, binary.LittleEndian.AppendUint32(nil, nr)...) // mov eax, nr
		return append(code,
			0x31, 0xff, 0x31, 0xf6, 0x31, 0xd2, // xor edi, esi, edx
			0x0f, 0x05, 0x85, 0xc0, 0x79, 0x02, 0xf7, 0xd8, // syscall; test; jns; neg eax
			0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05), 62 // exit
	case "arm64":
		for _, i := range []uint32{0xd2800000, 0xd2800001, 0xd2800002, // x0, x1, x2 = 0
			0x52800008 | nr<<5, 0xd4000001, // w8 = nr; svc
			0xf100001f, 0xda80a400, // cmp x0, 0; cneg x0, x0, lt
			0x52800ba8, 0xd4000001} { // exit
			code = binary.LittleEndian.AppendUint32(code, i)
		}
		return code, 183
	}
	t.Fatalf("no probe for %s", runtime.GOARCH)
	return nil, 0
}

// runProbe returns what a system call gives to a user in the sandbox.
func (b bed) runProbe(nr uint32, mode os.FileMode, uid uint32) int {
	b.t.Helper()
	path := filepath.Join(b.rootfs, "bin", "probe")
	if err := os.WriteFile(path, probe(b.t, nr), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		b.t.Fatal(err)
	}
	return exitCode(b.runSpec(sandbox.Spec{Args: []string{"/bin/probe"}, User: sandbox.User{UID: uid, GID: uid}}).err)
}

func checkSetuid(b bed) {
	if got := b.runProbe(unix.SYS_GETEUID, 0o755, 7); got != 7 {
		b.t.Errorf("a plain program: got euid %d, want 7", got)
	}
	if got := b.runProbe(unix.SYS_GETEUID, 0o755|os.ModeSetuid, 7); got != 0 {
		b.t.Errorf("a setuid program: got euid %d, want 0", got)
	}
}

// checkSystemCalls has one system call of each kind.
func checkSystemCalls(b bed) {
	for name, c := range map[string]struct {
		nr   uint32
		want unix.Errno
	}{
		"newer than any kernel":           {999, unix.ENOSYS},
		"clone3, so that libc falls back": {unix.SYS_CLONE3, unix.ENOSYS},
		"unshare":                         {unix.SYS_UNSHARE, unix.EPERM},
		"bpf":                             {unix.SYS_BPF, unix.EPERM},
		"add_key":                         {unix.SYS_ADD_KEY, unix.EPERM},
		"mount_setattr":                   {unix.SYS_MOUNT_SETATTR, unix.EPERM},
		"getppid":                         {unix.SYS_GETPPID, 0},
		"openat2":                         {unix.SYS_OPENAT2, unix.EINVAL},
	} {
		if got := b.runProbe(c.nr, 0o755, 0); got != int(c.want) {
			b.t.Errorf("%s: got %d, want %d (%v)", name, got, int(c.want), c.want)
		}
	}
	// Known to the profile, and new enough to be missing in older ones.
	if got := b.runProbe(unix.SYS_FCHMODAT2, 0o755, 0); unix.Errno(got) == unix.EPERM {
		b.t.Errorf("fchmodat2: got %d, want what the kernel says", got)
	}
}
