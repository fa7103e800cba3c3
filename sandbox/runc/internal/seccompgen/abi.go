package main

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// x32Bit marks the system calls of the x32 ABI. Source: asm/unistd.h.
const x32Bit = 0x40000000

// abi is one calling convention that a kernel serves.
type abi struct {
	audit uint32 // AUDIT_ARCH_…, as seccomp_data.arch has it
	name  string // as the profile's filters have it
	table string // GOARCH of the table in x/sys
	x32   bool
}

// target is one architecture this program is built for, with the foreign ABIs
// that docker's profile lists below it (archMap).
type target struct {
	goarch string // the native one, as the profile's filters have it
	abis   []abi
}

var targets = []target{
	{"amd64", []abi{
		{audit: unix.AUDIT_ARCH_X86_64, name: "amd64", table: "amd64"},
		{audit: unix.AUDIT_ARCH_X86_64, name: "x32", table: "amd64", x32: true},
		{audit: unix.AUDIT_ARCH_I386, name: "x86", table: "386"},
	}},
	{"arm64", []abi{
		{audit: unix.AUDIT_ARCH_AARCH64, name: "arm64", table: "arm64"},
		{audit: unix.AUDIT_ARCH_ARM, name: "arm", table: "arm"},
	}},
}

// x32Own are the system calls that have a number of their own in x32.
// Source: arch/x86/entry/syscalls/syscall_64.tbl, 512 and up.
var x32Own = []string{
	"rt_sigaction", "rt_sigreturn", "ioctl", "readv", "writev", "recvfrom",
	"sendmsg", "recvmsg", "execve", "ptrace", "rt_sigpending", "rt_sigtimedwait",
	"rt_sigqueueinfo", "sigaltstack", "timer_create", "mq_notify", "kexec_load",
	"waitid", "set_robust_list", "get_robust_list", "vmsplice", "move_pages",
	"preadv", "pwritev", "rt_tgsigqueueinfo", "recvmmsg", "sendmmsg",
	"process_vm_readv", "process_vm_writev", "setsockopt", "getsockopt",
	"io_setup", "io_submit", "execveat", "preadv2", "pwritev2",
}

const x32First = 512

// armPrivate are ARM's own calls, which x/sys does not list.
// Source: arch/arm/include/uapi/asm/unistd.h, __ARM_NR_BASE.
var armPrivate = map[string]uint32{
	"breakpoint": 0xf0001, "cacheflush": 0xf0002, "usr26": 0xf0003,
	"usr32": 0xf0004, "set_tls": 0xf0005, "get_tls": 0xf0006,
}

// aliases are names of the profile for what x/sys names otherwise.
var aliases = map[string]map[string]string{
	"arm64": {"fstatat": "newfstatat"},
	"arm":   {"arm_sync_file_range": "sync_file_range2"},
}

// numbers returns the system calls of an ABI by name.
func (a abi) numbers() (map[string]uint32, error) {
	table, err := readTable(a.table)
	if err != nil {
		return nil, err
	}
	for from, to := range aliases[a.table] {
		if nr, ok := table[from]; ok {
			table[to] = nr
		}
	}
	switch {
	case a.x32:
		return x32Table(table), nil
	case a.table == "arm":
		maps.Copy(table, armPrivate)
	}
	return table, nil
}

func x32Table(amd64 map[string]uint32) map[string]uint32 {
	table := make(map[string]uint32, len(amd64))
	for name, nr := range amd64 {
		table[name] = nr | x32Bit
	}
	for i, name := range x32Own {
		table[name] = uint32(x32First+i) | x32Bit
	}
	return table
}

// readTable reads the SYS_… constants from the source of x/sys/unix.
func readTable(goarch string) (map[string]uint32, error) {
	pkg, err := build.Import("golang.org/x/sys/unix", ".", build.FindOnly)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(pkg.Dir, "zsysnum_linux_"+goarch+".go")
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		return nil, err
	}
	table := map[string]uint32{}
	for _, d := range file.Decls {
		consts, ok := d.(*ast.GenDecl)
		if !ok || consts.Tok != token.CONST {
			continue
		}
		for _, s := range consts.Specs {
			if err := addConst(table, s.(*ast.ValueSpec)); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return table, nil
}

func addConst(table map[string]uint32, s *ast.ValueSpec) error {
	name, ok := strings.CutPrefix(s.Names[0].Name, "SYS_")
	lit, isLit := s.Values[0].(*ast.BasicLit)
	if !ok || !isLit {
		return nil
	}
	nr, err := strconv.ParseUint(lit.Value, 0, 32)
	table[strings.ToLower(name)] = uint32(nr)
	return err
}
