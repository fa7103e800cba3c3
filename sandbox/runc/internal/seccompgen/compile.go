package main

import (
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The offsets in struct seccomp_data. Source: linux/seccomp.h.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

// maxInstructions is BPF_MAXINSNS, what the kernel takes in one filter.
const maxInstructions = 4096

// What a filter returns.
const (
	allow       = unix.SECCOMP_RET_ALLOW
	kill        = unix.SECCOMP_RET_KILL_PROCESS
	denied      = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	unknownCall = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// dockerCaps are the capabilities docker gives; the profile has rules for more.
var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD",
	"CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// rule is the verdict on one system call: verdict when there are no
// alternatives, else verdict if one of them holds and denied otherwise.
type rule struct {
	verdict      uint32
	alternatives [][]specs.LinuxSeccompArg
}

func (r rule) equal(o rule) bool {
	return r.alternatives == nil && o.alternatives == nil && r.verdict == o.verdict
}

// compileTarget returns the filter for one architecture with its foreign ABIs.
func compileTarget(t target, profile *seccomp.Seccomp) ([]bpf.RawInstruction, error) {
	var prog []bpf.Instruction
	for _, a := range t.abis {
		if a.x32 {
			continue // shares the audit arch of amd64 and is part of its tree
		}
		body, err := compileABIs(t, a.audit, profile)
		if err != nil {
			return nil, err
		}
		prog = append(prog, bpf.LoadAbsolute{Off: offsetArch, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: a.audit, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(body))})
		prog = append(prog, body...)
	}
	prog = append(prog, bpf.RetConstant{Val: kill})
	if len(prog) > maxInstructions {
		return nil, fmt.Errorf("%d instructions, the kernel takes %d", len(prog), maxInstructions)
	}
	return bpf.Assemble(prog)
}

// compileABIs returns the search tree over the numbers of all ABIs that share
// an audit arch. It ends in return instructions only.
func compileABIs(t target, audit uint32, profile *seccomp.Seccomp) ([]bpf.Instruction, error) {
	var ranges []span
	for _, a := range t.abis {
		if a.audit != audit {
			continue
		}
		table, err := a.numbers()
		if err != nil {
			return nil, err
		}
		rules, err := rulesFor(t.goarch, table, profile)
		if err != nil {
			return nil, err
		}
		base := uint32(0)
		if a.x32 {
			base = x32Bit
		}
		ranges = append(ranges, spans(base, table, rules)...)
	}
	body := tree(merge(ranges))
	return append([]bpf.Instruction{bpf.LoadAbsolute{Off: offsetNr, Size: 4}}, body...), nil
}

// rulesFor reads the rules of the profile that apply, by system call number.
func rulesFor(goarch string, table map[string]uint32, profile *seccomp.Seccomp) (map[uint32]rule, error) {
	rules := map[uint32]rule{}
	for _, call := range profile.Syscalls {
		if !applies(call, goarch) {
			markKnown(rules, table, call.Names)
			continue
		}
		verdict, err := verdictOf(call)
		if err != nil {
			return nil, err
		}
		for _, name := range call.Names {
			if nr, ok := table[name]; ok {
				rules[nr] = combine(rules[nr], verdict, call.Args)
			}
		}
	}
	return rules, nil
}

// markKnown notes calls that the profile names but does not allow here: they
// are forbidden, not unknown.
func markKnown(rules map[uint32]rule, table map[string]uint32, names []string) {
	for _, name := range names {
		if nr, ok := table[name]; ok && rules[nr].verdict == 0 {
			rules[nr] = rule{verdict: denied}
		}
	}
}

func combine(old rule, verdict uint32, args []specs.LinuxSeccompArg) rule {
	switch {
	case old.verdict != 0 && old.verdict != denied && old.alternatives == nil:
		return old // unconditional already
	case len(args) == 0:
		return rule{verdict: verdict}
	}
	return rule{verdict: verdict, alternatives: append(old.alternatives, args)}
}

func verdictOf(call *seccomp.Syscall) (uint32, error) {
	switch call.Action {
	case specs.ActAllow:
		return allow, nil
	case specs.ActErrno:
		errno := uint32(unix.EPERM)
		if call.ErrnoRet != nil {
			errno = uint32(*call.ErrnoRet)
		}
		return unix.SECCOMP_RET_ERRNO | errno, nil
	default:
		return 0, fmt.Errorf("action %s of %v is not supported", call.Action, call.Names)
	}
}

// applies reports whether a rule holds for docker's capabilities. All kernels
// from 5.11 on satisfy every MinKernel up to that.
func applies(call *seccomp.Syscall, goarch string) bool {
	if f := call.Excludes; f != nil {
		if slices.Contains(f.Arches, goarch) || slices.ContainsFunc(f.Caps, hasCap) || newEnough(f.MinKernel) {
			return false
		}
	}
	f := call.Includes
	if f == nil {
		return true
	}
	return (len(f.Arches) == 0 || slices.Contains(f.Arches, goarch)) &&
		!slices.ContainsFunc(f.Caps, func(c string) bool { return !hasCap(c) }) &&
		(f.MinKernel == nil || newEnough(f.MinKernel))
}

func hasCap(c string) bool { return slices.Contains(dockerCaps, c) }

func newEnough(v *seccomp.KernelVersion) bool {
	return v != nil && (v.Kernel < 5 || v.Kernel == 5 && v.Major <= 11)
}
