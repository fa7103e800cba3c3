package integration

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"runtime"
)

// systemCallProgram returns a static program that makes one system call, with
// zeros and whatever else as arguments, and exits with its errno. It needs
// nothing in the image and no compiler on the host.
func systemCallProgram(number uint16) ([]byte, error) {
	var code []byte
	var machine elf.Machine
	switch runtime.GOARCH {
	case "amd64":
		machine = elf.EM_X86_64
		code = []byte{
			0x31, 0xff, // xor edi, edi
			0x31, 0xf6, // xor esi, esi
			0x31, 0xd2, // xor edx, edx
			0x4d, 0x31, 0xd2, // xor r10, r10
			0xb8, byte(number), byte(number >> 8), 0, 0, // mov eax, number
			0x0f, 0x05, // syscall
			0xf7, 0xd8, // neg eax
			0x89, 0xc7, // mov edi, eax
			0xb8, 60, 0, 0, 0, // mov eax, exit
			0x0f, 0x05, // syscall
		}
	case "arm64":
		machine = elf.EM_AARCH64
		for _, word := range []uint32{
			0xd2800000,                     // mov x0, #0
			0xd2800001,                     // mov x1, #0
			0xd2800002,                     // mov x2, #0
			0xd2800003,                     // mov x3, #0
			0xd2800008 | uint32(number)<<5, // mov x8, #number
			0xd4000001,                     // svc #0
			0xcb0003e0,                     // neg x0, x0
			0xd2800ba8,                     // mov x8, #exit
			0xd4000001,                     // svc #0
		} {
			code = binary.LittleEndian.AppendUint32(code, word)
		}
	default:
		return nil, fmt.Errorf("no machine code for %s", runtime.GOARCH)
	}
	return executable(machine, code)
}

// executable wraps machine code in an ELF file with one segment.
func executable(machine elf.Machine, code []byte) ([]byte, error) {
	const (
		address = 0x400000
		headers = 64 + 56 // of an ELF64 file and of one program header
		page    = 0x1000
	)
	size := uint64(headers + len(code))
	file := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Entry: address + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	segment := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: address, Paddr: address, Filesz: size, Memsz: size, Align: page,
	}
	var b bytes.Buffer
	for _, part := range []any{file, segment, code} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}
