package main

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// maxSkip is the reach of a conditional jump, in instructions.
const maxSkip = 255

// firstPrivate is above the numbers that all architectures share from 424 on; what
// x32 and ARM have beyond it says nothing about the profile's age.
const firstPrivate = 512

// span is a rule for the numbers from first up to the next span's first.
type span struct {
	first uint32
	rule  rule
}

// spans covers the numbers from base on. A number up to the last one that the
// profile names is allowed or denied; one that this ABI does not have, or that
// is newer than the profile, does not exist as far as a program can see, so
// that C libraries fall back to older calls.
func spans(base uint32, table map[string]uint32, rules map[uint32]rule) []span {
	known := map[uint32]rule{}
	last := base
	for nr := range rules {
		if nr-base < firstPrivate {
			last = max(last, nr)
		}
	}
	for _, nr := range table {
		if r, ok := rules[nr]; ok {
			known[nr] = r
		} else if nr <= last || nr-base >= firstPrivate {
			known[nr] = rule{verdict: denied}
		}
	}
	out := []span{{base, rule{verdict: unknownCall}}}
	for _, nr := range slices.Sorted(maps.Keys(known)) {
		if out[len(out)-1].first == nr {
			out[len(out)-1].rule = known[nr]
		} else {
			out = append(out, span{nr, known[nr]})
		}
		out = append(out, span{nr + 1, rule{verdict: unknownCall}})
	}
	return out
}

// merge sorts spans and joins neighbours with the same verdict; the last span
// that starts at a number counts.
func merge(in []span) []span {
	slices.SortStableFunc(in, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	var starts []span
	for _, s := range in {
		if n := len(starts); n > 0 && starts[n-1].first == s.first {
			starts[n-1] = s
			continue
		}
		starts = append(starts, s)
	}
	return slices.CompactFunc(starts, func(a, b span) bool { return a.rule.equal(b.rule) })
}

// tree is a binary search for the span of the loaded number. Both branches end
// in returns, so the right one can stand behind the left one.
func tree(s []span) []bpf.Instruction {
	if len(s) == 1 {
		return s[0].rule.code()
	}
	mid := len(s) / 2
	left, right := tree(s[:mid]), tree(s[mid:])
	var node []bpf.Instruction
	if len(left) <= maxSkip {
		node = []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: s[mid].first, SkipTrue: uint8(len(left))}}
	} else {
		node = []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: s[mid].first, SkipFalse: 1},
			bpf.Jump{Skip: uint32(len(left))},
		}
	}
	return slices.Concat(node, left, right)
}

// code returns the verdict. An alternative that fails leads to the next one.
func (r rule) code() []bpf.Instruction {
	if r.alternatives == nil {
		return []bpf.Instruction{bpf.RetConstant{Val: r.verdict}}
	}
	var prog []bpf.Instruction
	for _, args := range r.alternatives {
		checks := []bpf.Instruction{bpf.RetConstant{Val: r.verdict}}
		for _, arg := range slices.Backward(args) {
			checks = append(check(arg, len(checks)), checks...)
		}
		prog = append(prog, checks...)
	}
	return append(prog, bpf.RetConstant{Val: denied})
}

// check compares one argument, 64 bits in two words, and skips the next n
// instructions when it does not hold. Source: runtime-spec, "Seccomp", op.
func check(a specs.LinuxSeccompArg, n int) []bpf.Instruction {
	low, high := uint32(offsetArgs+8*a.Index), uint32(offsetArgs+8*a.Index+4)
	skip := uint8(n)
	switch a.Op {
	case specs.OpEqualTo:
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: high, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.Value >> 32), SkipFalse: skip + 2},
			bpf.LoadAbsolute{Off: low, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.Value), SkipFalse: skip},
		}
	case specs.OpMaskedEqual:
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: high, Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(a.Value >> 32)},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.ValueTwo >> 32), SkipFalse: skip + 3},
			bpf.LoadAbsolute{Off: low, Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(a.Value)},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.ValueTwo), SkipFalse: skip},
		}
	case specs.OpLessThan:
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: high, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(a.Value >> 32), SkipTrue: 3},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(a.Value >> 32), SkipFalse: skip + 2},
			bpf.LoadAbsolute{Off: low, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(a.Value), SkipFalse: skip},
		}
	case specs.OpNotEqual, specs.OpLessEqual, specs.OpGreaterEqual, specs.OpGreaterThan:
	}
	panic("seccompgen: the profile has a new kind of comparison: " + string(a.Op))
}
