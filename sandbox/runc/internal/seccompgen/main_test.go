package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/profiles/seccomp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func TestTheEmbeddedProfilesAreThisProgramsOutput(t *testing.T) {
	dir := t.TempDir()
	if err := run([]string{dir}); err != nil {
		t.Fatal(err)
	}
	for _, target := range targets {
		name := "profile_" + target.goarch + ".bpf"
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not up to date (%v): run go generate ./sandbox/runc", name, err)
		}
	}
}

// verdict runs a filter on one system call. The machine of x/net reads network
// byte order, so the words are laid out that way, low before high.
func verdict(t *testing.T, target target, audit, nr uint32, args ...uint64) uint32 {
	t.Helper()
	raw, err := compileTarget(target, seccomp.DefaultProfile())
	if err != nil {
		t.Fatal(err)
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter can't be read back")
	}
	for i, ins := range prog {
		if ret, ok := ins.(bpf.RetConstant); ok { // the machine returns an int
			prog[i] = ret
		}
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	words := make([]uint32, 16)
	words[0], words[1] = nr, audit
	for i, a := range args {
		words[4+2*i], words[5+2*i] = uint32(a), uint32(a>>32)
	}
	var data []byte
	for _, w := range words {
		data = binary.BigEndian.AppendUint32(data, w)
	}
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

func TestVerdicts(t *testing.T) {
	amd64, arm64 := targets[0], targets[1]
	const x64, i386, aarch64, arm = unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM
	for name, c := range map[string]struct {
		target    target
		audit, nr uint32
		args      []uint64
		want      uint32
	}{
		"read":                               {amd64, x64, 0, nil, allow},
		"read of x32":                        {amd64, x64, 0 | x32Bit, nil, allow},
		"an own call of x32":                 {amd64, x64, 514 | x32Bit, nil, allow},
		"kexec_load of x32":                  {amd64, x64, 528 | x32Bit, nil, denied},
		"unknown to x32":                     {amd64, x64, 999 | x32Bit, nil, unknownCall},
		"read of i386":                       {amd64, i386, 3, nil, allow},
		"socketcall of i386":                 {amd64, i386, 102, nil, allow},
		"mount of i386":                      {amd64, i386, 21, nil, denied},
		"mount":                              {amd64, x64, 165, nil, denied},
		"unshare":                            {amd64, x64, 272, nil, denied},
		"chroot, for which there is a right": {amd64, x64, 161, nil, allow},
		"clone of a thread":                  {amd64, x64, 56, []uint64{unix.CLONE_VM}, allow},
		"clone of a user namespace":          {amd64, x64, 56, []uint64{unix.CLONE_NEWUSER}, denied},
		"clone3":                             {amd64, x64, 435, nil, unknownCall},
		"personality as it is":               {amd64, x64, 135, []uint64{0xffffffff}, allow},
		"personality in 64 bits":             {amd64, x64, 135, []uint64{0x1_0000_0000}, denied},
		"personality without randomisation":  {amd64, x64, 135, []uint64{0x40000}, denied},
		"socket of IPv6":                     {amd64, x64, 41, []uint64{unix.AF_INET6}, allow},
		"socket of the unspecified family":   {amd64, x64, 41, []uint64{0}, allow},
		"socket to the hypervisor":           {amd64, x64, 41, []uint64{unix.AF_VSOCK}, denied},
		"a family with high bits":            {amd64, x64, 41, []uint64{1<<32 | unix.AF_INET}, denied},
		"newer than the profile":             {amd64, x64, 999, nil, unknownCall},
		"a hole in the table":                {amd64, x64, 400, nil, unknownCall},
		"a foreign architecture":             {amd64, aarch64, 0, nil, kill},
		"read of arm64":                      {arm64, aarch64, 63, nil, allow},
		"mount of arm64":                     {arm64, aarch64, 40, nil, denied},
		"newfstatat of arm64":                {arm64, aarch64, 79, nil, allow},
		"clone of a mount namespace, arm64":  {arm64, aarch64, 220, []uint64{unix.CLONE_NEWNS}, denied},
		"newer than the profile, arm64":      {arm64, aarch64, 999, nil, unknownCall},
		"set_tls of arm":                     {arm64, arm, 0xf0005, nil, allow},
		"newer than the profile, arm":        {arm64, arm, 500, nil, unknownCall},
	} {
		t.Run(name, func(t *testing.T) {
			if got := verdict(t, c.target, c.audit, c.nr, c.args...); got != c.want {
				t.Errorf("got %#x, want %#x", got, c.want)
			}
		})
	}
}
